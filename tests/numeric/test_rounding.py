from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.numeric.rounding import (
    dequantized,
    descend,
    gptq,
    integer_levels,
    least_squares_scale,
    nearest,
    output_error,
    power_levels,
    round_rows,
    search_scale,
)

Float = NDArray[np.float64]

GRIDS = {
    "int8": integer_levels(8),
    "int4": integer_levels(4),
    "int3": integer_levels(3),
    "asymmetric": integer_levels(4, symmetric=False),
    "ternary": np.array([-1.0, 0.0, 1.0]),
    "binary": np.array([-1.0, 1.0]),
    "pow2": power_levels(4),
}
grids = st.sampled_from(sorted(GRIDS))
seeds = st.integers(0, 2**32 - 1)
sizes = st.tuples(st.integers(1, 6), st.integers(1, 24))


def _problem(seed: int, size: tuple[int, int], rank: int | None = None) -> tuple[Float, Float]:
    """A weight and the Gram of inputs that are correlated, and span only `rank` directions if given."""
    rng = np.random.default_rng(seed)
    rows, d = size
    inputs = rng.standard_normal((4 * d, rank or d)) @ rng.standard_normal((rank or d, d))
    return rng.standard_normal((rows, d)) * rng.uniform(0.01, 2.0, (rows, 1)), inputs.T @ inputs / len(inputs)


def _slack(target: Float, gram: Float) -> float:
    return 1e-9 * float(np.einsum("rd,rd->", target @ gram, target)) + 1e-12


def test_levels() -> None:
    assert integer_levels(3).tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert integer_levels(2, symmetric=False).tolist() == [-2, -1, 0, 1]
    assert power_levels(3).tolist() == [-1, -0.5, -0.25, 0, 0.25, 0.5, 1]
    assert len(power_levels(4)) == 15
    for bits in (1, 17):
        with pytest.raises(ValueError, match="bits"):
            integer_levels(bits)
    with pytest.raises(ValueError, match="bits"):
        power_levels(1)


@given(grids, st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_nearest_is_the_closest_level(grid: str, values: list[float]) -> None:
    levels, array = GRIDS[grid], np.array(values)
    chosen = nearest(array, levels)
    assert np.isin(chosen, levels).all()
    best = np.abs(array[:, None] - levels).min(axis=1)
    np.testing.assert_allclose(np.abs(array - chosen), best, atol=1e-9 * np.abs(array).max())


@given(grids, seeds, sizes)
def test_descent_never_raises_the_error(grid: str, seed: int, size: tuple[int, int]) -> None:
    target, gram = _problem(seed, size)
    levels = GRIDS[grid]
    scales = search_scale(target, levels, gram)
    start = nearest(target / scales[:, None], levels)
    result = descend(start, target, scales, levels, gram)
    assert np.isin(result, levels).all()
    before, after = (output_error(c, scales, target, gram) for c in (start, result))
    assert (after <= before + _slack(target, gram)).all()


@given(grids, seeds, sizes)
def test_rounding_is_no_worse_than_to_nearest_with_the_same_scales(grid: str, seed: int, size: tuple[int, int]) -> None:
    target, gram = _problem(seed, size)
    levels = GRIDS[grid]
    scales = search_scale(target, levels, gram)
    codes, kept = round_rows(target, gram, levels, scales=scales)
    np.testing.assert_array_equal(kept, scales)
    plain = nearest(target / scales[:, None], levels)
    ours, theirs = (float(output_error(c, scales, target, gram).sum()) for c in (codes, plain))
    assert ours <= theirs + _slack(target, gram)


def test_rounding_halves_the_error_of_rounding_to_nearest() -> None:
    target, gram = _problem(0, (32, 64))
    for grid in ("int4", "int3", "ternary", "pow2"):
        levels = GRIDS[grid]
        plain_scales = search_scale(target, levels)
        plain = nearest(target / plain_scales[:, None], levels)
        codes, scales = round_rows(target, gram, levels)
        assert (
            output_error(codes, scales, target, gram).sum()
            < 0.5 * output_error(plain, plain_scales, target, gram).sum()
        )


@given(grids, seeds, sizes, st.booleans())
def test_weights_on_the_grid_stay_exact(grid: str, seed: int, size: tuple[int, int], by_block: bool) -> None:
    rng = np.random.default_rng(seed)
    levels = GRIDS[grid]
    rows, d = size
    block = max((b for b in range(1, d) if d % b == 0), default=0) if by_block else 0
    scales = rng.uniform(0.01, 1.0, (rows, d // block) if block else rows)
    wanted = rng.choice(levels, size)
    target = dequantized(wanted, scales)
    gram = _problem(seed, size)[1]
    codes, kept = round_rows(target, gram, levels, scales=scales, block=block)
    np.testing.assert_allclose(dequantized(codes, kept), target, atol=1e-12)
    np.testing.assert_allclose(least_squares_scale(wanted, scales, target, gram), scales, rtol=1e-6)


@given(grids, seeds, sizes)
def test_rows_are_rounded_each_for_itself(grid: str, seed: int, size: tuple[int, int]) -> None:
    target, gram = _problem(seed, size)
    order = np.random.default_rng(seed).permutation(size[0])
    codes, scales = round_rows(target, gram, GRIDS[grid])
    again, others = round_rows(target[order], gram, GRIDS[grid])
    np.testing.assert_allclose(others, scales[order], rtol=1e-9)
    np.testing.assert_allclose(dequantized(again, others), dequantized(codes, scales)[order], rtol=1e-9)


@given(grids, seeds, sizes, st.sampled_from(["zero", "rank one", "dead inputs"]))
def test_singular_grams_and_dead_inputs_give_numbers(grid: str, seed: int, size: tuple[int, int], what: str) -> None:
    target, gram = _problem(seed, size, 1 if what == "rank one" else None)
    if what == "zero":
        gram = np.zeros_like(gram)
    elif what == "dead inputs":
        gram[::2], gram[:, ::2] = 0.0, 0.0
    codes, scales = round_rows(target, gram, GRIDS[grid])
    assert np.isin(codes, GRIDS[grid]).all()
    assert np.isfinite(scales).all() and (scales > 0).all()


def test_a_row_of_zeros_and_an_input_that_is_always_zero_keep_their_weights() -> None:
    levels = integer_levels(4)
    codes, scales = round_rows(np.zeros((2, 5)), np.eye(5), levels)
    assert not codes.any() and (scales > 0).all()
    target = np.random.default_rng(0).standard_normal((3, 6))
    gram = np.diag([0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    codes, scales = round_rows(target, gram, levels)
    assert (np.abs(dequantized(codes, scales) - target)[:, 0] <= np.abs(target).max(axis=1)).all()


@given(grids, seeds, sizes)
def test_refitted_scales_never_raise_the_error(grid: str, seed: int, size: tuple[int, int]) -> None:
    target, gram = _problem(seed, size)
    levels = GRIDS[grid]
    for block in (0, *(b for b in range(1, size[1] + 1) if size[1] % b == 0)):
        scales = search_scale(target, levels, gram, block=block)
        assert scales.shape == ((size[0], size[1] // block) if block else (size[0],))
        assert (scales > 0).all()
        codes = nearest(target / dequantized(np.ones(size), scales), levels)
        better = least_squares_scale(codes, scales, target, gram)
        assert (better > 0).all()
        before, after = (output_error(codes, s, target, gram) for s in (scales, better))
        assert (after <= before + _slack(target, gram)).all()


def test_blocks_fit_weights_whose_size_varies_along_a_row() -> None:
    target, gram = _problem(0, (16, 64))
    target *= np.repeat([1.0, 0.1, 3.0, 0.01], 16)
    errors = {}
    for block in (0, 16):
        codes, scales = round_rows(target, gram, integer_levels(4), block=block)
        errors[block] = output_error(codes, scales, target, gram).sum()
    assert errors[16] < 0.8 * errors[0]


def test_scales_of_ternary_and_binary_grids_are_those_of_the_literature() -> None:
    weights = np.random.default_rng(0).standard_normal((1, 20_000))
    binary = search_scale(weights, GRIDS["binary"])
    np.testing.assert_allclose(binary, np.abs(weights).mean(), rtol=0.06)  # XNOR-Net, eq. 6
    [scale] = search_scale(weights, GRIDS["ternary"])
    threshold = 0.7 * np.abs(weights).mean()  # TWN, eq. 6: the approximate optimum
    approximate = np.abs(weights[np.abs(weights) > threshold]).mean()
    assert abs(scale - approximate) < 0.15 * approximate


def test_the_scale_search_follows_a_long_tail() -> None:
    weights = np.random.default_rng(0).standard_normal((1, 2000))
    weights[0, 0] = 60.0
    [scale] = search_scale(weights, GRIDS["ternary"])
    assert scale < 3.0 or scale > 50.0  # either the tail is clipped or it alone is kept, never a scale in between


@given(seeds, st.integers(1, 5), st.integers(100, 300))
def test_gptq_in_blocks_of_columns_is_the_plain_algorithm(seed: int, rows: int, d: int) -> None:
    """Algorithm 1 of the paper, column by column without lazy batches."""
    target, gram = _problem(seed % 100, (rows, d))
    gram += 0.01 * np.eye(d) * gram.trace() / d
    levels = integer_levels(4)
    scales = search_scale(target, levels, gram)
    upper = np.linalg.cholesky(np.linalg.inv(gram)).T
    left, wanted = target.copy(), np.empty_like(target)
    for j in range(d):
        wanted[:, j] = nearest(left[:, j] / scales, levels)
        error = (left[:, j] - wanted[:, j] * scales) / upper[j, j]
        left[:, j:] -= np.outer(error, upper[j, j:])
    found = gptq(target, scales, levels, gram, order="natural")
    assert (found != wanted).mean() < 0.01  # ties and the last bits of a long sum


def test_shapes_and_damping_that_do_not_fit_are_refused() -> None:
    target, gram, levels = np.ones((2, 6)), np.eye(6), integer_levels(4)
    with pytest.raises(ValueError, match="does not fit a weight"):
        round_rows(target, np.eye(5), levels)
    with pytest.raises(ValueError, match="damping"):
        round_rows(target, gram, levels, damping=-1.0)
    with pytest.raises(ValueError, match="blocks of 4"):
        round_rows(target, gram, levels, block=4)
