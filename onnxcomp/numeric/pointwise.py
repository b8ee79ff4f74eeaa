"""Sums of depthwise-separable blocks, pointwise first: K[o,i,t] ~ sum_r pointwise[o,r,i] depthwise[o,r,t].

The weight of each output channel is a matrix B_o (Ci, taps); its truncated SVD gives the best R blocks (FALCON: Jang et
al. 2019). With data, outputs are independent problems with the same inputs:

1. B_o is cut under the product of the mean channel covariance and the mean tap covariance, in whose terms the patches'
   covariance is nearly a Kronecker product.
2. Given the filters, the pointwise weights of an output are a least-squares problem of R * Ci unknowns. Conjugate
   gradients with that Kronecker product as preconditioner solve all outputs together, a matrix product a step.
3. Given the pointwise weights, the R * taps entries of its filters are solved for exactly; steps 3 and 2 alternate, and
   each lowers the error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numeric.leastsquares import cholesky, conjugate_gradients, solve
from onnxcomp.numeric.moments import Covariance, Moments, channel_average
from onnxcomp.numeric.taps import fit_target, flat_taps, invert, lower_blocks, magnitude, tap_basis, tap_gram

__all__ = ["PointwiseErrors", "balance_pointwise", "compose_pointwise", "fit_pointwise", "split_pointwise"]

Float = NDArray[np.float64]

_CG_STEPS = 4
# Outputs that stand for all where errors are only estimated.
_SAMPLED = 64
# Entries of the products of step 3 that are in memory at once.
_CHUNK = 1 << 23


def split_pointwise(weight: NDArray[np.floating], rank: int) -> tuple[Float, Float]:
    """The blocks closest to a weight: the truncated SVD of each output channel (Jang et al. 2019).

    Args:
        weight: (Co, Ci, *kernel).
        rank: Number of blocks R, 1..min(Ci, taps).

    Returns:
        pointwise (Co, R, Ci), and depthwise (Co, R, *kernel), orthonormal in each channel.

    Raises:
        ValueError: The rank is out of range.
    """
    k = flat_taps(weight, rank, axis=1)
    filters = tap_basis(tap_gram(k), None, rank)
    return _onto(k, filters), filters.reshape(*filters.shape[:2], *weight.shape[2:])


def fit_pointwise(
    weight: NDArray[np.floating], moments: Moments, rank: int, *, sweeps: int = 2, damping: float = 1e-2
) -> tuple[Float, Float]:
    """Fit the blocks to a layer's output.

    Args:
        weight: The original weight (Co, Ci, *kernel).
        moments: Of the layer's patches; without targets the weight supplies them (symmetric form).
        rank: Number of blocks R, 1..min(Ci, taps).
        sweeps: Improvements of the filters, each followed by new pointwise weights.
        damping: Pull towards the original weight, relative to the mean patch variance (see `regularised`).

    Returns:
        pointwise (Co, R, Ci) and depthwise (Co, R, *kernel).

    Raises:
        ValueError: The rank is out of range, or the moments do not fit the weight.
    """
    k = flat_taps(weight, rank, axis=1)
    target = _Target.of(k, fit_target(k, moments, damping))
    pointwise, filters = target.fit(k, rank, sweeps)
    return pointwise, filters.reshape(*filters.shape[:2], *weight.shape[2:])


class PointwiseErrors:
    """What each number of blocks loses of a layer's output, as `fit_pointwise` would; computed when first asked for.

    Outputs are independent, so that some can stand for all: of more than 64, 64 spread evenly over the order of their
    energy.

    Args:
        weight: (Co, Ci, *kernel).
        moments: Of the layer's patches, targets optional.
        sweeps: As in `fit_pointwise`; one tells most of what more would.
        damping: As in `fit_pointwise`.
    """

    def __init__(
        self, weight: NDArray[np.floating], moments: Moments, *, sweeps: int = 1, damping: float = 1e-2
    ) -> None:
        k = flat_taps(weight)
        covariance = fit_target(k, moments, damping)
        chosen = _sampled(covariance.yy)
        self._weight = k[chosen]
        self._target = _Target.of(self._weight, replace(covariance, yx=covariance.yx[chosen], yy=covariance.yy[chosen]))
        self._sweeps = sweeps
        self._errors: dict[int, float] = {}

    def __call__(self, rank: int) -> float:
        """Relative squared output error of R blocks."""
        if rank not in self._errors:
            self._errors[rank] = self._target.error(*self._target.fit(self._weight, rank, self._sweeps))
        return self._errors[rank]


def compose_pointwise(pointwise: Float, depthwise: Float) -> Float:
    """The weight (Co, Ci, *kernel) of blocks with pointwise (Co, R, Ci) and depthwise (Co, R, *kernel)."""
    rows = _rows(pointwise, depthwise.reshape(*depthwise.shape[:2], -1))
    return rows.reshape(*rows.shape[:2], *depthwise.shape[2:])


def balance_pointwise(pointwise: Float, depthwise: Float, xx: Float | None) -> tuple[Float, Float]:
    """Give every channel between the factors, in all groups alike, a root mean square of 1; the filters take the rest.

    Args:
        pointwise: (Co, R, Ci).
        depthwise: (Co, R, *kernel).
        xx: Uncentred Gram (d, d) of the patches; None assumes white inputs.
    """
    outs, rank, *kernel = depthwise.shape
    seen = pointwise if xx is None else pointwise @ channel_average(xx, int(np.prod(kernel)))
    scale = magnitude((pointwise * seen).sum(axis=2))
    return pointwise / scale[:, :, None], depthwise * scale.reshape(outs, rank, *(1,) * len(kernel))


@dataclass(frozen=True, eq=False, slots=True)
class _Target:
    """A least-squares problem with covariances of channels and of taps, whose Kronecker product is near its own.

    Attributes:
        covariance: The whole problem.
        channels: Cholesky factor of the mean channel covariance, (Ci, Ci).
        taps: Cholesky factor of the mean tap covariance, (1, taps, taps).
    """

    covariance: Covariance
    channels: Float
    taps: Float

    @classmethod
    def of(cls, k: Float, covariance: Covariance) -> _Target:
        ins, taps = k.shape[1:]
        mean = np.einsum("itiu->tu", covariance.xx.reshape(ins, taps, ins, taps)) / ins
        return cls(covariance, cholesky(channel_average(covariance.xx, taps)), lower_blocks(mean[None]))

    def fit(self, k: Float, rank: int, sweeps: int) -> tuple[Float, Float]:
        """Pointwise weights (Co, R, Ci) and filters (Co, R, taps)."""
        pointwise, filters = self.refit(*self.cut(k, rank))
        for _ in range(sweeps):
            rows = _rows(pointwise, self.improved(pointwise, filters))
            pointwise, filters = self.refit(*self.cut(rows, rank))
        return pointwise, filters

    def cut(self, k: Float, rank: int) -> tuple[Float, Float]:
        """Step 1: the best blocks of a weight (Co, Ci, taps) if xx were that product; exact where its rank is R."""
        whitened = np.matmul(self.channels.T, k)
        filters = tap_basis(tap_gram(whitened), self.taps, rank)
        return _onto(k, np.matmul(np.matmul(filters, self.taps), self.taps.transpose(0, 2, 1))), filters

    def refit(self, pointwise: Float, filters: Float) -> tuple[Float, Float]:
        """Step 2: better pointwise weights before the filters (Co, R, taps)."""
        xx = self.covariance.xx
        white = np.matmul(filters, self.taps)
        inverse = invert(np.matmul(white, white.transpose(0, 2, 1)))

        def normal(p: Float) -> Float:
            rows = _rows(p, filters)
            return _onto((rows.reshape(len(rows), -1) @ xx).reshape(rows.shape), filters)

        def precondition(residual: Float) -> Float:
            mixed = np.matmul(inverse, residual)
            return solve(self.channels, mixed.reshape(-1, mixed.shape[2]).T).T.reshape(residual.shape)

        wanted = _onto(self.covariance.yx.reshape(len(filters), -1, filters.shape[2]), filters)
        return conjugate_gradients(normal, precondition, wanted, pointwise, _CG_STEPS), filters

    def improved(self, pointwise: Float, filters: Float) -> Float:
        """Step 3: the best filters (Co, R, taps) behind the pointwise weights."""
        outs, rank, taps = filters.shape
        ins = pointwise.shape[2]
        wanted = np.matmul(pointwise, self.covariance.yx.reshape(outs, ins, taps)).reshape(outs, rank * taps, 1)
        found = np.empty_like(wanted)
        step = max(1, _CHUNK // (rank * taps * ins * taps))
        flat = self.covariance.xx.reshape(ins, -1)
        for start in range(0, outs, step):
            part = pointwise[start : start + step]
            half = (part.reshape(-1, ins) @ flat).reshape(len(part), rank * taps, ins, taps)
            gram = np.matmul(part[:, None], half).reshape(len(part), rank * taps, rank * taps)
            found[start : start + step] = np.matmul(invert(gram), wanted[start : start + step])
        improved: Float = found.reshape(filters.shape)
        return improved

    def error(self, pointwise: Float, filters: Float) -> float:
        """Residual relative to the variance of the targets."""
        rows = _rows(pointwise, filters).reshape(len(filters), -1)
        residual = np.vdot(rows @ self.covariance.xx - 2 * self.covariance.yx, rows) + self.covariance.yy.sum()
        total = float(self.covariance.yy.sum())
        return max(float(residual) / total, 0.0) if total > 0.0 else 0.0


def _rows(pointwise: Float, filters: Float) -> Float:
    """The weight of each output channel, (Co, Ci, taps)."""
    rows: Float = np.matmul(pointwise.transpose(0, 2, 1), filters)
    return rows


def _onto(rows: Float, filters: Float) -> Float:
    """Contract the taps of (Co, Ci, taps) with filters: (Co, R, Ci)."""
    contracted: Float = np.matmul(filters, rows.transpose(0, 2, 1))
    return contracted


def _sampled(energy: Float) -> NDArray[np.intp]:
    """Indices of the outputs that stand for all: evenly spaced by energy."""
    order = np.argsort(energy, kind="stable")
    if len(order) <= _SAMPLED:
        return np.sort(order)
    places = ((np.arange(_SAMPLED) + 0.5) * len(order) / _SAMPLED).astype(np.intp)
    return np.sort(order[places])
