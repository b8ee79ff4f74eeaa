from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.numeric.moments import Moments, predicted_error
from onnxcomp.numeric.refit import Effort, Refit, best_grid, grids, refit
from onnxcomp.numeric.rounding import dequantized, nearest, output_error

Float = NDArray[np.float64]

seeds = st.integers(0, 2**32 - 1)
sizes = st.tuples(st.integers(1, 6), st.integers(1, 20))
widths = st.integers(2, 8)
PLAIN = Effort(ridge=0.0)


def _moments(x: Float, y: Float) -> Moments:
    n = len(x)
    return Moments(x.T @ x / n, x.mean(0), n, y.T @ x / n, y.mean(0), np.square(y).mean(0))


def _inputs(rng: np.random.Generator, d: int) -> Float:
    return rng.standard_normal((6 * d + 8, d)) @ rng.standard_normal((d, d)) + rng.standard_normal(d)


def _layer(seed: int, size: tuple[int, int]) -> tuple[Float, Float, Float]:
    """Inputs, a weight, and a scale for each row that clips a little."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(size) * rng.uniform(0.01, 2.0, (size[0], 1))
    return _inputs(rng, size[1]), weight, rng.uniform(0.6, 1.2, size[0]) * np.abs(weight).max(axis=1)


def _error(x: Float, y: Float, result: Refit) -> Float:
    """The mean squared error of each output, from the samples themselves."""
    weight = dequantized(result.codes, result.scales)
    squares: Float = np.square(x @ weight.T + result.bias - y).mean(axis=0)
    return squares


def _plain_error(x: Float, y: Float, weight: Float) -> Float:
    """Likewise with the bias that suits the weight best."""
    rest = x @ weight.T - y
    errors: Float = rest.var(axis=0)
    return errors


@given(seeds, sizes, widths)
def test_never_worse_than_rounding_to_nearest_with_the_best_bias(seed: int, size: tuple[int, int], bits: int) -> None:
    x, weight, peaks = _layer(seed, size)
    levels = grids(bits)[0]
    scales = peaks / levels[-1]
    y = x @ weight.T + 0.7
    result = refit(_moments(x, y), weight, (levels,), Effort(), scales=scales)
    plain = nearest(weight / scales[:, None], levels) * scales[:, None]
    assert (_error(x, y, result) <= _plain_error(x, y, plain) * (1 + 1e-6) + 1e-6 * y.var(axis=0)).all()
    np.testing.assert_array_equal(result.scales, scales)


@given(seeds, sizes)
def test_what_came_before_is_made_up_for(seed: int, size: tuple[int, int]) -> None:
    """Inputs that a prefix has distorted: 8 bits of the fitted weight beat the original weight in floating point."""
    x, weight, _ = _layer(seed, size)
    y = x @ weight.T
    got = x * np.random.default_rng(seed).uniform(0.5, 0.8, size[1]) + 0.3
    result = refit(_moments(got, y), weight, grids(8), PLAIN)
    assert (_error(got, y, result) < 0.5 * _plain_error(got, y, weight) + 1e-6 * y.var(axis=0)).all()


@given(seeds, sizes, widths)
def test_the_error_that_it_tells_is_that_of_the_samples(seed: int, size: tuple[int, int], bits: int) -> None:
    x, weight, _ = _layer(seed, size)
    y = np.abs(x @ weight.T)
    result = refit(_moments(x, y), weight, grids(bits), Effort())
    np.testing.assert_allclose(result.error, _error(x, y, result), rtol=1e-3, atol=1e-6 * float(np.square(y).mean()))
    np.testing.assert_allclose(result.power, y.var(axis=0), rtol=1e-6, atol=1e-9 * float(np.square(y).mean()))
    told = predicted_error(dequantized(result.codes, result.scales), result.bias, _moments(x, y))
    assert told == pytest.approx(result.error.sum() / result.power.sum(), rel=1e-3, abs=1e-6)


def test_without_a_bias_the_means_count() -> None:
    x, weight, _ = _layer(3, (4, 6))
    y = x @ weight.T
    result = refit(_moments(x, y), weight, grids(4), Effort(), biased=False)
    assert not result.bias.any()
    np.testing.assert_allclose(result.error, _error(x, y, result), rtol=1e-4)
    spoiled = refit(_moments(x, y), weight, grids(4), Effort())
    rest = np.square(x @ dequantized(spoiled.codes, spoiled.scales).T - y).mean(axis=0)
    assert result.error.sum() < rest.sum()  # fitted to the variances alone, the means would be missed


@given(seeds, sizes, widths)
def test_inputs_that_never_change_keep_the_weight(seed: int, size: tuple[int, int], bits: int) -> None:
    """All that counts there is the bias; the weight is rounded for what may come."""
    _, weight, peaks = _layer(seed, size)
    levels = grids(bits)[0]
    scales = peaks / levels[-1]
    x = np.tile(np.random.default_rng(seed).standard_normal(size[1]), (32, 1))
    y = np.tile(x[:1] @ weight.T + 1.5, (32, 1))
    result = refit(_moments(x, y), weight, (levels,), Effort(), scales=scales)
    np.testing.assert_array_equal(result.codes, nearest(weight / scales[:, None], levels))
    np.testing.assert_allclose(x @ dequantized(result.codes, result.scales).T + result.bias, y, atol=1e-5)


def test_a_dead_input_keeps_its_column_of_the_weight() -> None:
    x, weight, peaks = _layer(5, (4, 8))
    x[:, 2] = 0.0
    scales = peaks / 127
    result = refit(_moments(x, x @ weight.T), weight, grids(8), Effort(), scales=scales)
    step = np.abs(dequantized(result.codes, scales)[:, 2] - weight[:, 2])
    clipped = np.abs(weight[:, 2]) > peaks
    assert (step[~clipped] <= scales[~clipped] / 2 + 1e-9).all()


def test_grids_below_four_bits_have_a_mirror_image() -> None:
    assert [levels.tolist() for levels in grids(2)] == [[-2, -1, 0, 1], [-1, 0, 1, 2]]
    assert [levels.tolist() for levels in grids(3)] == [list(range(-4, 4)), list(range(-3, 5))]
    assert [len(levels) for levels in grids(4)] == [15] and [len(levels) for levels in grids(8)] == [255]


@given(seeds, sizes, st.integers(2, 3))
def test_each_row_takes_the_better_of_a_grid_and_its_mirror(seed: int, size: tuple[int, int], bits: int) -> None:
    x, weight, _ = _layer(seed, size)
    moments = _moments(x, x @ weight.T)
    both = refit(moments, weight, grids(bits), Effort(ridge=0.0))
    single = [refit(moments, weight, (levels,), Effort(ridge=0.0)) for levels in grids(bits)]
    assert (both.error <= np.minimum(single[0].error, single[1].error) + 1e-6 * both.power).all()


def test_a_row_and_its_mirror_image_choose_mirrored_grids() -> None:
    row = np.array([-2.0, -1.0, 0.0, 1.0, 1.0, -2.0])
    x = np.random.default_rng(0).standard_normal((64, 6))
    weight = np.stack([row, -row])
    result = refit(_moments(x, x @ weight.T), weight, grids(2), PLAIN)
    assert result.codes.tolist() == [row.tolist(), (-row).tolist()]
    np.testing.assert_allclose(result.scales, 1.0)


@given(seeds, sizes)
def test_the_better_grid_of_each_row(seed: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    target, options = rng.standard_normal(size), (np.array([-2.0, -1, 0, 1]), np.array([-1.0, 0, 1, 2]))
    inputs = _inputs(rng, size[1])
    gram = inputs.T @ inputs

    def rounded(levels: Float) -> tuple[Float, Float]:
        return nearest(target, levels), np.ones(len(target))

    for own, measured in ((None, np.eye(size[1])), (gram, gram)):
        codes, scales = best_grid(options, target, rounded, own)
        errors = [output_error(*rounded(levels), target, measured) for levels in options]
        np.testing.assert_allclose(output_error(codes, scales, target, measured), np.minimum(*errors), rtol=1e-9)
