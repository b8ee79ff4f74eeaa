"""What the int8 pass tells: one Change for each node on integers, with every range that was chosen for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from math import prod

import onnx_ir as ir

from onnxcomp.contract import Change, Sensitivity, Value
from onnxcomp.cost import Cost
from onnxcomp.graph.sites import static_shape
from onnxcomp.numeric.ranges import Range
from onnxcomp.quantize.emit import RulesOf, WeightRules, keeps_float_bias
from onnxcomp.quantize.parameters import Parameters
from onnxcomp.quantize.placement import Plan
from onnxcomp.quantize.weighted import Weighted

__all__ = ["changes", "measured"]


def changes(
    plan: Plan,
    ranges: Mapping[str, Range],
    parameters: Mapping[str, Parameters],
    rules_of: RulesOf,
    errors: Mapping[ir.Node, float],
    milder: Callable[[ir.Node], Mapping[str, Value]] = lambda node: {},
    *,
    packed: bool = True,
    held: Mapping[str, int] | None = None,
) -> Iterator[Change]:
    """Yield one Change for each node of the plan; call it before the model is rewritten.

    Facts name the tensors that the node reads and writes, and give for each its range (low, high), the method that
    chose it, scale and zero point, all to 6 digits (the model holds them exactly). Of an input with a grid for each
    channel they give the range and the largest scale of all.

    `errors` are the predicted ones, `milder` the options of a node with which it would lose less; `packed` says whether
    weights of fewer than 8 bits are stored as such, `held` gives the bytes of those that the file holds in another
    form, by the weight's name.
    """
    for w in plan.weighted:
        before = _weighted_cost(w)
        channels = w.weight.const_value.shape[w.axis] if w.weight.const_value is not None else 0
        assert isinstance(channels, int)
        size = w.weight.const_value.size if w.weight.const_value is not None else 0
        rules = rules_of(w.node)
        codes = _codes(size, rules, packed=packed)
        # An int32 bias has scales of its own.
        each = 4 if keeps_float_bias(plan, w.node, rules) else 8
        after = Cost(before.parameters, before.macs, codes + 4 * channels + each * (before.parameters - size))
        other_form = (held or {}).get(w.weight.name or "")
        if other_form is not None:
            before = replace(before, bytes=before.bytes - 4 * size + other_form)
            after = replace(after, bytes=after.bytes - codes + other_form)
        facts = _facts(plan, w.node, ranges, parameters)
        facts |= {"weight.bits": rules.bits, "weight.scales": rules.scales, "weight.axis": w.axis}
        summary = f"{w.node.op_type}, {plan.scheme.activation} x int{rules.bits}, {channels} weight scales"
        yield Change(w.site, summary, before, after, error=errors[w.node], facts=facts, milder=milder(w.node))
    for other in plan.others:
        nothing = Cost(0, 0, 0)
        facts = _facts(plan, other.node, ranges, parameters)
        summary = f"{other.node.op_type} on {plan.scheme.activation}"
        yield Change(other.site, summary, nothing, nothing, error=errors[other.node], facts=facts)


def measured(found: Iterable[Change], sensitivity: Iterable[Sensitivity], plan: Plan) -> tuple[Change, ...]:
    """The changes of a plan with errors measured at the model's outputs in place of predicted ones.

    What lies between the weighted sites has no part of its own in it: alone, none of that is integer.
    """
    errors = dict.fromkeys((other.site for other in plan.others), 0.0) | {own.site: own.error for own in sensitivity}
    return tuple(replace(change, error=errors.get(change.site, change.error)) for change in found)


def _facts(
    plan: Plan, node: ir.Node, ranges: Mapping[str, Range], parameters: Mapping[str, Parameters]
) -> dict[str, Value]:
    facts: dict[str, Value] = {}
    inputs = [v for v in dict.fromkeys(node.inputs) if v is not None and v.name in plan.tensors]
    for i, value in enumerate(inputs):
        facts |= _tensor_facts("input" if i == 0 else f"input{i + 1}", plan, value, ranges, parameters)
    for i, value in enumerate(plan.outputs.get(node, ())):
        facts |= _tensor_facts("output" if i == 0 else f"output{i + 1}", plan, value, ranges, parameters)
    return facts


def _tensor_facts(
    prefix: str, plan: Plan, value: ir.Value, ranges: Mapping[str, Range], parameters: Mapping[str, Parameters]
) -> dict[str, Value]:
    root = plan.root_of(value)
    chosen, written = ranges[root], parameters[root]
    facts: dict[str, Value] = {
        "tensor": value.name or "",
        "low": written.low,
        "high": written.high,
        "method": chosen.method,
        "scale": written.scale,
        "zero_point": written.zero_point,
    }
    return {f"{prefix}.{key}": _short(fact) for key, fact in (facts | dict(chosen.facts)).items()}


def _short(fact: Value) -> Value:
    """A number to 6 significant digits: that much of a statistic means something."""
    return float(f"{fact:.6g}") if isinstance(fact, float) else fact


def _codes(size: int, rules: WeightRules, *, packed: bool) -> int:
    """Bytes of the integers of a weight."""
    return -(-size * (2 if rules.bits == 2 else 4) // 8) if packed and rules.bits <= 4 else size


def _weighted_cost(w: Weighted) -> Cost:
    assert w.weight.const_value is not None
    weights = w.weight.const_value.size
    biases = w.bias.const_value.size if w.bias is not None and w.bias.const_value is not None else 0
    shape = static_shape(w.node.inputs[0] if w.node.op_type == "ConvTranspose" else w.node.outputs[0])
    # At batch 1: a convolution reads each weight once a position, a matrix product once a row.
    positions = shape[2:] if "Conv" in w.node.op_type else shape[1:-1]
    known = [d for d in positions if d is not None]
    macs = weights * prod(known) if shape and len(known) == len(positions) else None
    return Cost(weights + biases, macs, 4 * (weights + biases))
