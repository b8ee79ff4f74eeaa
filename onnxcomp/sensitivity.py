"""What versions of a model do to its outputs, side by side: the measure behind every sensitivity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite, log10

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.contract import Sensitivity
from onnxcomp.data import Feeds
from onnxcomp.data.feeds import batch_rows
from onnxcomp.evaluate import scores_output
from onnxcomp.numeric.divergence import divergences
from onnxcomp.runtime.activations import Tap

__all__ = ["compare_versions"]

Outputs = Mapping[str, NDArray[np.floating]]


def compare_versions(
    model: ir.Model, others: Mapping[str, ir.Model], feeds: Feeds, limit: int, threads: int = 1
) -> list[Sensitivity]:
    """Run a model and versions of it, by site, side by side.

    Args:
        model: The original.
        others: Site to the version in which that site alone is rewritten; they are held in memory together.
        feeds: The data, with labels for a drop of accuracy.
        limit: At most that many samples are read.
        threads: Intra-op threads.
    """
    wanted = [v.name for v in model.graph.outputs if v.name and v.dtype == ir.DataType.FLOAT and v.producer()]
    if not wanted:
        return [_Tally(wanted).result(site) for site in others]
    base = Tap(model, wanted, threads=threads)
    taps = {site: Tap(other, wanted, threads=threads) for site, other in others.items()}
    tallies = {site: _Tally(wanted) for site in others}
    for feed in feeds.watched("run", limit):
        rows, outputs = batch_rows(feed, feeds.inputs), base.read(feed)
        for site, tap in taps.items():
            tallies[site].add(rows, outputs, tap.read(feed), feeds.labels)
    return [tally.result(site) for site, tally in tallies.items()]


class _Tally:
    """Running sums of one version against the original."""

    def __init__(self, names: Sequence[str]) -> None:
        self._signal, self._noise = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        self._divergence: float | None = None
        self._samples = self._lost = 0
        self._labelled = False

    def add(self, rows: int, wanted: Outputs, got: Outputs, labels: NDArray[np.int64] | None) -> None:
        """Count the next batch; `labels` are those of all samples."""
        seen, self._samples = self._samples, self._samples + rows
        for name in self._signal:
            self._signal[name] += float(np.sum(np.square(wanted[name], dtype=np.float64)))
            self._noise[name] += float(np.sum(np.square(got[name] - wanted[name], dtype=np.float64)))
        scores = scores_output(wanted, rows)
        if scores is None:
            return
        before, after = wanted[scores].reshape(rows, -1), got[scores].reshape(rows, -1)
        self._divergence = (self._divergence or 0.0) + float(divergences(before, after).sum())
        if labels is not None:
            right = [np.count_nonzero(v.argmax(axis=1) == labels[seen : self._samples]) for v in (before, after)]
            self._lost += int(right[0]) - int(right[1])
            self._labelled = True

    def result(self, site: str) -> Sensitivity:
        tiny = float(np.finfo(np.float64).tiny)
        errors = [self._noise[name] / max(self._signal[name], tiny) for name in self._signal]
        error = max((each if isfinite(each) else inf for each in errors), default=0.0)
        return Sensitivity(
            site,
            error,
            inf if error == 0 else -inf if error == inf else -10 * log10(error),
            None if self._divergence is None else self._divergence / self._samples,
            100 * self._lost / self._samples if self._labelled else None,
            self._samples,
        )
