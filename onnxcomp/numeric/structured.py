"""Structured kernels: a box convolved with a small kernel (Bhalgat et al. 2020, arXiv 2008.02454).

A kernel of k taps an axis is replaced by sums over windows of k - n + 1 taps, followed by a kernel of n taps:
K[o, i] = box * core[o, i], axis by axis; an axis of no more than n taps stays as it is. In vector form each K[o, i] is
A core[o, i] with the banded matrix A of `box_matrix` (section 3 of the paper, with c = C).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxcomp.numeric.leastsquares import cholesky, solve
from onnxcomp.numeric.moments import Covariance, Moments

__all__ = ["box_matrix", "compose", "core_kernel", "fit_structured", "structured_error", "window", "window_sums"]

Float = NDArray[np.float64]


def core_kernel(kernel: Sequence[int], n: int) -> tuple[int, ...]:
    """The kernel that is left of another: at most n taps an axis."""
    return tuple(min(k, n) for k in kernel)


def window(kernel: Sequence[int], core: Sequence[int]) -> tuple[int, ...]:
    """The window of the sums that, convolved with `core`, gives `kernel`."""
    return tuple(k - c + 1 for k, c in zip(kernel, core, strict=True))


def box_matrix(kernel: Sequence[int], core: Sequence[int]) -> Float:
    """A of vec(K) = A vec(core): ones where a tap of K lies in the window of a tap of the core.

    The Kronecker product over axes of banded Toeplitz matrices (k, n), each column k - n + 1 ones in a row; of full
    column rank.

    Args:
        kernel: Taps of K an axis.
        core: Taps of the core an axis, 1 to as many.

    Returns:
        (prod(kernel), prod(core)).

    Raises:
        ValueError: A core that does not fit the kernel.
    """
    if len(kernel) != len(core) or not all(1 <= c <= k for k, c in zip(kernel, core, strict=True)):
        raise ValueError(f"no box turns a core of {tuple(core)} into a kernel of {tuple(kernel)}")
    box: Float = np.ones((1, 1))
    for k, c in zip(kernel, core, strict=True):
        shift = np.arange(k)[:, None] - np.arange(c)
        band = ((shift >= 0) & (shift <= k - c)).astype(np.float64)
        box = np.asarray(np.kron(box, band), np.float64)
    return box


def compose(core: NDArray[np.floating], kernel: Sequence[int]) -> Float:
    """Convolve a core (Co, Ci, *n) with its box: the weight (Co, Ci, *kernel) that it stands for."""
    flat = np.asarray(core, np.float64).reshape(*core.shape[:2], -1)
    return (flat @ box_matrix(kernel, core.shape[2:]).T).reshape(*core.shape[:2], *kernel)


def fit_structured(weight: NDArray[np.floating], moments: Moments | None, n: int, *, damping: float = 1e-2) -> Float:
    """Fit a core to a layer's output: core = Syx A (A^T Sxx A)^-1; to its weight, core = A^+ K, without moments.

    Args:
        weight: (Co, Ci, *kernel).
        moments: Of the layer's patches; without targets the weight supplies them.
        n: Taps of the core an axis, at most.
        damping: Pull towards the original weight, relative to the mean patch variance (see `regularised`).

    Returns:
        (Co, Ci, *core).

    Raises:
        ValueError: n below 1, or moments that do not fit the weight.
    """
    k = np.asarray(weight, np.float64)
    core = core_kernel(k.shape[2:], n)
    if moments is None:
        flat = k.reshape(*k.shape[:2], -1)
        box = box_matrix(k.shape[2:], core)
        fitted = np.linalg.lstsq(box, flat.reshape(-1, flat.shape[2]).T, rcond=None)[0].T
        return np.asarray(fitted, np.float64).reshape(*k.shape[:2], *core)
    xx, yx = _summed(_covariance(k, moments, damping), k.shape, core)
    return solve(cholesky(xx), yx.T).T.reshape(*k.shape[:2], *core)


def structured_error(weight: NDArray[np.floating], moments: Moments | None, n: int, *, damping: float = 1e-2) -> float:
    """What the best core loses: relative squared error of the layer's output; of its weight without moments.

    The error is that of the damped least-squares problem that `fit_structured` solves.
    """
    k = np.asarray(weight, np.float64)
    core = core_kernel(k.shape[2:], n)
    if moments is None:
        lost, energy = float(np.linalg.norm(k - compose(fit_structured(k, None, n), k.shape[2:])) ** 2), np.vdot(k, k)
        return lost / float(energy) if energy else 0.0
    covariance = _covariance(k, moments, damping)
    total = float(covariance.yy.sum())
    if total <= 0.0:
        return 0.0
    xx, yx = _summed(covariance, k.shape, core)
    response = scipy.linalg.solve_triangular(cholesky(xx), yx.T, lower=True, check_finite=False)
    return max(1.0 - float(np.vdot(response, response)) / total, 0.0)


def window_sums(x: NDArray[np.floating], kernel: Sequence[int], core: Sequence[int]) -> Float:
    """What the core reads of patches: (n, Ci * prod(kernel)) to (n, Ci * prod(core)), channel-major."""
    box = box_matrix(kernel, core)
    return (np.asarray(x, np.float64).reshape(-1, len(box)) @ box).reshape(len(x), -1)


def _covariance(k: Float, moments: Moments, damping: float) -> Covariance:
    if len(moments.xx) != k[0].size:
        raise ValueError(f"moments of {len(moments.xx)} dimensions do not fit a weight of shape {k.shape}")
    complete = moments if moments.has_targets else moments.with_weight(k)
    return complete.damped(k, damping)


def _summed(covariance: Covariance, shape: tuple[int, ...], core: tuple[int, ...]) -> tuple[Float, Float]:
    """Covariances of the window sums: A^T xx A (Ci * prod(core) a side) and yx A, channel by channel."""
    outs, channels, taps = shape[0], shape[1], prod(shape[2:])
    box = box_matrix(shape[2:], core)
    half = (covariance.xx.reshape(-1, taps) @ box).reshape(channels, taps, -1)
    xx = np.matmul(box.T, half).reshape(channels * box.shape[1], -1)
    yx = (covariance.yx.reshape(-1, taps) @ box).reshape(outs, -1)
    return xx, yx
