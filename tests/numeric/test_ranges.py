from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from onnxcomp.numeric.histogram import Histogram
from onnxcomp.numeric.ranges import METHODS, Method, choose_range, expected_error, weight_scale

floats = st.floats(-100, 100, width=32)
samples = arrays(np.float32, st.integers(1, 200), elements=floats)


def histogram_of(values: NDArray[np.generic]) -> Histogram:
    histogram = Histogram()
    histogram.add(values)
    return histogram


def quantization_error(values: NDArray[Any], low: float, high: float, levels: int = 256) -> float:
    scale = (high - low) / (levels - 1)
    zero = round(-low / scale)
    codes = np.clip(np.rint(values / scale) + zero, 0, levels - 1)
    return float(np.mean((values - scale * (codes - zero)) ** 2))


def normal(size: int = 100_000, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


@given(samples, st.sampled_from(METHODS), st.booleans())
def test_ranges_hold_zero_and_stay_inside_the_values(values: NDArray[np.float32], method: Method, mirror: bool) -> None:
    levels = 255 if mirror else 256
    chosen = choose_range(histogram_of(values), method, symmetric=mirror, levels=levels)
    assert chosen.low <= 0 <= chosen.high
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if mirror:
        assert chosen.low == pytest.approx(-chosen.high, rel=1e-9)
        low, high = -max(-low, high), max(-low, high)
    step = (chosen.high - chosen.low) / (levels - 1)
    # mse() returns ends that lie on the grid: they may stick out by half a step.
    assert low - 0.51 * step <= chosen.low
    assert chosen.high <= high + 0.51 * step
    assert all(not math.isnan(float(fact)) for fact in chosen.facts.values())


@given(samples)
def test_minmax_is_exact(values: NDArray[np.float32]) -> None:
    chosen = choose_range(histogram_of(values), "minmax")
    assert (chosen.low, chosen.high) == (min(float(values.min()), 0.0), max(float(values.max()), 0.0))


@given(samples, st.floats(50, 100))
def test_percentile_leaves_out_no_more_than_it_may(values: NDArray[np.float32], percent: float) -> None:
    histogram = histogram_of(values)
    chosen = choose_range(histogram, "percentile", percent=percent)
    width = 2.0**histogram.exponent
    cut = (1 - percent / 100) / 2 * values.size
    # The quantile is exact up to the bin it lies in.
    assert np.count_nonzero(values < chosen.low - width) <= cut + 1e-6
    assert np.count_nonzero(values > chosen.high + width) <= cut + 1e-6
    full = choose_range(histogram, "minmax")
    assert full.low <= chosen.low
    assert chosen.high <= full.high


def test_percentile_of_a_normal_distribution() -> None:
    chosen = choose_range(histogram_of(normal(400_000)), "percentile", percent=99.0)
    assert chosen.low == pytest.approx(-2.576, abs=0.04)
    assert chosen.high == pytest.approx(2.576, abs=0.04)
    assert chosen.facts["clipped"] == pytest.approx(0.01, rel=0.02)


def test_percentile_counts_zeros() -> None:
    values = np.concatenate([np.zeros(9_990), np.linspace(1, 2, 10)]).astype(np.float32)
    assert choose_range(histogram_of(values), "percentile", percent=99.0).high == 0.0


@given(samples, st.booleans())
def test_mse_is_never_worse_than_minmax(values: NDArray[np.float32], symmetric: bool) -> None:
    assume(np.any(values != 0))
    levels = 255 if symmetric else 256
    histogram = histogram_of(values)
    best = choose_range(histogram, "mse", symmetric=symmetric, levels=levels)
    full = choose_range(histogram, "minmax", symmetric=symmetric, levels=levels)
    error = expected_error(histogram, best.low, best.high, levels=levels)
    assert error <= expected_error(histogram, full.low, full.high, levels=levels) * (1 + 1e-9) + 1e-30


@pytest.mark.parametrize("levels", [16, 256])
@pytest.mark.parametrize("shape", ["normal", "relu", "silu", "laplace"])
def test_expected_error_is_the_measured_one(shape: str, levels: int) -> None:
    x = normal()
    values = {
        "normal": x,
        "relu": np.maximum(x, 0),
        "silu": x / (1 + np.exp(-x)),
        "laplace": np.random.default_rng(1).laplace(size=100_000).astype(np.float32),
    }[shape]
    histogram = histogram_of(values)
    for ratio in (1.0, 0.6, 0.3):
        low, high = ratio * min(float(values.min()), 0.0), ratio * float(values.max())
        measured = quantization_error(values, low, high, levels)
        assert expected_error(histogram, low, high, levels=levels) == pytest.approx(measured, rel=0.03)


def test_mse_finds_the_known_optimum_of_a_normal_distribution() -> None:
    # Uniform quantizer of 15 levels for N(0, 1): the integral of the error is least, 0.01289, at a step of 0.353.
    values = np.concatenate([normal(200_000), -normal(200_000)])
    chosen = choose_range(histogram_of(values), "mse", levels=15, symmetric=True)
    assert chosen.high / 7 == pytest.approx(0.353, abs=0.003)
    assert quantization_error(values, chosen.low, chosen.high, 15) == pytest.approx(0.01289, rel=0.02)


def test_mse_clips_an_outlier_at_4_bits_and_keeps_it_at_8() -> None:
    values = np.append(normal(), np.float32(40.0))
    four = choose_range(histogram_of(values), "mse", levels=16)
    assert four.high < 6
    assert choose_range(histogram_of(values), "mse").high > four.high


def test_mse_result_is_its_own_grid() -> None:
    chosen = choose_range(histogram_of(normal()), "mse")
    scale = (chosen.high - chosen.low) / 255
    assert -chosen.low / scale == pytest.approx(round(-chosen.low / scale), abs=1e-9)


def test_entropy_clips_a_long_tail_but_not_a_short_one() -> None:
    uniform = np.random.default_rng(0).uniform(0, 1, 100_000).astype(np.float32)
    assert choose_range(histogram_of(uniform), "entropy").high > 0.97
    tail = np.append(np.abs(normal()), np.float32(30.0))
    assert choose_range(histogram_of(tail), "entropy").high < 15
    relu = choose_range(histogram_of(np.maximum(normal(), 0)), "entropy")
    assert relu.low == 0
    assert 3 < relu.high <= 4.8


@given(arrays(np.float32, st.integers(200, 400), elements=floats), st.sampled_from(METHODS), st.integers(-20, 20))
def test_ranges_scale_with_the_values(values: NDArray[np.float32], method: Method, power: int) -> None:
    assume(np.all((values == 0) | (np.abs(values) > 1e-20)))
    factor = 2.0**power
    plain = choose_range(histogram_of(values), method)
    scaled = choose_range(histogram_of(values * np.float32(factor)), method)
    assert scaled.low == pytest.approx(plain.low * factor, rel=1e-9)
    assert scaled.high == pytest.approx(plain.high * factor, rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_scaling_by_any_factor_moves_the_range_by_little(method: Method) -> None:
    plain = choose_range(histogram_of(normal()), method)
    scaled = choose_range(histogram_of(normal() * np.float32(2.7)), method)
    assert scaled.high == pytest.approx(2.7 * plain.high, rel=0.05)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("constant", [-3.0, 0.0, 0.1, 4.0])
def test_constant_tensors(method: Method, constant: float) -> None:
    histogram = histogram_of(np.full(50, constant, np.float32))
    chosen = choose_range(histogram, method)
    exact = float(np.float32(constant))
    assert (chosen.low, chosen.high) == pytest.approx((min(exact, 0.0), max(exact, 0.0)), rel=1e-6)
    if constant:
        assert expected_error(histogram, chosen.low, chosen.high) < 1e-12


def test_an_empty_histogram_has_no_range() -> None:
    with pytest.raises(ValueError, match="empty"):
        choose_range(Histogram(), "minmax")


def test_facts_are_those_of_the_values() -> None:
    values = np.maximum(normal(), 0)
    chosen = choose_range(histogram_of(values), "mse")
    assert chosen.facts["zeros"] == pytest.approx(np.mean(values == 0))
    assert chosen.facts["max"] == float(values.max())
    measured = 10 * math.log10(float(np.mean(values**2)) / quantization_error(values, chosen.low, chosen.high))
    assert chosen.facts["sqnr_db"] == pytest.approx(measured, abs=0.1)


weights = arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 20)), elements=st.floats(-8, 8, width=16))


@given(weights, st.sampled_from([4, 8]))
def test_weight_scales_are_positive_and_mse_is_never_worse(weight: NDArray[np.float32], bits: int) -> None:
    top = 2 ** (bits - 1) - 1

    def errors(scale: NDArray[np.float64]) -> NDArray[np.float64]:
        codes = np.clip(np.rint(weight / scale[:, None]), -top, top)
        result: NDArray[np.float64] = np.sum((codes * scale[:, None] - weight) ** 2, axis=1)
        return result

    widest, best = weight_scale(weight, 0, "max", bits), weight_scale(weight, 0, "mse", bits)
    assert np.all(widest > 0)
    assert np.all(best > 0)
    peak = np.abs(weight).max(axis=1)
    np.testing.assert_allclose(widest[peak > 0], peak[peak > 0] / top)
    assert np.all(errors(best) <= errors(widest) * (1 + 1e-4) + 1e-9)


def test_weight_scale_along_an_axis_or_for_the_whole() -> None:
    weight = normal(2 * 3 * 5).reshape(2, 3, 5)
    np.testing.assert_allclose(weight_scale(weight, 1), np.abs(weight).max(axis=(0, 2)) / 127)
    np.testing.assert_allclose(weight_scale(weight, None), [np.abs(weight).max() / 127])


def test_zero_channels_take_the_largest_scale() -> None:
    weight = np.array([[1.0, -2.0], [0.0, 0.0], [4.0, 0.0]], np.float32)
    np.testing.assert_allclose(weight_scale(weight, 0), np.array([2, 4, 4]) / 127)
    np.testing.assert_array_equal(weight_scale(np.zeros((2, 3), np.float32), 0), [1.0, 1.0])


def test_mse_weight_scale_halves_the_error_of_a_heavy_tail_at_4_bits() -> None:
    weight = np.random.default_rng(0).standard_t(4, size=(8, 2000)).astype(np.float32)

    def error(scale: NDArray[np.float64]) -> float:
        step = scale[:, None]
        return float(np.sum((np.clip(np.rint(weight / step), -7, 7) * step - weight) ** 2))

    assert error(weight_scale(weight, 0, "mse", 4)) < 0.5 * error(weight_scale(weight, 0, "max", 4))


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        weight_scale(np.array([[1.0, np.nan]]), 0)
