"""From a range to a scale and a zero point, and back (methods of affine quantization: q = clamp(round(x/s) + z))."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
from numpy.typing import NDArray

__all__ = ["Limits", "Parameters", "affine", "uncut"]

_LEVELS = 255


@dataclass(frozen=True, slots=True)
class Limits:
    """What an absorbed activation guarantees about a tensor: Relu (0, inf), Clip (its bounds)."""

    low: float = -inf
    high: float = inf

    @property
    def open(self) -> bool:
        """Whether nothing is guaranteed."""
        return self.low == -inf and self.high == inf


@dataclass(frozen=True, slots=True)
class Parameters:
    """Scale and zero point of one uint8 tensor."""

    scale: float
    zero_point: int

    @property
    def low(self) -> float:
        """The smallest value that can be represented."""
        return -self.zero_point * self.scale

    @property
    def high(self) -> float:
        """The largest value that can be represented."""
        return (_LEVELS - self.zero_point) * self.scale


def affine(low: float, high: float, limits: Limits) -> Parameters:
    """Return the uint8 parameters whose range holds 0 and covers [low, high] within `limits`.

    Under limits the result makes the activation redundant: both bounds, quantized, saturate the type. A range of width
    0 (a dead tensor) gets the scale 1/255.

    Raises:
        ValueError: A bound is NaN or infinite.
    """
    if not (isfinite(low) and isfinite(high)):
        raise ValueError(f"range [{low}, {high}] is not finite")
    low, high = max(min(low, 0.0), limits.low), min(max(high, 0.0), limits.high)
    width = high - low
    scale = np.float32(width / _LEVELS if width > 0 else 1 / _LEVELS)
    scale = max(scale, np.finfo(np.float32).tiny)
    zero_point = int(np.clip(np.round(-low / scale), 0, _LEVELS))
    while not _redundant(scale, zero_point, limits):
        scale = np.nextafter(scale, np.float32(0))
    return Parameters(float(scale), zero_point)


def _redundant(scale: np.float32, zero_point: int, limits: Limits) -> bool:
    """Whether clipping to the limits before quantizing changes nothing."""
    bottom = limits.low == -inf or round(limits.low / float(scale)) + zero_point <= 0
    top = limits.high == inf or round(limits.high / float(scale)) + zero_point >= _LEVELS
    return bool(bottom and top)


def uncut(values: NDArray[np.float32], parameters: Parameters) -> NDArray[np.float32]:
    """Quantize and dequantize, as the runtime does."""
    levels: NDArray[np.float32] = np.clip(
        np.round(values / np.float32(parameters.scale)) + parameters.zero_point, 0, _LEVELS
    )
    return ((levels - parameters.zero_point) * np.float32(parameters.scale)).astype(np.float32)
