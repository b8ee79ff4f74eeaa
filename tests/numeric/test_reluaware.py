from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.numeric.lowrank import fit_tucker2
from onnxcomp.numeric.moments import Moments
from onnxcomp.numeric.reluaware import relu_aware, relu_error

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


def _features(first: Float | None, x: Float) -> Float:
    """Patches (n, 6 * 3) behind an input factor."""
    if first is None:
        return x
    z: Float = np.einsum("ri,nik->nrk", first, x.reshape(len(x), 6, 3)).reshape(len(x), -1)
    return z


@pytest.mark.parametrize("ranks", [(4, 6), (None, 6), (4, None)])
def test_lowers_the_error_behind_the_relu_on_unseen_data(
    problem: Problem, ranks: tuple[int | None, int | None]
) -> None:
    weight, bias, x, y, moments = problem
    fit = fit_tucker2(weight, bias, moments, *ranks)
    core, last = fit.factors.core.reshape(fit.factors.ranks[1], -1), fit.factors.last
    linear = core if last is None else last @ core
    z = _features(fit.factors.first, x)
    found = relu_aware(z[:3000], y[:3000], linear, fit.bias, ranks[1])
    assert found is not None

    def unseen(chain: Float, offset: Float) -> float:
        return relu_error(y[3000:], z[3000:] @ chain.T + offset)

    before = unseen(linear, fit.bias)
    if ranks[1] is None:
        assert found.last is None and found.core.shape == linear.shape
        after = unseen(found.core, found.bias)
    else:
        assert found.last is not None and found.core.shape == (ranks[1], linear.shape[1])
        np.testing.assert_allclose(found.last.T @ found.last, np.eye(ranks[1]), atol=1e-10)
        after = unseen(found.last @ found.core, found.bias)
    assert after < (0.8 if ranks[1] else 0.99) * before
    assert found.error == pytest.approx(after, rel=0.1)


def test_keeps_a_start_that_is_exact(problem: Problem) -> None:
    weight, bias, x, y, _ = problem
    assert relu_aware(x[:200], y[:200], weight.reshape(16, -1), bias, None) is None


def test_relu_error() -> None:
    y = np.array([[1.0], [-1.0], [3.0], [0.0]])
    assert relu_error(y, y - [[0.0], [9.0], [0.0], [1.0]]) == 0.0
    assert relu_error(y, np.full((4, 1), 1.0)) == pytest.approx((0 + 1 + 4 + 1) / (0 + 1 + 4 + 1))
    assert relu_error(-np.ones((3, 1)), -np.ones((3, 1))) == 0.0
    assert relu_error(-np.ones((3, 1)), np.ones((3, 1))) == np.inf


def test_needs_samples(problem: Problem) -> None:
    weight, bias, x, y, _ = problem
    with pytest.raises(ValueError, match="too few"):
        relu_aware(x[:7], y[:7], weight.reshape(16, -1), bias, 6)
