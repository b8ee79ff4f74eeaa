"""A histogram for streams: one pass, fixed memory, no range to be known beforehand, mergeable in any order.

The bins lie on a lattice of powers of two: bin i covers [i w, (i + 1) w) with w = 2**exponent, and when a value falls
    outside,
neighbouring bins are joined until it fits. Every histogram of the same values at the same width is therefore the
same, however the values were split into batches and in whatever order these came. Exact zeros are counted apart:
after a ReLU they are half of all values, every quantization grid represents them exactly, and in a bin they would
outweigh all else.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BINS", "SAMPLE", "Histogram", "extremes"]

BINS = 2048
"""Bins on each side of zero. A power of two; at least half of those on the longer side are in use."""

SAMPLE = 200_000
"""Of a larger array, at most about that many values are binned; minimum and maximum are taken over all of them."""

_BITS = BINS.bit_length() - 1
# Values below 2**-149 are no float32; a finer lattice would only overflow its own scale.
_FINEST = -160
# Beyond, 2**-exponent times a float32 leaves float32's range.
_FLOAT32_SAFE = -100


class Histogram:
    """Counts of real numbers on a power-of-two lattice.

    Attributes:
        counts: float64 [2 * BINS], the mass of nonzero values; entry BINS + i belongs to [i w, (i + 1) w).
        exponent: The bins' width is w = 2**exponent.
        low: Least value seen, exact; +inf before the first one.
        high: Greatest value seen, exact; -inf before the first one.
        zeros: Mass of exact zeros.
        total: Mass of all values: their number.
    """

    __slots__ = ("counts", "exponent", "high", "low", "total", "zeros")

    def __init__(self) -> None:
        self.counts: NDArray[np.float64] = np.zeros(2 * BINS)
        self.exponent = _FINEST
        self.low = math.inf
        self.high = -math.inf
        self.zeros = 0.0
        self.total = 0.0

    def add(self, values: NDArray[Any], *, sample: int = SAMPLE, offset: int = 0) -> None:
        """Count the values of an array of any shape and real dtype.

        Of more than `sample` values, every k-th is binned, with k a prime that does not divide their number (so that
        no axis is aliased), and weighted by k; which ones depends on `offset` alone.

        Raises:
            ValueError: A value is NaN or infinite; the message is "NaN" or "infinity" and nothing was counted.
        """
        flat = np.asarray(values).reshape(-1)
        if not flat.size:
            return
        low, high = extremes(flat)
        self._widen(_exponent_for(max(high, -low)))
        self.low, self.high = min(self.low, low), max(self.high, high)
        size = flat.size
        if size > sample:
            stride = _stride(size, sample)
            flat = flat[offset % stride :: stride]
        self._count(flat, size / flat.size)

    def stretch(self, low: float, high: float) -> None:
        """Take note of the least and greatest of values that are not counted; they widen no bin."""
        self.low, self.high = min(self.low, low), max(self.high, high)

    def merge(self, other: Histogram) -> None:
        """Add another histogram's counts to this one; the result does not depend on the order of merging."""
        self._widen(other.exponent)
        self.counts += _coarsened(other.counts, self.exponent - other.exponent)
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.zeros += other.zeros
        self.total += other.total

    def bins(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the nonzero values' distribution: edges [n + 1], ascending, and the mass of the n bins between them.

        Only the part in use is returned, its outer edges drawn in to the exact minimum and maximum; n is 0 when every
        value was zero. The first or the last bin may have no width.
        """
        used = np.flatnonzero(self.counts)
        if not used.size:
            return np.zeros(1), np.zeros(0)
        first, last = int(used[0]), int(used[-1])
        edges = np.ldexp(np.arange(first - BINS, last + 2 - BINS, dtype=np.float64), self.exponent)
        edges[0], edges[-1] = max(edges[0], self.low), min(edges[-1], self.high)
        return edges, self.counts[first : last + 1]

    def _count(self, flat: NDArray[Any], weight: float) -> None:
        if flat.dtype != np.float64:
            flat = flat.astype(np.float64 if self.exponent < _FLOAT32_SAFE else np.float32, copy=False)
        scaled = flat * flat.dtype.type(2.0**-self.exponent)
        if self.low < 0:  # truncation is the floor of what is not negative
            np.floor(scaled, out=scaled)
        index = scaled.astype(np.intp)
        index += BINS
        zeros = flat.size - int(np.count_nonzero(flat))
        counts = np.bincount(index, minlength=2 * BINS)
        counts[BINS] -= zeros
        self.counts += counts * weight
        self.zeros += zeros * weight
        self.total += flat.size * weight

    def _widen(self, exponent: int) -> None:
        if exponent > self.exponent:
            self.counts = _coarsened(self.counts, exponent - self.exponent)
            self.exponent = exponent


def extremes(values: NDArray[Any]) -> tuple[float, float]:
    """Return the least and the greatest value of an array that is not empty.

    Raises:
        ValueError: A value is NaN or infinite; the message is "NaN" or "infinity".
    """
    low, high = float(values.min()), float(values.max())
    if math.isnan(low) or math.isnan(high):
        raise ValueError("NaN")
    if math.isinf(low) or math.isinf(high):
        raise ValueError("infinity")
    return low, high


def _exponent_for(peak: float) -> int:
    """Return the finest exponent whose lattice of BINS bins a side holds values up to `peak`, whatever its sign."""
    return max(math.frexp(peak)[1] - _BITS, _FINEST) if peak else _FINEST


def _coarsened(counts: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    if steps == 0:
        return counts
    index = (np.arange(-BINS, BINS) >> min(steps, _BITS + 1)) + BINS
    return np.bincount(index, weights=counts, minlength=2 * BINS).astype(np.float64, copy=False)


def _stride(size: int, sample: int) -> int:
    stride = math.ceil(size / sample)
    while size % stride == 0 or any(stride % k == 0 for k in range(2, math.isqrt(stride) + 1)):
        stride += 1
    return stride
