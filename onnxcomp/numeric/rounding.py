"""Rounding a weight matrix to a grid so that the layer's OUTPUT changes least: GPTQ order plus coordinate descent.

For targets y and input patches x with second moments S = E[x x^T] and C = E[y x^T], every output row is a least-squares
problem on the grid,

    min_q  (q - m) S (q - m)^T,      m = C S^-1,

with m = w where the targets are the layer's own outputs. Rounding column by column and letting the columns to come make
up for the error (Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers,
2023, algorithm 1) gives a good start; then each entry in turn is set to its best level with all others fixed
(coordinate descent), which never raises the objective.

Grids are given by their codes: an increasing array of levels in units of the row's scale, such as -7 ... 7, -1, 0, 1 or
powers of two.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

__all__ = [
    "Order",
    "dequantized",
    "descend",
    "gptq",
    "integer_levels",
    "least_squares_scale",
    "nearest",
    "output_error",
    "power_levels",
    "round_rows",
    "search_scale",
]

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]
Order = Literal["activation", "natural"]

# Columns that are worked on before the rest of the matrix hears of it.
_BLOCK = 128
# Scales are tried from the widest (0), which clips nothing, to a narrow one (1): at few bits the best clips a good part
# of the tail. First on a coarse grid, then around the best.
_COARSE = np.linspace(0.0, 1.0, 13)[1:]
_FINE = ((-1 / 24, 1 / 24), (-1 / 48, 1 / 48))
# The narrow end, in units of the widest; where the tail is long it is the mean, the least that a ternary grid wants.
_NARROWEST = 0.25


def integer_levels(bits: int, *, symmetric: bool = True) -> Float:
    """Codes of a signed integer type: -(2^(b-1) - 1) ... 2^(b-1) - 1; not symmetric: from -2^(b-1) on.

    Raises:
        ValueError: Fewer than 2 bits or more than 16.
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"{bits} bits, not 2 to 16")
    top = 2 ** (bits - 1) - 1
    return np.arange(-top if symmetric else -top - 1, top + 1, dtype=np.float64)


def power_levels(bits: int) -> Float:
    """Zero and the powers of two 1, 1/2, 1/4 ... of both signs that fit 2^bits codes (INQ, Zhou et al. 2017)."""
    if bits < 2:
        raise ValueError(f"{bits} bits, not 2 or more")
    powers = 2.0 ** -np.arange(2 ** (bits - 1) - 1)
    return np.concatenate([-powers, [0.0], powers[::-1]])


def nearest(values: Float, levels: Float) -> Float:
    """The level next to each value; ties go to the even code of an integer grid."""
    if _is_integer_range(levels):
        return np.clip(np.rint(values), levels[0], levels[-1])
    middles = (levels[1:] + levels[:-1]) / 2
    chosen: Float = levels[np.searchsorted(middles, values)]
    return chosen


def dequantized(codes: Float, scales: Float) -> Float:
    """codes * scales, [R, d]; scales are [R], or [R, d / block] with one for each `block` columns in a row."""
    restored: Float = codes * _spread(scales, codes.shape[1])
    return restored


def output_error(codes: Float, scales: Float, target: Float, gram: Float) -> Float:
    """(q - m) S (q - m)^T of each row, [R], with q = codes * scales."""
    rest = dequantized(codes, scales) - target
    errors: Float = np.einsum("rd,rd->r", rest @ gram, rest)
    return errors


def search_scale(target: Float, levels: Float, gram: Float | None = None, *, block: int = 0) -> Float:
    """The scale of each row, or of each block of a row, for which rounding to nearest errs least; positive.

    Args:
        target: [R, d], finite.
        levels: The codes.
        gram: S, [d, d], of which the diagonal counts: the columns that follow make up for what correlates, and scales
            chosen with the whole of S clip too much (measured). None: the identity, the weights' own error.
        block: Columns that share a scale, a divisor of d; 0: all.

    Returns:
        [R], or [R, d / block].
    """
    if block:
        d = target.shape[1]
        parts = [slice(start, start + block) for start in range(0, d, block)]
        grams = [None if gram is None else gram[part, part] for part in parts]
        per_block = [search_scale(target[:, part], levels, own) for part, own in zip(parts, grams, strict=True)]
        return np.stack(per_block, axis=1)
    power = None if gram is None else np.diagonal(gram)
    reach = max(-float(levels[0]), float(levels[-1]))
    magnitudes = np.abs(target)
    widest = magnitudes.max(axis=1, initial=0.0) / reach
    widest[widest <= np.finfo(np.float32).tiny] = 1.0 / reach
    narrowest = np.minimum(_NARROWEST * widest, magnitudes.sum(axis=1) / (max(target.shape[1], 1) * reach))
    narrowest = np.maximum(narrowest, widest * np.finfo(np.float32).eps)

    def errors(ratio: Float) -> Float:
        scale = (widest + ratio * (narrowest - widest))[:, None]
        rest = nearest(target / scale, levels) * scale - target
        return np.asarray(np.einsum("rd,rd->r", rest if power is None else rest * power, rest))

    best = np.zeros(len(target))
    least = errors(best)
    for offsets in (_COARSE, *_FINE):
        around = best
        for offset in offsets:
            ratio = np.clip(around + offset, 0.0, 1.0)
            found = errors(ratio)
            better = found < least
            best, least = np.where(better, ratio, best), np.where(better, found, least)
    scales: Float = widest + best * (narrowest - widest)
    return scales


def least_squares_scale(codes: Float, scales: Float, target: Float, gram: Float) -> Float:
    """The best scale of each row for given codes: q S m / q S q; rows of zeros keep theirs.

    Where blocks have scales of their own, [R, d / block], each in turn is set to its best with the others fixed; the
    error of no row rises.
    """
    if scales.ndim == 2:
        return _block_scales(codes, scales, target, gram)
    response = codes @ gram
    power = np.einsum("rd,rd->r", response, codes)
    wanted = np.einsum("rd,rd->r", response, target)
    fits = (power > 0) & (wanted > 0)
    return np.where(fits, wanted / np.where(power > 0, power, 1.0), scales)


def _block_scales(codes: Float, scales: Float, target: Float, gram: Float) -> Float:
    block = codes.shape[1] // scales.shape[1]
    scales = scales.copy()
    slope = (dequantized(codes, scales) - target) @ gram
    for index in range(scales.shape[1]):
        part = slice(index * block, (index + 1) * block)
        own = codes[:, part]
        power = np.einsum("rd,rd->r", own @ gram[part, part], own)
        step = np.where(power > 0, np.einsum("rd,rd->r", slope[:, part], own) / np.where(power > 0, power, 1.0), 0.0)
        better = np.where(scales[:, index] > step, scales[:, index] - step, scales[:, index])
        slope += ((better - scales[:, index])[:, None] * own) @ gram[part]
        scales[:, index] = better
    return scales


def _spread(scales: Float, d: int) -> Float:
    """One scale for each entry, [R, d] or [R, 1]."""
    return scales[:, None] if scales.ndim == 1 else np.repeat(scales, d // scales.shape[1], axis=1)


def gptq(
    target: Float,
    scales: Float,
    levels: Float,
    gram: Float,
    *,
    order: Order = "activation",
    free: Mask | None = None,
) -> Float:
    """Round column by column, the error of each passed on to those that follow.

    Args:
        target: [R, d].
        scales: [R], or [R, d / block] where blocks of columns have scales of their own.
        levels: The codes.
        gram: S, [d, d], positive definite (damped).
        order: ``activation``: columns of the largest input power first.
        free: [R, d], False where the code is to be 0; None: nowhere.

    Returns:
        The codes, [R, d].
    """
    d = target.shape[1]
    columns = np.argsort(-np.diagonal(gram), kind="stable") if order == "activation" else np.arange(d)
    inverse = scipy.linalg.inv(gram[np.ix_(columns, columns)], overwrite_a=True, check_finite=False)
    upper = scipy.linalg.cholesky((inverse + inverse.T) / 2, lower=False, overwrite_a=True, check_finite=False)
    steps = np.broadcast_to(_spread(scales, d), target.shape)[:, columns].T.copy()
    # Columns as rows: what is walked through is contiguous.
    left = target[:, columns].T.copy()
    codes = np.empty_like(left)
    for start in range(0, d, _BLOCK):
        stop = min(start + _BLOCK, d)
        errors = np.empty((stop - start, len(target)))
        for j in range(start, stop):
            codes[j] = nearest(left[j] / steps[j], levels)
            if free is not None:
                codes[j] *= free[:, columns[j]]
            errors[j - start] = (left[j] - codes[j] * steps[j]) / upper[j, j]
            left[j:stop] -= np.outer(upper[j, j:stop], errors[j - start])
        left[stop:] -= upper[start:stop, stop:].T @ errors
    result = np.empty_like(target)
    result[:, columns] = codes.T
    return result


def descend(
    codes: Float,
    target: Float,
    scales: Float,
    levels: Float,
    gram: Float,
    *,
    sweeps: int = 4,
    free: Mask | None = None,
) -> Float:
    """Set each entry in turn to its best level with all others fixed, until nothing moves or `sweeps` are over.

    Arguments as for :func:`gptq`. The objective of no row rises.
    """
    d = target.shape[1]
    codes = codes.T.copy()
    steps = np.broadcast_to(_spread(scales, d), target.shape).T.copy()
    power = np.maximum(np.diagonal(gram), np.finfo(np.float64).tiny)
    slope = gram @ (codes * steps - target.T)
    for _ in range(sweeps):
        moved = False
        for start in range(0, d, _BLOCK):
            stop = min(start + _BLOCK, d)
            inner = gram[start:stop, start:stop]
            local = slope[start:stop].copy()
            moves = np.zeros_like(local)
            for j in range(start, stop):
                k = j - start
                current = codes[j] * steps[j]
                codes[j] = nearest((current - local[k] / power[j]) / steps[j], levels)
                if free is not None:
                    codes[j] *= free[:, j]
                moves[k] = codes[j] * steps[j] - current
                if moves[k].any():
                    local += np.outer(inner[:, k], moves[k])
            if moves.any():
                moved = True
                slope += gram[:, start:stop] @ moves
        if not moved:
            break
    return np.ascontiguousarray(codes.T)


def round_rows(
    target: Float,
    gram: Float,
    levels: Float,
    *,
    scales: Float | None = None,
    damping: float = 0.01,
    order: Order = "activation",
    sweeps: int = 4,
    rounds: int = 2,
    block: int = 0,
    free: Mask | None = None,
) -> tuple[Float, Float]:
    """Round a weight matrix to codes and one scale a row or block, so that the outputs change least.

    The scales start where plain rounding errs least in the outputs and are refitted to the codes, each followed by
    another descent, for `rounds` rounds; given scales stay.

    Args:
        target: m, [R, d]: the weight, or the least-squares solution for other targets.
        gram: S, [d, d], symmetric and positive semidefinite.
        levels: The codes.
        scales: [R], or [R, d / block]; None: searched.
        damping: What is added to the diagonal of S for the GPTQ sweep, in units of its mean.
        order: Order of the columns in the GPTQ sweep.
        sweeps: Sweeps of coordinate descent.
        rounds: How often scales are refitted.
        block: Columns that share a searched scale, a divisor of d; 0: all of a row.
        free: As for :func:`gptq`.

    Returns:
        The codes, [R, d], and the scales, [R] or [R, d / block].

    Raises:
        ValueError: Shapes that do not fit, a block that is no divisor of d, or a damping below 0.
    """
    if gram.shape != (target.shape[1], target.shape[1]):
        raise ValueError(f"a Gram of shape {gram.shape} does not fit a weight of shape {target.shape}")
    if damping < 0:
        raise ValueError(f"damping is {damping}, not 0 or more")
    if block and target.shape[1] % block:
        raise ValueError(f"{target.shape[1]} columns do not fall into blocks of {block}")
    damped = _damped(gram, damping)
    chosen = search_scale(target, levels, damped, block=block) if scales is None else scales
    codes = gptq(target, chosen, levels, damped, order=order, free=free)
    fitted = _damped(gram, 0.0)
    plain = nearest(target / _spread(chosen, target.shape[1]), levels)
    if free is not None:
        plain *= free
    worse = output_error(codes, chosen, target, fitted) > output_error(plain, chosen, target, fitted)
    codes[worse] = plain[worse]  # happens on small rows and few levels
    codes = descend(codes, target, chosen, levels, fitted, sweeps=sweeps, free=free)
    for _ in range(rounds if scales is None else 0):
        chosen = least_squares_scale(codes, chosen, target, fitted)
        codes = descend(codes, target, chosen, levels, fitted, sweeps=sweeps, free=free)
    return codes, chosen


def _damped(gram: Float, damping: float) -> Float:
    """The Gram with a stronger diagonal; inputs that are always zero count as independent ones of mean power."""
    diagonal = np.diagonal(gram)
    mean = float(diagonal.mean())
    result = gram.copy()
    if mean <= 0:
        np.fill_diagonal(result, 1.0)
        return result
    dead = diagonal <= 1e-12 * mean
    result[np.diag_indices_from(result)] += np.where(dead, mean, (damping + 1e-9) * mean)
    return result


def _is_integer_range(levels: Float) -> bool:
    return bool(np.array_equal(levels, np.arange(levels[0], levels[0] + len(levels))))
