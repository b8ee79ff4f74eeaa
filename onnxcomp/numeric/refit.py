"""The weight and bias on a grid with which a layer comes closest to its target outputs, from second moments alone.

With the patches x as the compressed prefix delivers them and the targets y of the original network (the asymmetric
form), the unconstrained answer is m = C S^-1 with S and C the (centred) moments of x with itself and with y; ridge
regression towards the original weight keeps few patches from overfitting. Rounding m so that the output changes least
(:mod:`onnxcomp.numeric.rounding`) lets every layer repair what the layers before it have lost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numeric.leastsquares import cholesky, solve
from onnxcomp.numeric.moments import Moments
from onnxcomp.numeric.rounding import Order, round_rows

__all__ = ["Effort", "Refit", "refit"]

Float = NDArray[np.float64]

# Relative strength of the pull towards the original weight; the second one is scaled by unknowns per patch.
_RIDGE = 1e-3
_RIDGE_FEW = 0.05


@dataclass(frozen=True, slots=True)
class Effort:
    """How thoroughly weights are rounded; see :func:`onnxcomp.numeric.rounding.round_rows`."""

    damping: float = 0.01
    order: Order = "activation"
    sweeps: int = 2
    rounds: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Refit:
    """A rounded layer.

    Attributes:
        codes: Integers, [R, d].
        scales: One a row, [R].
        bias: [R].
        error: Expected squared error of each output, [R].
        power: Mean squared target of each output, [R].
    """

    codes: Float
    scales: Float
    bias: Float
    error: Float
    power: Float


def refit(
    moments: Moments,
    weight: Float,
    levels: Float,
    effort: Effort,
    *,
    biased: bool = True,
    codes: Float | None = None,
    scales: Float | None = None,
) -> Refit:
    """Fit and round one group of a layer.

    Args:
        moments: Of its patches and targets.
        weight: The original weight, [R, d].
        levels: The codes of the grid.
        effort: How thoroughly.
        biased: Whether the layer has a bias to take the means; else the moments count as they are.
        codes: Given codes stay, with the given scales, and only the bias is fitted.
        scales: Given scales stay.

    Raises:
        ValueError: The moments hold no targets.
    """
    centred = moments.centred()
    assert moments.yx is not None and moments.mean_y is not None and moments.yy is not None
    xx, yx = (centred.xx, centred.yx) if biased else (moments.xx, moments.yx)
    if codes is None or scales is None:
        d = len(xx)
        ridge = (_RIDGE + _RIDGE_FEW * d / max(moments.count, 1)) * float(np.trace(xx)) / d
        damped = xx.copy()
        damped[np.diag_indices(d)] += ridge
        target = solve(cholesky(damped), (yx + ridge * weight).T).T
        codes, scales = round_rows(
            target,
            damped,
            levels,
            scales=scales,
            damping=effort.damping,
            order=effort.order,
            sweeps=effort.sweeps,
            rounds=effort.rounds,
        )
    rounded = codes * scales[:, None]
    bias = moments.mean_y - rounded @ moments.mean_x if biased else np.zeros(len(rounded))
    spread = centred.yy if biased else moments.yy
    cross = np.einsum("rd,rd->r", rounded, yx)
    error = spread - 2 * cross + np.einsum("rd,rd->r", rounded @ xx, rounded)
    return Refit(codes, scales, bias, np.maximum(error, 0.0), moments.yy)
