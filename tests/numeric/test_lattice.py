from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.numeric.lattice import channel_grid, lattice_step

means = st.floats(0.1, 0.9)
deviations = st.floats(0.05, 1.0)
seeds = st.integers(0, 2**32 - 1)


@given(seeds, means, deviations, st.integers(130, 256))
def test_the_step_of_normalised_pixels_is_found(seed: int, mean: float, deviation: float, count: int) -> None:
    pixels = np.random.default_rng(seed).choice(256, count, replace=False)
    values = (np.sort(pixels).astype(np.float32) / np.float32(255) - np.float32(mean)) / np.float32(deviation)
    step = lattice_step(values.astype(np.float64))
    assert step == pytest.approx(1 / 255 / deviation, rel=1e-4)


@given(seeds, means, deviations)
def test_pixels_are_exact_on_the_grid_of_their_step(seed: int, mean: float, deviation: float) -> None:
    pixels = np.unique(np.random.default_rng(seed).integers(0, 256, 400))
    values = (pixels / 255 - mean) / deviation
    scale, zero = channel_grid(float(values[0]), float(values[-1]), lattice_step(values))
    assume(abs(mean * 255 % 1 - 0.5) > 0.02)
    codes = np.rint(values / scale) + zero
    assert codes.min() >= 0 and codes.max() <= 255
    # The mean is no pixel: the lattice does not pass through 0, and all are off by the same part of a step.
    assert np.ptp((codes - zero) * scale - values) < 1e-9 * scale + 1e-12


@pytest.mark.parametrize("pixels", [np.arange(256), np.arange(10, 240), np.arange(255), np.arange(1, 256)])
def test_values_halfway_between_codes_do_not_fall_together(pixels: NDArray[np.int64]) -> None:
    """With the step of the pixels, all would be off by half a step, up or down: as bad as 7 bits."""
    values = (pixels / 255 - 0.5) / 0.5
    step = lattice_step(values)
    scale, zero = channel_grid(float(values[0]), float(values[-1]), step)
    codes = np.clip(np.rint(values / scale) + zero, 0, 255)
    errors = (codes - zero) * scale - values
    assert step is not None and scale != step
    assert np.sqrt(np.mean(np.square(errors))) < 0.31 * step
    assert abs(errors.mean()) < 0.02 * step


@given(seeds)
def test_continuous_values_have_no_step(seed: int) -> None:
    values = np.sort(np.random.default_rng(seed).standard_normal(2000))
    assert lattice_step(values) is None


@pytest.mark.parametrize(
    "values",
    [
        np.array([]),
        np.zeros(1),
        np.arange(15.0),  # too few to tell
        np.arange(300.0),  # more levels than a byte has
        np.append(np.arange(40.0), 50.4),  # one value lies off it
    ],
)
def test_no_step(values: NDArray[np.float64]) -> None:
    assert lattice_step(values) is None


def test_room_is_left_on_both_sides() -> None:
    assert channel_grid(-10.0, 90.0, 1.0) == (1.0, 87)
    assert channel_grid(0.0, 255.0, 1.0) == (1.0, 0)


@given(st.floats(-5, 5), st.floats(0, 5))
def test_without_a_step_the_grid_spans_the_values_and_zero(low: float, width: float) -> None:
    scale, zero = channel_grid(low, low + width, None)
    assert scale > 0 and 0 <= zero <= 255
    assert (0 - zero) * scale <= min(low, 0.0) + scale / 2 + 1e-9
    assert (255 - zero) * scale >= max(low + width, 0.0) - scale / 2 - 1e-9


@pytest.mark.parametrize("low", [0.0, 5e-324, 1e-38])
def test_a_channel_without_values_has_a_scale_that_float32_holds(low: float) -> None:
    scale, zero = channel_grid(low, low, None)
    assert np.isfinite(np.float32(1 / scale)) and zero == 0
