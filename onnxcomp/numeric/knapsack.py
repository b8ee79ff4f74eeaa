"""A multiple-choice knapsack: one option a site, the least total goal, limits on what all of them use together.

Dynamic programming over the sites (Dyer, Kayal and Walker 1984): a state is what has been used and lost so far. Of two
states, one that is beaten in everything goes, and so does one whose Lagrangian bound shows that it ends in no better
solution than one already known. Only where more states are left than time allows, only the most promising go on.
scipy.optimize.milp solves the same problem, but HiGHS prints on stdout from within, which is the result's alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import fsum

import numpy as np
import scipy.optimize
from numpy.typing import NDArray

from onnxcomp.numeric.hull import beaten, descent

__all__ = ["Options", "solve"]

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]
Index = NDArray[np.intp]

# Most states after a site. With one resource, what is found with these is within 1e-4 of the best.
_STATES = 1500
# With several, where few states beat others in everything.
_STATES_VECTOR = 200
# A solution counts as better by more than rounding.
_BETTER = 1e-9
# The optimal prices bound whole solutions best, those about them the unfinished ones; high ones show what cannot fit.
_AROUND = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 10.0, 1000.0)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a site.

    Attributes:
        number: The caller's number for each, (n,).
        goal: What is minimised, (n,), finite, >= 0.
        use: What each uses of every resource, (n, k), finite, >= 0.
    """

    number: Index
    goal: Float
    use: Float

    def only(self, mask: Mask) -> Options:
        """The options where `mask` is true."""
        return Options(self.number[mask], self.goal[mask], self.use[mask])


def solve(sites: Sequence[Options], limits: Float) -> list[int] | None:
    """Pick an option for every site.

    Args:
        sites: Their options, at least one each; at least one site.
        limits: What all sites together may use of every resource, (k,), >= 0.

    Returns:
        The positions of the picks among the sites' options: of the least total goal, as long as all states
        went on; None where none was found that keeps the limits, which with one resource means that there is none. For
        the same arguments always the same.
    """
    sites, limits = _scaled(sites, limits)
    start = min(_lagrangian(sites, limits), key=lambda picks: _goal(sites, picks), default=None)
    if start is None:
        return _dynamic(sites, limits, fsum(float(site.goal.max()) for site in sites))
    start = _improved(sites, start, limits)
    least = fsum(float(site.goal.min()) for site in sites)
    known = _goal(sites, start)
    better = None if known <= least else _dynamic(sites, limits, known - _BETTER * (known - least))
    return start if better is None else better


def _scaled(sites: Sequence[Options], limits: Float) -> tuple[list[Options], Float]:
    """The same problem with numbers about 1; scaled by powers of two, so that nothing is rounded."""
    largest = np.max([site.use.max(axis=0) for site in sites], axis=0)
    width = _power_of_two(np.maximum(largest, limits / len(sites)))
    top = _power_of_two(np.max([site.goal.max() for site in sites]))
    return [Options(site.number, site.goal / top, site.use / width) for site in sites], limits / width


def _power_of_two(value: Float | float) -> Float:
    """The next power of two above each value; 1 for 0."""
    above: Float = np.ldexp(1.0, np.frexp(value)[1])
    return above


def _lagrangian(sites: Sequence[Options], limits: Float) -> Iterator[list[int]]:
    """The first picks on the way down a Lagrangian frontier that fit: all resources as one, and each by itself."""
    alone = np.eye(len(limits))
    mixtures = [*alone, 1.0 / np.where(limits > 0.0, limits, 1.0)] if len(limits) > 1 else [*alone]
    for mixture in mixtures:
        path = descent([site.use @ mixture for site in sites], [site.goal for site in sites])
        yield from islice((picks for picks in path if (_used(sites, picks) <= limits).all()), 1)


def _improved(sites: Sequence[Options], picks: Sequence[int], limits: Float) -> list[int]:
    """Spend what is left: as long as a better option of one site fits, take the one that gains most."""
    now = list(picks)
    while True:
        best, changed = 0.0, now
        used = _used(sites, now)
        for index, (site, pick) in enumerate(zip(sites, now, strict=True)):
            fits = (site.use - site.use[pick] <= limits - used).all(axis=1)
            option = int(np.argmin(np.where(fits, site.goal, np.inf)))
            moved = [*now[:index], option, *now[index + 1 :]]
            gain = float(site.goal[pick] - site.goal[option])
            # The difference of two sums may fit by rounding where the new sum does not.
            if fits[option] and gain > best and (_used(sites, moved) <= limits).all():
                best, changed = gain, moved
        if changed is now:
            return now
        now = changed


def _dynamic(sites: Sequence[Options], limits: Float, most: float) -> list[int] | None:
    """The best picks whose goal is at most `most`; None where there are none."""
    prices = _prices(sites, limits)
    # Large sites first: the small ones then fill what is left.
    order = sorted(range(len(sites)), key=lambda i: (-float(sites[i].use.sum(axis=1).max()), i))
    rest = _remaining([sites[i] for i in order], prices)
    goal, use = np.zeros(1), np.zeros((1, len(limits)))
    trail: list[tuple[Index, Index]] = []
    for site, after in zip((sites[i] for i in order), rest, strict=True):
        goal = (goal[:, None] + site.goal).ravel()
        use = (use[:, None] + site.use).reshape(len(goal), -1)
        bound: Float = goal + (after - (limits - use) @ prices.T).max(axis=1)
        alive = np.flatnonzero((use <= limits).all(axis=1) & (bound <= most))
        alive = alive[_front(goal[alive], use[alive], bound[alive])]
        if not len(alive):
            return None
        trail.append((alive // len(site.goal), alive % len(site.goal)))
        goal, use = goal[alive], use[alive]
    picks = [0] * len(sites)
    state = int(np.argmin(goal))
    for index, (parent, option) in zip(reversed(order), reversed(trail), strict=True):
        picks[index], state = int(option[state]), int(parent[state])
    return picks


def _prices(sites: Sequence[Options], limits: Float) -> Float:
    """Prices of the resources, (p, k): those of the linear relaxation and around, and of each resource alone.

    Any prices give a valid bound.
    """
    goal = np.concatenate([site.goal for site in sites])
    use = np.concatenate([site.use for site in sites])
    relaxed = scipy.optimize.linprog(
        goal,
        A_ub=use.T,
        b_ub=limits,
        A_eq=np.repeat(np.eye(len(sites)), [len(site.goal) for site in sites], axis=1),
        b_eq=np.ones(len(sites)),
        method="highs",
    )
    alone = np.eye(len(limits))
    if relaxed.x is None:
        return np.concatenate([np.zeros((1, len(limits))), alone])
    best = np.maximum(-np.asarray(relaxed.ineqlin.marginals, np.float64), 0.0)
    return np.concatenate([np.outer(_AROUND, best), alone])


def _remaining(sites: Sequence[Options], prices: Float) -> Float:
    """For each site the least that all sites after it cost together at every price, (sites, p)."""
    least = np.array([(site.goal[:, None] + site.use @ prices.T).min(axis=0) for site in sites])
    total: Float = np.cumsum(least[::-1], axis=0)[::-1]
    return np.concatenate([total[1:], np.zeros((1, len(prices)))])


def _front(goal: Float, use: Float, bound: Float) -> Index:
    """The states to keep: those that no other one beats, and of too many the most promising.

    Half of these are of the least bound. The bound of a state does not know how well what is left can be spent, so the
    other half is of all goals, each with the least use.
    """
    if use.shape[1] > 1:
        promising = np.asarray(np.lexsort((goal, bound))[:_STATES_VECTOR], np.intp)
        return promising[~beaten(np.column_stack([goal, use])[promising])]
    rising = np.asarray(np.lexsort((goal, use[:, 0])), np.intp)
    least_before = np.minimum.accumulate(np.concatenate([[np.inf], goal[rising]]))[:-1]
    kept: Index = rising[goal[rising] < least_before]
    if len(kept) <= _STATES:
        return kept
    half, falling = _STATES // 2, goal[kept]
    level = np.floor((falling - falling[-1]) / (falling[0] - falling[-1]) * half)
    chosen = np.concatenate([[True], level[1:] < level[:-1]])
    chosen[np.argsort(bound[kept], kind="stable")[:half]] = True
    thinned: Index = kept[chosen]
    return thinned


def _used(sites: Sequence[Options], picks: Sequence[int]) -> Float:
    chosen = np.array([site.use[pick] for site, pick in zip(sites, picks, strict=True)])
    return np.array([fsum(column) for column in chosen.T.tolist()], np.float64)


def _goal(sites: Sequence[Options], picks: Sequence[int]) -> float:
    return fsum(float(site.goal[pick]) for site, pick in zip(sites, picks, strict=True))
