"""Least squares with the pull towards the original weight that suits data which the fit has not seen.

Few images, or patches that are alike, let a fit of many columns follow what is theirs alone. With the moments of two
halves of the samples, a weight that is fitted to one can be judged on the other at no other cost than the fit itself
(two-fold cross-validation; Golub, Heath and Wahba 1979 for ridge regression).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numeric.moments import Moments, predicted_error
from onnxcomp.numeric.refit import least_squares_target, remainder

__all__ = ["Fit", "fitted", "fitted_alone", "merged"]

Float = NDArray[np.float64]
Halves = tuple[Moments, Moments]
Fit = tuple[Float, Float, float]
"""Rows (R, d), bias (R,), and the relative squared error on all samples."""

# Pulls that are tried, in units of the mean power of an input, and those for wide layers, which take longer.
_RIDGES, _FEW = (1e-3, 1e-2, 1e-1, 1.0, 10.0), (1e-2, 1e-1, 1.0)
_WIDE = 2048
# The pull where nothing can be held out.
_ALONE = 0.1


def merged(first: Moments, second: Moments) -> Moments:
    """The moments of both sets of samples.

    Raises:
        ValueError: They hold no targets.
    """
    if first.yx is None or second.yx is None:
        raise ValueError("the moments hold no targets")
    assert first.mean_y is not None and second.mean_y is not None and first.yy is not None and second.yy is not None
    count = first.count + second.count
    a, b = first.count / count, second.count / count
    return Moments(
        a * first.xx + b * second.xx,
        a * first.mean_x + b * second.mean_x,
        count,
        a * first.yx + b * second.yx,
        a * first.mean_y + b * second.mean_y,
        a * first.yy + b * second.yy,
    )


def fitted_alone(moments: Sequence[Moments], weights: Sequence[Float], *, biased: bool = True) -> list[Fit]:
    """Fit each group of a layer where there is but one sample, so that none is left to judge: the pull is strong.

    Args:
        moments: Of each group, with targets.
        weights: The original weights, (R, d) each.
        biased: Whether the layer has a bias to take the means.
    """
    return [_fit(own, weight, _ALONE, biased=biased) for own, weight in zip(moments, weights, strict=True)]


def fitted(halves: Sequence[Halves], weights: Sequence[Float], *, biased: bool = True) -> list[Fit]:
    """Fit each group of a layer to all samples, with the pull, one for all groups, that serves unseen samples best.

    Args:
        halves: Moments of each group, with targets, of two halves of the samples.
        weights: The original weights, (R, d) each.
        biased: Whether the layer has a bias to take the means.
    """
    tried = _RIDGES if max(weight.shape[1] for weight in weights) <= _WIDE else _FEW
    unseen = [
        sum(_unseen(pair, weight, ridge, biased=biased) for pair, weight in zip(halves, weights, strict=True))
        for ridge in tried
    ]
    ridge = tried[int(np.argmin(unseen))]
    return [_fit(merged(*pair), weight, ridge, biased=biased) for pair, weight in zip(halves, weights, strict=True)]


def _unseen(pair: Halves, weight: Float, ridge: float, *, biased: bool) -> float:
    """Relative squared error on the half that was not fitted to, both ways."""
    total = 0.0
    for own, other in (pair, pair[::-1]):
        rows, bias, _ = _fit(own, weight, ridge, biased=biased)
        error = predicted_error(rows, bias, other)
        total += error if np.isfinite(error) else 0.0  # a target that never changes
    return total


def _fit(moments: Moments, weight: Float, ridge: float, *, biased: bool) -> Fit:
    rows, _ = least_squares_target(moments, weight, ridge, biased=biased)
    bias, error, power = remainder(moments, rows, biased=biased)
    return rows, bias, float(error.sum() / max(power.sum(), np.finfo(np.float64).tiny))
