"""Whether values lie on a lattice of equal steps, as the normalised pixels of an 8-bit image do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["channel_grid", "lattice_step"]

Float = NDArray[np.float64]

# Distance from a lattice point, in steps, that float32 arithmetic explains.
_TOLERANCE = 1e-2
_LEVELS = 255
# Distance of 0 from the lattice, in steps, from which on values lie halfway between two codes.
_HALFWAY = 0.49
# Width of a range whose scale, or the inverse of it, float32 does not hold.
_NOTHING = 1e-35


def lattice_step(values: Float) -> float | None:
    """The step of which all differences are multiples, at most 255 of them; None where there is none.

    Args:
        values: Different values, ascending, finite; at least 16 for an answer.
    """
    width = float(values[-1] - values[0]) if values.size else 0.0
    gaps = np.diff(values)
    gaps = gaps[gaps > width / (4 * _LEVELS)]
    if values.size < 16 or not gaps.size:
        return None
    step = float(gaps.min())
    # The smallest gap carries the rounding of two values; over the whole width that of the ends is nothing.
    count = round(width / step)
    if not 1 <= count <= _LEVELS:
        return None
    step = width / count
    places = (values - values[0]) / step
    return step if np.abs(places - np.rint(places)).max() < _TOLERANCE else None


def channel_grid(low: float, high: float, step: float | None) -> tuple[float, int]:
    """Scale and zero point (0 to 255) of the uint8 grid for a channel's values.

    Args:
        low: Smallest value.
        high: Largest value.
        step: Of the values' lattice: the grid then has that very step, and room on both sides where there are fewer
            than 255 of them; all values are off by one and the same part of a step, as 0 is a code. Where that were
            half a step (pixels of mean 0.5), pairs of values would fall together: the grid gets another step. None: the
            grid spans the values and 0.
    """
    halfway = step is not None and abs(low / step - round(low / step)) > _HALFWAY
    if step is not None and low <= 0 <= high and not halfway:
        spare = _LEVELS - round((high - low) / step)
        return step, int(np.clip(round(-low / step) + spare // 2, 0, _LEVELS))
    low, high = min(low, 0.0), max(high, 0.0)
    # 255 levels of a lattice over 254 steps: every distance to the nearest code occurs, not that of half a step alone.
    # Over 254 levels these would be the lattice's own steps.
    coarser = halfway and step is not None and round((high - low) / step) != _LEVELS - 1
    scale = (high - low) / (_LEVELS - coarser) if high - low > _NOTHING else 1.0 / _LEVELS
    return scale, int(np.clip(round(-low / scale), 0, _LEVELS))
