"""Limits on latency, judged so that noise fails nobody.

Three rules. What a CPU's clock resolves is one percent: no interval is taken to be narrower. A limit inside the
interval is measured longer, and then the median decides, with that percent of tolerance, and the line says so. And what
would fail is measured again from newly opened sessions, more of them and in the other order, three times in all: only
what fails every time fails.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from onnxcomp.gate.limits import in_words
from onnxcomp.gate.line import Line, Outcome
from onnxcomp.runtime.latency import Latency, PairedSpeed

__all__ = ["ATTEMPTS", "RESOLUTION", "latency_line", "repeated", "sessions", "speedup_line", "tail_line"]

ATTEMPTS = 3
RESOLUTION = 0.01
"""Share of a time that a CPU's clock resolves."""


_SESSIONS = 4
_Result = TypeVar("_Result")


def repeated(
    measure: Callable[[int], _Result], judge: Callable[[_Result], Outcome], attempts: int = ATTEMPTS
) -> tuple[_Result, Outcome, int]:
    """Measure until a result does not fail, at most `attempts` times.

    Args:
        measure: Takes the number of the attempt, 0 for the first; every attempt opens new sessions.
        judge: The verdict on one result.
        attempts: Most attempts.

    Returns:
        The last result, its verdict, and how many attempts there were.
    """
    for attempt in range(attempts):
        result = measure(attempt)
        outcome = judge(result)
        if outcome != "fail" or attempt == attempts - 1:
            return result, outcome, attempt + 1
    raise ValueError("there has to be at least one attempt")


def sessions(attempt: int) -> int:
    """Return how many sessions an attempt opens: more each time, for those of the first may have had bad memory."""
    return _SESSIONS * (attempt + 1)


def speedup_line(measure: Callable[[int], PairedSpeed], limit: float) -> tuple[Line, PairedSpeed]:
    """Judge how much faster a model is than its base.

    Args:
        measure: Times both from newly opened sessions, with `limit` as the ratio that a decision hangs on; takes the
            number of the attempt, an odd one opening them in the other order.
        limit: Least ratio of base time to time.
    """
    found, outcome, attempts = repeated(measure, lambda m: _at_least(m.ratio, m.low, m.high, limit))
    found = dataclasses.replace(found, attempts=attempts)
    value = f"{found.ratio:.3f}x ({found.low:.3f} to {found.high:.3f})"
    why = f"{found.base_ms:.3g} ms -> {found.other_ms:.3g} ms{_doubt(outcome, found.low, found.high, limit, attempts)}"
    figures = {"limit": limit, "value": found.ratio, "low": found.low, "high": found.high}
    return Line("min_speedup", in_words("min_speedup", limit), value, outcome, why, (), figures), found


def latency_line(measure: Callable[[int], Latency], limit: float) -> tuple[Line, Latency]:
    """Judge the median time of a run, milliseconds; `measure` as for :func:`speedup_line`."""
    found, outcome, attempts = repeated(measure, lambda m: _at_most(m.ms, m.low, m.high, limit))
    found = dataclasses.replace(found, attempts=attempts)
    value = f"{found.ms:.3g} ms ({found.low:.3g} to {found.high:.3g})"
    tail = f"90 % of the runs within {found.percentiles.p90:.3g} ms, 99 % within {found.percentiles.p99:.3g} ms"
    why = f"{tail}{_doubt(outcome, found.low, found.high, limit, attempts)}"
    figures = {"limit": limit, "value": found.ms, "low": found.low, "high": found.high}
    return Line("max_latency", in_words("max_latency", limit), value, outcome, why, (), figures), found


def tail_line(measure: Callable[[int], Latency], limit: float) -> tuple[Line, Latency]:
    """Judge the time that 99 % of the runs keep to, milliseconds; `measure` as for :func:`speedup_line`."""

    def judge(found: Latency) -> Outcome:
        return "pass" if found.percentiles.p99 <= limit else "fail"

    found, outcome, attempts = repeated(measure, judge)
    found = dataclasses.replace(found, attempts=attempts)
    p99 = found.percentiles.p99
    why = f"of {found.rounds} runs, median {found.ms:.3g} ms{_tries(attempts, outcome)}"
    figures = {"limit": limit, "value": p99}
    return Line(
        "max_latency_p99", in_words("max_latency_p99", limit), f"{p99:.3g} ms", outcome, why, (), figures
    ), found


def _at_least(value: float, low: float, high: float, limit: float) -> Outcome:
    if min(low, value * (1 - RESOLUTION)) >= limit:
        return "pass"
    if max(high, value * (1 + RESOLUTION)) < limit:
        return "fail"
    return "inconclusive" if value >= limit * (1 - RESOLUTION) else "fail"


def _at_most(value: float, low: float, high: float, limit: float) -> Outcome:
    if max(high, value * (1 + RESOLUTION)) <= limit:
        return "pass"
    if min(low, value * (1 - RESOLUTION)) > limit:
        return "fail"
    return "inconclusive" if value <= limit * (1 + RESOLUTION) else "fail"


def _doubt(outcome: Outcome, low: float, high: float, limit: float, attempts: int) -> str:
    inside = "; the limit lies inside the interval, and the median decides" if low <= limit <= high else ""
    near = "; within the 1 % that a clock resolves" if outcome == "inconclusive" and not inside else ""
    return f"{inside}{near}{_tries(attempts, outcome)}"


def _tries(attempts: int, outcome: Outcome) -> str:
    if attempts == 1:
        return ""
    return f"; {attempts} measurements, all of them too slow" if outcome == "fail" else f"; at attempt {attempts}"
