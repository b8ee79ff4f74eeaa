"""Running sums of how far tensors are from each other; what they take does not depend on how many samples are seen."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, log10, nan, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Sums", "ratio_to_decibels"]

Array = NDArray[Any]
# Elements that are converted to float64 at a time: few enough to stay in the cache, and for BLAS not to start threads,
# which for sums this short takes a hundred times as long.
_BLOCK = 1 << 13


@dataclass(eq=False, slots=True)
class Sums:
    """Sums over all elements of a tensor that are finite in both models.

    Attributes:
        count: Number of these elements.
        signal: Sum of base**2.
        power: Sum of other**2.
        cross: Sum of base * other.
        noise: Sum of (other - base)**2.
        drift: Sum of other - base.
        largest: Largest absolute error.
        range: Largest absolute value of the base.
        carried: Sum of (what the base makes of the other's inputs - base)**2: noise that arrives.
        local: Sum of (other - what the base makes of the other's inputs)**2: noise that is added here.
        lost: Elements that are NaN or infinite in the other model and finite in the base.
        broken: Those of them that are finite where the base computes them from the other's inputs.
        unknown: Elements that are NaN or infinite in the base.
    """

    count: int = 0
    signal: float = 0.0
    power: float = 0.0
    cross: float = 0.0
    noise: float = 0.0
    drift: float = 0.0
    largest: float = 0.0
    range: float = 0.0
    carried: float = 0.0
    local: float = 0.0
    lost: int = 0
    broken: int = 0
    unknown: int = 0

    def add(self, base: Array, other: Array | None, forced: Array | None = None) -> None:
        """Count arrays of one shape.

        Args:
            base: What the base computes.
            other: What the other model computes; None where it has no such tensor.
            forced: What the base computes from the other model's inputs of the layer.
        """
        for start in range(0, base.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            self._add(_block(base, block), *(None if a is None else _block(a, block) for a in (other, forced)))

    def _add(self, x: Array, y: Array | None, f: Array | None) -> None:
        given = [array for array in (x, y, f) if array is not None]
        powers = [float(array @ array) for array in given]
        if not isfinite(sum(powers)):
            keep = np.logical_and.reduce([np.isfinite(array) for array in given])
            self._count_lost(x, y, f)
            x, y, f = x[keep], None if y is None else y[keep], None if f is None else f[keep]
            powers = [float(array @ array) for array in (x, y) if array is not None]
        self.count += x.size
        self.signal += powers[0]
        self.range = max(self.range, float(np.abs(x).max(initial=0.0)))
        if f is not None:
            carried = f - x
            self.carried += float(carried @ carried)
        if y is None:
            return
        error = y - x
        self.power += powers[1]
        self.cross += float(x @ y)
        self.noise += float(error @ error)
        self.drift += float(error.sum())
        self.largest = max(self.largest, float(np.abs(error).max(initial=0.0)))
        if f is not None:
            local = y - f
            self.local += float(local @ local)

    def _count_lost(self, x: Array, y: Array | None, f: Array | None) -> None:
        finite = np.isfinite(x)
        self.unknown += int(np.count_nonzero(~finite))
        if y is not None:
            lost = finite & ~np.isfinite(y)
            self.lost += int(np.count_nonzero(lost))
            self.broken += int(np.count_nonzero(lost if f is None else lost & np.isfinite(f)))

    @property
    def ratio(self) -> float:
        """Noise power over signal power; inf where there is noise without signal, or values are lost."""
        return inf if self.lost else _over(self.noise, self.signal)

    @property
    def added(self) -> float:
        """Noise power that is added here over signal power."""
        return inf if self.broken else _over(self.local, self.signal)

    @property
    def cosine(self) -> float:
        """Cosine between both, -1 to 1; NaN where values are lost."""
        if self.lost:
            return nan
        norms = sqrt(self.signal) * sqrt(self.power)
        return min(1.0, max(-1.0, self.cross / norms)) if norms else float(self.signal == self.power)


def ratio_to_decibels(ratio: float) -> float:
    """10 log10 of signal over noise, from noise over signal, dB."""
    return inf if ratio == 0 else -inf if ratio == inf else -10 * log10(ratio)


def _over(noise: float, signal: float) -> float:
    if noise == 0:
        return 0.0
    return noise / signal if signal > 0 else inf


def _block(array: Array, block: slice) -> Array:
    return array.reshape(-1)[block].astype(np.float64)
