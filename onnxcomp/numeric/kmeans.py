"""Weighted k-means with a k-means++ start, for codebooks; of many points a sample does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["kmeans"]

Float = NDArray[np.float64]

# Points a center from which on more of them change little.
_POINTS = 192
_ITERATIONS = 15
# Of many centers one in so many is drawn at the same time as others, before distances are known again.
_AT_ONCE = 16


def kmeans(points: Float, weights: Float, centers: int, *, seed: int = 0) -> Float:
    """Find centers with a small weighted sum of squared distances (Lloyd 1982; Arthur and Vassilvitskii 2007).

    Args:
        points: (n, v).
        weights: (n,), not negative; points of weight 0 have no say.
        centers: K. Where there are fewer different points, some centers are equal.
        seed: Of the start, and of the sample that is taken where there are very many points.

    Returns:
        (K, v); of single values sorted.
    """
    rng = np.random.default_rng(seed)
    alive = np.flatnonzero(weights > 0.0)
    if not len(alive):
        return np.zeros((centers, points.shape[1]))
    if len(alive) > _POINTS * centers:
        alive = np.sort(rng.choice(alive, _POINTS * centers, replace=False))
    x, mass = points[alive], weights[alive]
    found: Float
    if len(x) <= centers:
        found = np.concatenate([x, np.repeat(x[:1], centers - len(x), axis=0)])
    else:
        found = _start(x, mass, centers, rng)
        for _ in range(_ITERATIONS):
            found = _means(x, mass, _nearest(x, found), found)
    return np.asarray(np.sort(found, axis=0) if found.shape[1] == 1 else found, np.float64)


def _start(x: Float, mass: Float, centers: int, rng: np.random.Generator) -> Float:
    """Centers one by one, each drawn with the probability of its weighted squared distance to those before it."""
    if x.shape[1] == 1:  # quantiles of single values: evenly over the range counts for the tails (Han et al. 2016)
        order = np.argsort(x[:, 0], kind="stable")
        even = np.linspace(x[order[0], 0], x[order[-1], 0], centers)
        run = np.cumsum(mass[order])
        dense = x[order[np.minimum(np.searchsorted(run, np.linspace(0.0, run[-1], centers)), len(x) - 1)], 0]
        return np.asarray((even + dense)[:, None] / 2, np.float64)
    far = np.full(len(x), np.inf)
    chosen: list[int] = []
    while len(chosen) < centers:
        odds = mass * (far if chosen else 1.0)
        count = min(max(1, len(chosen) // _AT_ONCE), centers - len(chosen), int(np.count_nonzero(odds)))
        if not count:
            chosen += chosen[:1] * (centers - len(chosen))
            break
        drawn = rng.choice(len(x), count, replace=False, p=odds / odds.sum())
        far = np.minimum(far, _least_squares(x, x[drawn]))
        chosen += drawn.tolist()
    return np.asarray(x[chosen], np.float64)


def _least_squares(x: Float, centers: Float) -> Float:
    """Squared distance of each point to the center next to it."""
    squares = np.square(centers).sum(axis=1)
    parts = [(squares - 2.0 * (x[i : i + 8192] @ centers.T)).min(axis=1) for i in range(0, len(x), 8192)]
    return np.asarray(np.maximum(np.concatenate(parts) + np.square(x).sum(axis=1), 0.0), np.float64)


def _nearest(x: Float, centers: Float) -> NDArray[np.intp]:
    """The center next to each point."""
    squares = np.square(centers).sum(axis=1)
    found = np.empty(len(x), np.intp)
    for start in range(0, len(x), 8192):
        part = x[start : start + 8192]
        found[start : start + 8192] = (squares - 2.0 * (part @ centers.T)).argmin(axis=1)
    return found


def _means(x: Float, mass: Float, nearest: NDArray[np.intp], centers: Float) -> Float:
    total = np.bincount(nearest, mass, len(centers))
    sums = np.stack([np.bincount(nearest, mass * column, len(centers)) for column in x.T], axis=1)
    return np.where(total[:, None] > 0.0, sums / np.where(total > 0.0, total, 1.0)[:, None], centers)
