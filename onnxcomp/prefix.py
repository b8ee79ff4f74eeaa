"""The fewest of a ranked list of remedies with which a limit holds, in few trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import isfinite

__all__ = ["least_prefix"]

# Of the noise at a number of remedies, and whether the limit holds there.
Trial = Callable[[int], tuple[float, bool]]


def least_prefix(shares: Sequence[float], noise: float, allowed: float, trial: Trial, *, trials: int = 6) -> int | None:
    """Return the least number of remedies, from the front of the list, with which the limit was seen to hold.

    The first guesses take noise for additive: what is measured is handed out to the remedies by their shares. After
    that the interval between a number that fails and one that holds is closed, by the same rule with what was measured
    at its ends, or halved where that does not get on. More remedies are taken to be no worse.

    Args:
        shares: What each remedy is expected to take away of the noise, on any common scale; the largest first.
        noise: Noise power without any, where the limit does not hold.
        allowed: Noise power at which the limit is expected to hold.
        trial: Measures a number of remedies, 1 to len(shares).
        trials: At most that many are measured; the number that is returned is the least one if these sufficed.

    Returns:
        None where the limit does not hold with all of them (that was measured).
    """
    if not shares:
        return None
    search = _Search(list(accumulate(shares, initial=0.0)), allowed, {0: noise}, high=len(shares))
    for left in range(trials, 0, -1):
        if search.done:
            break
        number = len(shares) if left == 1 and not search.holds else search.next()
        search.learn(number, *trial(number))
    return search.high if search.holds else None


@dataclass
class _Search:
    """What is known: `low` fails; `high` holds, if `holds`; the noise at the numbers that were measured."""

    sums: list[float]
    allowed: float
    noise: dict[int, float]
    low: int = 0
    high: int = 0
    holds: bool = False
    halve: bool = field(default=False)

    def __post_init__(self) -> None:
        if self.sums[-1] <= 0:  # nothing is known of any of them
            self.sums = [float(i) for i in range(len(self.sums))]

    @property
    def done(self) -> bool:
        return self.low == self.high or (self.holds and self.high - self.low == 1)

    def next(self) -> int:
        last = self.high - 1 if self.holds else self.high
        wanted = None if self.halve else self._expected()
        return min(max(self._middle() if wanted is None else wanted, self.low + 1), last)

    def learn(self, number: int, noise: float, holds: bool) -> None:
        width = self.high - self.low
        self.noise[number] = noise
        if holds:
            self.high, self.holds = number, True
        else:
            self.low = number
        # One short step is what a good guess looks like; after a second one, guesses are no good.
        self.halve = len(self.noise) > 2 and 2 * (self.high - self.low) > width

    def _middle(self) -> int:
        """Half way; as long as nothing holds, not beyond half of what is left to gain."""
        middle, half = (self.low + self.high) // 2, (self.sums[self.low] + self.sums[self.high]) / 2
        if self.holds:
            return middle
        return min(middle, next(n for n in range(self.low, self.high + 1) if self.sums[n] >= half))

    def _expected(self) -> int | None:
        """The least number at which the noise between both ends, in proportion to the shares, is allowed."""
        top, bottom = self.noise[self.low], self.noise.get(self.high, 0.0)
        span = self.sums[self.high] - self.sums[self.low]
        if not isfinite(top) or span <= 0:
            return None
        for number in range(self.low, self.high + 1):
            passed = (self.sums[number] - self.sums[self.low]) / span
            if top + (bottom - top) * passed <= self.allowed:
                return number
        return self.high
