"""Pairs of QuantizeLinear and DequantizeLinear in a model that becomes half.

A runtime that takes precision from the graph (TensorRT 11) computes a layer on integers where pairs stand right before
it, and the type of their scales is that of the float around them. So a pair is half as a whole or not at all, and what
reads a pair has its type: a Cast between a DequantizeLinear and its layer would undo the layer's integer form.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.graph.fold.opset import raise_opset

__all__ = ["HALF_SCALES", "admit_half_scales", "coarse_scale", "half_scales", "is_scale", "torn"]

HALF_SCALES = 19
"""The first opset whose pairs take float16 (ONNX operator changelog: QuantizeLinear-19)."""

_PAIR = ("QuantizeLinear", "DequantizeLinear")
# What a scale may change by, as a share of itself, or of the largest one of its tensor: channels whose weights are all
# but zero have scales below the smallest half. Normal halves change by 2**-11 at most.
_TOLERANCE = 2.0**-9
_OF_LARGEST = 2.0**-12
_SMALLEST = np.float16(2.0**-24)


def admit_half_scales(model: ir.Model) -> str | None:
    """Raise a quantized model's opset, in place, so that scales may be half; why it cannot be, None where it can.

    The results of pairs get their types, which say whether a node can be half.
    """
    reason = raise_opset(model, HALF_SCALES)
    for node in model.graph if reason is None else ():
        source = node.inputs[2 if node.op_type == "QuantizeLinear" else 1] if len(node.inputs) > 2 else None
        if node.op_type in _PAIR and node.outputs[0].dtype is None and source is not None and source.dtype is not None:
            node.outputs[0].type = ir.TensorType(source.dtype)
    return reason


def coarse_scale(node: ir.Node) -> str | None:
    """Why the scale of a pair's node must stay float; None where halves hold it, and for other nodes."""
    scale = node.inputs[1] if node.op_type in _PAIR and len(node.inputs) > 1 else None
    if scale is None or scale.const_value is None:
        return None
    values = scale.const_value.numpy().astype(np.float64)
    error = np.abs(half_scales(scale.const_value.numpy()).astype(np.float64) - values)
    fits = np.isfinite(error) & (error <= np.maximum(_TOLERANCE * values, _OF_LARGEST * values.max(initial=0.0)))
    return None if fits.all() else f"halves do not hold the scale {scale.name!r}"


def half_scales(scales: NDArray[np.float32]) -> NDArray[np.float16]:
    """The nearest halves above zero, which runtimes want scales to be."""
    with np.errstate(over="ignore"):
        return np.maximum(scales.astype(np.float16), _SMALLEST)


def is_scale(value: ir.Value) -> bool:
    """Whether a pair reads a value as its scale."""
    return any(node.op_type in _PAIR and index == 1 for node, index in value.uses())


def torn(model: ir.Model, half: Mapping[ir.Node, object]) -> list[tuple[ir.Node, str]]:
    """Nodes that have to stay float so that every pair is of one type, and of that of its readers, with the reason.

    Args:
        model: The model.
        half: The nodes that are to become half.
    """
    floats = {node for node in model.graph if node not in half}
    reasons: dict[ir.Node, str] = {}
    pending = [node for node in model.graph if node in floats]
    while pending:
        node = pending.pop()
        for other in _bound(node):
            if other not in floats:
                floats.add(other)
                reasons[other] = f"stays float with {node.name or node.op_type}, which shares a pair with it"
                pending.append(other)
    return [(node, reasons[node]) for node in model.graph if node in reasons]


def _bound(node: ir.Node) -> list[ir.Node]:
    """What has the type of a node: the other half of its pair, and a DequantizeLinear's readers."""
    before = [v.producer() for v in node.inputs if v is not None]
    found = [p for p in before if p is not None and p.op_type == "DequantizeLinear"]
    if node.op_type == "DequantizeLinear":
        found = [p for p in before if p is not None and p.op_type == "QuantizeLinear"]
    if node.op_type in _PAIR:
        found += [user for value in node.outputs for user, _ in value.uses()]
    return found
