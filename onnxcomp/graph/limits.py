"""Between which numbers values lie, as far as the activations that they went through say."""

from __future__ import annotations

from math import inf

import numpy as np
import onnx_ir as ir

from onnxcomp.graph.fold.values import constant, is_op

__all__ = ["activation_limits", "value_limits"]

# Operators that only choose among the elements of their first input, and those that also average them or put zeros in.
_CHOOSING: tuple[str, ...] = (
    *("MaxPool", "GlobalMaxPool", "Slice", "Identity", "Dropout", "Transpose", "Reshape", "Flatten", "Squeeze"),
    "Unsqueeze",
)
_AVERAGING = ("AveragePool", "GlobalAveragePool", "Pad")


def value_limits(value: ir.Value) -> tuple[float, float]:
    """Between what numbers all elements of a value lie."""
    node = value.producer()
    if node is None or not node.inputs or node.inputs[0] is None:
        return -inf, inf
    limits = activation_limits(node)
    if limits is not None:
        return limits
    if is_op(node, *_CHOOSING):
        return value_limits(node.inputs[0])
    if is_op(node, *_AVERAGING):
        given = node.inputs[2] if is_op(node, "Pad") and len(node.inputs) > 2 else None
        filler = np.zeros(1) if given is None else constant(given)
        if filler is not None and not filler.any():
            low, high = value_limits(node.inputs[0])
            return min(low, 0.0), max(high, 0.0)
    return -inf, inf


def activation_limits(node: ir.Node) -> tuple[float, float] | None:
    """What a Relu or a Clip limits its input to; None for other operators and limits that are not constant."""
    if is_op(node, "Relu"):
        return 0.0, inf
    if not is_op(node, "Clip") or node.attributes:
        return None
    found: list[float] = []
    for index, free in ((1, -inf), (2, inf)):
        value = node.inputs[index] if len(node.inputs) > index else None
        array = None if value is None else constant(value)
        if value is not None and (array is None or array.size != 1):
            return None
        found.append(free if array is None else float(array.reshape(-1)[0]))
    return found[0], found[1]
