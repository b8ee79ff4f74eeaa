"""The weight and bias on a grid with which a layer comes closest to its target outputs, from second moments alone.

With the patches x as the compressed prefix delivers them and the targets y of the original network (the asymmetric
form), the unconstrained answer is m = C S^-1 with S and C the (centred) moments of x with itself and with y; ridge
regression towards the original weight keeps few patches from overfitting. Rounding m so that the output changes least
(:mod:`onnxcomp.numeric.rounding`) lets every layer repair what the layers before it have lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numeric.leastsquares import cholesky, solve
from onnxcomp.numeric.moments import Moments
from onnxcomp.numeric.rounding import Order, dequantized, integer_levels, output_error, round_rows
from onnxcomp.numeric.sparsity import fit_support

__all__ = ["Effort", "Refit", "best_grid", "grids", "least_squares_target", "refit", "remainder"]

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]

# A weight with this share of exact zeros was pruned: they are worth bytes, and to some hardware time.
_PRUNED = 0.25
# Strengthens a Gram of few patches for the fit of what was not pruned, in units of the mean power of an input.
_SOLID = 0.01

# Variance of the inputs, relative to their power, below which it is the noise of the sums.
_CONSTANT = 1e-9


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
        codes: Levels, [R, d].
        scales: One a row, [R], or one a block, [R, d / block].
        bias: [R].
        error: Expected squared error of each output, [R].
        power: Variance of each target, [R].
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
    options: Sequence[Float],
    effort: Effort,
    *,
    biased: bool = True,
    scales: Float | None = None,
    block: int = 0,
) -> Refit:
    """Fit and round one group of a layer; what is zero in a weight with many zeros stays zero.

    Args:
        moments: Of its patches and targets.
        weight: The original weight, [R, d].
        options: Grids, of which each row gets the one that errs least.
        effort: How thoroughly.
        biased: Whether the layer has a bias to take the means; else the moments count as they are.
        scales: Given scales stay.
        block: Columns that share a scale; 0: all of a row.

    Raises:
        ValueError: The moments hold no targets.
    """
    target, gram = least_squares_target(moments, weight, effort.ridge, biased=biased)
    free = _free(weight, options)
    if free is not None:
        strong = gram + _SOLID * float(np.trace(gram)) / len(gram) * np.eye(len(gram))
        target = fit_support(target, free, strong, target @ strong)
    codes, chosen = best_grid(
        options,
        target,
        lambda levels: round_rows(
            target,
            gram,
            levels,
            scales=scales,
            damping=effort.damping,
            order=effort.order,
            sweeps=effort.sweeps,
            rounds=effort.rounds,
            block=block,
            free=free,
        ),
        gram,
    )
    rounded = dequantized(codes, chosen.astype(np.float32).astype(np.float64))
    bias, error, power = remainder(moments, rounded, biased=biased)
    return Refit(codes, chosen, bias, error, power)


def least_squares_target(moments: Moments, weight: Float, ridge: float, *, biased: bool = True) -> tuple[Float, Float]:
    """The unconstrained weight that reaches the targets best, and the Gram that says what a distance from it costs.

    Args:
        moments: With targets.
        weight: The original weight, [R, d].
        ridge: Pull towards it, in units of the mean power of an input.
        biased: Whether the layer has a bias to take the means.

    Returns:
        m, [R, d], and S, [d, d]; the weight itself and the identity where the inputs never change.

    Raises:
        ValueError: The moments hold no targets.
    """
    centred = moments.centred()
    assert moments.yx is not None  # centred() has checked it
    xx, yx = (centred.xx, centred.yx) if biased else (moments.xx, moments.yx)
    # Inputs that never change: the bias alone counts, and the weight is rounded for inputs that may come.
    if np.trace(xx) <= _CONSTANT * np.trace(moments.xx):
        return weight, np.eye(len(xx))
    pull = ridge * float(np.trace(xx)) / len(xx)
    damped = xx.copy()
    damped[np.diag_indices_from(damped)] += pull
    return solve(cholesky(damped), (yx + pull * weight).T).T, xx


def remainder(moments: Moments, weight: Float, *, biased: bool = True) -> tuple[Float, Float, Float]:
    """The bias that goes with a weight, the squared error that is left of each output, and its variance; [R] each.

    Raises:
        ValueError: The moments hold no targets.
    """
    centred = moments.centred()
    assert moments.mean_y is not None  # centred() has checked it
    missed = moments.mean_y - weight @ moments.mean_x
    error = (
        centred.yy - 2 * np.einsum("rd,rd->r", weight, centred.yx) + np.einsum("rd,rd->r", weight @ centred.xx, weight)
    )
    bias = missed if biased else np.zeros(len(weight))
    return bias, np.maximum(error, 0.0) + (missed - bias) ** 2, centred.yy


def _free(weight: Float, options: Sequence[Float]) -> Mask | None:
    """Where a weight of which a good part was set to zero may be nonzero; None where nothing needs to stay zero."""
    free = np.asarray(weight != 0)
    pruned = free.mean() <= 1 - _PRUNED and free.any() and all(0.0 in levels for levels in options)
    return free if pruned else None


def best_grid(
    options: Sequence[Float],
    target: Float,
    rounded: Callable[[Float], tuple[Float, Float]],
    gram: Float | None = None,
) -> tuple[Float, Float]:
    """Codes and scales of each row on the grid on which it errs least.

    Args:
        options: The grids, levels each.
        target: What is rounded, [R, d].
        rounded: Rounds it to a grid.
        gram: Of the inputs, [d, d]; None: the identity.
    """

    def errors(codes: Float, scales: Float) -> Float:
        if gram is not None:
            return output_error(codes, scales, target, gram)
        squares: Float = np.square(dequantized(codes, scales) - target).sum(axis=1)
        return squares

    codes, scales = rounded(options[0])
    for levels in options[1:]:
        others, own = rounded(levels)
        better = errors(others, own) < errors(codes, scales)
        codes[better], scales[better] = others[better], own[better]
    return codes, scales
