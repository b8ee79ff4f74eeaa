from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.numeric.moments import (
    Moments,
    channel_average,
    predicted_error,
    project_cross,
    regularised,
    squared_residual,
)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), offset=st.floats(-5, 5))
def test_with_weight_equals_moments_of_the_computed_outputs(seed: int, offset: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((60, 8)) + offset
    weight, bias = rng.standard_normal((3, 4, 2)), rng.standard_normal(3)
    y = x @ weight.reshape(3, -1).T + bias
    made = Moments(x.T @ x / 60, x.mean(0), 60).with_weight(weight, bias)
    assert made.yx is not None
    assert made.mean_y is not None
    assert made.yy is not None
    np.testing.assert_allclose(made.yx, y.T @ x / 60, atol=1e-9)
    np.testing.assert_allclose(made.mean_y, y.mean(0), atol=1e-9)
    np.testing.assert_allclose(made.yy, (y**2).mean(0), atol=1e-8)
    covariance = made.centred()
    np.testing.assert_allclose(covariance.xx, np.cov(x.T, bias=True), atol=1e-9)
    np.testing.assert_allclose(covariance.yy, y.var(0), atol=1e-8)
    other = rng.standard_normal((3, 8))
    rest = (y - y.mean(0)) - (x - x.mean(0)) @ other.T
    assert squared_residual(other, covariance) == pytest.approx((rest**2).sum() / 60, rel=1e-6)
    assert predicted_error(weight, bias, made) < 1e-9


def test_predicted_error_counts_a_wrong_bias() -> None:
    x = np.random.default_rng(0).standard_normal((50, 4))
    weight, bias = np.ones((2, 4)), np.array([1.0, 2.0])
    moments = Moments(x.T @ x / 50, x.mean(0), 50).with_weight(weight, bias)
    variance = (x @ weight.T).var(0).sum()
    assert predicted_error(weight, bias + np.array([3.0, 4.0]), moments) == pytest.approx(25 / variance)
    assert predicted_error(np.zeros((2, 4)), moments.mean_y, moments) == pytest.approx(1.0)


def test_predicted_error_of_constant_targets() -> None:
    moments = Moments(np.eye(2), np.zeros(2), 9).with_weight(np.zeros((1, 2)), np.array([5.0]))
    assert predicted_error(np.zeros((1, 2)), np.array([5.0]), moments) == 0.0
    assert predicted_error(np.zeros((1, 2)), None, moments) == np.inf


def test_regularised_keeps_the_weight_optimal_and_adds_its_penalty() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((40, 5))
    weight, other = rng.standard_normal((2, 3, 5))[:, :2]
    covariance = Moments(x.T @ x / 40, x.mean(0), 40).with_weight(weight).centred()
    damped = regularised(covariance, weight, 0.1)
    assert squared_residual(weight, damped) == pytest.approx(0.0, abs=1e-12)
    penalty = 0.1 * np.mean(np.diagonal(covariance.xx)) * ((other - weight) ** 2).sum()
    assert squared_residual(other, damped) == pytest.approx(squared_residual(other, covariance) + penalty)


def test_projections() -> None:
    rng = np.random.default_rng(2)
    cross, first = rng.standard_normal((3, 8)), rng.standard_normal((2, 4))
    np.testing.assert_allclose(project_cross(cross, first), cross @ np.kron(first, np.eye(2)).T)
    assert project_cross(cross, None) is cross
    gram = np.arange(16.0).reshape(4, 4)
    np.testing.assert_allclose(channel_average(gram, 2), (gram[::2, ::2] + gram[1::2, 1::2]) / 2)


def test_targets_are_needed() -> None:
    moments = Moments(np.eye(2), np.zeros(2), 9)
    assert not moments.has_targets
    with pytest.raises(ValueError, match="no targets"):
        moments.centred()
