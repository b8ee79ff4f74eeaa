"""What BatchNormalization and arithmetic with a constant do to each channel: ``y = scale * x + shift``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.graph.fold.values import constant, is_op

__all__ = ["Affine", "read_affine"]

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


@dataclass(frozen=True, eq=False, slots=True)
class Affine:
    """``y[:, c] = scale[c] * x[:, c] + shift[c]``, with one entry a channel, shape (C,), float64."""

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]


def read_affine(node: ir.Node, value: ir.Value, channels: int, rank: int, version: int) -> Affine | None:
    """Read what `node` does to its operand `value`, a tensor of `rank` axes with `channels` along axis 1.

    Args:
        node: A reader of `value`.
        value: The operand.
        channels: Size of axis 1.
        rank: Number of axes.
        version: Opset version of the ONNX domain.

    Returns:
        None where the node is anything else than inference BatchNormalization or Add, Sub, Mul, Div with a constant
        that is one number or one number a channel, or where it changes the shape.
    """
    if is_op(node, "BatchNormalization"):
        return _batch_normalization(node, value, channels, version)
    if is_op(node, "Add", "Sub", "Mul", "Div") and version >= 7:  # broadcasting was an attribute before
        return _arithmetic(node, value, channels, rank)
    return None


def _batch_normalization(node: ir.Node, value: ir.Value, channels: int, version: int) -> Affine | None:
    """ONNX BatchNormalization-15: ``(x - mean) / sqrt(var + epsilon) * gamma + beta``; training mode is refused."""
    attributes = node.attributes
    if version < 7 or node.inputs[0] is not value or len(node.inputs) != 5:
        return None
    if attributes.get_int("training_mode", 0) or attributes.get_int("spatial", 1) != 1:
        return None
    if any(v.name or v.uses() for v in node.outputs[1:]):  # more outputs mean training before opset 14
        return None
    arrays = [constant(v) for v in node.inputs[1:]]
    if any(a is None or a.shape != (channels,) for a in arrays):
        return None
    gamma, beta, mean, variance = (np.asarray(a, np.float64) for a in arrays)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = gamma / np.sqrt(variance + attributes.get_float("epsilon", 1e-5))
        return Affine(scale, beta - mean * scale)


def _arithmetic(node: ir.Node, value: ir.Value, channels: int, rank: int) -> Affine | None:
    first = node.inputs[0] is value
    other = node.inputs[1] if first else node.inputs[0]
    array = constant(other)
    if array is None or other is None or other.const_value is None or other.const_value.dtype not in _FLOATS:
        return None
    operand = _per_channel(array, channels, rank)
    if operand is None:
        return None
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op_type == "Mul":
        return Affine(operand, zero)
    if node.op_type == "Add":
        return Affine(one, operand)
    if node.op_type == "Sub":
        return Affine(one, -operand) if first else Affine(-one, operand)
    if not first or not operand.all():
        return None
    return Affine(1.0 / operand, zero)


def _per_channel(array: NDArray[np.generic], channels: int, rank: int) -> NDArray[np.float64] | None:
    """Broadcast one number, or one a channel (axis 1 of `rank`), to shape (channels,); None for any other shape."""
    if array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if shape[1] not in (1, channels) or any(d != 1 for axis, d in enumerate(shape) if axis != 1):
        return None
    return np.broadcast_to(np.asarray(array, np.float64).reshape(-1), (channels,)).copy()
