"""Conditions of the placement, operator by operator: what an activation guarantees, and what can join the integers."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import onnx_ir as ir

from onnxcomp.quantize.parameters import Limits
from onnxcomp.targets.target import Scheme

__all__ = ["can_join", "guaranteed"]


def guaranteed(node: ir.Node) -> Limits | None:
    """What a Relu or Clip guarantees of its output; None where its bounds are not constant or do not hold 0."""
    if node.op_type == "Relu":
        return Limits(low=0.0)
    low, high = (_bound(node, index, default) for index, default in ((1, -inf), (2, inf)))
    if low is None or high is None or not low <= 0.0 < high:
        return None
    return Limits(low, high)


def can_join(node: ir.Node, scheme: Scheme) -> bool:
    """Whether the attributes of a node of the scheme are such that it can be computed on integers."""
    kernel = node.attributes.get_ints("kernel_shape", ())
    if kernel and len(kernel) not in scheme.conv_ranks:
        return False
    return _CONDITIONS.get(node.op_type, _always)(node)


def _bound(node: ir.Node, index: int, default: float) -> float | None:
    value = node.inputs[index] if len(node.inputs) > index else None
    return default if value is None else _scalar(value)


def _scalar(value: ir.Value) -> float | None:
    if value.const_value is None or value.is_graph_input() or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(()))


def _always(node: ir.Node) -> bool:
    del node
    return True


def _single_output(node: ir.Node) -> bool:
    return sum(bool(v.name) for v in node.outputs) == 1


def _undilated(node: ir.Node) -> bool:
    return all(d == 1 for d in node.attributes.get_ints("dilations", (1,)))


def _nearest(node: ir.Node) -> bool:
    """Interpolation computes new values; onnxruntime 1.31 has no integer form of it."""
    return node.attributes.get_string("mode", "nearest") == "nearest"


def _pads_zero(node: ir.Node) -> bool:
    """Only 0 and mirrored values are sure to lie on the input's grid."""
    if node.attributes.get_string("mode", "constant") != "constant":
        return True
    value = node.inputs[2] if len(node.inputs) > 2 else None
    return value is None or _scalar(value) == 0.0


_CONDITIONS: dict[str, Callable[[ir.Node], bool]] = {
    "MaxPool": _single_output,
    "AveragePool": _undilated,
    "Resize": _nearest,
    "Pad": _pads_zero,
}
