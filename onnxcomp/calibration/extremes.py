"""Minimum and maximum of inner tensors over all samples, when no rule reads more of them than that.

Reductions appended to the model would not be faster: onnxruntime's ReduceMin and ReduceMax take longer than its writing
the tensors out and numpy's reading them (13.3 against 13.2 ms an image on MobileNetV2, and there is no telling whether
they pass a NaN on).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.calibration.batches import Piece, bad_values, pieces, require_values
from onnxcomp.calibration.means import ChannelMeans
from onnxcomp.data import Feeds
from onnxcomp.errors import DataError
from onnxcomp.numeric.histogram import Histogram, extremes
from onnxcomp.runtime.activations import Tap

__all__ = ["BINNED", "collect_extremes"]

BINNED = 16
"""Samples whose values are counted. They give a report its predicted errors; no range of minmax depends on them."""

_AT_ONCE = 2
# Results that wait to be counted; each holds the activations of a batch as long as they are wanted.
_WAITING = 4


class _Look(NamedTuple):
    piece: Piece
    bounds: dict[str, tuple[float, float]]
    values: dict[str, NDArray[Any]]


def collect_extremes(
    model: ir.Model,
    tensors: Sequence[str],
    feeds: Feeds,
    *,
    averaged: Sequence[str] = (),
    mean_samples: int = 64,
    threads: int = 1,
    limit: int | None = None,
) -> tuple[dict[str, Histogram], dict[str, NDArray[np.float64]]]:
    """Return histograms whose least and greatest values are those of all samples, and channel means of some tensors.

    The least and greatest values are those of :func:`onnxcomp.calibration.ranges.collect_histograms`, bit by bit; the
    counts are of batches that begin among the first 16 samples. Two batches run at a time.

    Args:
        model: The model whose tensors are watched; not modified.
        tensors: Names of tensors of the main graph.
        feeds: The data.
        averaged: Tensors whose means along axis 1 are wanted, float64 [C].
        mean_samples: Means are those of batches that begin among so many samples.
        threads: Intra-op threads of a run.
        limit: At most that many samples.

    Raises:
        DataError: There are no data, they do not fit, or a tensor holds NaN or infinite values on them.
        ModelError: There is no such tensor, or ORT cannot run the model.
    """
    histograms = {name: Histogram() for name in tensors}
    means = ChannelMeans(model, averaged)
    tap = Tap(model, [*histograms, *means.names], threads=threads)

    def look(piece: Piece) -> _Look:
        values = tap.read(piece.feed)
        wanted = piece.first < max(BINNED, mean_samples) or not all(h.total for h in histograms.values())
        return _Look(piece, _bounds(model, piece, values, histograms), values if wanted else {})

    for piece, bounds, values in _at_once(pieces(tap, list(histograms), feeds, limit), look):
        for name, histogram in histograms.items():
            if name not in bounds:
                continue
            if piece.first < BINNED or not histogram.total:
                histogram.add(values[name], offset=piece.number)
            else:
                histogram.stretch(*bounds[name])
        if piece.first < mean_samples:
            means.add(values, piece.number)
    require_values(histograms, feeds)
    return histograms, means.result()


def _bounds(
    model: ir.Model, piece: Piece, values: dict[str, NDArray[Any]], names: Iterable[str]
) -> dict[str, tuple[float, float]]:
    """Least and greatest value of each tensor that is not empty."""
    found: dict[str, tuple[float, float]] = {}
    for name in names:
        if values[name].size:
            try:
                found[name] = extremes(values[name])
            except ValueError as error:
                raise DataError(bad_values(model, name, str(error), piece.number)) from error
    return found


def _at_once(items: Iterable[Piece], work: Callable[[Piece], _Look]) -> Iterator[_Look]:
    """The results of `work`, in order, two calls of it at a time."""
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        waiting: deque[Future[_Look]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) == _WAITING:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
