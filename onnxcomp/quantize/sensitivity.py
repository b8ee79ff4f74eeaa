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
_SCORED = 128
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
        context: Its evaluation data, where there are any, take the place of `feeds`, with up to 128 samples: they are
            what a budget is judged on, and show as well what was fitted to the calibration data too closely.
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
    read = feeds if context.scored is None else context.scored
    for feed in read.batches(min(_SAMPLES if context.scored is None else _SCORED, affordable)):
        rows, outputs = batch_rows(feed, read.inputs), base.read(feed)
        for site, tap in taps.items():
            tallies[site].add(rows, outputs, tap.read(feed), read.labels)
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
