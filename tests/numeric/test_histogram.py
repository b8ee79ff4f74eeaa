from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from onnxcomp.numeric.histogram import BINS, Histogram

# Subnormal numbers next to large ones underflow to the bins at zero.
floats = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
batches = st.lists(arrays(np.float32, st.integers(0, 40), elements=floats), min_size=1, max_size=6)


def histogram_of(*parts: NDArray[np.generic]) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


@given(batches)
def test_extremes_zeros_and_mass_are_exact(parts: list[NDArray[np.float32]]) -> None:
    values = np.concatenate(parts)
    histogram = histogram_of(*parts)
    assert histogram.total == values.size
    assert histogram.zeros == np.count_nonzero(values == 0)
    assert histogram.counts.sum() == np.count_nonzero(values)
    if values.size:
        assert (histogram.low, histogram.high) == (values.min(), values.max())


@given(batches, st.randoms())
def test_order_and_split_do_not_matter(parts: list[NDArray[np.float32]], random: object) -> None:
    whole = histogram_of(np.concatenate(parts))
    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    streamed = histogram_of(*shuffled)
    merged = Histogram()
    for part in reversed(shuffled):
        merged.merge(histogram_of(part))
    for other in (streamed, merged):
        assert other.exponent == whole.exponent
        np.testing.assert_array_equal(other.counts, whole.counts)
        assert (other.low, other.high, other.zeros, other.total) == (whole.low, whole.high, whole.zeros, whole.total)


@given(arrays(np.float32, st.integers(1, 60), elements=floats))
def test_every_value_lies_in_a_bin_that_counts_it(values: NDArray[np.float32]) -> None:
    histogram = histogram_of(values)
    width = 2.0**histogram.exponent
    expected = np.zeros(2 * BINS)
    for value in values[values != 0].astype(np.float64):
        expected[BINS + math.floor(value / width)] += 1
    np.testing.assert_array_equal(histogram.counts, expected)


@given(arrays(np.float32, st.integers(1, 60), elements=st.floats(1.0, 1e6, width=32)))
def test_at_least_half_of_the_longer_side_is_in_use(values: NDArray[np.float32]) -> None:
    histogram = histogram_of(values)
    assert np.flatnonzero(histogram.counts).max() >= BINS + BINS // 2 - 1


@given(arrays(np.float32, st.integers(1, 60), elements=floats))
def test_bins_are_ascending_and_end_at_the_extremes(values: NDArray[np.float32]) -> None:
    histogram = histogram_of(values)
    edges, mass = histogram.bins()
    assert len(edges) == len(mass) + 1
    assert np.all(np.diff(edges) >= 0)
    if mass.size:
        assert edges[0] >= histogram.low
        assert edges[-1] <= histogram.high


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, np.uint8])
def test_any_real_dtype_counts_alike(dtype: type[np.generic]) -> None:
    values = np.array([0, 1, 2, 3, 60, 100]).astype(dtype)
    np.testing.assert_array_equal(histogram_of(values).counts, histogram_of(values.astype(np.float32)).counts)


@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-30, 1.0, 1e30, 3e38])
def test_extreme_magnitudes(scale: float) -> None:
    values = np.array([-1, -0.5, 0, 0.25, 1], np.float32) * np.float32(scale)
    histogram = histogram_of(values)
    assert histogram.counts.sum() == np.count_nonzero(values)
    assert histogram.high == float(values.max())


@pytest.mark.parametrize(("bad", "word"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_nan_and_infinity_are_refused_and_leave_nothing_behind(bad: float, word: str) -> None:
    histogram = histogram_of(np.array([1.0]))
    with pytest.raises(ValueError, match=word):
        histogram.add(np.array([2.0, bad], np.float32))
    assert (histogram.total, histogram.high) == (1, 1.0)


def test_large_arrays_are_sampled_without_aliasing_but_extremes_stay_exact() -> None:
    # Columns have different values; a stride that divides the width would see only some of them.
    values = np.tile(np.arange(1, 65, dtype=np.float32), (64, 100, 1)).reshape(64, 100, 64)
    values[63, 99, 1] = 1000.0
    histogram = Histogram()
    histogram.add(values, sample=10_000, offset=3)
    assert histogram.high == 1000.0
    assert histogram.total == pytest.approx(values.size)
    edges, mass = histogram.bins()
    mean = float(mass @ (edges[1:] + edges[:-1]) / 2) / histogram.total
    assert mean == pytest.approx(float(values.mean()), rel=0.02)


def test_sampling_is_the_same_at_every_run() -> None:
    values = np.random.default_rng(0).normal(size=50_000).astype(np.float32)
    first, second = Histogram(), Histogram()
    for histogram in (first, second):
        histogram.add(values, sample=1000, offset=7)
    np.testing.assert_array_equal(first.counts, second.counts)
