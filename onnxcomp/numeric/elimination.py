"""Which channels of a group to remove, one after the other, when the layers that read them are fitted anew.

A consumer with weight W and Gram S of its inputs can make up for an input that is taken from it by what the others know
of it. With H = S^-1, taking the columns of class k costs tr(W_k (H_kk)^-1 W_k^T) of its squared output error, after
which W -= W_k (H_kk)^-1 H_k: is the least-squares weight of what is left and H -= H_:k (H_kk)^-1 H_k: its inverse Gram:
the Optimal Brain Surgeon (Hassibi and Stork 1993) for groups of columns (Frantar and Alistarh, Optimal Brain
Compression, 2022, section 4). Going backwards, the cheapest class at a time and summed over all consumers, the costs
are exact: what ThiNet (Luo et al. 2017) approximates before its least-squares step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxcomp.numeric.selection import contributions

__all__ = ["Consumer", "Path", "eliminate", "path_of"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Classes = NDArray[np.integer]

# Inputs of less power than this, relative to the mean, are dead: what reads them reads nothing.
_DEAD = 1e-12
# Keep the inverse of a singular Gram defined, for the order and for the errors.
_LEAST_ORDER, _LEAST_PATH = 1e-6, 1e-10
# Few classes are removed one at a time; of many, those of a batch are chosen one at a time from as many times more.
_FEW, _POOL = 64, 3
# Rows of a symmetric matrix that are mirrored at once.
_PANEL = 256


@dataclass(frozen=True, eq=False, slots=True)
class Consumer:
    """A layer that reads the channels of a group.

    Attributes:
        weight: W, (R, d); columns are input channels x taps.
        gram: S, (d, d): covariance of the inputs where a bias takes the means, second moments where none does.
        labels: Class 0..n-1 of each column, (d,); -1 for those of no class, which always stay. A class may have any
            number of columns, even none.
        importance: Factor of the layer's squared error where those of several are summed.
    """

    weight: Float
    gram: Float
    labels: Classes
    importance: float = 1.0

    def __post_init__(self) -> None:
        """Raises ValueError where shapes do not match or the importance is negative."""
        d = len(self.gram)
        if self.weight.ndim != 2 or self.gram.shape != (d, d) or {self.weight.shape[1], self.labels.size} != {d}:
            raise ValueError(f"weight {self.weight.shape}, Gram {self.gram.shape}, {self.labels.size} labels")
        if not self.importance >= 0.0:
            raise ValueError(f"importance {self.importance} is not 0 or more")


@dataclass(frozen=True, eq=False, slots=True)
class Path:
    """What consumers lose when classes are removed one after the other.

    Attributes:
        order: Classes in the order of their removal, (m,).
        errors: Squared output error of each consumer after the first 0, 1 .. m removals, relative to the variance of
            its output, (consumers, m + 1). 0 throughout for an output that never changes.
    """

    order: Int
    errors: Float


def eliminate(
    consumers: Sequence[Consumer], n: int, *, damping: float = 1e-3, keep_at_least: int = 1, batch: float = 0.03
) -> Path:
    """Remove the class whose loss costs all consumers together least, fit them to the rest, and so on.

    Takes about 2 d^3 multiplications and two matrices of the size of each Gram besides the Grams. Many of its products
    are small: one thread a group is faster than several where cores are not idle.

    Args:
        consumers: Of the group; the sum of their squared errors, each times its importance, is what costs.
        n: Number of classes.
        damping: Power of an independent noise that each input is thought to have, relative to their mean power, so
            that few samples are not trusted too far; at least 1e-6 for the order, and 1e-10 for the errors.
        keep_at_least: Classes that stay.
        batch: As long as more than 64 classes are left, this share of them is removed at a time, chosen one by one
            among three times as many that are cheapest; 0 removes one at a time throughout.

    Returns:
        n - keep_at_least removals, and their errors as in `path_of`.

    Raises:
        ValueError: No class may be removed, a label is not less than n, or a Gram is not positive semidefinite.
    """
    if not 0 <= keep_at_least <= n:
        raise ValueError(f"{keep_at_least} of {n} classes cannot stay")
    readers = [_reader(consumer, n, max(damping, _LEAST_ORDER)) for consumer in consumers]
    left, order = np.arange(n), list[int]()
    while len(left) > keep_at_least:
        count = max(int(batch * len(left)), 1) if len(left) > _FEW else 1
        chosen = _cheapest(readers, left, min(count, len(left) - keep_at_least))
        order += chosen
        left = left[~np.isin(left, chosen)]
        for reader in readers:
            reader.remove(chosen)
            reader.compact()
    del readers
    return path_of(np.array(order, np.int64), consumers, damping=damping)


def path_of(
    order: Classes, consumers: Sequence[Consumer], *, damping: float = 1e-3, without_refit: bool = False
) -> Path:
    """What each consumer loses along a given order of removal, when it is fitted to the classes that stay.

    With S = L L^T, those that stay longest first, column j of W L is what the error rises by when input j is the next
    to go: all errors come from one Cholesky factor.

    Args:
        order: Classes in the order of their removal, (m,); others stay.
        consumers: Of the group.
        damping: As in `eliminate`; the errors are those with the noise, so that they end at no more than 1.
        without_refit: The errors when nothing is fitted, tr(W_T S_TT W_T^T) for the removed columns T; these may fall.

    Raises:
        ValueError: A class comes twice, or a Gram is not positive semidefinite.
    """
    sequence: Int = np.asarray(order, np.int64)
    if len(np.unique(sequence)) != len(sequence):
        raise ValueError("a class is removed twice")
    losses = np.zeros((len(consumers), len(sequence) + 1))
    for loss, consumer in zip(losses, consumers, strict=True):
        weight = _live(consumer)
        rank = _ranks(sequence, consumer.labels)
        columns = np.argsort(-rank, kind="stable")
        lower = _factor(consumer.gram, columns, max(damping, _LEAST_PATH))
        part = np.square(weight[:, columns] @ lower).sum(axis=0)
        power = part.sum()
        if power <= 0.0:
            continue
        if without_refit:
            gone = np.where(rank < len(sequence), rank, -1)
            matrix = contributions(weight, consumer.gram, gone, len(sequence))
            loss[1:] = np.diagonal(matrix.cumsum(axis=0).cumsum(axis=1)) / power
        else:
            rises = np.bincount(rank[columns], part, len(sequence) + 1)[: len(sequence)]
            loss[1:] = np.minimum(np.cumsum(rises) / power, 1.0)
    return Path(sequence, losses)


class _Reader:
    """A consumer that is fitted to the columns it still has.

    Args:
        inverse: H, (a, a).
        weight: W, (R, a).
        starts: First column of each class, (n,).
        sizes: Columns of each class, side by side, (n,).
    """

    def __init__(self, inverse: Float, weight: Float, starts: Int, sizes: Int) -> None:
        self._inverse = inverse
        self._weight = weight
        self._starts = starts
        self._sizes = sizes
        self._alive = np.ones(len(inverse), np.bool_)

    def costs(self, classes: Int) -> Float:
        """tr(W_k (H_kk)^-1 W_k^T) of each of the classes."""
        found = np.zeros(len(classes))
        sizes = self._sizes[classes]
        for size in np.unique(sizes[sizes > 0]).tolist():
            places = np.flatnonzero(sizes == size)
            columns = self._starts[classes[places], None] + np.arange(size)
            own = self._weight[:, columns].transpose(1, 2, 0)
            blocks = self._inverse[columns[:, :, None], columns[:, None, :]]
            solved = np.linalg.solve(blocks, own @ own.transpose(0, 2, 1))
            found[places] = np.einsum("kii->k", solved)
        return found

    def remove(self, classes: Sequence[int]) -> None:
        """Fit the rest to what the classes contributed."""
        gone = self._columns(classes)
        if not len(gone):
            return
        rows = self._inverse[gone]
        lower = scipy.linalg.cholesky(rows[:, gone], lower=True, check_finite=False)
        half = scipy.linalg.solve_triangular(lower, rows, lower=True, check_finite=False)
        passed = scipy.linalg.solve_triangular(lower, self._weight[:, gone].T, lower=True, check_finite=False)
        self._weight -= passed.T @ half
        # In place, as its transpose: the matrix is symmetric, and BLAS wants columns first.
        scipy.linalg.blas.dgemm(-1.0, half.T, half.T, 1.0, self._inverse.T, trans_b=True, overwrite_c=True)
        self._alive[gone] = False
        self._sizes[list(classes)] = 0

    def compact(self) -> None:
        """Let go of the columns that were removed, when they have become many."""
        left = np.flatnonzero(self._alive)
        if len(left) > 0.875 * len(self._alive):
            return
        self._starts = np.searchsorted(left, self._starts)
        self._inverse = self._inverse[np.ix_(left, left)]
        self._weight = np.ascontiguousarray(self._weight[:, left])
        self._alive = np.ones(len(left), np.bool_)

    def only(self, classes: Int) -> _Reader:
        """A reader of some classes, by which they can be told apart; those are numbered 0, 1 .."""
        columns, sizes = self._columns(classes.tolist()), self._sizes[classes]
        inverse = self._inverse[np.ix_(columns, columns)]
        return _Reader(inverse, self._weight[:, columns], np.cumsum(sizes) - sizes, sizes)

    def _columns(self, classes: Sequence[int]) -> Int:
        own = [np.arange(self._starts[k], self._starts[k] + self._sizes[k]) for k in classes]
        return np.concatenate(own) if own else np.zeros(0, np.int64)


def _reader(consumer: Consumer, n: int, damping: float) -> _Reader:
    labels = np.asarray(consumer.labels, np.int64)
    if labels.size and labels.max() >= n:
        raise ValueError(f"label {labels.max()} of {n} classes")
    columns = np.argsort(labels, kind="stable")
    inverse, failed = scipy.linalg.lapack.dpotri(_factor(consumer.gram, columns, damping), lower=1, overwrite_c=1)
    if failed:
        raise ValueError("the Gram matrix is not positive semidefinite")
    weight = _squared(_live(consumer)[:, columns] * np.sqrt(consumer.importance))
    sizes = np.bincount(labels[labels >= 0], minlength=n).astype(np.int64)
    starts = np.searchsorted(labels[columns], np.arange(n))
    return _Reader(_mirrored(inverse.T), weight, starts, sizes)


def _cheapest(readers: Sequence[_Reader], left: Int, count: int) -> list[int]:
    """The classes to remove next, each chosen as if those before it were gone."""
    costs = _total(readers, left)
    if count == 1:
        return [int(left[np.argmin(costs)])]
    pool = left[np.sort(np.argsort(costs, kind="stable")[: _POOL * count])]
    small = [reader.only(pool) for reader in readers]
    order, places = list[int](), np.arange(len(pool))
    for _ in range(count):
        best = int(places[np.argmin(_total(small, places))])
        order.append(int(pool[best]))
        places = places[places != best]
        for reader in small:
            reader.remove([best])
    return order


def _total(readers: Sequence[_Reader], classes: Int) -> Float:
    costs = np.zeros(len(classes))
    for reader in readers:
        costs += reader.costs(classes)
    return costs


def _ranks(order: Int, labels: Classes) -> Int:
    """When each column goes; len(order) for those that stay."""
    most = max(int(order.max(initial=-1)), int(labels.max(initial=-1)))
    rank = np.full(most + 2, len(order), np.int64)  # the last is that of label -1
    rank[order] = np.arange(len(order))
    return rank[labels]


def _live(consumer: Consumer) -> Float:
    """The weight, without what it does to dead inputs."""
    power = np.diagonal(consumer.gram)
    return np.where(power > _DEAD * power.mean(), consumer.weight, 0.0)


def _squared(weight: Float) -> Float:
    """No more rows than columns, with the same W^T W, on which all depends."""
    if len(weight) <= weight.shape[1]:
        return weight
    return np.asarray(np.linalg.qr(weight, mode="r"), np.float64)


def _factor(gram: Float, columns: Int, damping: float) -> Float:
    """Lower Cholesky factor of the damped Gram of some columns in some order; in the order of Fortran."""
    mean = float(np.trace(gram)) / max(len(gram), 1)
    for factor in (1.0, 1e2, 1e4, 1e6):
        own = np.asarray(gram[np.ix_(columns, columns)], np.float64)
        own[np.diag_indices_from(own)] += factor * damping * mean if mean > 0.0 else 1.0
        lower, failed = scipy.linalg.lapack.dpotrf(own.T, lower=1, overwrite_a=1, clean=1)
        if not failed:
            found: Float = lower
            return found
        # Rounding has left a negative eigenvalue larger than the damping.
    raise ValueError("the Gram matrix is not positive semidefinite")


def _mirrored(upper: Float) -> Float:
    """Write the upper triangle of a matrix onto its lower one, in place."""
    for start in range(0, len(upper), _PANEL):
        stop = min(start + _PANEL, len(upper))
        block = upper[start:stop, start:stop]
        block[:] = np.triu(block) + np.triu(block, 1).T
        upper[stop:, start:stop] = upper[start:stop, stop:].T
    return upper
