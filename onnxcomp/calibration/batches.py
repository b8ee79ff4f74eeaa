"""Data cut into pieces whose activations stay small, each with the values of inner tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.data import Feeds
from onnxcomp.data.feeds import batch_rows
from onnxcomp.errors import DataError
from onnxcomp.numeric.histogram import Histogram
from onnxcomp.runtime.activations import Tap

__all__ = ["BATCH_BYTES", "Piece", "bad_values", "pieces", "require_values"]

BATCH_BYTES = 32 << 20
"""What the activations of a piece may take. ORT's own buffers and the arena's slack come on top of it."""


class Piece(NamedTuple):
    """Some rows of a feed.

    Attributes:
        number: Number of the feed.
        first: Number of the piece's first sample.
        feed: Input name to array.
    """

    number: int
    first: int
    feed: dict[str, NDArray[Any]]


def pieces(tap: Tap, names: Sequence[str], feeds: Feeds, limit: int | None) -> Iterator[Piece]:
    """Cut feeds so that the values of the tensors stay below BATCH_BYTES; a piece has one row at least.

    Args:
        tap: Reads the tensors.
        names: Those whose sizes count.
        feeds: The data.
        limit: At most that many samples.

    Raises:
        DataError: There are no data, or they do not fit the model.
    """
    rows = None
    seen = False
    first = 0
    for number, feed in enumerate(feeds.watched("calibrate", limit)):
        seen = True
        if not feeds.divisible(feed):
            yield Piece(number, first, feed)
            first += batch_rows(feed, feeds.inputs)
            continue
        total = len(next(iter(feed.values())))
        if rows is None:
            one = tap.read({name: array[:1] for name, array in feed.items()})
            rows = max(1, BATCH_BYTES // max(1, sum(one[name].nbytes for name in names)))
            del one
        for start in range(0, total, rows):
            yield Piece(number, first + start, {name: array[start : start + rows] for name, array in feed.items()})
        first += total
    if not seen:
        raise DataError(f"{feeds.source}: no samples to calibrate on")


def bad_values(model: ir.Model, name: str, kind: str, number: int) -> str:
    """Say which tensor holds NaN or infinity, what makes it and on which batch."""
    producer = next((node for node in model.graph for value in node.outputs if value.name == name), None)
    where = f" of node '{producer.name or producer.op_type}'" if producer is not None else ""
    return f"tensor '{name}'{where} holds {kind} on calibration batch {number}; check the data and their preprocessing"


def require_values(histograms: Mapping[str, Histogram], feeds: Feeds) -> None:
    """Raise DataError where a tensor was empty on all samples."""
    for name, histogram in histograms.items():
        if not histogram.total:
            raise DataError(
                f"tensor '{name}' held no value on any sample of {feeds.source}; give other calibration data"
            )
