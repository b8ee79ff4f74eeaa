"""How fast a model is, and how much faster than another one, over several newly opened sessions.

Two sessions of one file can differ by some percent for as long as they live: their memory lies elsewhere. One pair of
sessions, however long it is timed, cannot tell that from a difference of the models. So several pairs are opened, in
changing order, each is timed in turns (:func:`onnxcomp.runtime.timing.interleaved`), and the interval is a bootstrap
over sessions and over stretches of rounds (:func:`onnxcomp.numeric.bootstrap.median_interval`).

Models are given as functions that open a session and return a function that runs it once; with a clock of one's own,
everything here can be driven by simulated time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numeric.bootstrap import Interval, median_interval
from onnxcomp.runtime.timing import SAMPLE_S, collector_off, interleaved

__all__ = ["Call", "Latency", "Opener", "PairedSpeed", "Percentiles", "latency_of", "paired_speed"]

Call: TypeAlias = Callable[[], None]
"""Runs an open session once."""
Opener: TypeAlias = Callable[[], Call]
"""Opens a new session."""
Clock: TypeAlias = Callable[[], float]
Times: TypeAlias = NDArray[np.float64]

_SESSIONS = 4
_BUDGET_S = 8.0
_ROUNDS = 400  # a session
_WARM_S = 0.05
_NARROW = 0.01  # an interval of one percent is as good as a CPU's clock ever gives
_TOLERABLE = 0.05  # an interval that is wider says too little
_FAR = 0.05  # so far from the limit, four pairs of sessions suffice: fewer say little of how sessions differ
_FEWEST = 4


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Times of single samples, milliseconds: half, 90 % and 99 % of them took no longer."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class PairedSpeed:
    """How much faster one model is than another.

    Attributes:
        ratio: Median over all rounds of base time / other time; above 1: `other` is faster.
        low: Lower end of its 95 % interval.
        high: Upper end.
        base_ms: Typical time of one run of `base`, milliseconds; it and the next one are as far apart as `ratio` says,
            which medians taken one by one are not on a machine that is fast by turns.
        other_ms: Typical time of one run of `other`, milliseconds.
        base: Percentiles of `base`; where a run takes under 2 ms, of samples of several runs.
        other: Percentiles of `other`.
        rounds: Number of pairs of samples.
        sessions: Number of pairs of sessions.
        attempts: How often the whole was measured.
        conclusive: Whether the value asked about lies outside the interval; if none was, whether the interval is at
            most 5 % wide.
    """

    ratio: float
    low: float
    high: float
    base_ms: float
    other_ms: float
    base: Percentiles
    other: Percentiles
    rounds: int
    sessions: int
    attempts: int
    conclusive: bool


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one run of a model takes.

    Attributes:
        ms: Median, milliseconds.
        low: Lower end of its 95 % interval.
        high: Upper end.
        percentiles: Of single runs.
        rounds: Number of runs.
        sessions: Number of sessions.
        attempts: How often the whole was measured.
        conclusive: As for :class:`PairedSpeed`.
    """

    ms: float
    low: float
    high: float
    percentiles: Percentiles
    rounds: int
    sessions: int
    attempts: int
    conclusive: bool


def paired_speed(
    open_base: Opener,
    open_other: Opener,
    *,
    against: float | None = None,
    sessions: int = _SESSIONS,
    rounds: int = _ROUNDS,
    budget_s: float = _BUDGET_S,
    swapped: bool = False,
    clock: Clock | None = None,
    seed: int = 0,
) -> PairedSpeed:
    """Time two models in turns.

    Args:
        open_base: Opens the reference.
        open_other: Opens the model that should be faster.
        against: The ratio that a decision hangs on: where it lies inside the interval, as many pairs again are
            measured; where it is far outside, four pairs suffice. None: all pairs are measured, and as many
            again where the interval is over 5 % wide.
        sessions: Pairs of sessions, opened one after the other.
        rounds: At most that many rounds a pair.
        budget_s: Seconds for all pairs together; a pair takes 8 rounds at least, and no further one is opened where
            opening alone has taken that long.
        swapped: Open `other` first in the first pair; the order turns round from pair to pair.
        clock: Returns seconds; time.perf_counter unless given.
        seed: Seed of the bootstrap.

    Raises:
        Exception: Whatever an opener or a call raises.
    """
    measure = _Measurement((open_base, open_other), sessions, rounds, budget_s, clock, swapped)
    parts, found = measure.until_clear(lambda times: times[0] / times[1], against, seed)
    joined = np.concatenate(parts, axis=1) * 1e3
    base, other = (_percentiles(row) for row in joined)
    conclusive = _conclusive(found, against)
    ends = (found.median, found.low, found.high)
    middle, apart = float(np.median(np.sqrt(joined[0] * joined[1]))), math.sqrt(found.median)
    typical = (middle * apart, middle / apart)
    return PairedSpeed(*ends, *typical, base, other, joined.shape[1], len(parts), 1, conclusive)


def latency_of(
    open_model: Opener,
    *,
    against: float | None = None,
    sessions: int = _SESSIONS,
    rounds: int = _ROUNDS,
    budget_s: float = _BUDGET_S,
    clock: Clock | None = None,
    seed: int = 0,
) -> Latency:
    """Time single runs of one model; arguments as for :func:`paired_speed`, `against` in milliseconds."""
    measure = _Measurement((open_model,), sessions, rounds, budget_s, clock, swapped=False)
    parts, found = measure.until_clear(lambda times: times[0] * 1e3, against, seed)
    joined = np.concatenate(parts, axis=1)[0] * 1e3
    conclusive = _conclusive(found, against)
    ends = (found.median, found.low, found.high)
    return Latency(*ends, _percentiles(joined), len(joined), len(parts), 1, conclusive)


@dataclass(frozen=True)
class _Measurement:
    openers: Sequence[Opener]
    sessions: int
    rounds: int
    budget_s: float
    clock: Clock | None
    swapped: bool

    def until_clear(
        self, quantity: Callable[[Times], Times], against: float | None, seed: int
    ) -> tuple[list[Times], Interval]:
        """Measure once, and as much again where the interval of the quantity does not settle it."""
        parts: list[Times] = []
        for turn in (0, 1):
            with collector_off():
                self._extend(parts, turn, quantity, against, seed)
            found = median_interval([quantity(part) for part in parts], seed=seed)
            if _conclusive(found, against) or found.width <= _NARROW:
                break
        return parts, found

    def _extend(
        self,
        parts: list[Times],
        turn: int,
        quantity: Callable[[Times], Times],
        against: float | None,
        seed: int,
    ) -> None:
        """Add the times of one pair of sessions after the other."""
        opening = 0.0
        for k in range(self.sessions):
            turned = self.swapped ^ bool((turn + k) % 2)
            seconds, times = self._pair(turned)
            opening += seconds
            parts.append(times)
            if opening > self.budget_s or (len(parts) >= _FEWEST and self._far(parts, quantity, against, seed)):
                return

    def _pair(self, turned: bool) -> tuple[float, Times]:
        """Open a session of each model and time them in turns; return the seconds that opening took as well."""
        clock = self.clock or time.perf_counter
        started = clock()
        openers = reversed(self.openers) if turned else self.openers
        calls = [opener() for opener in openers]
        if turned:
            calls.reverse()
        opened = clock() - started
        budget = self.budget_s / self.sessions
        # A single model is timed run by run: its percentiles are those of a caller.
        sample = 0.0 if len(calls) == 1 else SAMPLE_S
        return opened, interleaved(calls, self.rounds, budget, _never, _WARM_S, clock, clock, sample)

    @staticmethod
    def _far(parts: list[Times], quantity: Callable[[Times], Times], against: float | None, seed: int) -> bool:
        if against is None:
            return False
        found = median_interval([quantity(part) for part in parts], resamples=200, seed=seed)
        return found.low > against * (1 + _FAR) or found.high < against * (1 - _FAR)


def _conclusive(found: Interval, against: float | None) -> bool:
    return found.width <= _TOLERABLE if against is None else not found.low <= against <= found.high


def _percentiles(times: Times) -> Percentiles:
    p50, p90, p99 = (float(value) for value in np.percentile(times, (50, 90, 99)))
    return Percentiles(p50, p90, p99)


def _never(times: Times) -> bool:
    """A pair is timed for as long as it may: what drifts slowly shows in no shorter time."""
    del times
    return False
