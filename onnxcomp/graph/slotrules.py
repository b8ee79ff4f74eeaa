"""Channel slots through operators that combine, move or pool elements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.graph.flow import Blocked
from onnxcomp.graph.fold.values import constant
from onnxcomp.graph.labels import Labels
from onnxcomp.graph.slots import Fixed, Known, Rule, Slots, Trace, named

__all__ = ["RULES", "sizes_from"]


def _alike(trace: Trace, node: ir.Node) -> Sequence[Known]:
    """The same for every element; a second output, as the mask of Dropout, has the shape of the first."""
    return [trace.of(node.inputs[0])] * len(node.outputs)


def _together(trace: Trace, node: ir.Node) -> Sequence[Known]:
    """Elements of several operands meet, with broadcasting from the right; constants of channels follow."""
    given = [value for value in node.inputs if value is not None]
    slotted = [(value, known) for value in given if isinstance(known := trace.of(value), Slots)]
    if not slotted:
        return [trace.of(next((v for v in given if constant(v) is None), given[0]))]
    behind = {known.axis - len(trace.dims(value)) for value, known in slotted}
    if len(behind) > 1:
        raise Blocked(f"{named(node)} combines channels that lie along different axes")
    axis, labels = behind.pop(), slotted[0][1].labels
    for _, known in slotted[1:]:
        if known.labels.size != labels.size:
            raise Blocked(f"{named(node)} combines different numbers of channels")
        trace.classes.unite(labels, known.labels)
    for index, value in enumerate(node.inputs):
        if value is not None and isinstance(trace.of(value), Fixed):
            _meet(trace, node, index, axis, labels)
    return [Slots(axis + max(len(trace.dims(value)) for value in given), labels)]


def _meet(trace: Trace, node: ir.Node, index: int, axis: int, labels: Labels) -> None:
    """Let a constant follow the slots that it meets; what is computed keeps them, unless it is spread over them."""
    value = node.inputs[index]
    dims = trace.dims(value)
    if value is None or len(dims) < -axis or dims[axis] == 1:
        return
    if constant(value) is None:
        raise Blocked(_reason(trace, value))
    if trace.require(node, index, "constant")[axis] != labels.size:
        raise Blocked(f"a constant of {named(node)} does not fit")
    trace.slice(node, index, len(dims) + axis, labels)


def _reason(trace: Trace, value: ir.Value) -> str:
    """Why a value that something else meets is fixed: the root of it, lest reasons grow from node to node."""
    known = trace.of(value)
    return known.reason if isinstance(known, Fixed) else f"{value.name} lies along another axis"


def _pool(trace: Trace, node: ir.Node) -> Sequence[Known]:
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        raise Blocked(f"{named(node)} gives indices")
    known = trace.of(node.inputs[0])
    if isinstance(known, Slots) and known.axis > 1:
        raise Blocked(f"{named(node)} works along the axis of its channels")
    return [known] * len(node.outputs)


def _along(trace: Trace, node: ir.Node) -> Sequence[Known]:
    """Operators that work along one axis and keep it."""
    known, axis = trace.of(node.inputs[0]), node.attributes.get_int("axis", -1)
    if node.op_type == "CumSum":
        (axis,) = trace.integers(node, 1)
    if isinstance(known, Slots) and known.axis == axis % len(trace.dims(node.inputs[0])):
        raise Blocked(f"{named(node)} works across its channels")
    return [known] * len(node.outputs)


def _normalized(trace: Trace, node: ir.Node) -> Sequence[Known]:
    """LayerNormalization works along its axis and all those behind it."""
    known, rank = trace.of(node.inputs[0]), len(trace.dims(node.inputs[0]))
    if isinstance(known, Slots) and known.axis >= node.attributes.get_int("axis", -1) % rank:
        raise Blocked(f"{named(node)} works across its channels")
    return [known] * len(node.outputs)


def _reduced(trace: Trace, node: ir.Node) -> Sequence[Known]:
    known, rank = trace.of(node.inputs[0]), len(trace.dims(node.inputs[0]))
    if isinstance(known, Fixed):
        return [known]
    axes: tuple[int, ...] = tuple(node.attributes.get_ints("axes", ()))
    if node.op_type in ("ArgMax", "ArgMin"):
        axes = (node.attributes.get_int("axis", 0),)
    elif len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = trace.integers(node, 1)
    if not axes and not node.attributes.get_int("noop_with_empty_axes", 0):
        axes = tuple(range(rank))
    chosen = {axis % rank for axis in axes}
    if known.axis in chosen:
        raise Blocked(f"{named(node)} works across its channels")
    lost = 0 if node.attributes.get_int("keepdims", 1) else sum(axis < known.axis for axis in chosen)
    return [Slots(known.axis - lost, known.labels)]


def _concat(trace: Trace, node: ir.Node) -> Sequence[Known]:
    given = [value for value in node.inputs if value is not None]
    slotted = [known for value in given if isinstance(known := trace.of(value), Slots)]
    if not slotted:
        return [trace.of(next((v for v in given if constant(v) is None), given[0]))]
    axis = node.attributes.get_int("axis", 0) % len(trace.dims(given[0]))
    if len({known.axis for known in slotted}) > 1:
        raise Blocked(f"{named(node)} joins channels that lie along different axes")
    if slotted[0].axis == axis:
        return [Slots(axis, np.concatenate([_part(trace, node, value, axis) for value in given]))]
    for value in given:
        if isinstance(trace.of(value), Fixed):
            raise Blocked(_reason(trace, value))
    for known in slotted[1:]:
        trace.classes.unite(slotted[0].labels, known.labels)
    return [slotted[0]]


def _part(trace: Trace, node: ir.Node, value: ir.Value, axis: int) -> Labels:
    known, count = trace.of(value), trace.dims(value)[axis]
    if isinstance(known, Slots):
        return known.labels
    if not isinstance(count, int):
        raise Blocked(f"{named(node)} joins a number of channels that is unknown")
    return trace.classes.fixed(count, known.reason)


def _split(trace: Trace, node: ir.Node) -> Sequence[Known]:
    known, rank = trace.of(node.inputs[0]), len(trace.dims(node.inputs[0]))
    if isinstance(known, Fixed) or known.axis != node.attributes.get_int("axis", 0) % rank:
        return [known] * len(node.outputs)
    parts, count = len(node.outputs), known.labels.size
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        sizes = trace.integers(node, 1)
    else:
        size = -(-count // parts)
        sizes = (*(size,) * (parts - 1), count - size * (parts - 1))
    if len(sizes) != parts or sum(sizes) != count or min(sizes) < 1:
        raise Blocked(f"the sizes of {named(node)} do not fit")
    starts = np.cumsum([0, *sizes[:-1]])

    def change(array: NDArray[Any], kept: NDArray[np.bool_]) -> NDArray[Any]:
        return np.add.reduceat(kept.astype(np.int64), starts)

    trace.rewrite(node, 1, known.labels, change)
    return [Slots(known.axis, own) for own in np.split(known.labels, starts[1:])]


def _slice(trace: Trace, node: ir.Node) -> Sequence[Known]:
    known = trace.of(node.inputs[0])
    if isinstance(known, Fixed):
        return [known]
    rank, count = len(trace.dims(node.inputs[0])), known.labels.size
    has = [len(node.inputs) > k and node.inputs[k] is not None for k in range(5)]
    if not has[1]:
        raise Blocked(f"{named(node)} has no bounds as inputs")
    axes = trace.integers(node, 3) if has[3] else tuple(range(trace.fixed_array(node, 1).size))
    at = next((k for k, axis in enumerate(axes) if axis % rank == known.axis), None)
    if at is None:
        return [known]
    step = trace.integers(node, 4)[at] if has[4] else 1
    if step != 1:
        raise Blocked(f"{named(node)} takes channels with a step of {step}")
    bounds = slice(trace.integers(node, 1)[at], trace.integers(node, 2)[at]).indices(count)
    labels = known.labels[bounds[0] : bounds[1]]
    if not labels.size:
        raise Blocked(f"{named(node)} takes no channels")
    for index, bound in ((1, bounds[0]), (2, bounds[1])):
        trace.rewrite(node, index, known.labels, sizes_from((at, slice(0, bound))))
    return [Slots(known.axis, labels)]


def sizes_from(*places: tuple[int, slice]) -> Any:
    """A change that writes, at positions of a vector, how many slots of a range stay."""

    def change(array: NDArray[Any], kept: NDArray[np.bool_]) -> NDArray[Any]:
        changed = array.copy()
        for at, own in places:
            changed[at] = np.count_nonzero(kept[own])
        return changed

    return change


def _gather(trace: Trace, node: ir.Node) -> Sequence[Known]:
    known, rank = trace.of(node.inputs[0]), len(trace.dims(node.inputs[0]))
    if isinstance(known, Fixed):
        return [known]
    axis, extra = node.attributes.get_int("axis", 0) % rank, len(trace.dims(node.inputs[1])) - 1
    if isinstance(trace.of(node.inputs[1]), Slots):
        raise Blocked(f"{named(node)} takes them as indices")
    if axis != known.axis:
        return [Slots(known.axis + (extra if known.axis > axis else 0), known.labels)]
    wanted = np.asarray(trace.fixed_array(node, 1), np.int64)
    if wanted.ndim > 1:
        raise Blocked(f"{named(node)} takes channels into several axes")
    wanted = np.where(wanted < 0, wanted + known.labels.size, wanted)
    labels = known.labels[wanted]

    def change(array: NDArray[Any], kept: NDArray[np.bool_]) -> NDArray[Any]:
        left = wanted[kept[wanted]] if wanted.ndim else wanted
        return np.asarray((np.cumsum(kept) - 1)[left], array.dtype)

    trace.rewrite(node, 1, known.labels, change)
    if wanted.ndim == 0:
        reason = f"{named(node)} takes one channel"
        trace.classes.pin(labels, reason)
        return [Fixed(reason)]
    return [Slots(axis, labels)]


def _pad(trace: Trace, node: ir.Node) -> Sequence[Known]:
    known, rank = trace.of(node.inputs[0]), len(trace.dims(node.inputs[0]))
    if isinstance(known, Fixed):
        return [known]
    pads = trace.integers(node, 1)
    given = len(node.inputs) > 3 and node.inputs[3] is not None
    axes = [axis % rank for axis in trace.integers(node, 3)] if given else list(range(rank))
    if known.axis not in axes:
        return [known]
    at, count = axes.index(known.axis), known.labels.size
    before, after = pads[at], pads[at + len(axes)]
    if before == after == 0:
        return [known]
    if node.attributes.get_string("mode", "constant") != "constant" or min(before, after) < 0:
        raise Blocked(f"{named(node)} repeats or cuts channels")
    labels = np.concatenate([trace.classes.fresh(before), known.labels, trace.classes.fresh(after)])
    places = ((at, slice(0, before)), (at + len(axes), slice(before + count, None)))
    trace.rewrite(node, 1, labels, sizes_from(*places))
    return [Slots(known.axis, labels)]


def _transpose(trace: Trace, node: ir.Node) -> Sequence[Known]:
    known, rank = trace.of(node.inputs[0]), len(trace.dims(node.inputs[0]))
    if isinstance(known, Fixed):
        return [known]
    order = tuple(node.attributes.get_ints("perm", tuple(range(rank))[::-1]))
    return [Slots(order.index(known.axis), known.labels)]


def _tile(trace: Trace, node: ir.Node) -> Sequence[Known]:
    known = trace.of(node.inputs[0])
    if isinstance(known, Fixed):
        return [known]
    return [Slots(known.axis, np.tile(known.labels, trace.integers(node, 1)[known.axis]))]


def _blocks(trace: Trace, node: ir.Node) -> Sequence[Known]:
    """DepthToSpace and SpaceToDepth: a channel of the wide image is r * r channels of the deep one."""
    known, size = trace.of(node.inputs[0]), node.attributes.get_int("blocksize", 1) ** 2
    if isinstance(known, Fixed):
        return [known]
    if known.axis != 1:
        raise Blocked(f"{named(node)} works along the axis of its channels")
    if node.op_type == "SpaceToDepth":
        return [Slots(1, np.tile(known.labels, size))]
    deep = known.labels.reshape(size, -1)
    if node.attributes.get_string("mode", "DCR") == "CRD":
        deep = known.labels.reshape(-1, size).T
    trace.classes.unite(np.broadcast_to(deep[:1], deep.shape), deep)
    return [Slots(1, deep[0].copy())]


_ALIKE = (
    *("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Clip", "Gelu", "Mish", "Identity", "Dropout"),
    *("Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Tanh", "Softplus", "Softsign", "Shrink", "Erf", "Exp", "Log"),
    *("Sqrt", "Reciprocal", "Neg", "Abs", "Sign", "Floor", "Ceil", "Round", "Sin", "Cos", "Tan", "Atan", "Sinh"),
    *("Cosh", "Asin", "Acos", "Asinh", "Acosh", "Atanh", "Cast", "CastLike", "Not", "IsNaN", "IsInf"),
)
_TOGETHER = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "Sum", "Mean", "PRelu", "Where"),
    *("And", "Or", "Xor", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"),
)
_POOLS = ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
_REDUCED = (
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum"),
    *("ReduceLogSumExp", "ReduceSumSquare", "ArgMax", "ArgMin"),
)

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_ALIKE, _alike),
    **dict.fromkeys(_TOGETHER, _together),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(_REDUCED, _reduced),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "TopK", "CumSum", "LpNormalization"), _along),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _blocks),
    "LayerNormalization": _normalized,
    "Concat": _concat,
    "Gather": _gather,
    "Pad": _pad,
    "Slice": _slice,
    "Split": _split,
    "Tile": _tile,
    "Transpose": _transpose,
}
