"""Channel slots through operators that read a shape: Reshape and its kin, Expand, Resize; and computed shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from math import prod

import numpy as np
import onnx_ir as ir

from onnxcomp.graph.flow import Blocked
from onnxcomp.graph.fold.values import constant, is_op
from onnxcomp.graph.labels import Labels
from onnxcomp.graph.reshaping import Dims, dims_of
from onnxcomp.graph.slotrules import sizes_from
from onnxcomp.graph.slots import Entry, Fixed, Known, Rule, Slots, Trace, named

__all__ = ["SHAPED", "trace_vector"]

Vector = tuple[Entry, ...]
# A product of dimensions: the numbers' and the symbols, sorted; None where a dimension is unknown.
Product = tuple[int, tuple[str, ...]] | None


def trace_vector(trace: Trace, node: ir.Node) -> None:
    """Note what a node that computes with shapes gives; slots whose number is computed with otherwise stay."""
    vector = _vector(trace, node)
    if vector is not None:
        trace.vectors[node.outputs[0]] = vector
        return
    for index, value in enumerate(node.inputs):
        if value is not None and (index == 0 or not is_op(node, *SHAPED)):
            for entry in trace.vectors.get(value, ()):
                if entry.labels is not None:
                    trace.classes.pin(entry.labels, f"{named(node)} computes with their number")


def _vector(trace: Trace, node: ir.Node) -> Vector | None:
    """The numbers that a node gives as a vector or as a scalar; None where they are not told apart."""
    source = node.inputs[0] if node.inputs else None
    if is_op(node, "Shape"):
        return _shape(trace, node, source)
    if is_op(node, "Concat") and _is_vector(node.outputs[0]):
        parts = [_entries(trace, node, index) for index in range(len(node.inputs))]
        return None if None in parts else tuple(entry for part in parts if part is not None for entry in part)
    if source is None or source not in trace.vectors:
        return None
    # Others may read the same numbers: none of them is rewritten behind here.
    given = tuple(replace(entry, place=None) for entry in trace.vectors[source])
    if is_op(node, "Cast", "Identity", "Squeeze", "Unsqueeze"):
        rank = dims_of(node.outputs[0])
        return given if rank is not None and len(rank) <= 1 else None
    if is_op(node, "Gather"):
        wanted = constant(node.inputs[1])
        return None if wanted is None or wanted.ndim > 1 else tuple(given[int(k)] for k in wanted.reshape(-1))
    if is_op(node, "Slice"):
        bounds = [constant(value) for value in node.inputs[1:]]
        if len(bounds) < 2 or any(b is None or b.size != 1 for b in bounds):
            return None
        start, end, step = (
            int(b.reshape(-1)[0]) for b in (*bounds[:2], *(bounds[3:] or [np.ones(1)])) if b is not None
        )
        return given[start:end:step]
    return None


def _shape(trace: Trace, node: ir.Node, source: ir.Value | None) -> Vector | None:
    dims, known = dims_of(source), trace.of(source)
    if dims is None or source is None:
        if source is not None:
            trace.pin(source, f"{named(node)} reads their number")
        return None
    entries = [Entry(size) for size in _told_apart(source, dims)]
    if isinstance(known, Slots):
        entries[known.axis] = replace(entries[known.axis], labels=known.labels)
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(dims))
    return tuple(entries[start:end])


def _told_apart(value: ir.Value, dims: Dims) -> Dims:
    """Dimensions without a number or name get one, which is the same wherever the value is read."""
    return tuple(d if d is not None else f"\0{value.name} {axis}" for axis, d in enumerate(dims))


def _is_vector(value: ir.Value) -> bool:
    dims = dims_of(value)
    return dims is not None and len(dims) == 1 and value.dtype == ir.DataType.INT64


def _entries(trace: Trace, node: ir.Node, index: int) -> Vector | None:
    """The numbers of an input that is a shape; None where not even how many there are is known."""
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is None:
        return None
    array = constant(value)
    if array is not None:
        numbers = (int(k) for k in array.reshape(-1))
        return tuple(Entry(k, literal=True, place=(node, index, at)) for at, k in enumerate(numbers))
    given = trace.vectors.get(value)
    if given is not None:
        single = len(value.uses()) == 1 and not value.is_graph_output()
        return given if single else tuple(replace(entry, place=None) for entry in given)
    dims = dims_of(value)
    count = dims[0] if dims else 1
    return (Entry(None),) * count if dims is not None and isinstance(count, int) else None


def _settle(trace: Trace, node: ir.Node, entries: Vector, axis: int, labels: Labels, own: bool) -> None:
    """Let the entry of a target shape at `axis` follow the slots; the others must not change with any.

    Args:
        trace: What is known.
        node: The node that reads the target.
        entries: The target.
        axis: The axis of the output that has the slots.
        labels: Their labels.
        own: Whether that is the axis of the input that has them, with as many.
    """
    for at, entry in enumerate(entries):
        if at != axis and entry.labels is not None:
            raise Blocked(f"{named(node)} makes another axis as long as there are channels")
    entry = entries[axis]
    if entry.labels is not None:
        counted, found = (np.sort(trace.classes.roots(k)) for k in (entry.labels, labels))
        if not np.array_equal(counted, found):
            raise Blocked(f"{named(node)} gets its number of channels from another tensor")
    elif not entry.literal:
        raise Blocked(f"the number of channels that {named(node)} makes is computed")
    elif entry.size == 0 and not own:
        raise Blocked(f"{named(node)} copies an extent for its channels")
    elif entry.size not in (0, -1):
        if entry.place is None:
            raise Blocked(f"other nodes read the shape that {named(node)} makes")
        reader, index, position = entry.place
        trace.rewrite(reader, index, labels, sizes_from((position, slice(None))))


def _fixed(trace: Trace, node: ir.Node, indices: Sequence[int]) -> Known:
    """What has no slots must not get a number of them as its shape."""
    for index in indices:
        value = node.inputs[index] if len(node.inputs) > index else None
        if value is not None:
            trace.pin(value, f"{named(node)} makes a tensor of their number")
    return trace.of(node.inputs[0])


def _reshape(trace: Trace, node: ir.Node) -> Sequence[Known]:
    known, source = trace.of(node.inputs[0]), node.inputs[0]
    if isinstance(known, Fixed) or source is None:
        return [_fixed(trace, node, [1])]
    before = _told_apart(source, trace.dims(source))
    entries = _entries(trace, node, 1)
    if entries is None or node.attributes.get_int("allowzero", 0) != 0:
        raise Blocked(f"the shape that {named(node)} makes is computed")
    after = _after(before, entries, dims_of(node.outputs[0]))
    slots = _regroup(trace, node, known, before, after)
    if any(entry.literal and entry.size == 0 and at == known.axis != slots.axis for at, entry in enumerate(entries)):
        raise Blocked(f"{named(node)} copies the number of channels to another axis")
    _settle(trace, node, entries, slots.axis, slots.labels, own=slots.axis == known.axis)
    return [slots]


def _after(before: Dims, entries: Vector, inferred: Dims | None) -> Dims:
    """The dimensions of a Reshape's output as its target tells them, where it does."""
    found: list[int | str | None] = []
    for at, entry in enumerate(entries):
        size = entry.size
        if entry.literal and size == 0 and at < len(before):
            size = before[at]
        elif size is None or (entry.literal and size == -1):
            size = inferred[at] if inferred is not None and len(inferred) == len(entries) else None
        found.append(size)
    return tuple(found)


def _regroup(trace: Trace, node: ir.Node, known: Slots, before: Dims, after: Dims) -> Slots:
    """Slots through a row-major reshape: they keep the longest axis of those that the old one is spread over."""
    first, last, start, stop = _block(node, before, after, known.axis)
    inner, outer = before[first:last], after[start:stop]
    if len(inner) == len(outer) == 1:
        return Slots(start, known.labels)
    old = [d for d in inner if isinstance(d, int)]
    new = [d for d in outer if isinstance(d, int)]
    if len(new) + 1 == len(outer) and prod(new) > 0:
        at = next(k for k, d in enumerate(outer) if not isinstance(d, int))
        new.insert(at, prod(old) // prod(new))
    if len(old) != len(inner) or len(new) != len(outer) or prod(old) != prod(new):
        raise Blocked(f"{named(node)} has dimensions that are not known")
    shape = [1] * len(old)
    shape[known.axis - first] = known.labels.size
    grid = np.broadcast_to(known.labels.reshape(shape), old).reshape(new)
    varying = [k for k in range(grid.ndim) if (grid != grid.take([0], k)).any()]
    chosen = max(varying or range(grid.ndim), key=lambda k: grid.shape[k])
    lines = np.moveaxis(grid, chosen, -1).reshape(-1, grid.shape[chosen])
    trace.classes.unite(np.broadcast_to(lines[:1], lines.shape), lines)
    return Slots(start + chosen, lines[0].copy())


def _block(node: ir.Node, before: Dims, after: Dims, axis: int) -> tuple[int, int, int, int]:
    """The fewest axes around `axis`, before and after, that hold the same elements: first, last, start, stop."""
    heads = _products(before), _products(after)
    tails = _products(before[::-1])[::-1], _products(after[::-1])[::-1]
    ends = (0, 0), (len(before), len(after))
    first = last = None
    for i, j in product(range(len(before) + 1), range(len(after) + 1)):
        if (i, j) in ends or any(own[i] is not None and own[i] == other[j] for own, other in (heads, tails)):
            if i <= axis:
                first = (i, j)  # the last one: the most that is left out in front
            elif last is None:
                last = (i, j)
    if first is None or last is None or last[1] <= first[1] or 0 in before:
        raise Blocked(f"{named(node)} has dimensions that are not known")
    return first[0], last[0], first[1], last[1]


def _products(dims: Dims) -> list[Product]:
    """Products of the first 0, 1, 2, ... dimensions."""
    found: list[Product] = [(1, ())]
    for size in dims:
        before = found[-1]
        if before is None or size is None:
            found.append(None)
        elif isinstance(size, int):
            found.append((before[0] * size, before[1]))
        else:
            found.append((before[0], tuple(sorted((*before[1], size)))))
    return found


def _flatten(trace: Trace, node: ir.Node) -> Sequence[Known]:
    known, source = trace.of(node.inputs[0]), node.inputs[0]
    if isinstance(known, Fixed) or source is None:
        return [known]
    before, axis = _told_apart(source, trace.dims(source)), node.attributes.get_int("axis", 1)
    axis += len(before) if axis < 0 else 0
    after = tuple(
        prod(d for d in part if isinstance(d, int)) if all(isinstance(d, int) for d in part) else None
        for part in (before[:axis], before[axis:])
    )
    if axis <= known.axis:
        return [
            Slots(1, _regroup(trace, node, Slots(known.axis - axis, known.labels), before[axis:], after[1:]).labels)
        ]
    return [Slots(0, _regroup(trace, node, known, before[:axis], after[:1]).labels)]


def _squeezed(trace: Trace, node: ir.Node) -> Sequence[Known]:
    """Squeeze and Unsqueeze, with their axes given."""
    known = trace.of(node.inputs[0])
    if isinstance(known, Fixed):
        return [known]
    if len(node.inputs) < 2 or node.inputs[1] is None:
        raise Blocked(f"{named(node)} does not say which axes")
    rank, axes = len(trace.dims(node.inputs[0])), trace.integers(node, 1)
    if node.op_type == "Squeeze":
        left = [axis for axis in range(rank) if axis not in {k % rank for k in axes}]
        return [Slots(left.index(known.axis), known.labels)]
    new = {k % (rank + len(axes)) for k in axes}
    return [Slots([k for k in range(rank + len(axes)) if k not in new][known.axis], known.labels)]


def _expand(trace: Trace, node: ir.Node) -> Sequence[Known]:
    known, rank = trace.of(node.inputs[0]), len(trace.dims(node.inputs[0]))
    if isinstance(known, Fixed):
        return [_fixed(trace, node, [1])]
    entries = _entries(trace, node, 1)
    if entries is None:
        raise Blocked(f"the shape that {named(node)} makes is computed")
    axis, more = known.axis - rank + len(entries), max(len(entries) - rank, 0)
    # A 1 leaves the channels as they are, as does a shape that begins behind them.
    stays = axis < 0 or (entries[axis].literal and entries[axis].size == 1)
    if stays and any(entry.labels is not None for entry in entries):
        raise Blocked(f"{named(node)} makes another axis as long as there are channels")
    if not stays:
        _settle(trace, node, entries, axis, known.labels, own=False)
    return [Slots(known.axis + more, known.labels)]


def _resize(trace: Trace, node: ir.Node) -> Sequence[Known]:
    """Resize (and Upsample) of the other axes."""
    known, rank = trace.of(node.inputs[0]), len(trace.dims(node.inputs[0]))
    if isinstance(known, Fixed):
        return [_fixed(trace, node, [1, 2, 3])]
    if node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise Blocked(f"{named(node)} crops")
    axes = [axis % rank for axis in node.attributes.get_ints("axes", tuple(range(rank)))]
    if known.axis not in axes:
        return [known]
    at, scales = axes.index(known.axis), 1 if node.op_type == "Upsample" else 2
    if len(node.inputs) > scales and node.inputs[scales] is not None:
        array = trace.fixed_array(node, scales)
        if array.size:
            if float(array.reshape(-1)[at]) != 1.0:
                raise Blocked(f"{named(node)} resizes its channels")
            return [known]
    entries = _entries(trace, node, 3)
    if entries is None or len(entries) != len(axes):
        raise Blocked(f"the size that {named(node)} makes is computed")
    if node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Blocked(f"{named(node)} keeps the ratio of its axes")
    if entries[at].literal and entries[at].size != known.labels.size:
        raise Blocked(f"{named(node)} resizes its channels")
    _settle(trace, node, entries, at, known.labels, own=False)
    return [known]


SHAPED: Mapping[str, Rule] = {
    "Expand": _expand,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Resize": _resize,
    "Squeeze": _squeezed,
    "Unsqueeze": _squeezed,
    "Upsample": _resize,
}
