"""Ranges of inner tensors over calibration data: one streaming pass, memory that does not grow with the samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.data import Feeds
from onnxcomp.errors import DataError
from onnxcomp.numeric.histogram import SAMPLE, Histogram
from onnxcomp.numeric.ranges import Method, Range, choose_range
from onnxcomp.runtime.activations import Tap

__all__ = ["Range", "collect_histograms", "collect_means", "collect_ranges"]

Item = tuple[int, dict[str, NDArray[Any]]]
# From so many values of a tensor on, what more batches bring is thinned out further.
_PLENTY = 10 * SAMPLE
# What a batch's activations may take. ORT's own buffers and the arena's slack come on top of it.
_BATCH_BYTES = 32 << 20


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
                raise DataError(_bad_values(model, name, str(error), number)) from error
    for name, histogram in histograms.items():
        if not histogram.total:
            raise DataError(
                f"tensor '{name}' held no value on any sample of {feeds.source}; give other calibration data"
            )
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
    sums: dict[str, NDArray[np.float64]] = {}
    counts = dict.fromkeys(tensors, 0)
    for number, values in _batches(model, list(counts), feeds, threads, limit):
        for name in counts:
            value = values[name]
            if not -value.ndim <= axis < value.ndim:
                raise DataError(f"tensor '{name}' has {value.ndim} axes: there is no channel axis {axis}")
            others = tuple(k for k in range(value.ndim) if k != axis % value.ndim)
            total = np.atleast_1d(np.sum(value, axis=others, dtype=np.float64))
            if not np.isfinite(total).all():
                kind = "NaN" if np.isnan(total).any() else "infinity"
                raise DataError(_bad_values(model, name, kind, number))
            sums[name] = sums[name] + total if name in sums else total
            counts[name] += value.size // max(value.shape[axis], 1)
    return {name: sums[name] / max(count, 1) for name, count in counts.items()}


def _batches(model: ir.Model, names: Sequence[str], feeds: Feeds, threads: int, limit: int | None) -> Iterator[Item]:
    """Yield (number of the feed, values of the tensors), with feeds cut so that their activations stay small."""
    tap = Tap(model, names, threads=threads)
    rows = None
    seen = False
    for number, feed in enumerate(feeds.batches(limit)):
        seen = True
        if not _can_be_cut(feeds, feed):
            yield number, tap.read(feed)
            continue
        total = len(next(iter(feed.values())))
        if rows is None:
            one = tap.read({name: array[:1] for name, array in feed.items()})
            rows = max(1, _BATCH_BYTES // max(1, sum(value.nbytes for value in one.values())))
            del one
        for start in range(0, total, rows):
            yield number, tap.read({name: array[start : start + rows] for name, array in feed.items()})
    if not seen:
        raise DataError(f"{feeds.source}: no samples to calibrate on")


def _ahead(batches: Iterator[Item]) -> Iterator[Item]:
    """Run the model on the next batch while the last one is counted; one batch more is held in memory."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = pool.submit(next, batches, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield item


def _can_be_cut(feeds: Feeds, feed: dict[str, NDArray[Any]]) -> bool:
    """Whether a part of a feed's rows is a feed too: no input fixes its batch, and all have as many rows."""
    free = all(given.shape != () and given.fixed_batch is None for given in feeds.inputs)
    return free and len({array.shape[:1] for array in feed.values()}) == 1


def _bad_values(model: ir.Model, name: str, kind: str, number: int) -> str:
    producer = next((node for node in model.graph for value in node.outputs if value.name == name), None)
    where = f" of node '{producer.name or producer.op_type}'" if producer is not None else ""
    return f"tensor '{name}'{where} holds {kind} on calibration batch {number}; check the data and their preprocessing"
