"""Data-aware CP fits: least squares on the layer's output instead of its weight, from second moments alone.

The error of an output is that of the weight in the metric of the patches' covariance. With that covariance replaced by
a product of one over channels and one over taps, the weight can be whitened mode by mode, and a CP decomposition of the
whitened weight (`onnxcomp.numeric.cp`) is one of the weight. From there each factor in turn is a linear least-squares
problem in the true metric, given the two others.
"""

from __future__ import annotations

from math import prod

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxcomp.numeric.cp import CP, DIVERGED, alternate, compose, divergence, shared, slice_terms
from onnxcomp.numeric.leastsquares import cholesky, conjugate_gradients, solve
from onnxcomp.numeric.moments import Covariance, Moments, channel_average

__all__ = ["TermErrors", "fit_cp"]

Float = NDArray[np.float64]

_CG_STEPS = 4


def fit_cp(
    weight: NDArray[np.floating],
    moments: Moments | None,
    rank: int,
    *,
    rounds: int = 2,
    damping: float = 1e-2,
    sweeps: int | None = None,
) -> CP:
    """Fit a CP decomposition to a layer's output; to its weight where there are no moments.

    Terms never diverge (`onnxcomp.numeric.cp.divergence`): an update after which they do is not taken.

    Args:
        weight: (Co, Ci, *kernel).
        moments: Of the layer's patches; without targets the weight supplies them.
        rank: Number of terms, 1 or more.
        rounds: Updates of the first and of the middle factor, each followed by one of the last; none raises the error.
        damping: Pull towards the original weight, relative to the mean patch variance (see `regularised`).
        sweeps: Of the fit to the whitened weight; by default as many as are worth their time.

    Raises:
        ValueError: Rank below 1, a weight that is not finite, or moments that do not fit it.
    """
    k = _flat(weight, moments)
    if moments is None:
        return alternate(k, rank, sweeps=sweeps)
    covariance = _covariance(k, moments, damping)
    target = solve(cholesky(covariance.xx), covariance.yx.T).T.reshape(k.shape)
    whitening = _Whitening(covariance.xx, k.shape[2])
    start = whitening.undo(alternate(whitening.apply(target), rank, sweeps=sweeps))
    if divergence(start) > DIVERGED:  # orthogonal in the whitened space is not orthogonal
        start = alternate(target, rank, sweeps=sweeps)
    problem = _Problem(covariance, whitening)
    factors = _sound(problem.last(start), start)
    for _ in range(rounds):
        for update in (problem.first, problem.middle):
            factors = _sound(problem.last(update(factors)), factors)
    return shared(factors)


class TermErrors:
    """What each rank loses of a layer's output at most, from one factorisation for all ranks.

    The terms are the orthogonal ones of the whitened weight, largest first, with the last factor fitted to the output:
    where `fit_cp` begins. Its alternations lose a tenth to a third less.

    Without moments the error is that of the weight, with the orthogonal terms as they are.

    Args:
        weight: (Co, Ci, *kernel).
        moments: Of the layer's patches, targets optional; None for the error of the weight.
        most: Largest rank that will be asked for.
        damping: As in `fit_cp`.
    """

    def __init__(
        self, weight: NDArray[np.floating], moments: Moments | None, most: int, *, damping: float = 1e-2
    ) -> None:
        k = _flat(weight, moments)
        if moments is None:
            explained, total = np.square(slice_terms(k, most).sizes), float(np.vdot(k, k))
        else:
            covariance = _covariance(k, moments, damping)
            explained, total = _explained(k, most, covariance), float(covariance.yy.sum())
        lost = total - np.append(0.0, np.cumsum(explained))
        self._errors: Float = np.maximum(lost, 0.0) / total if total > 0.0 else np.zeros(len(lost))

    def __call__(self, rank: int) -> float:
        """Relative squared error of a rank, up to the largest one asked for."""
        return float(self._errors[min(rank, len(self._errors) - 1)])


def _flat(weight: NDArray[np.floating], moments: Moments | None) -> Float:
    k = np.asarray(weight, np.float64)
    k = k.reshape(*k.shape[:2], prod(k.shape[2:]))
    if moments is not None and len(moments.xx) != k[0].size:
        raise ValueError(f"moments of {len(moments.xx)} dimensions do not fit a weight of shape {weight.shape}")
    return k


def _covariance(k: Float, moments: Moments, damping: float) -> Covariance:
    complete = moments if moments.has_targets else moments.with_weight(k)
    return complete.damped(k, damping)


def _explained(k: Float, most: int, covariance: Covariance) -> Float:
    """Energy of the output that each orthogonal term adds to what those before it explain, all outputs together: (R,).

    Terms share a few kernels, so that the Gram is projected kernel by kernel, at a fraction of the cost.
    """
    channels, taps = k.shape[1:]
    whitening = _Whitening(covariance.xx, taps)
    terms = slice_terms(whitening.apply(k), most)
    first, kernels = whitening.unmixed(terms.right), whitening.kernels(terms.directions)
    half = (covariance.xx.reshape(-1, taps) @ kernels.T).reshape(channels, taps, channels, taps)
    xx = np.einsum("ps,isjq->piqj", kernels, half, optimize=True)
    yx = np.tensordot(covariance.yx.reshape(-1, channels, taps), kernels, (2, 1)).transpose(2, 1, 0)
    members = [np.flatnonzero(terms.tap == tap) for tap in range(taps)]
    gram = np.empty((len(first), len(first)))
    cross = np.empty((len(first), len(k)))
    for p, rows in enumerate(members):
        part = np.tensordot(first[rows], xx[p], (1, 0))
        cross[rows] = first[rows] @ yx[p]
        for q, columns in enumerate(members):
            gram[np.ix_(rows, columns)] = part[:, q] @ first[columns].T
    response = scipy.linalg.solve_triangular(cholesky(gram), cross, lower=True, check_finite=False)
    return np.asarray(np.square(response).sum(axis=1), np.float64)


def _sound(candidate: CP, otherwise: CP) -> CP:
    return candidate if divergence(candidate) <= DIVERGED else otherwise


class _Whitening:
    """The covariance of the patches as a product: channels (Ci, Ci) times taps (taps, taps), each a Cholesky factor."""

    def __init__(self, xx: Float, taps: int) -> None:
        channels = len(xx) // taps
        across = np.einsum("ikil->kl", xx.reshape(channels, taps, channels, taps))
        mean = float(np.trace(across)) / taps
        self.channel = cholesky(channel_average(xx, taps))
        self.tap = cholesky(across / mean if mean > 0.0 else across)

    def apply(self, weight: Float) -> Float:
        """The weight in the whitened space, (Co, Ci, taps)."""
        return np.asarray(np.matmul(self.channel.T, weight @ self.tap), np.float64)

    def undo(self, factors: CP) -> CP:
        """Factors of a whitened weight as those of the weight."""
        return CP(self.unmixed(factors.first), self.kernels(factors.middle), factors.last)

    def unmixed(self, first: Float) -> Float:
        """Input factors (R, Ci) of whitened channels as those of the channels."""
        return np.ascontiguousarray(scipy.linalg.solve_triangular(self.channel, first.T, lower=True, trans=1).T)

    def kernels(self, middle: Float) -> Float:
        """Kernels (R, taps) over whitened taps as those over the taps."""
        return np.ascontiguousarray(scipy.linalg.solve_triangular(self.tap, middle.T, lower=True, trans=1).T)


class _Problem:
    """Least squares on the output for one factor at a time, given the two others; no update raises the error."""

    def __init__(self, covariance: Covariance, whitening: _Whitening) -> None:
        self._xx, self._yx = covariance.xx, covariance.yx
        self._channel, self._tap = whitening.channel, whitening.tap

    def last(self, factors: CP) -> CP:
        """The best last factor: a regression on the R inner channels."""
        first, middle, _ = factors
        features = (first[:, :, None] * middle[:, None, :]).reshape(len(first), -1)
        lower = cholesky(features @ self._xx @ features.T)
        return CP(first, middle, solve(lower, features @ self._yx.T).T)

    def first(self, factors: CP) -> CP:
        """A better first factor, by conjugate gradients."""
        _, middle, last = factors
        kernels = middle @ self._tap
        left = cholesky((last.T @ last) * (kernels @ kernels.T))

        def gradient(response: Float) -> Float:
            return np.asarray(np.einsum("ris,rs->ri", self._onto(last, response), middle), np.float64)

        def normal(step: Float) -> Float:
            return gradient(self._response(CP(step, middle, last)))

        def precondition(residual: Float) -> Float:
            return solve(self._channel, solve(left, residual).T).T

        found = conjugate_gradients(normal, precondition, gradient(self._yx), factors.first, _CG_STEPS)
        return CP(found, middle, last)

    def middle(self, factors: CP) -> CP:
        """Better kernels, by conjugate gradients."""
        first, _, last = factors
        channels = first @ self._channel
        left = cholesky((last.T @ last) * (channels @ channels.T))

        def gradient(response: Float) -> Float:
            return np.asarray(np.einsum("ris,ri->rs", self._onto(last, response), first), np.float64)

        def normal(step: Float) -> Float:
            return gradient(self._response(CP(first, step, last)))

        def precondition(residual: Float) -> Float:
            return solve(self._tap, solve(left, residual).T).T

        found = conjugate_gradients(normal, precondition, gradient(self._yx), factors.middle, _CG_STEPS)
        return CP(first, found, last)

    def _response(self, factors: CP) -> Float:
        """Cross moments of the outputs of these factors with the patches, (Co, d)."""
        return np.asarray(compose(factors).reshape(len(factors.last), -1) @ self._xx, np.float64)

    def _onto(self, last: Float, response: Float) -> Float:
        """Cross moments of what the last factor takes with the patches, (R, Ci, taps)."""
        projected = last.T @ response
        return projected.reshape(len(projected), len(self._channel), len(self._tap))
