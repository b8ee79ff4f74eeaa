"""How positive factors of channels pass through operators without weights.

Each rule gets the labels of a node's inputs (`onnxcomp.graph.labels`) and returns those of its outputs, after making
one class of what must be scaled alike. Raises :class:`Blocked` where a factor cannot pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf

import numpy as np
import onnx_ir as ir

from onnxcomp.graph.fold.values import constant
from onnxcomp.graph.labels import ZERO, Forest, Labels, compact
from onnxcomp.graph.reshaping import Dims, dims_of, full_rank, reshaped

__all__ = ["FLOW", "Blocked", "Rule", "ranked"]

Rule = Callable[[Forest, ir.Node, Sequence[Labels]], Sequence[Labels]]


class Blocked(Exception):
    """A factor cannot pass a node; the message says why."""


def _same(forest: Forest, node: ir.Node, inputs: Sequence[Labels]) -> Sequence[Labels]:
    del forest
    if len([v for v in node.outputs if v.uses()]) > 1:
        raise Blocked(f"{node.op_type} has more than one output in use")
    return [inputs[0]] * len(node.outputs)


def _clip(forest: Forest, node: ir.Node, inputs: Sequence[Labels]) -> Sequence[Labels]:
    """Only the bounds 0 and infinity stay where they are when a channel is scaled."""
    bounds = [_scalar(node, k, default) for k, default in ((1, -inf), (2, inf))]
    if any(b not in (0.0, inf, -inf) for b in bounds):
        raise Blocked("Clip has a bound that does not scale")
    return _same(forest, node, inputs[:1])


def _joined(forest: Forest, node: ir.Node, inputs: Sequence[Labels]) -> Sequence[Labels]:
    del node
    labels = inputs[0]
    for other in inputs[1:]:
        labels = forest.join(labels, other)
    return [labels]


def _product(forest: Forest, node: ir.Node, inputs: Sequence[Labels]) -> Sequence[Labels]:
    """One factor passes where the other one is 1."""
    a, b = inputs
    if node.op_type == "Div" or not forest.all_pinned(a):
        forest.pin(b, f"it is an operand of {node.op_type}")
        return [a]
    return [b]


def _pool(forest: Forest, node: ir.Node, inputs: Sequence[Labels]) -> Sequence[Labels]:
    """Pooling and resizing: every position of a channel has its factor."""
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise Blocked(f"{node.op_type} gives indices")
    labels = ranked(node.inputs[0], inputs[0])
    return [forest.flatten(labels, tuple(range(2, labels.ndim)))]


def _resize(forest: Forest, node: ir.Node, inputs: Sequence[Labels]) -> Sequence[Labels]:
    before, after = _dims(node.inputs[0]), _dims(node.outputs[0])
    cropped = node.attributes.get_float("extrapolation_value", 0.0) != 0.0
    if before[:2] != after[:2] or None in before[:2] or cropped:
        raise Blocked("Resize changes more than the size of channels")
    return _pool(forest, node, inputs[:1])


def _reduced(forest: Forest, node: ir.Node, inputs: Sequence[Labels]) -> Sequence[Labels]:
    labels = ranked(node.inputs[0], inputs[0])
    axes = node.attributes.get_ints("axes", ())
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = _ints(node, 1)
    if not axes and not node.attributes.get_int("noop_with_empty_axes", 0):
        axes = tuple(range(labels.ndim))
    chosen = tuple(axis % labels.ndim for axis in axes)
    labels = forest.flatten(labels, chosen)
    return [labels if node.attributes.get_int("keepdims", 1) else np.squeeze(labels, chosen)]


def _concat(forest: Forest, node: ir.Node, inputs: Sequence[Labels]) -> Sequence[Labels]:
    del forest
    parts: list[Labels] = []
    rank = len(_dims(node.outputs[0]))
    axis = node.attributes.get_int("axis", 0) % rank
    full = [ranked(v, labels) for v, labels in zip(node.inputs, inputs, strict=True)]
    others = [max(p.shape[k] for p in full) for k in range(rank)]
    for value, labels in zip(node.inputs, full, strict=True):
        shape = (*others[:axis], _extent(value, axis), *others[axis + 1 :])
        parts.append(np.broadcast_to(labels, shape))
    return [compact(np.concatenate(parts, axis))]


def _split(forest: Forest, node: ir.Node, inputs: Sequence[Labels]) -> Sequence[Labels]:
    del forest
    labels = ranked(node.inputs[0], inputs[0])
    axis = node.attributes.get_int("axis", 0) % labels.ndim
    if labels.shape[axis] == 1:
        return [labels] * len(node.outputs)
    ends = np.cumsum([_extent(v, axis) for v in node.outputs])
    return [compact(part) for part in np.split(labels, ends[:-1], axis)]


def _slice(forest: Forest, node: ir.Node, inputs: Sequence[Labels]) -> Sequence[Labels]:
    del forest
    if len(node.inputs) < 3:
        raise Blocked("Slice has no constant bounds")
    labels = ranked(node.inputs[0], inputs[0])
    starts, ends = _ints(node, 1), _ints(node, 2)
    axes = _ints(node, 3) if _given(node, 3) else tuple(range(len(starts)))
    steps = _ints(node, 4) if _given(node, 4) else (1,) * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if labels.shape[axis] > 1:
            at = [slice(None)] * labels.ndim
            at[axis] = slice(start, end, step)
            labels = labels[tuple(at)]
    if not labels.size:
        raise Blocked("Slice takes nothing")
    return [compact(labels)]


def _gather(forest: Forest, node: ir.Node, inputs: Sequence[Labels]) -> Sequence[Labels]:
    del forest
    labels = ranked(node.inputs[0], inputs[0])
    axis = node.attributes.get_int("axis", 0) % labels.ndim
    indices = constant(node.inputs[1])
    if labels.shape[axis] == 1:
        rank = len(_dims(node.inputs[1]))
        return [labels.take(np.zeros((1,) * rank, np.int64), axis)]
    if indices is None:
        raise Blocked("Gather has no constant indices")
    return [compact(labels.take(indices.astype(np.int64), axis))]


def _pad(forest: Forest, node: ir.Node, inputs: Sequence[Labels]) -> Sequence[Labels]:
    del forest
    labels = ranked(node.inputs[0], inputs[0])
    mode = node.attributes.get_string("mode", "constant")
    if mode == "constant" and _scalar(node, 2, 0.0) != 0.0:
        raise Blocked("Pad writes a value that is not 0")
    pads = np.zeros((2, labels.ndim), np.int64)
    axes = [axis % labels.ndim for axis in _ints(node, 3)] if _given(node, 3) else list(range(labels.ndim))
    pads[:, axes] = np.reshape(_ints(node, 1), (2, -1))
    # Along an axis of one label, zeros and copies need no other.
    pads[:, [extent == 1 for extent in labels.shape]] = 0
    if not pads.any():
        return [labels]
    if mode != "constant" or (pads < 0).any():
        raise Blocked("Pad repeats or cuts channels")
    return [np.pad(labels, pads.T, constant_values=ZERO)]


def _transpose(forest: Forest, node: ir.Node, inputs: Sequence[Labels]) -> Sequence[Labels]:
    del forest
    labels = ranked(node.inputs[0], inputs[0])
    return [labels.transpose(node.attributes.get_ints("perm", tuple(range(labels.ndim))[::-1]))]


def _reshape(forest: Forest, node: ir.Node, inputs: Sequence[Labels]) -> Sequence[Labels]:
    """Reshape, Flatten, Squeeze, Unsqueeze."""
    del forest
    if inputs[0].size == 1:
        return [inputs[0].reshape(())]
    labels = reshaped(ranked(node.inputs[0], inputs[0]), _dims(node.inputs[0]), _dims(node.outputs[0]))
    if labels is None:
        raise Blocked(f"{node.op_type} has symbolic dimensions")
    return [labels]


def _weighted_sum(forest: Forest, node: ir.Node, inputs: Sequence[Labels]) -> Sequence[Labels]:
    """A product of two activations, as attention's: the columns of the second one pass where the first has factor 1."""
    forest.pin(inputs[0], "it is the first operand of a MatMul of two activations")
    labels = ranked(node.inputs[1], inputs[1])
    if labels.ndim < 2:
        raise Blocked("MatMul has a vector as its second operand")
    return [forest.flatten(labels, (labels.ndim - 2,))]


def ranked(value: ir.Value | None, labels: Labels) -> Labels:
    """The labels at the rank of their value; raises Blocked where it is unknown or declared too low."""
    rank = len(_dims(value))
    if rank < max(labels.ndim, 1):
        raise Blocked("a shape does not fit")
    return full_rank(labels, rank)


def _dims(value: ir.Value | None) -> Dims:
    dims = dims_of(value)
    if dims is None:
        raise Blocked("a shape is unknown")
    return dims


def _extent(value: ir.Value | None, axis: int) -> int:
    extent = _dims(value)[axis]
    if not isinstance(extent, int):
        raise Blocked("a dimension is unknown")
    return extent


def _given(node: ir.Node, index: int) -> bool:
    return len(node.inputs) > index and node.inputs[index] is not None


def _ints(node: ir.Node, index: int) -> tuple[int, ...]:
    array = constant(node.inputs[index])
    if array is None:
        raise Blocked(f"input {index} of {node.op_type} is not constant")
    return tuple(int(k) for k in array.reshape(-1))


def _scalar(node: ir.Node, index: int, default: float) -> float:
    if not _given(node, index):
        return default
    array = constant(node.inputs[index])
    if array is None or array.size != 1:
        raise Blocked(f"input {index} of {node.op_type} is not constant")
    return float(array.reshape(()))


_HOMOGENEOUS = ("Relu", "LeakyRelu", "PRelu", "Identity", "Dropout", "Neg", "Abs")
_POOLS = ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
_REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2")

FLOW: Mapping[str, Rule] = {
    **dict.fromkeys(_HOMOGENEOUS, _same),
    **dict.fromkeys(("Add", "Sub", "Sum", "Max", "Min"), _joined),
    **dict.fromkeys(("Mul", "Div"), _product),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(_REDUCTIONS, _reduced),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Clip": _clip,
    "Concat": _concat,
    "Gather": _gather,
    "MatMul": _weighted_sum,
    "Pad": _pad,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Transpose": _transpose,
}
