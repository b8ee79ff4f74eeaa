"""What of a tensor counts for its range: behind an Add, a Relu may cut most of its negative part off.

Where y = Relu(a + b), the result is the same for every a below -b. So max(a, -max(b, 0)) stands for a: its range is
never wider than that of a and 0, and no value outside it changes y: a clipped a still leaves the sum at 0 or below,
also where b is clipped the same way, since ranges hold 0. (Plain max(a, -b) would count a strongly negative b as a
large a.) The residual Adds of a ResNet are of this form; the branch's negative tail costs up to half of its range.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxcomp.graph.edit import unique_name
from onnxcomp.quantize.placement import Plan

__all__ = ["watched"]


def watched(model: ir.Model, plan: Plan) -> tuple[ir.Model, dict[str, str]]:
    """Return a model in which to watch the plan's roots, and the name of the tensor to watch for each root.

    The model is `model` itself or a clone of it with a few nodes more.
    """
    names = {root: root for root in plan.roots}
    partners = {root: other for root in plan.roots if (other := _partner(plan, root)) is not None}
    if not partners:
        return model, names
    copy = model.clone()
    values = {v.name: v for node in copy.graph for v in node.outputs} | {v.name: v for v in copy.graph.inputs}
    for root, other in partners.items():
        value = values[root]
        adder = next(user for user, _ in value.uses())
        positive = ir.node("Relu", [values[other]])
        negated = ir.node("Neg", [positive.outputs[0]])
        counting = ir.node("Max", [value, negated.outputs[0]])
        for node in (positive, negated, counting):
            node.outputs[0].name = unique_name(copy.graph, f"{root}.{node.op_type}")
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
        copy.graph.insert_before(adder, [positive, negated, counting])
        names[root] = counting.outputs[0].name or root
    return copy, names


def _partner(plan: Plan, root: str) -> str | None:
    """The tensor that is added to `root` right before a Relu, if nothing else reads `root`."""
    value = plan.tensors[root].value
    uses = list(value.uses())
    if len(uses) != 1 or uses[0][0].op_type != "Add" or value.is_graph_output():
        return None
    adder, index = uses[0]
    results = plan.outputs.get(adder, [])
    if len(results) != 1 or plan.tensors[results[0].name or ""].limits.low != 0.0:
        return None
    other = adder.inputs[1 - index]
    # Broadcasting would count a value once for every place it goes to.
    same = other is not None and value.shape is not None and value.shape == other.shape
    return other.name if same and other is not None else None
