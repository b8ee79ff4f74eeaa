"""Turn a pass up or down until an accuracy budget just holds: for passes that trade accuracy for gain on a scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Reading", "turn"]

Result = TypeVar("Result")

_TRIALS = 5
# Two amounts as close as this make no difference that is worth another run.
_CLOSE = 1.25
_STEP_DOWN, _STEP_UP = 0.1, 4.0


@dataclass(frozen=True)
class Reading(Generic[Result]):
    """What a run with the dial at some amount came to.

    Attributes:
        result: The run.
        slack: By what factor its noise may be expected to grow before a limit breaks; below 1 where one is broken.
        holds: Whether all limits hold.
    """

    result: Result
    slack: float
    holds: bool


def turn(
    first: Reading[Result], run: Callable[[float], Reading[Result]], most: float = 1.0
) -> tuple[float, Reading[Result]]:
    """Find the largest amount with which the limits hold, in at most five more runs.

    The noise is taken to be in proportion to the amount; what is measured corrects that.

    Args:
        first: The run with the amount 1.
        run: Runs with another amount.
        most: The largest amount that may be tried; 1: the dial is turned down only.

    Returns:
        The amount and its run; the smallest one that was tried where none holds.
    """
    tried = {1.0: first}
    for _ in range(_TRIALS):
        amount = _next(tried, most)
        if amount is None:
            break
        tried[amount] = run(amount)
    holding = [amount for amount, reading in tried.items() if reading.holds]
    best = max(holding) if holding else min(tried)
    return best, tried[best]


def _next(tried: dict[float, Reading[Result]], most: float) -> float | None:
    """The next amount to try; None where the search is over."""
    low = max((amount for amount, reading in tried.items() if reading.holds), default=None)
    high = min((amount for amount, reading in tried.items() if not reading.holds), default=None)
    if low is None:
        assert high is not None  # something was tried
        # A slack that was wrong once is no longer believed.
        return high * min(max(0.8 * tried[high].slack, _STEP_DOWN), 0.8 if len(tried) == 1 else 0.5)
    if high is None:
        amount = min(low * min(0.9 * tried[low].slack, _STEP_UP), most)
        return amount if amount > low * _CLOSE else None
    return (low * high) ** 0.5 if high > low * _CLOSE**2 else None
