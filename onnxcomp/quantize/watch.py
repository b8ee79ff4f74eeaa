"""What of a tensor counts for its range: behind an Add, a Relu may cut most of its negative part off.

Where y = Relu(a + b), the result is the same for every a below -b. So max(a, -max(b, 0)) stands for a: its range is
never wider than that of a and 0, and no value outside it changes y: a clipped a still leaves the sum at 0 or below,
also where b is clipped the same way, since ranges hold 0. (Plain max(a, -b) would count a strongly negative b as a
large a.) The residual Adds of a ResNet are of this form; the branch's negative tail costs up to half of its range.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxcomp.graph.edit import unique_name
from onnxcomp.graph.sites import is_default_domain
from onnxcomp.quantize.rules import guaranteed

__all__ = ["watched"]


def watched(model: ir.Model, tensors: Iterable[str]) -> tuple[ir.Model, dict[str, str]]:
    """Return a model in which to watch tensors, and for each the name of the tensor to watch in its place.

    The model is `model` itself or a clone of it with a few nodes more.
    """
    names = {name: name for name in tensors}
    values = _values(model)
    partners = {name: other for name in names if (other := _partner(values[name])) is not None}
    if not partners:
        return model, names
    copy = model.clone()
    values = _values(copy)
    for name, other in partners.items():
        value = values[name]
        adder = next(user for user, _ in value.uses())
        positive = ir.node("Relu", [values[other]])
        negated = ir.node("Neg", [positive.outputs[0]])
        counting = ir.node("Max", [value, negated.outputs[0]])
        for node in (positive, negated, counting):
            node.outputs[0].name = unique_name(copy.graph, f"{name}.{node.op_type}")
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
        copy.graph.insert_before(adder, [positive, negated, counting])
        names[name] = counting.outputs[0].name or name
    return copy, names


def _values(model: ir.Model) -> dict[str | None, ir.Value]:
    return {v.name: v for v in (*model.graph.inputs, *(out for node in model.graph for out in node.outputs))}


def _partner(value: ir.Value) -> str | None:
    """The tensor that is added to `value` right before a Relu, if nothing else reads `value`."""
    adder = _only_reader(value)
    if adder is None or not is_default_domain(adder, "Add"):
        return None
    activation = _only_reader(adder.outputs[0])
    if activation is None or not is_default_domain(activation, "Relu", "Clip"):
        return None
    limits = guaranteed(activation)
    if limits is None or limits.low != 0.0:
        return None
    other = adder.inputs[1] if adder.inputs[0] is value else adder.inputs[0]
    # Broadcasting would count a value once for every place it goes to.
    same = other is not None and value.shape is not None and value.shape == other.shape
    return other.name if same and other is not None else None


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0][0].graph is not value.graph:
        return None
    return uses[0][0]
