"""Both models and the spliced base side by side over the data, in as few runs and as little memory as that takes.

Batches are cut so that all tensors of a run fit into a bounded number of bytes; where those of one sample do not, the
tensors are read in groups, with a pass over the data each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.comparison.graphs import is_float
from onnxcomp.data import Feeds
from onnxcomp.data.feeds import batch_rows
from onnxcomp.data.inputs import model_inputs
from onnxcomp.errors import InputError
from onnxcomp.graph.fold.canonical import canonicalise
from onnxcomp.graph.fold.shapes import infer_shapes

__all__ = ["Batch", "cast_feed", "check_inputs", "footprints", "groups_of", "slices"]

Array = NDArray[Any]
Batch = dict[str, Array]
# What is taken of tensors of unknown size.
_UNKNOWN = 16 << 20


def check_inputs(base: ir.Model, other: ir.Model) -> ir.Model:
    """Return the model to open data for, so that both can be fed: the one whose batch is fixed, if one is.

    Raises:
        InputError: The other model needs an input that the base has not, of another kind or another shape.
    """
    ours, theirs = ({i.name: i for i in model_inputs(model)} for model in (base, other))
    if not theirs.keys() <= ours.keys():
        names = f"{', '.join(sorted(ours))} against {', '.join(sorted(theirs))}"
        raise InputError(f"the models cannot be compared: inputs {names}")
    chosen = base
    for name, theirs_input in theirs.items():
        own = ours[name]
        both = f"input {name!r} is {own} against {theirs_input}"
        floating = is_float_dtype(own.dtype) and is_float_dtype(theirs_input.dtype)
        if own.dtype != theirs_input.dtype and not floating:
            raise InputError(f"the models cannot be compared: {both}")
        if own.shape is None or theirs_input.shape is None:
            continue
        pairs = list(zip(own.shape, theirs_input.shape, strict=False))
        clash = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)
        if clash or len(own.shape) != len(theirs_input.shape):
            raise InputError(f"the models cannot be compared: {both}")
        if own.fixed_batch is None and theirs_input.fixed_batch is not None and theirs.keys() == ours.keys():
            chosen = other
    return chosen


def is_float_dtype(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is of floating-point numbers, bfloat16 and its kin included."""
    return dtype.kind == "f" or "float" in dtype.name


def cast_feed(model: ir.Model, feed: Mapping[str, Array]) -> Batch:
    """The feed in the floating-point types that a model asks for."""
    wanted = {value.name: value.dtype.numpy() for value in model.graph.inputs if value.dtype and is_float(value)}
    return {name: array.astype(wanted.get(name, array.dtype), copy=False) for name, array in feed.items()}


def footprints(model: ir.Model, feeds: Feeds) -> tuple[dict[str, int], bool]:
    """Bytes of every tensor of the main graph, for one sample if batches can be cut, else for a batch; and if they can.

    What shape inference does not tell even of the folded model is taken to be as large as what is made of it, and where
    that is unknown too, as a large tensor.
    """
    feed = next(iter(feeds.batches(1)), {})
    cut = bool(feed) and feeds.divisible(feed)
    clone = model.clone()
    for value in clone.graph.inputs:
        if value.name in feed:
            shape = feed[value.name].shape
            value.shape = ir.Shape((1, *shape[1:]) if cut else shape)
    for value in (value for node in clone.graph for value in node.outputs):
        value.shape = None
    try:
        canonicalise(clone)
        known = infer_shapes(clone)
    except (onnx.shape_inference.InferenceError, ValueError):
        known = {}
    sizes: dict[str, int] = {}
    for value in (v for node in reversed(model.graph) for v in node.outputs if v.name):
        dims = known.get(value.name or "")
        if dims is not None and None not in dims:
            sizes[value.name or ""] = 4 * int(np.prod([d for d in dims if d is not None], dtype=np.int64))
        else:
            made = [sizes.get(v.name or "", _UNKNOWN) for use in value.uses() for v in use.node.outputs]
            sizes[value.name or ""] = max(made, default=_UNKNOWN)
    return sizes, cut


def groups_of(names: Sequence[str], sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Cut the names, in order, into groups of at most so many bytes, or of one name."""
    groups: list[list[str]] = []
    total = 0
    for name in names:
        size = sizes.get(name, _UNKNOWN)
        if not groups or total + size > limit:
            groups.append([])
            total = 0
        groups[-1].append(name)
        total += size
    return groups


def slices(feeds: Feeds, limit: int | None, rows: int | None) -> Iterator[Batch]:
    """The feeds, cut into at most so many rows; None: as they are."""
    for batch in feeds.batches(limit):
        if rows is None or not feeds.divisible(batch):
            yield batch
            continue
        for start in range(0, batch_rows(batch, feeds.inputs), rows):
            yield {name: array[start : start + rows] for name, array in batch.items()}
