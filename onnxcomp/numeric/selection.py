"""Orders of removal from what the channels of a group contribute to the output, or from the norms of their filters.

All but the norms come from the contribution Gram Q of the channels: with z_i = W_i x_i the part of a layer's output
that channel i contributes, Q_ij = E[z_i^T z_j] = tr(W_i S_ij W_j^T). Each ends in an order of removal, the least
important first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["contributions", "lasso_order", "norm_scores", "order_of", "taylor_scores", "thinet_order"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Classes = NDArray[np.integer]

# Rows of W^T W that are held at once.
_PANEL = 512
# The path of penalties: from this share of the one at which nothing is left, in as many steps; sweeps over the
# coordinates at each; and the move, relative to 1, that ends them.
_START, _STEPS, _SWEEPS, _STILL = 1e-5, 150, 30, 1e-4


def contributions(weight: Float, gram: Float, labels: Classes, n: int) -> Float:
    """The contribution Gram of the classes of a layer's inputs; those of several layers add up.

    Args:
        weight: W, (R, d).
        gram: S of the inputs, (d, d).
        labels: Class 0..n-1 of each column, (d,); -1 for those that contribute to none.
        n: Number of classes.

    Returns:
        Q, (n, n), positive semidefinite; zero for a class without columns.
    """
    columns = np.flatnonzero(labels >= 0)
    own = np.asarray(labels, np.int64)[columns]
    by_class = np.argsort(own, kind="stable")
    columns, own = columns[by_class], own[by_class]
    part = weight[:, columns]
    present, starts = np.unique(own, return_index=True)
    sums = np.zeros((len(columns), len(present)))
    for start in range(0, len(columns), _PANEL):
        some = slice(start, start + _PANEL)
        products = part[:, some].T @ part
        products *= gram[np.ix_(columns[some], columns)]
        sums[some] = np.add.reduceat(products, starts, axis=1)
    found = np.zeros((n, n))
    if len(present):
        found[np.ix_(present, present)] = np.add.reduceat(sums, starts, axis=0)
    return (found + found.T) / 2


def thinet_order(matrix: Float) -> Int:
    """ThiNet (Luo et al. 2017, algorithm 1): the channel whose loss adds least to E|sum of the removed z|^2 is next.

    Args:
        matrix: Q, (n, n).
    """
    n = len(matrix)
    added = np.diagonal(matrix).astype(np.float64)
    order = np.empty(n, np.int64)
    for step in range(n):
        order[step] = best = int(np.argmin(added))
        added += 2 * matrix[best]
        added[best] = np.inf
    return order


def lasso_order(matrix: Float) -> Int:
    """He et al. 2017, equation 2: the order in which factors vanish from min E|sum (1 - b_i) z_i|^2 + penalty |b|_1.

    Coordinate descent along a rising penalty, each solution the start of the next. Of factors that vanish in the same
    step, the one of less power before is first.

    Args:
        matrix: Q, (n, n).
    """
    n = len(matrix)
    power = np.diagonal(matrix)
    factors = np.where(power > 0.0, 1.0, 0.0)
    highest = 2 * float(np.abs(matrix.sum(axis=1)).max(initial=0.0))
    vanished = np.zeros(n, np.int64)
    before = np.sqrt(power)
    for step, penalty in enumerate(np.geomspace(_START * highest, highest, _STEPS) if highest > 0.0 else ()):
        _descend(matrix, factors, float(penalty))
        alive = factors != 0.0
        before[alive] = (np.abs(factors) * np.sqrt(power))[alive]
        vanished[alive] = step + 1
    return np.lexsort((before, vanished)).astype(np.int64)


def taylor_scores(matrix: Float) -> Float:
    """E|z_i|^2: the second-order Taylor expansion of the output's squared error when channel i is set to zero.

    At the original weight the error and its gradient are zero and its Hessian is known, so that the expansion
    (Molchanov et al. 2019, with the output's error as the loss) is exact for one channel and needs no labels.

    Args:
        matrix: Q, (n, n).
    """
    return np.diagonal(matrix).astype(np.float64)


def norm_scores(weights: Sequence[Float], labels: Sequence[Classes], n: int, order: int = 1) -> Float:
    """Norms of the filters that write the classes (Li et al. 2017), which know nothing of the data.

    Args:
        weights: Of each producer, (R, ...), one row for each slot that it writes.
        labels: Class 0..n-1 of each row, (R,); -1 for those of none.
        n: Number of classes.
        order: 1 or 2.

    Returns:
        (n,): the norms of a class's rows, summed; those of a producer relative to their mean over the classes it
        writes.
    """
    if order not in (1, 2):
        raise ValueError(f"norm of order {order}, not 1 or 2")
    scores = np.zeros(n)
    for weight, own in zip(weights, labels, strict=True):
        norms = np.linalg.norm(weight.reshape(len(weight), -1), ord=order, axis=1)
        known = np.asarray(own, np.int64) >= 0
        sums = np.bincount(own[known], norms[known], n)
        mean = sums.sum() / max(len(np.unique(own[known])), 1)
        scores += sums / mean if mean > 0.0 else 0.0
    return scores


def order_of(scores: NDArray[np.floating]) -> Int:
    """Classes by rising score; of equal ones the first is first."""
    return np.argsort(scores, kind="stable").astype(np.int64)


def _descend(matrix: Float, factors: Float, penalty: float) -> None:
    """Coordinate descent on the factors, in place, over those that are not zero until all agree."""
    power = np.diagonal(matrix)
    missing = matrix @ (1.0 - factors)  # half the fall of the error by each factor
    for sweep in range(_SWEEPS):
        # Those at zero are looked at in every fifth sweep: few come back.
        back = (np.abs(missing) > penalty / 2) & (power > 0.0) if sweep % 5 == 0 else False
        moved = 0.0
        for i in np.flatnonzero((factors != 0.0) | back).tolist():
            pull = float(missing[i] + power[i] * factors[i])
            found = max(abs(pull) - penalty / 2, 0.0) * (1 if pull > 0 else -1) / float(power[i])
            move = found - float(factors[i])
            if move:
                missing -= move * matrix[i]
                factors[i] = found
                moved = max(moved, abs(move))
        if moved < _STILL:
            break
