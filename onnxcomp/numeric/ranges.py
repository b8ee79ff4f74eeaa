"""From a tensor's distribution to the range that quantization covers.

An asymmetric grid of `levels` values over [low, high] always holds zero: the scale is s = (high - low) / (levels -
1), the zero point z = round(-low / s), and a value x becomes s (clip(round(x / s) + z, 0, levels - 1) - z).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numeric.histogram import Histogram

__all__ = [
    "METHODS",
    "Method",
    "Range",
    "choose_range",
    "entropy",
    "expected_error",
    "minmax",
    "mse",
    "percentile",
    "weight_scale",
]

Method = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[str, ...] = get_args(Method)

Array = NDArray[np.float64]

# Ratios of a candidate end to the extreme value. Below 1/64 of a heavy tail's extreme nothing useful is left at 8 bits.
_LEAST_RATIO = 1 / 64
_BLOCK = 16_384  # entries of a temporary: 128 KB
_ENTROPY_CANDIDATES = 96
_ENTROPY_SMOOTHING = 1e-4


@dataclass(frozen=True, slots=True)
class Range:
    """What a quantizer covers of one tensor.

    Attributes:
        low: Lower end, 0 or less.
        high: Upper end, 0 or more. ``low == high == 0`` only for a tensor that was zero throughout: any scale is
            right then.
        method: How it was chosen.
        facts: What the report shows: ``min``, ``max``, ``zeros`` and ``clipped`` (fractions), ``sqnr_db`` (expected).
    """

    low: float
    high: float
    method: str
    facts: Mapping[str, float | str] = field(default_factory=dict[str, "float | str"])


def choose_range(
    histogram: Histogram,
    method: Method,
    *,
    percent: float = 99.99,
    levels: int = 256,
    symmetric: bool = False,
) -> Range:
    """Choose the range of a tensor.

    Args:
        histogram: The tensor's values.
        method: The rule.
        percent: For ``percentile``: how much of the mass stays inside, both tails together; 0 to 100.
        levels: Number of quantized values: 256 for asymmetric uint8, 255 for symmetric int8.
        symmetric: low = -high.

    Raises:
        ValueError: The histogram is empty.
    """
    if not histogram.total:
        raise ValueError("an empty histogram has no range")
    if method == "minmax":
        low, high = minmax(histogram, symmetric=symmetric)
    elif method == "percentile":
        low, high = percentile(histogram, percent, symmetric=symmetric)
    elif method == "entropy":
        low, high = entropy(histogram, levels=levels, symmetric=symmetric)
    else:
        low, high = mse(histogram, levels=levels, symmetric=symmetric)
    return Range(low, high, method, _facts(histogram, low, high, levels))


def minmax(histogram: Histogram, *, symmetric: bool = False) -> tuple[float, float]:
    """Return the least range that holds zero and every value."""
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    peak = max(-low, high)
    return (-peak, peak) if symmetric else (low, high)


def percentile(histogram: Histogram, percent: float = 99.99, *, symmetric: bool = False) -> tuple[float, float]:
    """Return the range that leaves out (100 - percent) / 2 percent of the values at each end.

    Linear inside a bin; zero is always inside; never wider than minimum and maximum.
    """
    edges, mass = histogram.bins()
    cut = (1 - percent / 100) / 2 * histogram.total
    if cut <= 0:
        return minmax(histogram, symmetric=symmetric)
    rising = np.concatenate([[0.0], np.cumsum(mass)])
    falling = rising[-1] - rising
    # No bin straddles zero, and the zeros are all at one point: past one sign's mass the quantile is zero itself.
    negative, positive = float(mass[edges[:-1] < 0].sum()), float(mass[edges[1:] > 0].sum())
    low = float(np.interp(cut, rising, edges)) if cut < negative else 0.0
    high = float(np.interp(cut, falling[::-1], edges[::-1])) if cut < positive else 0.0
    peak = max(-low, high)
    return (-peak, peak) if symmetric else (low, high)


def entropy(histogram: Histogram, *, levels: int = 256, symmetric: bool = False) -> tuple[float, float]:
    """Return the range whose quantized distribution diverges least (Kullback-Leibler) from the one it stands for.

    The calibrator of TensorRT (S. Migacz, 8-bit inference with TensorRT, GTC 2017), with as many quantized bins as
    the grid has levels: a threshold t clips the values to [max(low, -t), min(high, t)], the clipped mass goes to the
    outer bins of the reference, and the candidate is the reference without it, averaged over the bins that share a
    level. Zeros are exact on any grid and take no part.
    """
    edges, mass = histogram.bins()
    low, high = minmax(histogram, symmetric=symmetric)
    if not mass.size or mass.size <= levels // 2:
        return low, high
    peak = max(-low, high)
    best, best_divergence = (low, high), math.inf
    for ratio in np.linspace(1.0, 0.1, _ENTROPY_CANDIDATES):
        ends = (max(low, -ratio * peak), min(high, ratio * peak))
        divergence = _divergence(edges, mass, ends, levels)
        if divergence < best_divergence:
            best, best_divergence = ends, divergence
    return best


def mse(histogram: Histogram, *, levels: int = 256, symmetric: bool = False) -> tuple[float, float]:
    """Return the range of least expected squared error, rounding and clipping together (:func:`expected_error`).

    Both ends are searched, on a geometric grid that is refined around its best point; the full range is among the
    candidates, so that the result is never worse than it.
    """
    low, high = minmax(histogram, symmetric=symmetric)
    if low == high:
        return low, high
    edges, mass = histogram.bins()
    two_sided = low < 0 < high and not symmetric
    full = (low, high)
    grid = np.linspace(math.log(_LEAST_RATIO), 0.0, 17 if two_sided else 65)
    lows, highs = _candidates(full, full, grid, two_sided)
    # Wider bins are enough to find the region, not to tell its points apart.
    k = int(np.argmin(_errors(*_thinned(edges, mass, 8), lows, highs, levels)))
    best = (float(lows[k]), float(highs[k]))
    spread = float(grid[1] - grid[0])
    for _ in range(3):
        lows, highs = _candidates(full, best, np.linspace(-spread, spread, 5), two_sided)
        lows, highs = np.append(lows, low), np.append(highs, high)
        k = int(np.argmin(_errors(edges, mass, lows, highs, levels)))
        best = (float(lows[k]), float(highs[k]))
        spread /= 2.5
    return _on_grid(best[0], best[1], levels)


def expected_error(histogram: Histogram, low: float, high: float, *, levels: int = 256) -> float:
    """Return the mean of (x - dequantize(quantize(x)))**2 over all values, zeros included.

    Exact for a density that is constant inside each bin, clipped values included. ``low <= 0 <= high``, not both 0.
    """
    return float(_errors(*histogram.bins(), np.array([low]), np.array([high]), levels)[0]) / histogram.total


def weight_scale(
    weight: NDArray[Any], axis: int | None = 0, method: Literal["max", "mse"] = "max", bits: int = 8
) -> Array:
    """Return the scales of a symmetric signed quantization, one for each index of `axis`.

    ``max`` is the least scale that clips nothing; ``mse`` the one of least squared error over the channel, searched
    on a grid of 80 ratios from 1 down to 0.2 of it (at 8 bits it gains a little on heavy tails, at 4 bits much).

    Args:
        weight: Any shape, finite.
        axis: The channel axis; None: one scale for all.
        method: The rule.
        bits: 2 to 16; the codes are -(2**(bits - 1) - 1) to 2**(bits - 1) - 1.

    Returns:
        float64 [C], positive. A channel of zeros, on which any scale is exact, gets the largest full-range scale of
        the others (1 where all are zero), so that what depends on the scale - the step of the bias - stays in
        proportion.

    Raises:
        ValueError: A weight is NaN or infinite.
    """
    rows = np.asarray(weight, dtype=np.float64)
    rows = rows.reshape(1, -1) if axis is None else np.moveaxis(rows, axis, 0).reshape(weight.shape[axis], -1)
    if not np.isfinite(rows).all():
        raise ValueError("a weight is NaN or infinite")
    peak = np.abs(rows).max(axis=1, initial=0.0)
    top = 2 ** (bits - 1) - 1
    scale: Array = peak / top
    # Below float32's smallest normal number, the scale itself could not be stored.
    zero = scale < np.finfo(np.float32).tiny
    scale[zero] = scale.max(initial=0.0) if not zero.all() else 1.0
    return _least_squares_scale(rows, scale, top) if method == "mse" else scale


def _least_squares_scale(rows: Array, widest: Array, top: int) -> Array:
    # In units of the full-range scale the codes reach `top`: float32 has digits to spare, and takes half the time.
    units = (rows / widest[:, None]).astype(np.float32)
    best, least = widest.copy(), np.full(len(widest), np.inf)
    for ratio in np.linspace(1.0, 0.2, 80):
        step = np.float32(ratio)
        rest = np.clip(np.rint(units / step), -top, top) * step - units
        error = np.einsum("ij,ij->i", rest, rest)
        better = error < least
        best[better], least[better] = widest[better] * ratio, error[better]
    return best


def _facts(histogram: Histogram, low: float, high: float, levels: int) -> dict[str, float]:
    edges, mass = histogram.bins()
    facts = {"min": histogram.low, "max": histogram.high, "zeros": histogram.zeros / histogram.total}
    if not mass.size or low == high:
        return facts
    rising = np.concatenate([[0.0], np.cumsum(mass)])
    inside = float(np.interp(high, edges, rising)) - float(np.interp(low, edges, rising))
    power = float(mass @ (edges[1:] ** 2 + edges[1:] * edges[:-1] + edges[:-1] ** 2)) / 3
    error = expected_error(histogram, low, high, levels=levels) * histogram.total
    facts["clipped"] = max(0.0, float(rising[-1]) - inside) / histogram.total
    facts["sqnr_db"] = 10 * math.log10(power / error) if power and error else math.inf
    return facts


def _thinned(edges: Array, mass: Array, factor: int) -> tuple[Array, Array]:
    """Return the distribution on bins `factor` times as wide."""
    starts = np.arange(0, mass.size, factor)
    return np.append(edges[:-1][starts], edges[-1]), np.add.reduceat(mass, starts)


def _candidates(
    ends: tuple[float, float], center: tuple[float, float], grid: Array, two_sided: bool
) -> tuple[Array, Array]:
    """Return ranges whose ends are exp(grid) times those of `center`, alone or in all pairs, never beyond `ends`."""
    lower = np.maximum(center[0] * np.exp(grid), ends[0])
    upper = np.minimum(center[1] * np.exp(grid), ends[1])
    if not two_sided:
        return lower, upper
    lows, highs = np.meshgrid(lower, upper, indexing="ij")
    return lows.ravel(), highs.ravel()


def _on_grid(low: float, high: float, levels: int) -> tuple[float, float]:
    """Return the first and last value of the grid over [low, high], so that the same grid comes back from them."""
    scale = (high - low) / (levels - 1)
    zero = round(-low / scale)
    return -zero * scale, (levels - 1 - zero) * scale


def _errors(edges: Array, mass: Array, lows: Array, highs: Array, levels: int) -> Array:
    """Return the summed squared error for each candidate range [k]."""
    if not mass.size:
        return np.zeros(len(lows))
    width = np.diff(edges)
    # The outer bins may be points, or so narrow that a difference of antiderivatives has no digits left.
    narrow = width < 1e-9 * np.abs(edges).max()
    density = np.where(narrow, 0.0, mass / np.where(narrow, 1.0, width))
    points, weights = edges[1:][narrow], mass[narrow]
    # Blocks whose temporaries stay in the cache.
    block = max(1, _BLOCK // edges.size)
    parts = [
        _block_errors(edges, density, points, weights, lows[k : k + block], highs[k : k + block], levels)
        for k in range(0, len(lows), block)
    ]
    return np.concatenate(parts)


def _block_errors(
    edges: Array, density: Array, points: Array, weights: Array, lows: Array, highs: Array, levels: int
) -> Array:
    """Return the summed squared error of the density between the edges and of the weights at the points.

    In units of the scale, with j the nearest level, the error's antiderivative is j / 12 + (u - j)**3 / 3: every full
    cell contributes 1/12, and the cube goes on growing past the last level.
    """
    scale = (highs - lows) / (levels - 1)
    zero = np.rint(-lows / scale)

    def rounded(x: Array) -> tuple[Array, Array]:
        u = np.multiply.outer(1 / scale, x)
        u += zero[:, None]
        level = np.clip(np.rint(u), 0, levels - 1)
        u -= level
        return level, u

    level, rest = rounded(edges)
    antiderivative = rest * rest
    antiderivative *= rest
    antiderivative *= 4
    antiderivative += level
    spread: Array = np.diff(antiderivative, axis=1) @ density
    summed = spread * scale**3 / 12
    if points.size:
        summed += (rounded(points)[1] ** 2 @ weights) * scale**2
    return np.maximum(summed, 0.0)


def _divergence(edges: Array, mass: Array, ends: tuple[float, float], levels: int) -> float:
    """Return KL(reference || quantized) for the values clipped to `ends`."""
    middles = (edges[1:] + edges[:-1]) / 2
    inside = (middles >= ends[0]) & (middles <= ends[1])
    kept = mass[inside]
    if not kept.size:
        return math.inf
    reference = kept.copy()
    reference[0] += float(mass[middles < ends[0]].sum())
    reference[-1] += float(mass[middles > ends[1]].sum())
    position = (middles[inside] - ends[0]) * (levels / (ends[1] - ends[0]))
    level = np.minimum(position.astype(np.intp), levels - 1)
    occupied = kept > 0
    share = np.bincount(level, weights=kept) / np.maximum(np.bincount(level, weights=occupied), 1)
    quantized: Array = np.where(occupied, share[level], 0.0)
    p, q = _smooth(reference), _smooth(quantized)
    return float(np.sum(p * np.log(p / q)))


def _smooth(mass: NDArray[Any]) -> Array:
    """Return the distribution with a little uniform mass mixed in, so that no logarithm is infinite."""
    total = max(float(mass.sum()), np.finfo(np.float64).tiny)
    return (mass / total + _ENTROPY_SMOOTHING / mass.size) / (1 + _ENTROPY_SMOOTHING)
