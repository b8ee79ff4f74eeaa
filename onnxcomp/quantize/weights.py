"""Per-channel symmetric int8 weights and int32 biases: arrays in, arrays out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "QuantizedBias",
    "QuantizedWeight",
    "WeightScales",
    "bias_floors",
    "on_grid",
    "quantize_bias",
    "quantize_weight",
]

WeightScales = Literal["mse", "minmax"]

# A bias this large, added to products that also fit 2**30, cannot overflow the int32 accumulator.
_BIAS_LIMIT = 2.0**30
_SHRINKS = np.linspace(1.0, 0.7, 31)
# Distance from a multiple, in steps, that float32 rounding explains.
_GRID_TOLERANCE = 1e-3
# Entries a channel that are looked at for a grid.
_PROBE = 256


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedWeight:
    """An int8 weight of the original shape and one float32 scale for each slice along `axis`."""

    values: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int

    def restored(self) -> NDArray[np.float32]:
        """The weight that the runtime computes with."""
        return self.values.astype(np.float32) * _along(self.scales, self.values.ndim, self.axis)


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedBias:
    """An int32 bias of shape (channels,) and its float32 scales, input scale times weight scale."""

    values: NDArray[np.int32]
    scales: NDArray[np.float32]


def quantize_weight(
    weight: NDArray[np.float32],
    axis: int,
    *,
    bits: int = 8,
    method: WeightScales = "mse",
    floors: NDArray[np.float64] | None = None,
) -> QuantizedWeight:
    """Quantize symmetrically along `axis`.

    The scale of a channel is max|w| / (2^(bits-1) - 1), or the multiple of it in [0.5, 1] with the least squared error.

    Args:
        weight: Finite values, any rank.
        axis: The axis of the scales.
        bits: 8, or 7 for processors whose int8 products saturate.
        method: How scales are chosen.
        floors: Smallest scale allowed for each channel (so that biases fit int32).
    """
    top = 2 ** (bits - 1) - 1
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    peaks = np.abs(rows).max(axis=1, initial=0.0)
    scales = np.where(peaks > 0, peaks / top, 1.0 / top)
    if method == "mse":
        grid = _grid_steps(rows, peaks, top)
        scales = np.where(np.isnan(grid), scales * _best_shrink(rows, scales, top), grid)
    if floors is not None:
        scales = np.maximum(scales, floors)
    scales32 = np.maximum(scales, np.finfo(np.float32).tiny).astype(np.float32)
    levels = np.clip(np.round(weight / _along(scales32, weight.ndim, axis)), -top, top)
    return QuantizedWeight(levels.astype(np.int8), scales32, axis)


def _grid_steps(rows: NDArray[np.float64], peaks: NDArray[np.float64], top: int) -> NDArray[np.float64]:
    """Return for each channel the step of which all its values are multiples, at most `top` of them; NaN where there is
    none.

    Weights that were quantized and dequantized once lie on such a grid; with its step they are represented exactly.
    """
    steps = np.full(len(rows), np.nan)
    probe = rows[:, :_PROBE]
    for count in range(1, top + 1):
        step = np.where(peaks > 0, peaks / count, 1.0)
        levels = probe / step[:, None]
        close = np.abs(levels - np.round(levels)).max(axis=1, initial=0.0) < _GRID_TOLERANCE
        found = close & np.isnan(steps) & (peaks > 0)
        if found.any():
            levels = rows[found] / step[found][:, None]
            exact = np.abs(levels - np.round(levels)).max(axis=1) < _GRID_TOLERANCE
            steps[np.flatnonzero(found)[exact]] = step[found][exact]
    return steps


def on_grid(weight: NDArray[np.float32], axis: int = 0) -> bool:
    """Whether every slice of a weight along `axis` is a multiple of one step of its own, at most 127 of them."""
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    if rows.shape[1] < 2 or not np.isfinite(rows).all():
        return False
    peaks = np.abs(rows).max(axis=1, initial=0.0)
    alive = peaks > 0
    return bool(alive.any() and np.isfinite(_grid_steps(rows[alive], peaks[alive], 127)).all())


def _best_shrink(rows: NDArray[np.float64], scales: NDArray[np.float64], top: int) -> NDArray[np.float64]:
    best = np.ones(len(rows))
    least = np.full(len(rows), np.inf)
    for shrink in _SHRINKS:
        step = (scales * shrink)[:, None]
        error = ((np.clip(np.round(rows / step), -top, top) * step - rows) ** 2).sum(axis=1)
        better = error < least
        best[better], least[better] = shrink, error[better]
    return best


def bias_floors(bias: NDArray[np.float32], input_scale: float) -> NDArray[np.float64]:
    """Return the smallest weight scale of each channel with which the bias still fits the accumulator.

    A channel of tiny weights has a tiny scale; its bias divided by input scale times weight scale then overflows int32.
    """
    return np.abs(bias.astype(np.float64)) / (_BIAS_LIMIT * input_scale)


def quantize_bias(bias: NDArray[np.float32], input_scale: float, weight_scales: NDArray[np.float32]) -> QuantizedBias:
    """Quantize a bias at the scale that integer kernels assume: input scale times weight scale, zero point 0."""
    scales = (np.float32(input_scale) * weight_scales).astype(np.float32)
    scales = np.maximum(scales, np.finfo(np.float32).tiny)
    levels = np.clip(np.round(bias.astype(np.float64) / scales), -(2.0**31 - 1), 2.0**31 - 1)
    return QuantizedBias(levels.astype(np.int32), scales)


def _along(scales: NDArray[np.float32], rank: int, axis: int) -> NDArray[np.float32]:
    shape = [1] * rank
    shape[axis] = -1
    return scales.reshape(shape)
