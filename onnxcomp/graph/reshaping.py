"""Labels (`onnxcomp.graph.labels`) through operators that move elements, symbolic dimensions included."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from onnxcomp.graph.labels import Labels, compact

__all__ = ["Dims", "dims_of", "full_rank", "reshaped"]

Dims = tuple[int | str | None, ...]


def dims_of(value: ir.Value | None) -> Dims | None:
    """The dimensions of a value: numbers, names of symbols, None where unknown; None without a rank."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def full_rank(labels: Labels, rank: int) -> Labels:
    """The labels with leading axes of extent 1 up to `rank`."""
    return labels.reshape((1,) * (rank - labels.ndim) + labels.shape)


def reshaped(labels: Labels, before: Dims, after: Dims) -> Labels | None:
    """Return the labels of a row-major reshape; None where symbolic dimensions leave open what goes where.

    Args:
        labels: Labels of as many axes as `before`.
        before: Dimensions of the input.
        after: Dimensions of the output.
    """
    if labels.size == 1:
        return labels.reshape((1,) * len(after))
    varying = [axis for axis, extent in enumerate(labels.shape) if extent > 1]
    same = _common(before, after)
    if same > varying[-1]:
        return labels.reshape(labels.shape[:same] + (1,) * (len(after) - same))
    moved = _tail(labels, before, after, same)
    if moved is not None:
        return moved
    # From the right: dimensions behind the varying ones that stay, and as many elements before them as labels tell.
    kept = min(_common(before[::-1], after[::-1]), len(before) - 1 - varying[-1])
    first, last = varying[0], len(before) - kept
    block = _static(before[first:last])
    stop = len(after) - kept
    for start in range(stop - 1, -1, -1):
        into = _static(after[start:stop])
        if into is None or block is None:
            return None
        if prod(into) == prod(block):
            inner = np.broadcast_to(labels.reshape(labels.shape[first:last]), block).reshape(into)
            return compact(inner.reshape((1,) * start + into + (1,) * kept))
    return None


def _tail(labels: Labels, before: Dims, after: Dims, same: int) -> Labels | None:
    """Keep the first `same` axes and reshape the rest, where its dimensions are known."""
    for keep in range(same, -1, -1):
        inner, outer = _static(before[keep:]), _static(after[keep:])
        if inner is not None and outer is not None and prod(inner) == prod(outer):
            lead = labels.shape[:keep]
            return compact(np.broadcast_to(labels, lead + inner).reshape(lead + outer))
    return None


def _common(a: Dims, b: Dims) -> int:
    count = 0
    for x, y in zip(a, b, strict=False):
        if x is None or x != y:
            break
        count += 1
    return count


def _static(dims: Dims) -> tuple[int, ...] | None:
    known = tuple(d for d in dims if isinstance(d, int))
    return known if len(known) == len(dims) else None
