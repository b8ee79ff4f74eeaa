"""One option for every variable where what the options cost depends on one another.

Losses add up, costs do not: the work of a layer grows with the product of the channels it reads and writes, which are
options of two groups. Without sums there is no knapsack to solve (`onnxcomp.numeric.allocation`); but at a price of the
resource (Everett 1963), each variable in turn can take the option that is best beside all others, until none moves.
Many prices and starts give many such picks; those next to the limit are brought to it and improved there by single
changes and exchanges. None of this proves an optimum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import fsum, inf, sqrt

import numpy as np
from numpy.typing import NDArray

__all__ = ["losing", "trade", "within"]

Float = NDArray[np.float64]
Costs = Callable[[int, Sequence[int]], Float]
Total = Callable[[Sequence[int]], float]

# Sums that differ by rounding alone are equal.
_ROUNDING = 1e-12
# Prices, in units of all losses per the cost of the original, and how they rise until the limit is passed.
_LOWEST, _HIGHEST, _RISE, _HALVINGS = 1e-9, 1e9, 4.0, 24
# Picks on each side of the limit that are brought to it, and exchanges tried for each variable.
_FINALISTS, _EXCHANGES = 6, 3
# Far more than any picks took to settle: rounding must not turn them in circles.
_SWEEPS = 200


def trade(losses: Sequence[Float], costs_of: Costs, picks: Sequence[int], price: float) -> list[int]:
    """Change one pick at a time for the better, until none lowers the losses + price x cost any more.

    Args:
        losses: Of each variable's options, (n,), at least 0; inf where an option is forbidden.
        costs_of: Called with a variable and all picks: the costs of its options, (n,), finite, beside the other picks
            as they are; a constant that does not depend on the option may be left out.
        picks: Where to start.
        price: Loss that a unit of cost is worth.

    Returns:
        An option for every variable, no worse than the start. For the same arguments always the same ones.
    """
    found = list(picks)
    for _ in range(_SWEEPS):
        moved = False
        for variable, loss in enumerate(losses):
            goal = loss + price * costs_of(variable, found)
            best, now = int(np.argmin(goal)), float(goal[found[variable]])
            if goal[best] < now - _ROUNDING * abs(now) or now == inf > goal[best]:
                found[variable] = best
                moved = True
        if not moved:
            break
    return found


def within(losses: Sequence[Float], costs_of: Costs, total: Total, budget: float) -> list[int] | None:
    """Pick one option for every variable: little loss within a budget.

    Args:
        losses: As in `trade`; option 0 leaves a variable as it is, with loss 0.
        costs_of: As in `trade`.
        total: The cost of picks.
        budget: The most that they may cost.

    Returns:
        The best picks found; None where none of those found meet the budget. The same ones for the same arguments.

    Raises:
        ValueError: Option 0 of a variable is not free of loss, another loss is negative or NaN, the budget is NaN.
    """
    _check(losses, budget)
    return _answer(_Question(losses, costs_of, total, budget, by_cost=True))


def losing(losses: Sequence[Float], costs_of: Costs, total: Total, allowed: float) -> list[int]:
    """Pick one option for every variable: little cost with a total loss of at most `allowed`, 0 or more.

    Other arguments and what is raised are as in `within`.
    """
    _check(losses, allowed)
    if allowed < 0.0:
        raise ValueError(f"a loss of {allowed:g} cannot be met")
    found = _answer(_Question(losses, costs_of, total, allowed, by_cost=False))
    assert found is not None  # the original loses nothing
    return found


@dataclass(frozen=True, slots=True)
class _Question:
    """The least of a goal while a use stays within a limit: of the loss within a cost, or of the cost within a loss."""

    losses: Sequence[Float]
    costs_of: Costs
    total: Total
    limit: float
    by_cost: bool

    def loss(self, picks: Sequence[int]) -> float:
        return fsum(float(loss[pick]) for loss, pick in zip(self.losses, picks, strict=True))

    def measure(self, picks: Sequence[int]) -> tuple[float, float]:
        """Goal and use."""
        loss, cost = self.loss(picks), self.total(picks)
        return (loss, cost) if self.by_cost else (cost, loss)

    def fits(self, picks: Sequence[int]) -> bool:
        return self.measure(picks)[1] <= self.room

    @property
    def room(self) -> float:
        return self.limit + _ROUNDING * abs(self.limit)

    def changes(self, variable: int, picks: Sequence[int]) -> tuple[Float, Float]:
        """What goal and use rise by with each option of a variable; inf where it is forbidden."""
        now = picks[variable]
        costs = self.costs_of(variable, picks)
        cost = np.where(np.isfinite(self.losses[variable]), costs - costs[now], inf)
        loss = self.losses[variable] - self.losses[variable][now]
        return (loss, cost) if self.by_cost else (cost, loss)

    def traded(self, price: float, starts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Picks at a price, the best first."""
        found = [trade(self.losses, self.costs_of, start, price) for start in starts]
        return sorted(found, key=lambda picks: self.loss(picks) + price * self.total(picks))


def _answer(question: _Question) -> list[int] | None:
    original = [0] * len(question.losses)
    if question.by_cost and question.fits(original):
        return original
    found = _visited(question, original)
    measured = [(*question.measure(picks), picks) for picks in found]
    good = sorted((goal, use, picks) for goal, use, picks in measured if use <= question.room)
    over = sorted((use, goal, picks) for goal, use, picks in measured if use > question.room)
    finalists = [picks for _, _, picks in good[:_FINALISTS] + over[:_FINALISTS]]
    repaired = [picks for picks in (_repaired(question, picks) for picks in finalists) if picks is not None]
    if not repaired:
        return None
    filled = [_filled(question, picks) for picks in repaired]
    best = min(filled, key=question.measure)
    return _exchanged(question, best)


def _visited(question: _Question, original: Sequence[int]) -> list[list[int]]:
    """Picks at rising prices up to the limit, and next to it on both sides."""
    most = fsum(float(loss[np.isfinite(loss)].max()) for loss in question.losses)
    unit = (most or 1.0) / (abs(question.total(original)) or 1.0)

    def past(picks: Sequence[int]) -> bool:
        return question.fits(picks) == question.by_cost

    low, below = _LOWEST * unit, list(original)
    found = [below]
    high, above = low, below
    while high <= _HIGHEST * unit:
        seen = question.traded(high, [above, original])
        found += seen
        above = seen[0]
        if past(above):
            break
        low, below = high, above
        high *= _RISE
    else:
        return _distinct(found)
    for _ in range(_HALVINGS):
        price = sqrt(low * high)
        seen = question.traded(price, [below, above, original])
        found += seen
        if past(seen[0]):
            high, above = price, seen[0]
        else:
            low, below = price, seen[0]
    return _distinct(found)


def _distinct(found: Sequence[Sequence[int]]) -> list[list[int]]:
    return [list(picks) for picks in dict.fromkeys(map(tuple, found))]


def _repaired(question: _Question, picks: Sequence[int]) -> list[int] | None:
    """Take what saves most use for the least goal, one change at a time, until the picks fit."""
    found = list(picks)
    while not question.fits(found):
        excess = question.measure(found)[1] - question.limit
        best, change = inf, None
        for variable in range(len(found)):
            goal, use = question.changes(variable, found)
            saves = np.flatnonzero((use < -_ROUNDING * (abs(question.limit) + excess)) & np.isfinite(goal))
            if len(saves):
                rates = goal[saves] / np.minimum(-use[saves], excess)
                at = int(np.argmin(rates))
                if rates[at] < best:
                    best, change = float(rates[at]), (variable, int(saves[at]))
        if change is None:
            return None
        found[change[0]] = change[1]
    return found


def _filled(question: _Question, picks: Sequence[int]) -> list[int]:
    """Take the single change that lowers the goal most while the limit holds, until there is none."""
    found = list(picks)
    while found:
        room = question.room - question.measure(found)[1]
        changes = [(*_best(question, variable, found, room), variable) for variable in range(len(found))]
        gain, _, option, variable = min(changes)
        if not gain < 0.0:
            return found
        changed = [*found]
        changed[variable] = option
        if not question.measure(changed) < question.measure(found) or not question.fits(changed):
            return found  # by rounding alone
        found = changed
    return found


def _best(question: _Question, variable: int, picks: Sequence[int], room: float) -> tuple[float, float, int]:
    """What lowers the goal most with at most `room` more use: change of goal, of use, option."""
    goal, use = question.changes(variable, picks)
    fitting = np.flatnonzero(use <= room)
    if not len(fitting):
        return inf, inf, picks[variable]
    at = fitting[np.lexsort((use[fitting], goal[fitting]))[0]]
    return float(goal[at]), float(use[at]), int(at)


def _exchanged(question: _Question, picks: Sequence[int]) -> list[int]:
    """Take a change that lowers the goal beyond the limit, with another one that pays for it, while it helps."""
    found = list(picks)
    moved = True
    while moved:
        moved = False
        for variable in range(len(found)):
            goal, use = question.changes(variable, found)
            wanted = np.flatnonzero((goal < 0.0) & np.isfinite(use))
            for option in wanted[np.argsort(use[wanted], kind="stable")][:_EXCHANGES].tolist():
                trial = [*found]
                trial[variable] = option
                better = _paid(question, trial, variable)
                if better is not None and question.measure(better) < question.measure(found):
                    found, moved = better, True
                    break
    return found


def _paid(question: _Question, picks: list[int], fixed: int) -> list[int] | None:
    """The change of another variable that makes picks fit for the least goal."""
    room = question.room - question.measure(picks)[1]
    others = [(*_best(question, v, picks, room), v) for v in range(len(picks)) if v != fixed]
    goal, _, option, variable = min(others, default=(inf, inf, 0, 0))
    if goal == inf:
        return None
    changed = [*picks]
    changed[variable] = option
    return changed if question.fits(changed) else None


def _check(losses: Sequence[Float], limit: float) -> None:
    if np.isnan(limit):
        raise ValueError("the limit is NaN")
    for variable, loss in enumerate(losses):
        if loss.ndim != 1 or not len(loss) or loss[0] != 0.0 or not (loss >= 0.0).all():
            raise ValueError(f"variable {variable}: option 0 must be free of loss, and no loss negative or NaN")
