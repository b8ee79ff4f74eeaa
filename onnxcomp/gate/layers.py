"""The limit on single layers: none may become slower than it was by more than so much.

A layer that seems to be over the limit is measured again from newly opened sessions, three times in all, and fails only
if three things hold. It is over the limit in every one of the measurements. The middle one of them is still over it
when what memory that lies elsewhere makes of a layer from session to session is taken off. And the lower bound of its
ratio over all rounds, at a level corrected for the number of layers that are judged at once (Bonferroni), is over it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from onnxcomp.gate.limits import in_words
from onnxcomp.gate.line import Line, listed, skipped
from onnxcomp.gate.speed import ATTEMPTS
from onnxcomp.numeric.bootstrap import median_errors

__all__ = ["LayerTimes", "SlowLayer", "layers_line", "slowed_most", "slower_layers"]

Float = NDArray[np.float64]

_LEVEL = 0.05
_IGNORED = 0.01  # share of the base's total time
_LEAST_SHARED = 0.5  # share of the time that has to lie in layers that both models have
_SESSION = 0.05  # by which a layer of one and the same model differs between sessions


@dataclass(frozen=True)
class LayerTimes:
    """Times of the layers of two models, measured in turns.

    Attributes:
        names: Of the layers, in the user's own model.
        base: float [layers, rounds], milliseconds.
        other: float [layers, rounds], milliseconds, in the same rounds.
    """

    names: tuple[str, ...]
    base: Float
    other: Float


@dataclass(frozen=True, slots=True)
class SlowLayer:
    """A layer and how much slower it became.

    Attributes:
        name: In the user's own model.
        ratio: Median over the rounds of its time / its time in the base.
        low: Lower bound of that, at a level corrected for the number of layers.
        base_ms: Its median time in the base, milliseconds.
        other_ms: Its median time.
    """

    name: str
    ratio: float
    low: float
    base_ms: float
    other_ms: float


def slower_layers(measured: Sequence[LayerTimes], limit: float, seed: int = 0) -> tuple[SlowLayer, ...]:
    """Return the layers that are slower than in the base by more than `limit` percent beyond doubt, worst first.

    Layers that take under 1 % of the base's time in both models, or that one of them lacks, do not count.

    Args:
        measured: One or several measurements of the same layers.
        limit: Percent.
        seed: Seed of the bootstrap.
    """
    over = 1 + limit / 100
    found = _suspects(measured, over)
    middles = np.median([np.median(_ratios(times)[found], axis=1) for times in measured], axis=0)
    found = found[middles * (1 - _SESSION) > over]
    if not found.size:
        return ()
    ratios = [_ratios(times)[found] for times in measured]
    # The rounds of all measurements as one series: how sessions differ is what _SESSION stands for.
    medians, errors, freedom = median_errors([np.concatenate(ratios, axis=1)], seed=seed)
    lows = medians - np.asarray(stdtrit(freedom, 1 - _LEVEL / _counted(measured[0]).size)) * errors
    bases, others = (_medians([getattr(times, side) for times in measured])[found] for side in ("base", "other"))
    layers = [
        SlowLayer(measured[0].names[layer], float(ratio), float(low), float(base), float(other))
        for layer, ratio, low, base, other in zip(found, medians, lows, bases, others, strict=True)
        if low > over
    ]
    return tuple(sorted(layers, key=lambda one: -one.ratio))


def slowed_most(times: LayerTimes, count: int = 3) -> tuple[SlowLayer, ...]:
    """Return the layers that lost most milliseconds, worst first; those that lost none are left out."""
    bases, others = _medians([times.base]), _medians([times.other])
    worst = np.argsort(bases - others, kind="stable")[:count]
    return tuple(
        SlowLayer(
            times.names[k],
            float(others[k] / bases[k]) if bases[k] else math.inf,
            0.0,
            float(bases[k]),
            float(others[k]),
        )
        for k in worst
        if others[k] > bases[k]
    )


def layers_line(measure: Callable[[int], LayerTimes], limit: float) -> tuple[Line, LayerTimes]:
    """Judge the layers; skipped where most of the time of either model lies in layers that the other one lacks.

    Args:
        measure: Times the layers of both models from newly opened sessions; takes the number of the attempt.
        limit: Percent by which a layer may become slower.

    Returns:
        The line and the first measurement.
    """
    measured = [measure(0)]
    asked = in_words("max_layer_slowdown", limit)
    shared = _shared(measured[0])
    if shared < _LEAST_SHARED:
        why = f"only {100 * shared:.0f} % of the time lies in layers that both models have; do nodes go by other names?"
        return skipped("max_layer_slowdown", asked, why), measured[0]
    while len(measured) < ATTEMPTS and _suspects(measured, 1 + limit / 100).size:
        measured.append(measure(len(measured)))
    slow = slower_layers(measured, limit) if len(measured) == ATTEMPTS else ()
    if slow:
        names = tuple(one.name for one in slow)
        figures = {"limit": limit, "value": 100 * (slow[0].ratio - 1), "low": 100 * (slow[0].low - 1)}
        value = f"{names[0]} {_change(slow[0].ratio)}"
        return Line("max_layer_slowdown", asked, value, "fail", _told(slow), names, figures), measured[0]
    # What a layer is in every measurement, it is; in single ones it may be anything.
    least = np.min([np.median(_ratios(times), axis=1) for times in measured], axis=0)
    worst = float(least[_counted(measured[0])].max(initial=0.0)) or 1.0
    figures = {"limit": limit, "value": 100 * (worst - 1)}
    line = Line("max_layer_slowdown", asked, f"{_change(worst)} at most", "pass", _passed(measured, limit), (), figures)
    return line, measured[0]


def _passed(measured: Sequence[LayerTimes], limit: float) -> str:
    """Why the layers pass, where there is something to say."""
    told: list[str] = []
    if _suspects(measured, 1 + limit / 100).size:
        told.append("no layer was over the limit beyond what sessions differ by")
    elif len(measured) > 1:
        told.append(f"in measurement {len(measured)} no layer was over the limit that had been before")
    bases, others = _medians([measured[0].base]), _medians([measured[0].other])
    new = np.flatnonzero((bases == 0) & (others >= _IGNORED * bases.sum()))
    if new.size:
        names = listed([measured[0].names[k] for k in new])
        share = others[new].sum() / others.sum()
        told.append(f"not in the base, and not judged: {names}, {100 * share:.0f} % of the time")
    return "; ".join(told)


def _shared(times: LayerTimes) -> float:
    """The share of the time that lies in layers that both models have; of the model in which it is less."""
    bases, others = _medians([times.base]), _medians([times.other])
    both = (bases > 0) & (others > 0)
    return min((float(own[both].sum() / own.sum()) for own in (bases, others) if own.any()), default=1.0)


def _suspects(measured: Sequence[LayerTimes], over: float) -> NDArray[np.int64]:
    """Layers that are over the limit in every measurement."""
    every = [np.median(_ratios(times), axis=1) > over for times in measured]
    return np.array([layer for layer in _counted(measured[0]) if all(one[layer] for one in every)], np.int64)


def _counted(times: LayerTimes) -> NDArray[np.int64]:
    bases, others = _medians([times.base]), _medians([times.other])
    return np.flatnonzero((bases > 0) & (others > 0) & (np.maximum(bases, others) >= _IGNORED * bases.sum()))


def _ratios(times: LayerTimes) -> Float:
    """Time / time in the base, float [layers, rounds]."""
    # A clock of microseconds may say that nothing has passed.
    least = np.maximum(1e-3 * np.median(times.base, axis=1, keepdims=True), 1e-9)
    ratios: Float = times.other / np.maximum(times.base, least)
    return ratios


def _medians(times: Sequence[Float]) -> Float:
    medians: Float = np.median(np.concatenate(times, axis=1), axis=1)
    return medians


def _told(layers: Sequence[SlowLayer]) -> str:
    shown = [f"{one.name} {_change(one.ratio)} ({one.base_ms:.3g} -> {one.other_ms:.3g} ms)" for one in layers]
    return f"slower in all {ATTEMPTS} measurements: {listed(shown)}"


def _change(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.0f} %"
