"""CP decomposition of convolution weights in three modes (Lebedev et al. 2015), stable and on the weight alone.

K[o, i, k] ~ sum_r last[o, r] middle[r, k] first[r, i], k the kernel positions (taps): a 1x1 convolution to R channels,
a depthwise one with the original kernel, a 1x1 convolution back. Fits to a layer's output are in
`onnxcomp.numeric.cpfit`.

The best approximation of a rank need not exist: alternating least squares may then lower the error for ever with terms
that grow and cancel (de Silva and Lim 2008), which no int8 arithmetic and no fine-tuning survives. `divergence`
measures it (Phan et al. 2020), and what diverges is fitted again with a ridge.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tensorly.decomposition import parafac

from onnxcomp.numeric.moments import channel_average

__all__ = [
    "CP",
    "DIVERGED",
    "Terms",
    "alternate",
    "balance",
    "compose",
    "divergence",
    "orthogonal_terms",
    "principal_slices",
    "shared",
    "slice_terms",
]

Float = NDArray[np.float64]

DIVERGED = 10.0
"""Terms that together hold more than this many times the energy of their sum have diverged (Phan et al. 2020)."""

# Ridges tried one after the other until a fit does not diverge, relative to the mean energy of a term in two modes. The
# first one only keeps the equations of vanishing terms solvable.
_RIDGES = (1e-9, 1e-4, 1e-3, 1e-2, 1e-1)
# Multiplications that the sweeps of one fit may cost, and how many sweeps that is at least and at most.
_WORK = 1e11
_SWEEPS = (4, 100)
# Sweeps end where the relative error, not squared, falls by less than this.
_TOLERANCE = 1e-5


class CP(NamedTuple):
    """The factors of a weight (Co, Ci, taps), float64.

    Attributes:
        first: Input factor (R, Ci), the weight of the first 1x1.
        middle: Kernels (R, taps), one for each inner channel.
        last: Output factor (Co, R), the weight of the last 1x1.
    """

    first: Float
    middle: Float
    last: Float


def compose(factors: CP) -> Float:
    """Multiply the factors out to the weight (Co, Ci, taps) that they stand for."""
    first, middle, last = factors
    terms = first[:, :, None] * middle[:, None, :]
    return (last @ terms.reshape(len(terms), -1)).reshape(len(last), *terms.shape[1:])


def divergence(factors: CP) -> float:
    """Energy of the rank-one terms relative to that of their sum: sum_r |term_r|^2 / |sum_r term_r|^2.

    1 for orthogonal terms; inf where they cancel; 0 where all are zero. The measure of Phan et al. (2020), section 2.
    """
    first, middle, last = factors
    gram = (first @ first.T) * (middle @ middle.T) * (last.T @ last)
    terms, total = float(np.trace(gram)), float(gram.sum())
    if terms == 0.0:
        return 0.0
    # The difference of large numbers: below their rounding it is nothing.
    return terms / total if total > 1e-14 * terms else float("inf")


class Terms(NamedTuple):
    """Mutually orthogonal rank-one terms sizes[r] left[:, r] x right[r] x directions[tap[r]], largest first.

    Attributes:
        directions: Principal directions of the taps, orthonormal rows, (taps, taps).
        tap: Direction of each term, (R,).
        sizes: Norm of each term, (R,), descending.
        left: (Co, R), unit columns.
        right: (R, Ci), unit rows.
    """

    directions: Float
    tap: NDArray[np.intp]
    sizes: Float
    left: Float
    right: Float


def principal_slices(tensor: Float) -> Float:
    """A weight (Co, Ci, taps) as (taps, Co, Ci): its parts along the principal directions of its taps."""
    return np.tensordot(_directions(tensor), tensor, (1, 2))


def slice_terms(tensor: Float, rank: int) -> Terms:
    """The `rank` largest of mutually orthogonal terms that sum up to a weight.

    The principal directions of the taps turn the weight into as many uncorrelated matrices, whose singular triplets are
    the terms: those of a smaller rank are a prefix of those of a larger one. No other terms with these tap directions
    lose less.

    Args:
        tensor: (Co, Ci, taps).
        rank: 1 or more; min(Co, Ci) * taps terms exist, and no more are returned.
    """
    directions = _directions(tensor)
    left, sizes, right = np.linalg.svd(np.tensordot(directions, tensor, (1, 2)), full_matrices=False)
    order = np.argsort(-sizes.ravel(), kind="stable")[:rank]
    tap, index = np.unravel_index(order, sizes.shape)
    return Terms(directions, tap, sizes[tap, index], left[tap, :, index].T, right[tap, index])


def orthogonal_terms(tensor: NDArray[np.floating], rank: int) -> CP:
    """The terms of `slice_terms` as factors, a start that does not diverge; zeros fill up ranks beyond all terms."""
    terms = slice_terms(np.asarray(tensor, np.float64), rank)
    share = np.cbrt(terms.sizes)[:, None]
    first, middle, last = terms.right * share, terms.directions[terms.tap] * share, terms.left * share.T
    rows = ((0, rank - len(share)), (0, 0))
    return CP(np.pad(first, rows), np.pad(middle, rows), np.pad(last, rows[::-1]))


def alternate(tensor: NDArray[np.floating], rank: int, *, sweeps: int | None = None) -> CP:
    """Fit terms to a weight by alternating least squares from the orthogonal ones.

    A fit that diverges is done again with a larger ridge; where all do, the orthogonal terms are returned. The result
    is never worse than they are, and never diverges.

    Args:
        tensor: (Co, Ci, taps).
        rank: 1 or more.
        sweeps: Updates of all factors; by default as many as are worth their time.

    Raises:
        ValueError: A rank below 1, or a weight that is not finite or has not three axes.
    """
    k = np.asarray(tensor, np.float64)
    if k.ndim != 3 or k.size == 0 or rank < 1:
        raise ValueError(f"rank {rank} of a weight of shape {k.shape}: needs (Co, Ci, taps) and a rank of 1 or more")
    if not np.isfinite(k).all():
        raise ValueError("the weight holds NaN or Inf")
    size = float(np.linalg.norm(k))
    if size == 0.0:
        return orthogonal_terms(k, rank)
    unit = k / size
    start = orthogonal_terms(unit, rank)
    count = sweeps if sweeps is not None else int(np.clip(_WORK / (3.0 * k.size * rank), *_SWEEPS))
    lost, best = _distance(unit, start), start
    for ridge in _RIDGES if count else ():
        fitted = shared(_parafac(unit, start, count, ridge))
        if divergence(fitted) <= DIVERGED:
            best = fitted if _distance(unit, fitted) < lost else start
            break
    scale = np.cbrt(size)
    return CP(*(factor * scale for factor in best))


def shared(factors: CP) -> CP:
    """Share the norm of each term equally by its three factors."""
    norms = [np.linalg.norm(f, axis=axis) for f, axis in zip(factors, (1, 1, 0), strict=True)]
    common = np.cbrt(prod(norms[1:], start=norms[0]))
    first, middle, last = (np.divide(common, n, out=np.zeros_like(n), where=n > 0.0) for n in norms)
    return CP(factors.first * first[:, None], factors.middle * middle[:, None], factors.last * last)


def balance(factors: CP, gram: NDArray[np.floating] | None = None) -> CP:
    """Rescale inner channels so that one scale serves all of them in int8; the product stays what it was.

    Both inner tensors get channels of equal root mean square, the last factor takes what is left of each term, and the
    overall magnitude is shared equally by the factors (see `onnxcomp.numeric.tucker.balance`).

    Args:
        factors: Any.
        gram: Uncentred Gram E[x x^T] of the input patches, (d, d), channel-major; None assumes white inputs.
    """
    first, middle, last = factors
    if gram is None:
        before, after = np.square(first).sum(axis=1), np.square(first).sum(axis=1) * np.square(middle).sum(axis=1)
    else:
        xx = np.asarray(gram, np.float64)
        before = np.einsum("ri,ri->r", first @ channel_average(xx, middle.shape[1]), first)
        terms = (first[:, :, None] * middle[:, None, :]).reshape(len(first), -1)
        after = np.einsum("rd,rd->r", terms @ xx, terms)
    one, two = _root(before), _root(after)
    first, middle, last = first / one[:, None], middle * (one / two)[:, None], last * two
    sizes = [float(np.abs(f).max()) for f in (first, middle, last)]
    if min(sizes) == 0.0:
        return CP(first, middle, last)
    common = float(np.cbrt(prod(sizes)))
    return CP(first * (common / sizes[0]), middle * (common / sizes[1]), last * (common / sizes[2]))


def _directions(tensor: Float) -> Float:
    """Principal directions of the taps, orthonormal rows, strongest first."""
    flat = tensor.reshape(-1, tensor.shape[2])
    return np.asarray(np.linalg.eigh(flat.T @ flat)[1].T[::-1], np.float64)


def _root(energy: Float) -> Float:
    """Root of the energy; 1 for channels that never respond."""
    return np.sqrt(np.where(energy > 0.0, energy, 1.0))


def _distance(tensor: Float, factors: CP) -> float:
    return float(np.linalg.norm(tensor - compose(factors)))


def _parafac(tensor: Float, start: CP, sweeps: int, ridge: float) -> CP:
    """Tensorly's alternating least squares from a given start; the ridge is relative."""
    factors = [start.last.copy(), start.first.T.copy(), start.middle.T.copy()]
    energies = np.square(start.first).sum(axis=1) * np.square(start.middle).sum(axis=1)
    _, (last, first, middle) = parafac(
        tensor,
        len(start.first),
        n_iter_max=sweeps,
        init=(None, factors),
        tol=_TOLERANCE,
        l2_reg=ridge * float(energies.mean()),
    )
    return CP(np.ascontiguousarray(first.T), np.ascontiguousarray(middle.T), np.ascontiguousarray(last))
