"""Operators whose constants can take the factors of the channels that they read and write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxcomp.graph.flow import Blocked, ranked
from onnxcomp.graph.fold.values import constant
from onnxcomp.graph.labels import Forest, Labels
from onnxcomp.graph.reshaping import dims_of, full_rank

__all__ = ["HOLDERS", "Held", "Role", "held_constant"]

Role = Literal["weight", "bias", "gain"]
# Input index, role, labels to multiply by, labels to divide by.
Part = tuple[int, Role, Labels | None, Labels | None]


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """What a node's constants take.

    Attributes:
        output: Labels of the node's output.
        constants: Its constants and their factors.
        reads: Labels of the channels that it reads, shape (Ci,).
        writes: Labels of the channels that it writes, shape (Co,).
        weighted: Whether it mixes channels (and so is worth naming where it cannot be scaled).
    """

    output: Labels
    constants: tuple[Part, ...]
    reads: Labels
    writes: Labels
    weighted: bool = True


def held_constant(value: ir.Value, what: str) -> str | None:
    """Why a constant cannot take factors; None where it can."""
    if value.is_graph_input():
        return f"the {what} {value.name!r} can be overridden by a graph input"
    array = constant(value)
    if array is None or value.const_value is None:
        return f"the {what} {value.name!r} is not a constant"
    if value.const_value.dtype != ir.DataType.FLOAT:
        return f"the {what} is {value.const_value.dtype.name.lower()}, not float32"
    if len(value.uses()) > 1 or value.is_graph_output():
        return f"the {what} {value.name!r} is shared"
    if not array.size or not np.isfinite(array).all():
        return f"the {what} {value.name!r} is empty or holds NaN or Inf"
    return None


def _conv(forest: Forest, node: ir.Node, source: Labels) -> Held:
    shape = _shape(node, 1, "weight")
    if len(shape) < 3:
        raise Blocked("the weight has no spatial axis")
    transposed, group = node.op_type == "ConvTranspose", node.attributes.get_int("group", 1)
    channels_in, channels_out = (shape[0], shape[1] * group) if transposed else (shape[1] * group, shape[0])
    reads = _channels(forest, node, source, 1, channels_in)
    writes = forest.fresh((channels_out,))
    kernel = (1,) * (len(shape) - 2)
    if transposed:
        # Block g of the input channels writes block g of the output channels.
        multiply = reads.reshape(-1, 1, *kernel)
        divide = np.repeat(writes.reshape(group, -1), channels_in // group, axis=0).reshape(*shape[:2], *kernel)
    else:
        multiply = np.repeat(reads.reshape(group, -1), channels_out // group, axis=0).reshape(*shape[:2], *kernel)
        divide = writes.reshape(-1, 1, *kernel)
    parts: tuple[Part, ...] = ((1, "weight", multiply, divide), *_bias(node, 2, writes))
    return Held(writes.reshape(1, -1, *kernel), parts, reads, writes)


def _matmul(forest: Forest, node: ir.Node, source: Labels) -> Held:
    shape = _shape(node, 1, "weight")
    if len(shape) != 2:
        raise Blocked(f"the weight has {len(shape)} axes, not 2")
    reads, writes = _channels(forest, node, source, -1, shape[0]), forest.fresh((shape[1],))
    return Held(writes, ((1, "weight", reads[:, None], writes[None, :]),), reads, writes)


def _gemm(forest: Forest, node: ir.Node, source: Labels) -> Held:
    shape = _shape(node, 1, "weight")
    if len(shape) != 2 or node.attributes.get_int("transA", 0) != 0:
        raise Blocked("Gemm has transA set")
    by_rows = bool(node.attributes.get_int("transB", 0))
    reads = _channels(forest, node, source, 1, shape[1] if by_rows else shape[0])
    writes = forest.fresh((shape[0] if by_rows else shape[1],))
    multiply, divide = (reads[None, :], writes[:, None]) if by_rows else (reads[:, None], writes[None, :])
    return Held(writes[None, :], ((1, "weight", multiply, divide), *_bias(node, 2, writes)), reads, writes)


def _batch_normalization(forest: Forest, node: ir.Node, source: Labels) -> Held:
    """``(x - mean) / sqrt(var + epsilon) * gamma + beta``: mean goes with x, gamma takes both factors."""
    if len(node.inputs) != 5 or node.attributes.get_int("training_mode", 0) != 0:
        raise Blocked("BatchNormalization is in training mode")
    (channels,) = _shape(node, 1, "scale")
    for index, what in ((2, "bias"), (3, "mean")):
        _shape(node, index, what)
    reads, writes = _channels(forest, node, source, 1, channels), forest.fresh((channels,))
    rank = len(dims_of(node.inputs[0]) or ())
    parts: tuple[Part, ...] = (
        (1, "gain", reads, writes),
        (2, "bias", None, writes),
        (3, "bias", None, reads),
    )
    return Held(writes.reshape(1, -1, *(1,) * (rank - 2)), parts, reads, writes, weighted=False)


def _layer_normalization(forest: Forest, node: ir.Node, source: Labels) -> Held:
    """The output is free, the input is not: its mean and variance mix the channels."""
    forest.pin(source, f"{node.op_type} mixes its channels")
    shape = _shape(node, 1, "scale")
    writes = forest.fresh(shape)
    dims = dims_of(node.inputs[0])
    if dims is None:
        raise Blocked("a shape is unknown")
    over_channels = node.op_type != "LayerNormalization"
    output = writes.reshape(1, -1, *(1,) * (len(dims) - 2)) if over_channels else full_rank(writes, len(dims))
    parts: tuple[Part, ...] = ((1, "gain", None, writes), *_bias(node, 2, writes))
    return Held(output, parts, source.reshape(-1), writes, weighted=False)


def _channels(forest: Forest, node: ir.Node, labels: Labels, axis: int, count: int) -> Labels:
    """The labels of a node's input channels, shape (count,), all positions of a channel being one class."""
    full = ranked(node.inputs[0], labels)
    axis %= full.ndim
    flat = forest.flatten(full, tuple(k for k in range(full.ndim) if k != axis)).reshape(-1)
    if flat.size not in (1, count):
        raise Blocked("the weight does not fit its input")
    return np.broadcast_to(flat, (count,))


def _bias(node: ir.Node, index: int, writes: Labels) -> tuple[Part, ...]:
    if len(node.inputs) <= index or node.inputs[index] is None:
        return ()
    _shape(node, index, "bias")
    return ((index, "bias", None, writes),)


def _shape(node: ir.Node, index: int, what: str) -> tuple[int, ...]:
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is None:
        raise Blocked("an input is missing")
    reason = held_constant(value, what)
    if reason is not None:
        raise Blocked(reason)
    assert value.const_value is not None
    return tuple(int(d) for d in value.const_value.shape.numpy())


Holder = Callable[[Forest, ir.Node, Labels], Held]

HOLDERS: Mapping[str, Holder] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_normalization,
    "LayerNormalization": _layer_normalization,
    "InstanceNormalization": _layer_normalization,
    "GroupNormalization": _layer_normalization,
}
