"""Data-aware Tucker fits: least squares on the layer's output instead of its weight, from second moments alone.

Steps (notation of `onnxcomp.numeric.tucker`):

1. The input factor is the best projection of the weight under the channel covariance, averaged over taps: a whitened
   SVD.
2. Given it, the best core of full output rank is a least-squares fit on the projected patches, and the best one of rank
   r_out is its reduced-rank regression (Izenman 1975).
3. Given core and output factor, the input factor is a linear least-squares problem as well; steps 2 and 3 alternate,
   and each lowers the error.
4. The bias takes the means.

With moments of the compressed network's inputs and of the original's outputs this is the asymmetric form of Zhang et
al. (2016, section 3.3), which makes up for the errors of the layers before.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxcomp.numeric.leastsquares import cholesky, conjugate_gradients, reduced_rank, solve
from onnxcomp.numeric.moments import (
    Covariance,
    Moments,
    channel_average,
    predicted_error,
    project_cross,
    project_gram,
)
from onnxcomp.numeric.tucker import Tucker2, compose, leading_vectors, relative_error, unfold_in

__all__ = ["Fit", "RankErrors", "fit_tucker2"]

Float = NDArray[np.float64]

# Up to this many unknowns the input factor is solved for directly; above, by conjugate gradients on the same equations.
_DIRECT_UNKNOWNS = 2048
_CG_STEPS = 4


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
    covariance = complete.damped(k, damping)
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


class RankErrors:
    """What each pair of ranks loses of a layer's output, exactly as `fit_tucker2` without sweeps would.

    One Cholesky factorisation of the patch Gram in the whitened channel basis serves all pairs: the regression on the
    first r inner channels is a prefix of the regression on all of them. Errors are relative to the targets' variance.

    Args:
        weight: (Co, Ci, *kernel).
        moments: Of the layer's patches, targets optional.
        most: The largest input rank that will be asked for short of the full one; None for any. A small one is cheaper.
        damping: As in `fit_tucker2`.
    """

    def __init__(
        self, weight: NDArray[np.floating], moments: Moments, most: int | None = None, *, damping: float = 1e-2
    ) -> None:
        k = np.asarray(weight, np.float64)
        _check(k, moments, None, None)
        complete = moments if moments.has_targets else moments.with_weight(k)
        covariance = complete.damped(k, damping)
        channels = k.shape[1] if most is None else min(most, k.shape[1])
        self._channels, self._taps = k.shape[1], prod(k.shape[2:])
        basis = _input_factor(k, channel_average(covariance.xx, self._taps), channels)
        lower = cholesky(project_gram(covariance.xx, basis))
        cross = project_cross(covariance.yx, basis)
        self._response: Float = scipy.linalg.solve_triangular(lower, cross.T, lower=True)
        self._explained = np.cumsum(np.square(self._response).sum(axis=1))
        self._total = float(covariance.yy.sum())
        self._tails: dict[int, Float] = {}

    def __call__(self, rank_in: int | None, rank_out: int | None) -> float:
        """Relative squared output error of a pair of ranks, None for a side left whole."""
        if self._total == 0.0:
            return 0.0
        rank = self._channels if rank_in is None else rank_in
        if rank * self._taps > len(self._response):
            raise ValueError(f"input rank {rank} is more than the {len(self._response) // self._taps} asked for")
        if rank_out is None:
            return max(0.0, 1.0 - float(self._explained[rank * self._taps - 1]) / self._total)
        return float(self._output_tail(rank)[rank_out])

    def _output_tail(self, rank_in: int) -> Float:
        """Errors at that input rank for output ranks 0 .. Co."""
        if rank_in not in self._tails:
            part = self._response[: rank_in * self._taps]
            values = np.asarray(scipy.linalg.eigvalsh(part.T @ part), np.float64)[::-1]
            kept = np.append(0.0, np.cumsum(np.maximum(values, 0.0)))
            self._tails[rank_in] = np.maximum(1.0 - kept / self._total, 0.0)
        return self._tails[rank_in]


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

    The normal equations are sum_okbl core[o,a,k] core[o,b,l] (P xx)[(b,l),(i,k)] = sum_ok core[o,a,k] (last^T
    yx)[o,(i,k)].
    """
    rank, channels = first.shape
    taps = len(covariance.xx) // channels
    flat = core.reshape(len(core), rank, taps)
    cross = covariance.yx if last is None else last.T @ covariance.yx
    wanted = np.tensordot(flat, cross.reshape(-1, channels, taps), ((0, 2), (0, 2)))
    if rank * channels <= _DIRECT_UNKNOWNS:
        return solve(cholesky(_normal_matrix(covariance.xx, flat, channels)), wanted.ravel()).reshape(first.shape)

    energy = np.tensordot(flat, flat, (0, 0))  # (a, k, b, l)

    def normal(p: Float) -> Float:
        half = (p @ covariance.xx.reshape(channels, -1)).reshape(rank, taps, channels, taps)
        return np.asarray(np.tensordot(energy, half, ((2, 3, 1), (0, 1, 3))), np.float64)

    # Exact where taps are uncorrelated: a Kronecker product of the core's energy and the channel covariance.
    left, right = cholesky(np.tensordot(flat, flat, ((0, 2), (0, 2)))), cholesky(channel)

    def precondition(residual: Float) -> Float:
        return solve(right, solve(left, residual).T).T

    return conjugate_gradients(normal, precondition, wanted, first, _CG_STEPS)


def _normal_matrix(xx: Float, flat: Float, channels: int) -> Float:
    """Matrix of the normal equations of step 3: sum_okl core[o,a,k] core[o,b,l] xx[(i,k),(j,l)] at ((a,i),(b,j))."""
    rank, taps = flat.shape[1], flat.shape[2]
    energy = np.tensordot(flat, flat, (0, 0))  # (a, k, b, l)
    blocks = xx.reshape(channels, taps, channels, taps)
    product = np.tensordot(energy, blocks, ((1, 3), (1, 3)))  # (a, b, i, j)
    return product.transpose(0, 2, 1, 3).reshape(rank * channels, rank * channels)


def _whiten(first: Float, channel: Float) -> Float:
    """Make the inner channels uncorrelated and of unit variance; the core is refitted anyway."""
    lower = cholesky(first @ channel @ first.T)
    whitened: Float = scipy.linalg.solve_triangular(lower, first, lower=True)
    return whitened
