"""Sums of depthwise-separable blocks, depthwise first: K[o,i,t] ~ sum_r pointwise[o,r,i] depthwise[i,r,t].

The weight of each input channel is a matrix A_i (Co, taps); its truncated SVD gives the best R blocks (network
decoupling: Guo et al. 2018; generalized depthwise-separable convolution: Dbouk & Shanbhag 2021). With data:

1. The filters of a channel are the leading directions of A_i under the covariance of that channel's own patches, in
   order of what they explain.
2. Given them, the pointwise weights are least squares on all R * Ci filtered channels, which repairs what cutting each
   channel by itself loses.
3. Given the pointwise weights, the filters are a linear least-squares problem as well; steps 3 and 2 alternate, and
   each lowers the error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxcomp.numeric.leastsquares import cholesky, conjugate_gradients, solve
from onnxcomp.numeric.moments import Covariance, Moments
from onnxcomp.numeric.taps import (
    fit_target,
    flat_taps,
    full_blocks,
    invert,
    lower_blocks,
    magnitude,
    tap_basis,
    tap_gram,
)

__all__ = [
    "DepthwiseErrors",
    "balance_depthwise",
    "compose_depthwise",
    "depthwise_features",
    "fit_depthwise",
    "split_depthwise",
]

Float = NDArray[np.float64]

_CG_STEPS = 8
# Up to this many blocks errors are predicted with a sweep; beyond, without, from one factorisation for all.
_SWEPT = 4


def split_depthwise(weight: NDArray[np.floating], rank: int) -> tuple[Float, Float]:
    """The blocks closest to a weight: the truncated SVD of each input channel (Guo et al. 2018, section 3.2).

    Args:
        weight: (Co, Ci, *kernel).
        rank: Number of blocks R, 1..min(Co, taps).

    Returns:
        depthwise (Ci, R, *kernel), orthonormal in each channel, and pointwise (Co, R, Ci).

    Raises:
        ValueError: The rank is out of range.
    """
    slices = flat_taps(weight, rank).transpose(1, 0, 2)
    filters = tap_basis(tap_gram(slices), None, rank)
    pointwise = np.matmul(slices, filters.transpose(0, 2, 1)).transpose(1, 2, 0)
    return filters.reshape(*filters.shape[:2], *weight.shape[2:]), np.ascontiguousarray(pointwise)


def fit_depthwise(
    weight: NDArray[np.floating], moments: Moments, rank: int, *, sweeps: int = 6, damping: float = 1e-2
) -> tuple[Float, Float]:
    """Fit the blocks to a layer's output.

    Args:
        weight: The original weight (Co, Ci, *kernel).
        moments: Of the layer's patches; without targets the weight supplies them (symmetric form).
        rank: Number of blocks R, 1..min(Co, taps).
        sweeps: Improvements of the filters, each followed by new pointwise weights; cheap, and slow to converge.
        damping: Pull towards the original weight, relative to the mean patch variance (see `regularised`).

    Returns:
        depthwise (Ci, R, *kernel), whose outputs are uncorrelated and of unit variance within a channel, and pointwise
        (Co, R, Ci), least squares behind it.

    Raises:
        ValueError: The rank is out of range, or the moments do not fit the weight.
    """
    k = flat_taps(weight, rank)
    target = _Target.of(k, moments, damping)
    filters, pointwise = target.fit(k, rank, sweeps)
    return filters.reshape(*filters.shape[:2], *weight.shape[2:]), pointwise


class DepthwiseErrors:
    """What each number of blocks loses of a layer's output, as `fit_depthwise` would; computed when first asked for.

    Up to four blocks are fitted with that many sweeps. For more there are no sweeps: the filters are in order of what
    they explain, so that the regression on R blocks is a prefix of the one on all, and one Cholesky factorisation
    serves every R.

    Args:
        weight: (Co, Ci, *kernel).
        moments: Of the layer's patches, targets optional.
        sweeps: As in `fit_depthwise`; two tell most of what more would.
        damping: As in `fit_depthwise`.
    """

    def __init__(
        self, weight: NDArray[np.floating], moments: Moments, *, sweeps: int = 2, damping: float = 1e-2
    ) -> None:
        self._weight = flat_taps(weight)
        self._target = _Target.of(self._weight, moments, damping)
        self._sweeps = sweeps
        self._full = full_blocks(len(self._weight), self._weight.shape[2])
        self._swept: dict[int, float] = {}
        self._plain: Float | None = None

    def __call__(self, rank: int) -> float:
        """Relative squared output error of R blocks."""
        if self._sweeps and rank <= _SWEPT:
            if rank not in self._swept:
                self._swept[rank] = self._target.error(*self._target.fit(self._weight, rank, self._sweeps))
            return self._swept[rank]
        if self._plain is None:
            self._plain = self._target.errors(self._target.start(self._weight, self._full))
        return float(self._plain[rank])


def compose_depthwise(depthwise: Float, pointwise: Float) -> Float:
    """The weight (Co, Ci, *kernel) of blocks with depthwise (Ci, R, *kernel) and pointwise (Co, R, Ci)."""
    ins, rank, *kernel = depthwise.shape
    slices = _slices(depthwise.reshape(ins, rank, -1), pointwise)
    return np.ascontiguousarray(slices.transpose(1, 0, 2)).reshape(len(pointwise), ins, *kernel)


def depthwise_features(depthwise: Float, x: Float) -> Float:
    """What the pointwise weights read: patches (n, Ci * taps) to filtered channels (n, R * Ci), block by block."""
    ins, rank = depthwise.shape[:2]
    patches = x.reshape(len(x), ins, -1).transpose(1, 2, 0)
    filtered = np.matmul(depthwise.reshape(ins, rank, -1), patches)  # (Ci, R, n)
    return np.ascontiguousarray(filtered.transpose(2, 1, 0)).reshape(len(x), rank * ins)


def balance_depthwise(depthwise: Float, pointwise: Float, xx: Float | None) -> tuple[Float, Float]:
    """Give every filtered channel, in all groups alike, a root mean square of 1; the pointwise weights take the rest.

    Args:
        depthwise: (Ci, R, *kernel).
        pointwise: (Co, R, Ci).
        xx: Uncentred Gram (d, d) of the patches; None assumes white inputs.
    """
    flat = depthwise.reshape(*depthwise.shape[:2], -1)
    seen = flat if xx is None else np.matmul(flat, _own_blocks(xx, flat.shape[2]))
    scale = magnitude((flat * seen).sum(axis=2))
    return (flat / scale[:, :, None]).reshape(depthwise.shape), pointwise * scale.T


@dataclass(frozen=True, eq=False, slots=True)
class _Target:
    """A least-squares problem and the Cholesky factors (Ci, taps, taps) of the covariance of each channel's patches."""

    covariance: Covariance
    lower: Float

    @classmethod
    def of(cls, k: Float, moments: Moments, damping: float) -> _Target:
        covariance = fit_target(k, moments, damping)
        return cls(covariance, lower_blocks(_own_blocks(covariance.xx, k.shape[2])))

    def fit(self, k: Float, rank: int, sweeps: int) -> tuple[Float, Float]:
        """Filters (Ci, R, taps) and pointwise weights (Co, R, Ci)."""
        filters = self.start(k, rank)
        pointwise = self.refit(filters)
        for _ in range(sweeps):
            slices = _slices(self.improved(filters, pointwise), pointwise)
            filters = tap_basis(tap_gram(slices), self.lower, rank)  # the same span, uncorrelated
            pointwise = self.refit(filters)
        return filters, pointwise

    def start(self, k: Float, rank: int) -> Float:
        """Step 1: the filters (Ci, R, taps) of each channel by itself."""
        return tap_basis(tap_gram(k.transpose(1, 0, 2)), self.lower, rank)

    def refit(self, filters: Float) -> Float:
        """Step 2: the best pointwise weights (Co, R, Ci) behind filters."""
        ins, rank, _ = filters.shape
        cross = _project_cross(self.covariance.yx, filters)
        linear = solve(cholesky(_project_gram(self.covariance.xx, filters)), cross.T).T
        return np.ascontiguousarray(linear).reshape(len(cross), rank, ins)

    def improved(self, filters: Float, pointwise: Float) -> Float:
        """Step 3: better filters before given pointwise weights, never worse ones.

        The normal equations are sum_jsu energy[(i,r),(j,s)] xx[(i,t),(j,u)] filters[j,s,u] = sum_o pointwise[o,r,i]
        yx[o,(i,t)] with the energy of the pointwise weights, sum_o pointwise[o,r,i] pointwise[o,s,j].
        """
        ins, rank, taps = filters.shape
        xx = self.covariance.xx.reshape(ins, taps, -1)
        weights = np.ascontiguousarray(pointwise.transpose(2, 1, 0))  # (i, r, o)
        flat = weights.reshape(ins * rank, -1)
        energy = (flat @ flat.T).reshape(ins, rank, ins, rank)
        rows = np.ascontiguousarray(energy.transpose(0, 1, 3, 2)).reshape(ins, rank, rank * ins)  # (i, r, (s, j))

        def normal(f: Float) -> Float:
            half = np.matmul(f, xx).reshape(ins, rank, ins, taps)  # (j, s, i, t)
            image: Float = np.matmul(rows, half.transpose(2, 1, 0, 3).reshape(ins, rank * ins, taps))
            return image

        # Exact where channels are uncorrelated.
        left = invert(np.ascontiguousarray(np.einsum("iris->irs", energy)))
        right = invert(_own_blocks(self.covariance.xx, taps))

        def precondition(residual: Float) -> Float:
            mixed: Float = np.matmul(left, np.matmul(residual, right))
            return mixed

        wanted = np.matmul(weights, self.covariance.yx.reshape(-1, ins, taps).transpose(1, 0, 2))
        return conjugate_gradients(normal, precondition, wanted, filters, _CG_STEPS)

    def error(self, filters: Float, pointwise: Float) -> float:
        """Residual of the best pointwise weights behind filters, relative to the variance of the targets."""
        explained = float(np.vdot(_project_cross(self.covariance.yx, filters), pointwise))
        return float(self._lost(np.array(explained)))

    def errors(self, filters: Float) -> Float:
        """The same for the first 0 .. R filters of each channel."""
        rank = filters.shape[1]
        triangle = cholesky(_project_gram(self.covariance.xx, filters))
        cross = _project_cross(self.covariance.yx, filters)
        response = scipy.linalg.solve_triangular(triangle, cross.T, lower=True)
        explained = np.square(response).reshape(rank, -1).sum(axis=1)
        return self._lost(np.append(0.0, np.cumsum(explained)))

    def _lost(self, explained: Float) -> Float:
        total = float(self.covariance.yy.sum())
        return np.maximum(1.0 - explained / total, 0.0) if total > 0.0 else np.zeros_like(explained)


def _own_blocks(xx: Float, taps: int) -> Float:
    """The covariance of each channel's own patches, (Ci, taps, taps)."""
    channels = len(xx) // taps
    return np.ascontiguousarray(np.einsum("itiu->itu", xx.reshape(channels, taps, channels, taps)))


def _slices(filters: Float, pointwise: Float) -> Float:
    """The weight of each input channel, (Ci, Co, taps)."""
    slices: Float = np.matmul(pointwise.transpose(2, 0, 1), filters)
    return slices


def _project_gram(xx: Float, filters: Float) -> Float:
    """Gram of the filtered channels, (R * Ci, R * Ci), block by block."""
    ins, rank, taps = filters.shape
    half = np.matmul(filters, xx.reshape(ins, taps, -1)).reshape(ins * rank, ins, taps).transpose(1, 2, 0)
    whole = np.matmul(filters, half).reshape(ins, rank, ins, rank)  # both sides channel by channel
    return np.ascontiguousarray(whole.transpose(1, 0, 3, 2)).reshape(rank * ins, rank * ins)


def _project_cross(yx: Float, filters: Float) -> Float:
    """Cross moments of the targets and the filtered channels, (Co, R * Ci)."""
    ins, rank, taps = filters.shape
    seen = np.matmul(filters, yx.reshape(-1, ins, taps).transpose(1, 2, 0))  # (Ci, R, Co)
    return np.ascontiguousarray(seen.transpose(2, 1, 0)).reshape(-1, rank * ins)
