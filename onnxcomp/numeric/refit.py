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
from onnxcomp.numeric.rounding import Order, integer_levels, output_error, round_rows

__all__ = ["Effort", "Refit", "grids", "refit"]

Float = NDArray[np.float64]



@dataclass(frozen=True, slots=True)
class Effort:
    """How thoroughly weights are fitted and rounded.

    Attributes:
        ridge: Pull towards the original weight, in units of the mean power of an input.
        damping: As are the others: see :func:`onnxcomp.numeric.rounding.round_rows`.
        order: Of the columns.
        sweeps: Of coordinate descent.
        rounds: Refits of the scales.
    """

    ridge: float = 0.03
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


def grids(bits: int) -> tuple[Float, ...]:
    """The grids that a row may choose from: symmetric ones, or below 4 bits all 2^bits codes and their mirror image.

    At 2 bits the fourth level counts: -2 ... 1 for a row whose largest weight is negative, -1 ... 2 for another.
    """
    levels = integer_levels(bits, symmetric=bits > 3)
    return (levels,) if bits > 3 else (levels, -levels[::-1])


def refit(
    moments: Moments,
    weight: Float,
    options: tuple[Float, ...],
    effort: Effort,
    *,
    biased: bool = True,
    scales: Float | None = None,
) -> Refit:
    """Fit and round one group of a layer.

    Args:
        moments: Of its patches and targets.
        weight: The original weight, [R, d].
        options: Grids, of which each row gets the one that errs least.
        effort: How thoroughly.
        biased: Whether the layer has a bias to take the means; else the moments count as they are.
        scales: Given scales stay.

    Raises:
        ValueError: The moments hold no targets.
    """
    centred = moments.centred()
    assert moments.yx is not None and moments.mean_y is not None and moments.yy is not None
    xx, yx = (centred.xx, centred.yx) if biased else (moments.xx, moments.yx)
    d = len(xx)
    mean = float(np.trace(xx)) / d
    damped = xx.copy()
    damped[np.diag_indices(d)] += effort.ridge * mean
    target = solve(cholesky(damped), (yx + effort.ridge * mean * weight).T).T if mean > 0 else weight
    codes, chosen = _best(target, xx, options, effort, scales)
    rounded = codes * chosen[:, None]
    bias = moments.mean_y - rounded @ moments.mean_x if biased else np.zeros(len(rounded))
    spread = centred.yy if biased else moments.yy
    cross = np.einsum("rd,rd->r", rounded, yx)
    error = spread - 2 * cross + np.einsum("rd,rd->r", rounded @ xx, rounded)
    return Refit(codes, chosen, bias, np.maximum(error, 0.0), moments.yy)


def _best(
    target: Float, gram: Float, options: tuple[Float, ...], effort: Effort, scales: Float | None
) -> tuple[Float, Float]:
    """Codes and scales of each row on the grid that suits it best."""

    def rounded(levels: Float) -> tuple[Float, Float]:
        return round_rows(
            target,
            gram,
            levels,
            scales=scales,
            damping=effort.damping,
            order=effort.order,
            sweeps=effort.sweeps,
            rounds=effort.rounds,
        )

    codes, chosen = rounded(options[0])
    error = output_error(codes, chosen, target, gram)
    for levels in options[1:]:
        others, own = rounded(levels)
        less = output_error(others, own, target, gram)
        better = less < error
        codes[better], chosen, error = others[better], np.where(better, own, chosen), np.minimum(error, less)
    return codes, chosen
