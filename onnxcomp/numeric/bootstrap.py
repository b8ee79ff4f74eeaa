"""Intervals of the median of a series whose neighbours resemble each other, as times measured one after the other do.

The moving-block bootstrap (Kuensch, The jackknife and the bootstrap for general stationary observations, Annals of
Statistics 17, 1989) draws whole stretches of the series, so that what neighbours share stays in the resample; drawn
one by one, values that drift together would promise an interval far too narrow. The stretches grow with the cube root
of the length (Hall, Horowitz and Jing, On blocking rules for the bootstrap with dependent data, Biometrika 82, 1995).

Where a few series were measured under conditions that differ from one to the next, such as newly opened sessions whose
memory lies elsewhere, series are drawn first and stretches within them second (Davison and Hinkley, Bootstrap Methods
and their Application, section 3.8): the interval then says what a further series would give.

A bootstrap of few units is too narrow. The percentiles are therefore moved away from the median by Student's t over
the normal quantile, with the degrees of freedom of the blocks, or of series and blocks together (Satterthwaite,
Biometrics Bulletin 2, 1946).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

__all__ = ["Interval", "block_length", "median_errors", "median_interval"]

Float = NDArray[np.float64]

_RESAMPLES = 1000
# Two cube roots: of 1, 1.5, 2 and 3 the one whose intervals held the median most nearly as often as they say, for
# independent values and for neighbours that correlate by 0.5, at 16 to 200 values.
_BLOCK = 2.0
_CHUNK = 1 << 22  # values resampled at a time, 32 MB


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and the interval that holds it.

    Attributes:
        median: Of all values.
        low: Lower end.
        high: Upper end.
    """

    median: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Width as a share of the median; infinite where the median is 0 and the interval is not."""
        extent = self.high - self.low
        if self.median:
            return extent / abs(self.median)
        return math.inf if extent else 0.0


def block_length(count: int) -> int:
    """Return how many neighbours are drawn together of a series of `count` values; never more than a quarter of it."""
    return max(1, min(math.ceil(_BLOCK * math.cbrt(count)), count // 4))


def median_interval(
    series: Float | Sequence[Float], *, level: float = 0.95, resamples: int = _RESAMPLES, seed: int = 0
) -> Interval:
    """Return the median of one or several series with the percentile interval of the moving-block bootstrap.

    Args:
        series: float [n], values in the order in which they were measured; or several of these, each measured under
            conditions of its own.
        level: Probability that the interval holds the median, between 0 and 1.
        resamples: Number of resamples.
        seed: Seed of the resampling.

    Raises:
        ValueError: There are no values, one is not finite, or `level` is not between 0 and 1.
    """
    groups = _groups(series)
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not between 0 and 1")
    values = np.concatenate(groups)[None]
    lengths = [len(group) for group in groups]
    rng = np.random.default_rng(seed)
    medians = _medians(values, *_draw(lengths, resamples, rng, regroup=True))[0]
    within = _medians(values, *_draw(lengths, resamples, rng, regroup=False))[0] if len(lengths) > 1 else medians
    stretch = _stretch(float(medians.var()), float(within.var()), lengths, level)
    middle = float(np.median(values))
    low, high = (float(end) for end in np.quantile(medians, [(1 - level) / 2, (1 + level) / 2]))
    # Beyond the values themselves no median lies.
    low = max(middle - stretch * max(middle - low, 0.0), float(values.min()))
    high = min(middle + stretch * max(high - middle, 0.0), float(values.max()))
    return Interval(middle, min(low, middle), max(high, middle))


def median_errors(series: Sequence[Float], *, resamples: int = 400, seed: int = 0) -> tuple[Float, Float, Float]:
    """Return the medians of many quantities measured together, their standard errors and the degrees of freedom.

    The same stretches are drawn for all quantities. A bound at any level, such as one corrected for the number of
    quantities, is the median less Student's quantile times the error; percentiles of a thousand resamples end at 0.1 %.

    Args:
        series: float [quantities, n] each, one array for each condition that they were measured under.
        resamples: Number of resamples.
        seed: Seed of the resampling.

    Returns:
        Three arrays float [quantities].

    Raises:
        ValueError: There are no values, one is not finite, or the series differ in the number of quantities.
    """
    values = np.concatenate([np.asarray(group, np.float64) for group in series], axis=1)
    _check(values)
    lengths = [group.shape[1] for group in series if group.shape[1]]
    rng = np.random.default_rng(seed)
    medians = _medians(values, *_draw(lengths, resamples, rng, regroup=True))
    total = medians.var(axis=1)
    within = total
    if len(lengths) > 1:
        within = _medians(values, *_draw(lengths, resamples, rng, regroup=False)).var(axis=1)
    freedom = _freedom(total, within, lengths)
    return np.median(values, axis=1), np.sqrt(total * (freedom + 1) / freedom), freedom


def _groups(series: Float | Sequence[Float]) -> list[Float]:
    given = [series] if isinstance(series, np.ndarray) else list(series)
    groups = [np.asarray(group, np.float64).ravel() for group in given]
    groups = [group for group in groups if group.size]
    _check(np.concatenate(groups) if groups else np.empty(0))
    return groups


def _check(values: Float) -> None:
    if not values.size:
        raise ValueError("there are no values to take the median of")
    if not np.isfinite(values).all():
        raise ValueError("the values hold NaN or Inf")


def _draw(
    lengths: Sequence[int], resamples: int, rng: np.random.Generator, *, regroup: bool
) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None]:
    """Return positions in the joined series, int64 [resamples, width], and which of them count (None: all)."""
    widest = max(lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    chosen = np.tile(np.arange(len(lengths)), (resamples, 1))
    if regroup and len(lengths) > 1:
        chosen = rng.integers(0, len(lengths), chosen.shape)
    positions = np.empty((resamples, len(lengths), widest), np.int64)
    for group, length in enumerate(lengths):
        block = block_length(length)
        picked = rng.integers(0, length - block + 1, (*chosen.shape, -(-length // block)))
        stretch = (picked[..., None] + np.arange(block)).reshape(*chosen.shape, -1)[..., :length]
        filled = np.pad(stretch, ((0, 0), (0, 0), (0, widest - length)))
        positions = np.where((chosen == group)[..., None], filled + starts[group], positions)
    flat = positions.reshape(resamples, -1)
    if min(lengths) == widest:
        return flat, None
    counts = np.asarray(lengths)[chosen][..., None] > np.arange(widest)
    return flat, counts.reshape(resamples, -1)


def _medians(values: Float, positions: NDArray[np.int64], counts: NDArray[np.bool_] | None) -> Float:
    """Return the median of every resample of every row: float [rows, resamples]."""
    rows = max(1, _CHUNK // positions.size)
    parts: list[Float] = []
    for start in range(0, len(values), rows):
        drawn = values[start : start + rows][:, positions]
        if counts is None:
            parts.append(np.median(drawn, axis=2))
            continue
        # What does not count sorts behind everything else.
        drawn = np.sort(np.where(counts, drawn, np.inf), axis=2)
        number = counts.sum(axis=1)
        places = np.stack([(number - 1) // 2, number // 2], axis=1)
        parts.append(np.take_along_axis(drawn, np.broadcast_to(places, (len(drawn), *places.shape)), 2).mean(axis=2))
    return np.concatenate(parts)


def _freedom(total: Float, within: Float, lengths: Sequence[int]) -> Float:
    """Degrees of freedom of a variance `total`, of which `within` is that of the blocks and the rest of the series."""
    blocks = max(sum(length / block_length(length) for length in lengths) - 1, 1.0)
    if len(lengths) == 1:
        return np.full(total.shape, blocks)
    own = np.minimum(within, total)
    divisor = (total - own) ** 2 / (len(lengths) - 1) + own**2 / blocks
    result: Float = np.divide(total**2, divisor, out=np.full(total.shape, blocks), where=divisor > 0)
    return result


def _stretch(total: float, within: float, lengths: Sequence[int], level: float) -> float:
    freedom = float(_freedom(np.array([total]), np.array([within]), lengths)[0])
    quantile = (1 + level) / 2
    return float(stdtrit(freedom, quantile) / ndtri(quantile)) * math.sqrt((freedom + 1) / freedom)
