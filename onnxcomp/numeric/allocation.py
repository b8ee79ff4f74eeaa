"""One option for every site: how a budget is shared out among the layers of a model.

Two questions, one solver (`onnxcomp.numeric.knapsack`): the least loss that a budget buys, and the least cost that a
loss allows. `frontier` is the cheap answer to both for every budget at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numeric.hull import beaten, frontier, hull, pareto
from onnxcomp.numeric.knapsack import Options, solve

__all__ = ["allocate", "cheapest", "frontier", "hull", "pareto"]

Float = NDArray[np.float64]

# Sums that differ by rounding alone are equal: a budget that is the sum of the cheapest options can be met.
_ROUNDING = 1e-12


def allocate(costs: Sequence[Float], losses: Sequence[Float], budget: float | Float) -> list[int] | None:
    """Pick one option for every site: the least total loss within a budget.

    Exact as long as no more than 1,500 partial sums compete, and within 1e-4 of the least loss beyond. With several
    resources it is exact for few sites only; the loss is never above that of the best fitting point of the Lagrangian
    frontier.

    Args:
        costs: For each site the costs of its options, (n,), or (n, k) for k resources; finite, any unit and size.
        losses: For each site the losses of its options, (n,), >= 0; inf where an option is forbidden.
        budget: The most that all sites together may cost: a number, or (k,).

    Returns:
        An option for every site; None where no options meet the budget, not even the cheapest. For the same arguments
        always the same ones.

    Raises:
        ValueError: Shapes do not match, a cost is not finite, a loss is negative or NaN, the budget is NaN.
    """
    limits = np.atleast_1d(np.asarray(budget, np.float64))
    if np.isnan(limits).any():
        raise ValueError("the budget is NaN")
    _check(costs, losses, len(limits))
    uses = [cost.reshape(len(cost), -1) for cost in costs]
    return _solve([np.asarray(loss, np.float64) for loss in losses], uses, limits)


def cheapest(costs: Sequence[Float], losses: Sequence[Float], allowed_loss: float) -> list[int]:
    """Pick one option for every site: the least total cost with a total loss of at most `allowed_loss`.

    Args:
        costs: For each site the costs of its options, (n,), finite.
        losses: As in `allocate`.
        allowed_loss: At least the sum of the sites' least losses, which is 0 where each can stay as it is.

    Returns:
        An option for every site. For the same arguments always the same ones.

    Raises:
        ValueError: As in `allocate`, or no options have so small a loss.
    """
    _check(costs, losses, 1)
    goals = [np.where(np.isfinite(loss), cost, np.inf) for cost, loss in zip(costs, losses, strict=True)]
    picks = _solve(goals, [loss.reshape(-1, 1) for loss in losses], np.array([allowed_loss], np.float64))
    if picks is None:
        raise ValueError(f"the least loss of all sites is more than the {allowed_loss:g} allowed")
    return picks


def _check(costs: Sequence[Float], losses: Sequence[Float], resources: int) -> None:
    if len(costs) != len(losses):
        raise ValueError(f"costs are for {len(costs)} sites, losses for {len(losses)}")
    for site, (cost, loss) in enumerate(zip(costs, losses, strict=True)):
        shapes = [(len(loss), resources)] + ([loss.shape] if resources == 1 else [])
        if loss.ndim != 1 or cost.shape not in shapes or not len(loss):
            raise ValueError(f"site {site}: costs {cost.shape} and losses {loss.shape} for {resources} resources")
        if not np.isfinite(cost).all():
            raise ValueError(f"site {site}: a cost is not finite")
        if not (loss >= 0.0).all():
            raise ValueError(f"site {site}: a loss is negative or NaN")


def _solve(goals: Sequence[Float], uses: Sequence[Float], limits: Float) -> list[int] | None:
    """Minimise the sum of the goals while the sums of the uses stay within the limits; inf is forbidden in both."""
    if not goals:
        return [] if (limits >= 0.0).all() else None
    sites = [_allowed(goal, use) for goal, use in zip(goals, uses, strict=True)]
    if not all(len(site.number) for site in sites):
        return None
    least = [site.use.min(axis=0) for site in sites]
    slack = _slack(least, limits)
    if (slack < 0.0).any():
        return None
    # A budget that is no limit, even an infinite one.
    slack = np.minimum(slack, 2 * np.sum([np.ptp(site.use, axis=0) for site in sites], axis=0))
    sites = [_considered(site, low, slack) for site, low in zip(sites, least, strict=True)]
    picks = solve(sites, slack) if all(len(site.number) for site in sites) else None
    return None if picks is None else [int(site.number[pick]) for site, pick in zip(sites, picks, strict=True)]


def _allowed(goal: Float, use: Float) -> Options:
    return Options(np.arange(len(goal)), goal, use).only(np.isfinite(goal) & np.isfinite(use).all(axis=1))


def _slack(least: Sequence[Float], limits: Float) -> Float:
    """What the limits leave beyond the least that every site needs, with room for the rounding of the sums."""
    needed = [fsum(column) for column in np.array(least).T.tolist()]
    size = [fsum(column) for column in np.abs(least).T.tolist()]
    finite = np.where(np.isfinite(limits), limits, 0.0)
    slack: Float = limits - needed + _ROUNDING * np.maximum(size, np.abs(finite))
    return slack


def _considered(site: Options, least: Float, slack: Float) -> Options:
    """The options worth considering, as what they add to the site's least: those that fit and that no other beats."""
    added = Options(site.number, site.goal - site.goal.min(), site.use - least)
    added = added.only(np.asarray((added.use <= slack).all(axis=1), np.bool_))
    return added.only(~beaten(np.column_stack([added.goal, added.use])))
