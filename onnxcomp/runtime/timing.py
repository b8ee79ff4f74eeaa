"""Paired, interleaved timing: the only way two models are compared for speed.

On a shared machine the clock, the caches and the neighbours drift by far more than the differences that matter, but
they drift for both models alike. So the models take turns (A B, B A, A B ...), each round gives one ratio, and what is
reported is the median of the ratios with a distribution-free interval by order statistics (David and Nagaraja, Order
Statistics, 3rd edition, section 7.1).
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrik

from onnxcomp import progress
from onnxcomp.runtime.session import open_session, runner

__all__ = ["SAMPLE_S", "Runnable", "Speedup", "collector_off", "interleaved", "median_interval", "paired", "time_many"]

Runnable: TypeAlias = ir.Model | bytes | str | Path | ort.InferenceSession

SAMPLE_S = 2e-3
"""A shorter sample is dominated by the scheduler and the timer."""

_WARM_S = 0.05
_MIN_ROUNDS = 8
_CHECK_EVERY = 8
_NARROW = 0.01  # an interval of one percent is as good as a CPU's clock ever gives


@dataclass(frozen=True, slots=True)
class Speedup:
    """How much faster `other` is than `base`.

    Attributes:
        ratio: Median over the rounds of base time / other time; above 1: `other` is faster.
        low: Lower end of the 95 % interval of that median.
        high: Upper end.
        base_ms: Median time of one run of `base`, milliseconds.
        other_ms: Median time of one run of `other`, milliseconds.
        rounds: Number of pairs.
        base_p10_ms: 10th percentile of `base`: its time with few disturbances.
        other_p10_ms: 10th percentile of `other`.
    """

    ratio: float
    low: float
    high: float
    base_ms: float
    other_ms: float
    rounds: int
    base_p10_ms: float = math.nan
    other_p10_ms: float = math.nan


def paired(
    base: Runnable,
    other: Runnable,
    feed: Mapping[str, NDArray[Any]],
    *,
    threads: int = 1,
    rounds: int = 200,
    budget_s: float = 6.0,
    decided: float = 0.0,
) -> Speedup:
    """Time two models against each other on one feed.

    Rounds are added until the interval is 1 % wide (or `decided`, where it does not hold 1), `rounds` are done or
    `budget_s` is spent; at least 8 are done.

    Args:
        base: The reference: a model, bytes, a path or an open session.
        other: The model that should be faster.
        feed: Input name to array; both models read what they need of it.
        threads: Intra-op threads of the sessions opened here.
        rounds: At most that many pairs.
        budget_s: Seconds after which no further round starts.
        decided: Width of an interval that will do, as a share of the ratio, where it is clear which one is faster.

    Raises:
        ModelError, DataError: As :func:`onnxcomp.runtime.session.run`.
    """
    calls = [_caller(model, feed, threads) for model in (base, other)]
    times = interleaved(calls, rounds, budget_s, lambda done: _settled(done[0] / done[1], decided))
    ratios = times[0] / times[1]
    low, high = median_interval(ratios)
    medians = np.median(times, axis=1) * 1e3
    p10s = np.percentile(times, 10, axis=1) * 1e3
    return Speedup(
        float(np.median(ratios)),
        low,
        high,
        float(medians[0]),
        float(medians[1]),
        len(ratios),
        float(p10s[0]),
        float(p10s[1]),
    )


def time_many(
    models: Sequence[Runnable],
    feed: Mapping[str, NDArray[Any]],
    *,
    threads: int = 1,
    rounds: int = 40,
    budget_s: float = 4.0,
) -> list[float]:
    """Time several models in turns; return milliseconds a run, comparable with each other.

    The first model's median gives the scale and each other's time is that scale times the median of its ratio to the
    first one in the same round, so that drift cancels. Arguments and errors as :func:`paired`.
    """
    calls = [_caller(model, feed, threads) for model in models]
    if not calls:
        return []
    times = interleaved(calls, rounds, budget_s, lambda done: all(_narrow(row / done[0]) for row in done[1:]))
    scale = float(np.median(times[0])) * 1e3
    return [scale * float(np.median(row / times[0])) for row in times]


def median_interval(values: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Return the order statistics that hold the median with probability `level` or more.

    With fewer than 6 values no such interval exists at 95 %; then it is the whole range.
    """
    ordered = np.sort(values)
    count = len(ordered)
    # P(x_(k) > median) = P(Binomial(n, 1/2) < k); k is the largest rank that keeps this at (1 - level) / 2 or less.
    # This is scipy.stats.binom.ppf, whose module takes half a second to import.
    tail = (1 - level) / 2
    rank = math.ceil(float(bdtrik(tail, count, 0.5)))
    rank = max(rank - 1 if float(bdtr(rank - 1, count, 0.5)) >= tail else rank, 1)
    return float(ordered[rank - 1]), float(ordered[count - rank])


def _narrow(ratios: NDArray[np.float64]) -> bool:
    return _settled(ratios, _NARROW)


def _settled(ratios: NDArray[np.float64], decided: float) -> bool:
    low, high = median_interval(ratios)
    width = (high - low) / float(np.median(ratios))
    return width <= _NARROW or (width <= decided and not low <= 1.0 <= high)


def _caller(model: Runnable, feed: Mapping[str, NDArray[Any]], threads: int) -> Callable[[], None]:
    session = model if isinstance(model, ort.InferenceSession) else open_session(model, threads=threads)
    return runner(session, feed)


def interleaved(
    calls: Sequence[Callable[[], None]],
    rounds: int,
    budget_s: float,
    enough: Callable[[NDArray[np.float64]], bool],
    warm_s: float = _WARM_S,
    clock: Callable[[], float] | None = None,
    wall: Callable[[], float] | None = None,
    sample_s: float = SAMPLE_S,
) -> NDArray[np.float64]:
    """Run the calls in turns; return seconds a run, float64 [calls, rounds].

    Each call is warmed up for `warm_s` seconds first and repeated so that a sample takes `sample_s` seconds or more
    (0: every sample is a single run). Rounds go on until `rounds` are done, `budget_s` seconds are spent or `enough` of
    the times so far (asked every 8 rounds); at least 8 are done. The order turns round every round, and garbage
    collection waits. What is measured passes on `clock`, what is spent on `wall`; either is time.perf_counter unless
    another one is given.
    """
    clock, wall = clock or time.perf_counter, wall or time.perf_counter
    repeats = [max(1, math.ceil(sample_s / _warm_up(call, warm_s, clock))) for call in calls]
    columns: list[list[float]] = []
    order = list(range(len(calls)))
    with collector_off(), progress.task("time", rounds) as advance:
        stop = wall() + budget_s
        while len(columns) < _MIN_ROUNDS or (len(columns) < rounds and wall() < stop):
            column = [0.0] * len(calls)
            for k in order:
                column[k] = _sample(calls[k], repeats[k], clock)
            columns.append(column)
            advance()
            order.reverse()
            if len(columns) % _CHECK_EVERY == 0 and len(columns) > _MIN_ROUNDS and enough(np.array(columns).T):
                break
    return np.array(columns).T


def _warm_up(call: Callable[[], None], warm_s: float, clock: Callable[[], float]) -> float:
    """Run at least three times and for `warm_s` seconds; return the least time of one run in seconds."""
    best, spent, count = math.inf, 0.0, 0
    while count < 3 or spent < warm_s:
        taken = _sample(call, 1, clock)
        best, spent, count = min(best, taken), spent + taken, count + 1
    return max(best, 1e-7)


def _sample(call: Callable[[], None], repeats: int, clock: Callable[[], float]) -> float:
    # After another model's turn the first run finds its weights evicted from the caches; no deployment sees that.
    if repeats > 1:
        call()
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


@contextmanager
def collector_off() -> Generator[None]:
    """Let garbage collection wait until the end, after one last time."""
    was_enabled = gc.isenabled()
    if was_enabled:  # not once more where a caller has done it
        gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
