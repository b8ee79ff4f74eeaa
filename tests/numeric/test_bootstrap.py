from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import t as student

from onnxcomp.numeric.bootstrap import block_length, median_errors, median_interval

FINITE = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 3))
SERIES = st.lists(FINITE, min_size=1, max_size=40).map(np.array)


@settings(max_examples=40, deadline=None)
@given(SERIES, st.integers(0, 5))
def test_the_interval_holds_the_median_and_lies_among_the_values(values: NDArray[np.float64], seed: int) -> None:
    found = median_interval(values, seed=seed, resamples=100)
    assert found.median == np.median(values)
    assert values.min() <= found.low <= found.median <= found.high <= values.max()


@settings(max_examples=30, deadline=None)
@given(SERIES, st.sampled_from([0.25, 4.0, 1024.0]))
def test_the_interval_scales_with_the_values(values: NDArray[np.float64], scale: float) -> None:
    one, other = median_interval(values, resamples=100), median_interval(scale * values, resamples=100)
    assert (other.median, other.low, other.high) == pytest.approx(
        (scale * one.median, scale * one.low, scale * one.high)
    )


def noise(rng: np.random.Generator, count: int, correlation: float) -> NDArray[np.float64]:
    """A first-order autoregressive series around 1."""
    shocks = rng.standard_normal(count + 50)
    values = np.zeros(count + 50)
    for i in range(1, count + 50):
        values[i] = correlation * values[i - 1] + shocks[i]
    return 1 + values[50:]


@pytest.mark.parametrize(
    ("count", "correlation", "least"),
    [(12, 0.0, 0.90), (60, 0.0, 0.91), (60, 0.5, 0.86), (200, 0.5, 0.89)],
)
def test_intervals_hold_the_true_median_about_as_often_as_they_say(
    count: int, correlation: float, least: float
) -> None:
    rng = np.random.default_rng(1)
    runs = [median_interval(noise(rng, count, correlation), resamples=200, seed=k) for k in range(200)]
    held = np.mean([run.low <= 1 <= run.high for run in runs])
    assert least <= held <= 0.995


def test_series_that_differ_widen_the_interval_to_what_a_further_one_would_give() -> None:
    rng = np.random.default_rng(2)
    held = 0
    series = [np.empty(0)]
    for k in range(100):
        series = [rng.normal(level, 0.01, 20) for level in rng.normal(1, 0.05, 5)]
        found = median_interval(series, resamples=200, seed=k)
        held += found.low <= 1 <= found.high
    assert held >= 88
    joined = median_interval(np.concatenate(series), resamples=200)
    assert median_interval(series, resamples=200).width > joined.width / 2


def test_series_of_unequal_length_all_count() -> None:
    found = median_interval([np.full(30, 1.0), np.full(6, 2.0)])
    assert (found.low, found.median, found.high) == (1.0, 1.0, 2.0)
    swapped = median_interval([np.full(6, 2.0), np.full(30, 1.0)])
    assert (swapped.low, swapped.median, swapped.high) == (1.0, 1.0, 2.0)


def test_a_seed_gives_the_same_interval_again() -> None:
    values = np.random.default_rng(3).normal(size=50)
    assert median_interval(values, seed=1) == median_interval(values, seed=1)


def test_a_stricter_level_gives_a_wider_interval() -> None:
    values = np.random.default_rng(4).normal(5, 1, 80)
    assert median_interval(values, level=0.99).width > median_interval(values, level=0.8).width


def test_degenerate_series() -> None:
    one = median_interval(np.array([3.0]))
    assert (one.low, one.median, one.high, one.width) == (3.0, 3.0, 3.0, 0.0)
    same = median_interval(np.full(30, 7.0))
    assert (same.low, same.high) == (7.0, 7.0)
    assert median_interval(np.arange(-9.0, 10.0)).width == np.inf
    with pytest.raises(ValueError, match="no values"):
        median_interval([])
    for bad in ([], [1.0, np.nan], [np.inf]):
        with pytest.raises(ValueError, match=r"no values|NaN or Inf"):
            median_interval(np.array(bad))
    with pytest.raises(ValueError, match="level"):
        median_interval(np.ones(3), level=1.0)


def test_errors_of_many_quantities_are_those_of_each() -> None:
    rng = np.random.default_rng(5)
    rows = np.stack([rng.normal(1, 0.1, 120), rng.normal(2, 0.4, 120), np.full(120, 3.0)])
    medians, errors, freedom = median_errors([rows])
    assert medians == pytest.approx(np.median(rows, axis=1))
    # The median of n normal values has the standard error 1.2533 sigma / sqrt(n).
    assert errors[:2] == pytest.approx([0.1 * 1.2533 / 120**0.5, 0.4 * 1.2533 / 120**0.5], rel=0.5)
    assert errors[2] == 0.0
    one = median_interval(rows[0])
    reach = student.ppf(0.975, freedom[0]) * errors[0]
    assert one.high - one.low == pytest.approx(2 * reach, rel=0.4)


def test_errors_count_what_differs_between_the_series() -> None:
    rng = np.random.default_rng(6)
    apart = [rng.normal([[level], [1.0]], 0.01, (2, 30)) for level in (0.9, 1.0, 1.1)]
    _, errors, freedom = median_errors(apart)
    assert errors[0] > 5 * errors[1]
    assert freedom[0] == pytest.approx(2, abs=0.5)
    assert freedom[1] > freedom[0]


def test_blocks_grow_with_the_cube_root_and_stay_a_quarter_of_the_series() -> None:
    assert [block_length(n) for n in (1, 3, 8, 32, 64, 1000)] == [1, 1, 2, 7, 8, 20]
