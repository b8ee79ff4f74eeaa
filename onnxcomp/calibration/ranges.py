"""Ranges of inner tensors over calibration data: one streaming pass, memory that does not grow with the samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.calibration.batches import bad_values, pieces, require_values
from onnxcomp.calibration.means import ChannelMeans
from onnxcomp.data import Feeds
from onnxcomp.errors import DataError
from onnxcomp.numeric.histogram import SAMPLE, Histogram
from onnxcomp.numeric.ranges import Method, Range, choose_range
from onnxcomp.runtime.activations import Tap

__all__ = ["Range", "collect_histograms", "collect_means", "collect_ranges"]

Item = tuple[int, dict[str, NDArray[Any]]]
# From so many values of a tensor on, what more batches bring is thinned out further.
_PLENTY = 10 * SAMPLE


def collect_ranges(
    model: ir.Model,
    tensors: Sequence[str],
    feeds: Feeds,
    method: Method,
    *,
    percentile: float = 99.99,
    threads: int = 1,
    limit: int | None = None,
    levels: int = 256,
    symmetric: bool = False,
) -> dict[str, Range]:
    """Choose a quantization range for each tensor from its values on the data.

    Args:
        model: The model whose tensors are watched; not modified.
        tensors: Names of tensors of the main graph.
        feeds: The data.
        method: The rule (:func:`onnxcomp.numeric.ranges.choose_range`).
        percentile: For ``percentile``: percent of the values that stay inside.
        threads: Intra-op threads.
        limit: At most that many samples.
        levels: Number of quantized values.
        symmetric: low = -high.

    Returns:
        Tensor name to range, in the order of `tensors`.

    Raises:
        DataError: There are no data, they do not fit, or a tensor holds NaN or infinite values on them.
        ModelError: There is no such tensor, or ORT cannot run the model.
    """
    histograms = collect_histograms(model, tensors, feeds, threads=threads, limit=limit)
    return {
        name: choose_range(histogram, method, percent=percentile, levels=levels, symmetric=symmetric)
        for name, histogram in histograms.items()
    }


def collect_histograms(
    model: ir.Model, tensors: Sequence[str], feeds: Feeds, *, threads: int = 1, limit: int | None = None
) -> dict[str, Histogram]:
    """Return each tensor's histogram over the data: what every rule of :func:`collect_ranges` reads.

    Minimum and maximum are exact. Of a tensor with more than 200,000 values in a batch (50,000 once two million were
    seen) the histogram holds a regular, weighted sample (:meth:`onnxcomp.numeric.histogram.Histogram.add`), the same
    at every run. Arguments and errors as there.
    """
    histograms = {name: Histogram() for name in tensors}
    for number, values in _ahead(_batches(model, list(histograms), feeds, threads, limit)):
        for name, histogram in histograms.items():
            try:
                histogram.add(values[name], sample=SAMPLE if histogram.total < _PLENTY else SAMPLE // 4, offset=number)
            except ValueError as error:
                raise DataError(bad_values(model, name, str(error), number)) from error
    require_values(histograms, feeds)
    return histograms


def collect_means(
    model: ir.Model,
    tensors: Sequence[str],
    feeds: Feeds,
    *,
    axis: int = 1,
    threads: int = 1,
    limit: int | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Return each tensor's mean per channel over the data, float64 [C]; for bias correction.

    Args:
        model: The model.
        tensors: Names of tensors of the main graph.
        feeds: The data.
        axis: The channel axis; negative counts from the end.
        threads: Intra-op threads.
        limit: At most that many samples.

    Raises:
        DataError, ModelError: As :func:`collect_ranges`; DataError too where a tensor has no such axis.
    """
    means = ChannelMeans(model, tensors, axis)
    for number, values in _batches(model, list(means.names), feeds, threads, limit):
        means.add(values, number)
    return means.result()


def _batches(model: ir.Model, names: Sequence[str], feeds: Feeds, threads: int, limit: int | None) -> Iterator[Item]:
    """Yield (number of the feed, values of the tensors), with feeds cut so that their activations stay small."""
    tap = Tap(model, names, threads=threads)
    for piece in pieces(tap, names, feeds, limit):
        yield piece.number, tap.read(piece.feed)


def _ahead(batches: Iterator[Item]) -> Iterator[Item]:
    """Run the model on the next batch while the last one is counted; one batch more is held in memory."""
    heard = copy_context()  # who listens to this thread listens to that one

    def step() -> Item | None:
        return heard.run(next, batches, None)

    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = pool.submit(step)
        while (item := coming.result()) is not None:
            coming = pool.submit(step)
            yield item
