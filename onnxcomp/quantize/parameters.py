"""From a range to a scale and a zero point, and back (methods of affine quantization: q = clamp(round(x/s) + z))."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
from numpy.typing import NDArray

from onnxcomp.targets.target import ActivationType, Scheme

__all__ = ["Limits", "Parameters", "affine", "as_run_here", "parameters_for", "symmetric", "uncut"]

# Steps from the smallest to the largest of 8 bits, half of the type, and the largest int8.
_LEVELS = 255
_HALF = 128
_PEAK = 127


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
    """Scale and zero point of one 8-bit tensor.

    Attributes:
        scale: Positive, a float32 number.
        zero_point: The stored integer that stands for 0.
        dtype: The storage type.
    """

    scale: float
    zero_point: int
    dtype: ActivationType = "uint8"

    @property
    def bottom(self) -> int:
        """The smallest integer of the type."""
        return 0 if self.dtype == "uint8" else -_HALF

    @property
    def low(self) -> float:
        """The smallest value that can be represented."""
        return (self.bottom - self.zero_point) * self.scale

    @property
    def high(self) -> float:
        """The largest value that can be represented."""
        return (self.bottom + _LEVELS - self.zero_point) * self.scale

    def signed(self) -> Parameters:
        """The same grid stored as int8: the scale stays, the zero point is 128 less."""
        return self if self.dtype == "int8" else Parameters(self.scale, self.zero_point - _HALF, "int8")

    def unsigned(self) -> Parameters:
        """The same grid stored as uint8: the scale stays, the zero point is 128 more."""
        return self if self.dtype == "uint8" else Parameters(self.scale, self.zero_point + _HALF, "uint8")


def parameters_for(scheme: Scheme, low: float, high: float, limits: Limits) -> Parameters:
    """Return the parameters with which a target stores a tensor of the range [low, high] (:func:`affine`)."""
    if scheme.symmetric:
        return symmetric(low, high)
    found = affine(low, high, limits)
    return found if scheme.activation == "uint8" else found.signed()


def as_run_here(scheme: Scheme, parameters: Mapping[str, Parameters]) -> dict[str, Parameters]:
    """Return the parameters for trying a quantized model on this machine: the scheme's, with a zero point as uint8.

    The numbers are the same, and a choice between ranges that is made by measurement falls the same way for ort-x86 and
    ort-arm. A symmetric scheme stays as it is.
    """
    return {name: p if scheme.symmetric else p.unsigned() for name, p in parameters.items()}


def symmetric(low: float, high: float) -> Parameters:
    """Return the int8 parameters with zero point 0 whose levels -127 to 127 cover [low, high]; the scale is positive.

    Raises:
        ValueError: A bound is NaN or infinite.
    """
    _require_finite(low, high)
    peak = max(-low, high, 0.0)
    scale = np.float32(peak / _PEAK if peak > 0 else 1 / _PEAK)
    return Parameters(float(max(scale, np.finfo(np.float32).tiny)), 0, "int8")


def affine(low: float, high: float, limits: Limits) -> Parameters:
    """Return the uint8 parameters whose range holds 0 and covers [low, high] within `limits`.

    Under limits the result makes the activation redundant: both bounds, quantized, saturate the type. A range of width
    0 (a dead tensor) gets the scale 1/255.

    Raises:
        ValueError: A bound is NaN or infinite.
    """
    _require_finite(low, high)
    low, high = max(min(low, 0.0), limits.low), min(max(high, 0.0), limits.high)
    width = high - low
    scale = np.float32(width / _LEVELS if width > 0 else 1 / _LEVELS)
    scale = max(scale, np.finfo(np.float32).tiny)
    zero_point = int(np.clip(np.round(-low / scale), 0, _LEVELS))
    while not _redundant(scale, zero_point, limits):
        scale = np.nextafter(scale, np.float32(0))
    return Parameters(float(scale), zero_point)


def _require_finite(low: float, high: float) -> None:
    if not (isfinite(low) and isfinite(high)):
        raise ValueError(f"range [{low}, {high}] is not finite")


def _redundant(scale: np.float32, zero_point: int, limits: Limits) -> bool:
    """Whether clipping to the limits before quantizing changes nothing."""
    bottom = limits.low == -inf or round(limits.low / float(scale)) + zero_point <= 0
    top = limits.high == inf or round(limits.high / float(scale)) + zero_point >= _LEVELS
    return bool(bottom and top)


def uncut(values: NDArray[np.float32], parameters: Parameters) -> NDArray[np.float32]:
    """Quantize and dequantize, as the runtime does."""
    bottom, zero = parameters.bottom, parameters.zero_point
    scale = np.float32(parameters.scale)
    levels: NDArray[np.float32] = np.clip(np.round(values / scale) + zero, bottom, bottom + _LEVELS)
    return ((levels - zero) * scale).astype(np.float32)
