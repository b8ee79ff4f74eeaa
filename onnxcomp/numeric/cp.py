"""CP decomposition of convolution weights in three modes (Lebedev et al. 2015), stable and on the weight alone.

K[o, i, k] ~ sum_r last[o, r] middle[r, k] first[r, i], k the kernel positions (taps): a 1x1 convolution to R channels,
a depthwise one with the original kernel, a 1x1 convolution back. Fits to a layer's output are in
`onnxcomp.numeric.cpfit`.

The best approximation of a rank need not exist: alternating least squares may then lower the error for ever with terms
that grow and cancel (de Silva and Lim 2008), which no int8 arithmetic and no fine-tuning survives. `divergence`
measures it (Phan et al. 2020), and no fit is taken that has diverged.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numeric.leastsquares import cholesky, solve
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

# The ridge of the sweeps, relative to the mean energy of a term in two modes. The first one keeps the equations of
# vanishing terms solvable; after a sweep that diverges it is the second one, and then grows.
_RIDGE, _RISEN, _GROWTH = 1e-9, 1e-4, 10.0
# Multiplications that the sweeps of one fit may cost, and the most sweeps.
_WORK = 3e10
_SWEEPS = 100
# Sweeps end where one lowers the squared error by less than this share of it.
_TOLERANCE = 5e-4


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

    After each sweep the norm of a term is shared by its factors; where the terms diverge, a growing ridge pulls them
    back. The best terms that do not diverge are returned, which may be the orthogonal ones.

    Each sweep is that of tensorly's `parafac`, the oracle of the tests, with one product of the weight less, and in an
    eighth of its time (512 x 512 x 9, rank 496: 0.14 s instead of 1.2 s).

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
    best = factors = orthogonal_terms(unit, rank)
    least = before = _squared_distance(unit, best)
    ridge = _RIDGE
    count = sweeps if sweeps is not None else min(max(int(_WORK / (2.0 * k.size * rank)), 1), _SWEEPS)
    for _ in range(count):
        factors = shared(_sweep(unit, factors, ridge))
        lost = _squared_distance(unit, factors)
        if divergence(factors) > DIVERGED:
            ridge = max(_RISEN, _GROWTH * ridge)
        elif lost < least:
            best, least = factors, lost
        if abs(before - lost) <= _TOLERANCE * before:
            break
        before = lost
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


def _squared_distance(tensor: Float, factors: CP) -> float:
    return float(np.linalg.norm(tensor - compose(factors)) ** 2)


def _sweep(tensor: Float, factors: CP, ridge: float) -> CP:
    """Update first, middle and last in turn, each the least-squares solution for the two others."""
    first, middle, last = factors
    outs, channels, taps = tensor.shape
    seen = (last.T @ tensor.reshape(outs, -1)).reshape(-1, channels, taps)
    first = _solved(last.T @ last, middle @ middle.T, np.einsum("ris,rs->ri", seen, middle), ridge)
    middle = _solved(last.T @ last, first @ first.T, np.einsum("ris,ri->rs", seen, first), ridge)
    terms = (first[:, :, None] * middle[:, None, :]).reshape(len(first), -1)
    last = _solved(first @ first.T, middle @ middle.T, terms @ tensor.reshape(outs, -1).T, ridge).T
    return CP(first, middle, np.ascontiguousarray(last))


def _solved(one: Float, other: Float, wanted: Float, ridge: float) -> Float:
    """Solve the normal equations of one factor, (R, n), given the Grams (R, R) of the two others."""
    gram = one * other
    gram[np.diag_indices_from(gram)] += ridge * float(np.trace(gram)) / len(gram)
    return solve(cholesky(gram), wanted)
