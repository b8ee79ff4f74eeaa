"""What each site alone does to the model's outputs, measured: one run over a few samples for each site.

The predicted error of a site's own output takes rounding for noise. But a global pooling averages noise away, and what
stays is systematic: a constant background that lies between two steps, weights that are rounded the same way. Where
sites are to be given back, that decides which, and is worth its time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf, isfinite, log10

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.contract import Context, Sensitivity
from onnxcomp.cost import model_cost
from onnxcomp.data import Feeds
from onnxcomp.data.feeds import batch_rows
from onnxcomp.evaluate import scores_output
from onnxcomp.numeric.divergence import divergences
from onnxcomp.quantize.fusing import Placement
from onnxcomp.quantize.parameters import Parameters
from onnxcomp.quantize.placement import Plan
from onnxcomp.runtime.activations import Tap

__all__ = ["sensitivities"]

Emit = Callable[[ir.Model, Plan, Mapping[str, Parameters]], None]
Outputs = Mapping[str, NDArray[np.floating]]

_SAMPLES = 32
# A tenth of a point of accuracy takes many more samples than a decibel does.
_LABELLED = 128
# Multiply-accumulates of all runs together: half a minute or so on one core.
_MACS = 10**12
# Models that are held in memory at the same time.
_AT_ONCE = 4


def sensitivities(
    model: ir.Model,
    placement: Placement,
    parameters: Mapping[str, Parameters],
    emit: Emit,
    feeds: Feeds,
    context: Context,
) -> tuple[Sensitivity, ...]:
    """Return what quantizing each site with weights, and no other, does to the outputs; the worst site first.

    Args:
        model: The original, not modified.
        placement: Where it is quantized.
        parameters: Scale and zero point of every root of the whole placement.
        emit: Writes a plan with the given parameters into a model.
        feeds: Calibration data; at most 32 samples are read, fewer for large models.
        context: Of its evaluation data, where they have labels, up to 128 samples are read for the drop of accuracy,
            which does not count for the order.
    """
    whole = placement.of(model)
    known = {name: parameters[whole.root_of(tensor.value)] for name, tensor in whole.tensors.items()}
    sites = list(dict.fromkeys(w.site for w in whole.weighted))
    # Where shapes are unknown, a parameter is taken to count once.
    cost = model_cost(model)
    affordable = _MACS // max(1, (cost.macs or cost.parameters) * len(sites))
    found: list[Sensitivity] = []
    for start in range(0, len(sites), _AT_ONCE):
        some = sites[start : start + _AT_ONCE]
        models = [_alone(model, placement, site, known, emit) for site in some]
        found += _compare(model, dict(zip(some, models, strict=True)), feeds, context, max(1, affordable))
    return tuple(sorted(found, key=lambda own: (-own.error, own.site)))


def _alone(
    model: ir.Model, placement: Placement, site: str, parameters: Mapping[str, Parameters], emit: Emit
) -> ir.Model:
    """A clone in which only the nodes of one site are quantized."""
    copy = model.clone()
    plan = placement.of(copy, only=site)
    emit(copy, plan, {root: parameters[root] for root in plan.roots})
    return copy


def _compare(
    model: ir.Model, others: Mapping[str, ir.Model], feeds: Feeds, context: Context, affordable: int
) -> list[Sensitivity]:
    """Run a model and versions of it, by site, side by side."""
    wanted = [v.name for v in model.graph.outputs if v.name and v.dtype == ir.DataType.FLOAT and v.producer()]
    if not wanted:
        return [_Tally(wanted).result(site) for site in others]
    base = Tap(model, wanted, threads=context.threads)
    taps = {site: Tap(other, wanted, threads=context.threads) for site, other in others.items()}
    tallies = {site: _Tally(wanted) for site in others}
    for feed in feeds.batches(min(_SAMPLES, affordable)):
        rows, outputs = batch_rows(feed, feeds.inputs), base.read(feed)
        for site, tap in taps.items():
            tallies[site].add(rows, outputs, tap.read(feed))
    labels = None if context.scored is None else context.scored.labels
    if context.scored is not None and labels is not None:
        for feed in context.scored.batches(min(_LABELLED, affordable)):
            rows, outputs = batch_rows(feed, context.scored.inputs), base.read(feed)
            for site, tap in taps.items():
                tallies[site].score(rows, outputs, tap.read(feed), labels)
    return [tally.result(site) for site, tally in tallies.items()]


class _Tally:
    """Running sums of one version against the original."""

    def __init__(self, names: Sequence[str]) -> None:
        self._signal, self._noise = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        self._divergence: float | None = None
        self._samples = self._labelled = self._lost = 0

    def add(self, rows: int, wanted: Outputs, got: Outputs) -> None:
        """Count the noise of one batch."""
        self._samples += rows
        for name in self._signal:
            self._signal[name] += float(np.sum(np.square(wanted[name], dtype=np.float64)))
            self._noise[name] += float(np.sum(np.square(got[name] - wanted[name], dtype=np.float64)))
        scores = scores_output(wanted, rows)
        if scores is not None:
            own = divergences(wanted[scores].reshape(rows, -1), got[scores].reshape(rows, -1))
            self._divergence = (self._divergence or 0.0) + float(own.sum())

    def score(self, rows: int, wanted: Outputs, got: Outputs, labels: NDArray[np.int64]) -> None:
        """Count the right classes of the next batch of labelled samples; `labels` are those of all."""
        scores = scores_output(wanted, rows)
        if scores is not None:
            own = labels[self._labelled : self._labelled + rows]
            before, after = (values[scores].reshape(rows, -1).argmax(axis=1) == own for values in (wanted, got))
            self._lost += int(np.count_nonzero(before)) - int(np.count_nonzero(after))
            self._labelled += rows

    def result(self, site: str) -> Sensitivity:
        tiny = float(np.finfo(np.float64).tiny)
        errors = [self._noise[name] / max(self._signal[name], tiny) for name in self._signal]
        error = max((each if isfinite(each) else inf for each in errors), default=0.0)
        return Sensitivity(
            site,
            error,
            inf if error == 0 else -inf if error == inf else -10 * log10(error),
            None if self._divergence is None else self._divergence / self._samples,
            100 * self._lost / self._labelled if self._labelled else None,
            self._samples,
        )
