"""Data-aware Tucker fits: least squares on the layer's output instead of its weight, from second moments alone.

Steps (notation of `onnxcomp.numeric.tucker`):

1. The input factor is the best projection of the weight under the channel covariance, averaged over taps (whitened
SVD). 2. Given it, the best core of full output rank is a least-squares fit on the projected patches, and the best one
of rank r_out
   is its reduced-rank regression (Izenman 1975).
3. Given core and output factor, the input factor is a linear least-squares problem as well; steps 2 and 3 alternate,
and
   each lowers the error.
4. The bias takes the means.

With moments of the compressed network's inputs and of the original's outputs this is the asymmetric form of Zhang et
al. (2016, section 3.3), which makes up for the errors of the layers before.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxcomp.numeric.moments import (
    Covariance,
    Moments,
    channel_average,
    predicted_error,
    project_cross,
    project_gram,
    regularised,
)
from onnxcomp.numeric.tucker import Tucker2, compose, leading_vectors, relative_error, unfold_in

__all__ = ["Fit", "cholesky", "fit_tucker2", "reduced_rank", "whitened_spectra"]

Float = NDArray[np.float64]

# Up to this many unknowns the input factor is solved for directly; above, by conjugate gradients on the same equations.
_DIRECT_UNKNOWNS = 2048
_CG_STEPS = 12
# Keeps the Cholesky factors of singular Grams (dead channels, fewer patches than dimensions) defined, far below any
# signal.
_JITTER = 1e-10


class Fit(NamedTuple):
    """A data-aware decomposition.

    Attributes:
        factors: The factors; their `error` is that of the weight, as everywhere.
        bias: Output bias (Co,), for the last node of the chain.
        error: Relative squared error of the output on the patches fitted to, see `predicted_error`.
    """

    factors: Tucker2
    bias: Float
    error: float


def fit_tucker2(
    weight: NDArray[np.floating],
    bias: NDArray[np.floating] | None,
    moments: Moments,
    rank_in: int | None,
    rank_out: int | None,
    *,
    sweeps: int = 2,
    damping: float = 1e-2,
) -> Fit:
    """Fit a Tucker-2 chain (Tucker-1 where a rank is None, plain least squares where both are) to a layer's output.

    Args:
        weight: The original weight (Co, Ci, *kernel).
        bias: The original bias (Co,); only used where the moments hold no targets.
        moments: Of this layer's patches; without targets the original weight supplies them (symmetric form).
        rank_in: 1..Ci or None.
        rank_out: 1..Co or None.
        sweeps: Improvements of the input factor, each followed by a new core; no effect where `rank_in` is None.
        damping: Pull towards the original weight, relative to the mean patch variance (see `regularised`).

    Raises:
        ValueError: Ranks out of range, or moments that do not fit the weight.
    """
    k = np.asarray(weight, np.float64)
    _check(k, moments, rank_in, rank_out)
    complete = moments if moments.has_targets else moments.with_weight(k, bias)
    assert complete.mean_y is not None  # either branch gives targets
    covariance = regularised(complete.centred(), k.reshape(len(k), -1), damping)
    channel = channel_average(covariance.xx, prod(k.shape[2:]))
    first = None if rank_in is None else _input_factor(k, channel, rank_in)
    core, last = _refit(covariance, first, k.shape, rank_out)
    for _ in range(sweeps if first is not None else 0):
        assert first is not None
        first = _whiten(_improve_first(covariance, channel, first, core, last), channel)
        core, last = _refit(covariance, first, k.shape, rank_out)
    factors = Tucker2(first, core, last, 0.0)
    fitted = compose(factors)
    factors = Tucker2(first, core, last, relative_error(k, fitted))
    new_bias = complete.mean_y - fitted.reshape(len(k), -1) @ complete.mean_x
    return Fit(factors, new_bias, predicted_error(fitted, new_bias, complete))


def whitened_spectra(weight: NDArray[np.floating], moments: Moments, *, damping: float = 1e-2) -> tuple[Float, Float]:
    """Input and output spectra whose squared tails are relative output errors of the data-aware fit.

    Output side, exact: the singular values of the regression's response, so that the squared tail past r is what the
    best fit of output rank r loses. Input side, exact for the factor of step 1: one Cholesky factorisation of the patch
    Gram in the whitened channel basis gives the least-squares error for every input rank at once (before any sweep).

    Args:
        weight: (Co, Ci, *kernel).
        moments: Of the layer's patches, targets optional.
        damping: As in `fit_tucker2`.

    Returns:
        (Ci values, Co values), both with squares that sum to 1 (or all zero); the input one is only roughly descending.
    """
    k = np.asarray(weight, np.float64)
    _check(k, moments, None, None)
    complete = moments if moments.has_targets else moments.with_weight(k)
    covariance = regularised(complete.centred(), k.reshape(len(k), -1), damping)
    basis = _input_factor(k, channel_average(covariance.xx, prod(k.shape[2:])), k.shape[1])
    lower = cholesky(project_gram(covariance.xx, basis))
    response = scipy.linalg.solve_triangular(lower, project_cross(covariance.yx, basis).T, lower=True)
    explained = np.einsum("do,do->d", response, response).reshape(k.shape[1], -1).sum(axis=1)
    out = np.maximum(scipy.linalg.eigvalsh(response.T @ response)[::-1], 0.0)
    return _unit(np.sqrt(explained)), _unit(np.sqrt(out))


def reduced_rank(lower: Float, cross: Float, rank: int | None) -> tuple[Float, Float | None]:
    """Reduced-rank regression (Izenman 1975): the best last @ core of rank `rank` for a Gram and a cross moment.

    Args:
        lower: Cholesky factor of the Gram of the regressors, (n, n).
        cross: Cross moments of the targets and regressors, (Co, n).
        rank: 1..Co; None gives ordinary least squares.

    Returns:
        core (rank, n) and last (Co, rank) with orthonormal columns; (Co, n) and None for ordinary least squares.
    """
    if rank is None:
        return _solve(lower, cross.T).T, None
    response = scipy.linalg.solve_triangular(lower, cross.T, lower=True)
    last = leading_vectors(response.T @ response, rank)
    core = scipy.linalg.solve_triangular(lower, response @ last, lower=True, trans=1).T
    return np.ascontiguousarray(core), last


def cholesky(gram: Float) -> Float:
    """Lower Cholesky factor of a positive semidefinite matrix, with a jitter far below its mean diagonal.

    Dead directions (zero rows) come out as if they had the jitter's variance, so that solves leave them at zero.
    """
    n = len(gram)
    mean = float(np.trace(gram)) / n
    if mean <= 0.0:
        return np.eye(n)
    for jitter in (_JITTER, 1e3 * _JITTER, 1e6 * _JITTER):
        damped = gram.copy()
        damped[np.diag_indices(n)] += jitter * mean
        try:
            lower: Float = scipy.linalg.cholesky(damped, lower=True, overwrite_a=True, check_finite=False)
        except scipy.linalg.LinAlgError:
            continue  # rounding left a negative eigenvalue larger than the jitter
        return lower
    raise ValueError("the Gram matrix is not positive semidefinite")


def _check(k: Float, moments: Moments, rank_in: int | None, rank_out: int | None) -> None:
    for side, rank, full in (("input", rank_in, k.shape[1]), ("output", rank_out, k.shape[0])):
        if rank is not None and not 1 <= rank <= full:
            raise ValueError(f"{side} rank {rank} is not in 1..{full}")
    if moments.xx.shape != (k[0].size, k[0].size):
        raise ValueError(f"moments of {len(moments.xx)} dimensions do not fit a weight of shape {k.shape}")


def _input_factor(k: Float, channel: Float, rank: int) -> Float:
    """Step 1: P = A^T L^-1, channel = L L^T, A the leading left vectors of L^T unfold_in(K); P channel P^T = I."""
    lower = cholesky(channel)
    unfolded = lower.T @ unfold_in(k)
    vectors = leading_vectors(unfolded @ unfolded.T, rank)
    factor: Float = scipy.linalg.solve_triangular(lower, vectors, lower=True, trans=1).T
    return np.ascontiguousarray(factor)


def _refit(
    covariance: Covariance, first: Float | None, shape: tuple[int, ...], rank_out: int | None
) -> tuple[Float, Float | None]:
    """Step 2: the best core and output factor given the input factor."""
    lower = cholesky(project_gram(covariance.xx, first))
    core, last = reduced_rank(lower, project_cross(covariance.yx, first), rank_out)
    rank_in = shape[1] if first is None else len(first)
    return core.reshape(len(core), rank_in, *shape[2:]), last


def _improve_first(covariance: Covariance, channel: Float, first: Float, core: Float, last: Float | None) -> Float:
    """Step 3: the best input factor given core and output factor (whose columns are orthonormal), never a worse one.

    The normal equations are sum_ok core[o,a,k] (A xx)[o,i,k] = sum_ok core[o,a,k] (last^T yx)[o,i,k], A = core x P.
    """
    rank, channels = first.shape
    taps = len(covariance.xx) // channels
    flat = core.reshape(len(core), rank, taps)
    cross = covariance.yx if last is None else last.T @ covariance.yx
    wanted = np.tensordot(flat, cross.reshape(-1, channels, taps), ((0, 2), (0, 2)))
    if rank * channels <= _DIRECT_UNKNOWNS:
        return _solve(cholesky(_normal_matrix(covariance.xx, flat, channels)), wanted.ravel()).reshape(first.shape)

    def normal(p: Float) -> Float:
        composed = np.matmul(p.T, flat).reshape(len(flat), channels * taps)
        response = (composed @ covariance.xx).reshape(len(flat), channels, taps)
        return np.asarray(np.tensordot(flat, response, ((0, 2), (0, 2))), np.float64)

    # Exact where taps are uncorrelated: a Kronecker product of the core's energy and the channel covariance.
    left, right = cholesky(np.tensordot(flat, flat, ((0, 2), (0, 2)))), cholesky(channel)

    def precondition(residual: Float) -> Float:
        return _solve(right, _solve(left, residual).T).T

    return _conjugate_gradients(normal, precondition, wanted, first)


def _normal_matrix(xx: Float, flat: Float, channels: int) -> Float:
    """Matrix of the normal equations of step 3: sum_okl core[o,a,k] core[o,b,l] xx[(i,k),(j,l)] at ((a,i),(b,j))."""
    rank, taps = flat.shape[1], flat.shape[2]
    energy = np.tensordot(flat, flat, (0, 0))  # (a, k, b, l)
    blocks = xx.reshape(channels, taps, channels, taps)
    product = np.tensordot(energy, blocks, ((1, 3), (1, 3)))  # (a, b, i, j)
    return product.transpose(0, 2, 1, 3).reshape(rank * channels, rank * channels)


def _conjugate_gradients(
    normal: Callable[[Float], Float], precondition: Callable[[Float], Float], wanted: Float, start: Float
) -> Float:
    """Preconditioned conjugate gradients on normal(p) = wanted; the quadratic error falls with every step."""
    p = start
    residual = wanted - normal(p)
    z = precondition(residual)
    direction, rho = z, float(np.vdot(residual, z))
    goal = 1e-16 * max(rho, float(np.vdot(wanted, precondition(wanted))))
    for _ in range(_CG_STEPS):
        if rho <= goal:
            break
        image = normal(direction)
        curvature = float(np.vdot(direction, image))
        if curvature <= 0.0:
            break
        p = p + (rho / curvature) * direction
        residual = residual - (rho / curvature) * image
        z = precondition(residual)
        rho, before = float(np.vdot(residual, z)), rho
        direction = z + (rho / before) * direction
    return p


def _whiten(first: Float, channel: Float) -> Float:
    """Make the inner channels uncorrelated and of unit variance; the core is refitted anyway."""
    lower = cholesky(first @ channel @ first.T)
    whitened: Float = scipy.linalg.solve_triangular(lower, first, lower=True)
    return whitened


def _solve(lower: Float, right: Float) -> Float:
    solution: Float = scipy.linalg.cho_solve((lower, True), right, check_finite=False)
    return solution


def _unit(s: Float) -> Float:
    norm = float(np.linalg.norm(s))
    return s / norm if norm > 0.0 else s
