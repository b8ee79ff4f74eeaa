"""What both orders of depthwise-separable blocks share: low rank slice by slice, on the taps of a kernel.

A convolution weight is a stack of slices (n, m, taps): one a channel, its rows the channels of the other side. A sum of
R separable blocks gives each slice a rank of R, spanned by R filters on the taps.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numeric.moments import Covariance, Moments

__all__ = [
    "fit_target",
    "flat_taps",
    "full_blocks",
    "invert",
    "lower_blocks",
    "magnitude",
    "tap_basis",
    "tap_gram",
    "tap_tails",
]

Float = NDArray[np.float64]

# Keeps dead channels and singular blocks defined, far below any signal.
_JITTER = 1e-10


def full_blocks(channels: int, taps: int) -> int:
    """The number of blocks with which nothing is lost, for slices of that many rows."""
    return min(channels, taps)


def flat_taps(weight: NDArray[np.floating], rank: int | None = None, axis: int = 0) -> Float:
    """A weight (Co, Ci, *kernel) as (Co, Ci, taps), float64.

    Raises:
        ValueError: `rank` is not in 1..min(channels of `axis`, taps), or an axis is missing or empty.
    """
    k = np.asarray(weight, np.float64)
    if k.ndim < 3 or k.size == 0:
        raise ValueError(f"a weight of shape {k.shape} has no channels and taps")
    k = k.reshape(*k.shape[:2], prod(k.shape[2:]))
    full = full_blocks(k.shape[axis], k.shape[2])
    if rank is not None and not 1 <= rank <= full:
        raise ValueError(f"{rank} blocks are not in 1..{full}")
    return k


def fit_target(k: Float, moments: Moments, damping: float) -> Covariance:
    """The damped covariances that a weight (Co, Ci, taps) is fitted to; without targets the weight supplies them.

    Raises:
        ValueError: The moments do not fit the weight.
    """
    if moments.xx.shape != (k[0].size, k[0].size):
        raise ValueError(f"moments of {len(moments.xx)} dimensions do not fit a weight of shape {k.shape}")
    complete = moments if moments.has_targets else moments.with_weight(k)
    return complete.damped(k, damping)


def tap_gram(slices: Float) -> Float:
    """Gram matrices (n, taps, taps) of slices (n, m, taps)."""
    grams: Float = np.matmul(slices.transpose(0, 2, 1), slices)
    return grams


def tap_tails(grams: Float) -> Float:
    """Squared error of slices cut to ranks 0 .. taps, relative to their energy, from their `tap_gram`."""
    values = np.maximum(np.linalg.eigvalsh(grams), 0.0).sum(axis=0)
    tails = np.append(np.cumsum(values), 0.0)[[*range(len(values) - 1, -1, -1), len(values)]]
    return tails / tails[0] if tails[0] > 0.0 else tails


def tap_basis(grams: Float, lower: Float | None, rank: int) -> Float:
    """The leading filters of slices, in order of what they explain: (n, R, taps).

    Args:
        grams: `tap_gram` of the slices, (n, taps, taps).
        lower: Cholesky factors L of the covariance of the taps, (n or 1, taps, taps); then the filters' outputs are
            uncorrelated and of unit variance. None for white taps: the filters are orthonormal.
        rank: R.
    """
    if lower is None:
        return np.ascontiguousarray(_leading(grams, rank).transpose(0, 2, 1))
    vectors = _leading(np.matmul(lower.transpose(0, 2, 1), np.matmul(grams, lower)), rank)
    filters = np.asarray(np.linalg.solve(lower.transpose(0, 2, 1), vectors), np.float64)
    return np.ascontiguousarray(filters.transpose(0, 2, 1))


def lower_blocks(blocks: Float) -> Float:
    """Cholesky factors of positive semidefinite blocks (n, t, t), with a jitter far below their mean diagonal.

    Blocks of zeros (dead channels) come out as if they had the jitter of the others.
    """
    return np.asarray(np.linalg.cholesky(_jittered(blocks)), np.float64)


def invert(blocks: Float) -> Float:
    """Inverses of positive semidefinite blocks (n, t, t), jittered as in `lower_blocks`."""
    return np.asarray(np.linalg.inv(_jittered(blocks)), np.float64)


def magnitude(energy: Float) -> Float:
    """Root of the energy; 1 for channels that never respond."""
    return np.sqrt(np.where(energy > 0.0, energy, 1.0))


def _leading(grams: Float, rank: int) -> Float:
    """Eigenvectors (n, t, R) of the largest eigenvalues, descending."""
    vectors: Float = np.linalg.eigh(grams)[1][:, :, : -rank - 1 : -1]
    return vectors


def _jittered(blocks: Float) -> Float:
    means = np.trace(blocks, axis1=1, axis2=2) / blocks.shape[1]
    floor = float(means.mean())
    if floor <= 0.0:
        return np.broadcast_to(np.eye(blocks.shape[1]), blocks.shape)
    jitter = _JITTER * np.maximum(means, floor)
    jittered: Float = blocks + jitter[:, None, None] * np.eye(blocks.shape[1])
    return jittered
