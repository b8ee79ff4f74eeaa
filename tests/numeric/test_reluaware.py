from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.numeric.lowrank import fit_tucker2
from onnxcomp.numeric.moments import Moments
from onnxcomp.numeric.reluaware import relu_aware, relu_error
from onnxcomp.numeric.tucker import compose

Float = NDArray[np.float64]
Problem = tuple[Float, Float, Float, Float, Moments]


@pytest.fixture(scope="module")
def problem() -> Problem:
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((16, 6, 3)), rng.standard_normal(16) - 2.0
    x = np.maximum(rng.standard_normal((6000, 18)) @ rng.standard_normal((18, 18)) * 0.5, 0.0)
    y = x @ weight.reshape(16, -1).T + bias
    seen = x[:3000]
    return weight, bias, x, y, Moments(seen.T @ seen / 3000, seen.mean(0), 3000).with_weight(weight, bias)


@pytest.mark.parametrize("ranks", [(4, 6), (None, 6), (4, None)])
def test_lowers_the_error_behind_the_relu_on_unseen_data(
    problem: Problem, ranks: tuple[int | None, int | None]
) -> None:
    weight, bias, x, y, moments = problem
    fit = fit_tucker2(weight, bias, moments, *ranks)
    factors, new_bias, error = relu_aware(fit.factors, fit.bias, weight, x[:3000], y[:3000])

    def unseen(chain: Float, offset: Float) -> float:
        return relu_error(y[3000:], x[3000:] @ chain.reshape(16, -1).T + offset)

    before, after = unseen(compose(fit.factors), fit.bias), unseen(compose(factors), new_bias)
    assert after < (0.8 if ranks[1] else 0.99) * before
    assert error == pytest.approx(after, rel=0.1)
    w = compose(factors)
    assert factors.error == pytest.approx(((w - weight) ** 2).sum() / (weight**2).sum())
    assert factors.core.shape == fit.factors.core.shape
    assert factors.first is fit.factors.first


def test_keeps_a_start_that_is_exact(problem: Problem) -> None:
    weight, bias, x, y, moments = problem
    fit = fit_tucker2(weight, bias, moments, None, None)
    factors, new_bias, error = relu_aware(fit.factors, fit.bias, weight, x[:200], y[:200])
    assert error < 1e-9
    np.testing.assert_allclose(compose(factors), weight, atol=1e-6)
    np.testing.assert_allclose(new_bias, bias, atol=1e-5)


def test_relu_error() -> None:
    y = np.array([[1.0], [-1.0], [3.0], [0.0]])
    assert relu_error(y, y - [[0.0], [9.0], [0.0], [1.0]]) == 0.0
    assert relu_error(y, np.full((4, 1), 1.0)) == pytest.approx((0 + 1 + 4 + 1) / (0 + 1 + 4 + 1))
    assert relu_error(-np.ones((3, 1)), -np.ones((3, 1))) == 0.0
    assert relu_error(-np.ones((3, 1)), np.ones((3, 1))) == np.inf


def test_needs_samples(problem: Problem) -> None:
    weight, bias, x, y, moments = problem
    fit = fit_tucker2(weight, bias, moments, 4, 6)
    with pytest.raises(ValueError, match="too few"):
        relu_aware(fit.factors, fit.bias, weight, x[:7], y[:7])
