from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import convolve

from onnxcomp.numeric.moments import Moments, predicted_error, regularised, squared_residual
from onnxcomp.numeric.structured import (
    box_matrix,
    compose,
    core_kernel,
    fit_structured,
    structured_error,
    window,
    window_sums,
)

Float = NDArray[np.float64]
KERNELS = [(3, 3), (5, 5), (1, 3), (4, 2), (3,), (7,), (3, 2, 3)]
CO, CI = 5, 4


def _weight(seed: int, kernel: tuple[int, ...]) -> Float:
    return np.random.default_rng(seed).standard_normal((CO, CI, *kernel))


def _moments(seed: int, kernel: tuple[int, ...], n: int = 900) -> Moments:
    """Moments of patches whose neighbouring taps are alike."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, CI, *(k + 2 for k in kernel)))
    for axis, k in enumerate(kernel, 2):
        x = np.sum([np.take(x, np.arange(start, start + k), axis) for start in range(3)], axis=0)
    flat = np.maximum(x.reshape(n, -1), 0.0)
    return Moments(flat.T @ flat / n, flat.mean(0), n)


@settings(max_examples=30)
@given(kernel=st.sampled_from(KERNELS), n=st.integers(1, 7), seed=st.integers(0, 9))
def test_a_core_convolved_with_its_box(kernel: tuple[int, ...], n: int, seed: int) -> None:
    core_shape = core_kernel(kernel, n)
    core = _weight(seed, core_shape)
    weight = compose(core, kernel)
    box = np.ones(window(kernel, core_shape))
    assert weight.shape == (CO, CI, *kernel)
    assert weight[2, 1] == pytest.approx(convolve(core[2, 1], box, method="direct"))
    matrix = box_matrix(kernel, core_shape)
    assert np.linalg.matrix_rank(matrix) == matrix.shape[1]
    assert (matrix.sum(axis=0) == box.size).all()


@settings(max_examples=30)
@given(kernel=st.sampled_from(KERNELS), n=st.integers(1, 7), seed=st.integers(0, 9), data=st.booleans())
def test_the_fit_is_a_projection(kernel: tuple[int, ...], n: int, seed: int, data: bool) -> None:
    moments = _moments(seed, kernel) if data else None
    core = fit_structured(_weight(seed, kernel), moments, n)
    within = compose(core, kernel)
    assert fit_structured(within, moments, n) == pytest.approx(core, rel=1e-5, abs=1e-6)  # exact, and idempotent
    assert structured_error(within, moments, n) == pytest.approx(0.0, abs=1e-6)


@settings(max_examples=25)
@given(kernel=st.sampled_from(KERNELS), n=st.integers(1, 3), seed=st.integers(0, 9))
def test_data_lose_no_more_of_the_output_than_weights(kernel: tuple[int, ...], n: int, seed: int) -> None:
    weight, moments = _weight(seed, kernel), _moments(seed, kernel).with_weight(_weight(seed, kernel))
    covariance = regularised(moments.centred(), weight.reshape(CO, -1), 1e-2)

    def lost(seen: Moments | None) -> float:
        fitted = compose(fit_structured(weight, seen, n), kernel)
        return squared_residual(fitted.reshape(CO, -1), covariance) / float(covariance.yy.sum())

    assert lost(moments) <= lost(None) * (1 + 1e-9) + 1e-12
    assert structured_error(weight, moments, n) == pytest.approx(lost(moments), rel=1e-5, abs=1e-8)
    closest = compose(fit_structured(weight, None, n), kernel)
    assert structured_error(weight, None, n) == pytest.approx(((weight - closest) ** 2).sum() / (weight**2).sum())
    assert structured_error(weight, None, max(kernel)) == pytest.approx(0.0, abs=1e-12)


def test_the_error_falls_with_n_and_the_bias_is_free() -> None:
    weight, moments = _weight(0, (5, 5)), _moments(0, (5, 5)).with_weight(_weight(0, (5, 5)), np.arange(5.0))
    errors = [structured_error(weight, moments, n) for n in range(1, 6)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 0.05
    fitted = compose(fit_structured(weight, moments, 3), (5, 5))
    assert moments.mean_y is not None
    bias = moments.mean_y - fitted.reshape(CO, -1) @ moments.mean_x
    assert predicted_error(fitted, bias, moments) == pytest.approx(errors[2], rel=0.05)
    assert structured_error(np.zeros_like(weight), moments.with_weight(np.zeros_like(weight)), 2) == 0.0
    assert structured_error(np.zeros_like(weight), None, 2) == 0.0


@settings(max_examples=15)
@given(kernel=st.sampled_from(KERNELS), n=st.integers(1, 4), seed=st.integers(0, 9))
def test_sums_are_what_the_core_reads(kernel: tuple[int, ...], n: int, seed: int) -> None:
    core_shape = core_kernel(kernel, n)
    core = _weight(seed, core_shape)
    x = np.random.default_rng(seed).standard_normal((6, CI * int(np.prod(kernel))))
    direct = x @ compose(core, kernel).reshape(CO, -1).T
    assert window_sums(x, kernel, core_shape) @ core.reshape(CO, -1).T == pytest.approx(direct)


def test_what_does_not_fit_is_refused() -> None:
    for core in ((4, 4), (0, 1), (3,)):
        with pytest.raises(ValueError, match="no box turns"):
            box_matrix((3, 3), core)
    with pytest.raises(ValueError, match="no box turns"):
        fit_structured(_weight(0, (3, 3)), None, 0)
    with pytest.raises(ValueError, match="do not fit"):
        fit_structured(_weight(0, (3, 3)), _moments(0, (5, 5)), 2)
