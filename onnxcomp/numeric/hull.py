"""Which options of a site are worth considering, and the best that a whole model can do: Pareto fronts and hulls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import fsum, inf

import numpy as np
from numpy.typing import NDArray

__all__ = ["beaten", "descent", "frontier", "hull", "pareto"]

Float = NDArray[np.float64]


def pareto(cost: Float, loss: Float) -> list[int]:
    """Options that no other option beats in both cost and loss, by falling cost.

    Args:
        cost: Cost of each option, (n,), finite.
        loss: Loss of each option, (n,); inf where the option is forbidden, which is never returned.

    Returns:
        Indices into both; of equal options the first one.
    """
    kept: list[int] = []
    least = inf
    for index in np.lexsort((np.arange(len(cost)), loss, cost)).tolist():
        if loss[index] < least:
            kept.append(index)
            least = float(loss[index])
    return kept[::-1]


def beaten(points: Float) -> NDArray[np.bool_]:
    """Which of the points, (n, m), another one is as small as in every coordinate; of equal ones all but the first."""
    below = np.asarray((points[:, None] <= points[None]).all(axis=2), np.bool_)  # [a, b]: a is as small as b
    first = np.arange(len(points))[:, None] < np.arange(len(points))[None]
    return np.asarray((below & (~below.T | first)).any(axis=0), np.bool_)


def hull(cost: Float, loss: Float) -> list[int]:
    """Corners of the lower left convex hull of a site's options, by falling cost: what a Lagrangian can pick.

    Arguments and result are as in `pareto`, of which the hull is a part; options on an edge between two corners are
    left out.
    """
    corners: list[int] = []
    for index in pareto(cost, loss):
        while len(corners) > 1:
            above, corner = corners[-2:]
            if _slope(cost, loss, above, corner) < _slope(cost, loss, corner, index):
                break
            corners.pop()
        corners.append(index)
    return corners


def frontier(costs: Sequence[Float], losses: Sequence[Float]) -> list[tuple[float, float, list[int]]]:
    """The model's Lagrangian frontier: for every price of the resource, the picks that are best at that price.

    At a price, each site takes the corner of its own hull that minimises loss + price * cost, independently of the
    others (Everett 1963), so that one step down the frontier moves one site to its next corner, cheapest in loss per
    cost first. Each point has the least loss of all picks that cost as much or less; between points a knapsack
    (`onnxcomp.numeric.allocation`) may find better ones than the point above.

    Args:
        costs: For each site the costs of its options, (n,), finite; option 0 leaves the site as it is.
        losses: For each site the losses of its options, (n,), >= 0; inf where forbidden, 0 for option 0.

    Returns:
        (total cost, total loss, option of each site) from all sites as they are to all sites at their least cost: the
        cost falls, the loss does not, and the curve is convex.

    Raises:
        ValueError: A site's option 0 is not free of loss, or all its options are forbidden.
    """
    if any(loss.size == 0 or loss[0] != 0.0 for loss in losses):
        raise ValueError("option 0 of a site leaves it as it is, without a loss")
    originals = [0] * len(costs)
    path = list(descent(costs, losses))
    if path[0] != originals:  # a site has another option without a loss
        path.insert(0, originals)
    return [(_total(costs, picks), _total(losses, picks), picks) for picks in path]


def descent(costs: Sequence[Float], losses: Sequence[Float]) -> Iterator[list[int]]:
    """The picks of the Lagrangian frontier, from the least loss of every site to the least cost of every site.

    Arguments are as in `frontier`, except that any option may be the one without a loss.

    Raises:
        ValueError: All options of a site are forbidden.
    """
    corners = [hull(cost, loss) for cost, loss in zip(costs, losses, strict=True)]
    if not all(corners):
        raise ValueError("all options of a site are forbidden")
    picks = [site[0] for site in corners]
    yield list(picks)
    steps = [
        (_slope(costs[site], losses[site], above, below), site, below)
        for site, corner in enumerate(corners)
        for above, below in pairwise(corner)
    ]
    # A site's slopes rise from corner to corner, so that sorting keeps its steps in order.
    for _, site, option in sorted(steps):
        picks[site] = option
        yield list(picks)


def _slope(cost: Float, loss: Float, dear: int, cheap: int) -> float:
    """Loss for each unit of cost that the cheaper of two options saves."""
    return float(loss[cheap] - loss[dear]) / float(cost[dear] - cost[cheap])


def _total(values: Sequence[Float], picks: Sequence[int]) -> float:
    return fsum(float(value[pick]) for value, pick in zip(values, picks, strict=True))
