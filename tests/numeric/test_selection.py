"""The cheaper criteria against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.numeric.selection import (
    contributions,
    lasso_order,
    norm_scores,
    order_of,
    taylor_scores,
    thinet_order,
)

Float = NDArray[np.float64]
seeds = st.integers(0, 2**32 - 1)


def _matrix(rng: np.random.Generator, n: int = 7) -> Float:
    z = rng.standard_normal((30, n)) * np.exp(rng.normal(0, 1, n)) + rng.standard_normal((30, 1))
    return z.T @ z


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_contributions_are_the_moments_of_what_the_channels_add(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, 5, 14)
    x, weight = rng.standard_normal((50, 14)), rng.standard_normal((3, 14))
    parts = np.stack([x[:, labels == k] @ weight[:, labels == k].T for k in range(6)])
    wanted = np.einsum("apr,bpr->ab", parts, parts) / 50
    np.testing.assert_allclose(contributions(weight, x.T @ x / 50, labels, 6), wanted, atol=1e-12)


def test_contributions_of_many_columns() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(130).repeat(9)
    weight, gram = rng.standard_normal((2, 1170)), np.diag(rng.random(1170))
    wanted = np.diag((weight**2 @ gram).sum(axis=0).reshape(130, 9).sum(axis=1))
    np.testing.assert_allclose(contributions(weight, gram, labels, 130), wanted, atol=1e-9)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_thinet_takes_what_adds_least_to_the_removed_sum(seed: int) -> None:
    matrix = _matrix(np.random.default_rng(seed))
    order = thinet_order(matrix).tolist()
    assert sorted(order) == list(range(7))
    for step in range(7):
        sums = {k: matrix[np.ix_([*order[:step], k], [*order[:step], k])].sum() for k in order[step:]}
        assert sums[order[step]] == pytest.approx(min(sums.values()), rel=1e-9)


@given(seeds)
@settings(max_examples=15, deadline=None)
def test_lasso_of_channels_that_are_independent_goes_by_power(seed: int) -> None:
    power = np.random.default_rng(seed).permutation(np.geomspace(1, 50, 9))
    np.testing.assert_array_equal(lasso_order(np.diag(power)), order_of(power))


def _vanishing(matrix: Float, penalties: Float) -> Float:
    """The last of the rising penalties at which each factor is not zero, by proximal gradients for each by itself."""
    step = 1 / np.linalg.eigvalsh(matrix)[-1]
    factors = np.ones((len(penalties), len(matrix)))
    for _ in range(3000):
        pulled = factors + step * (1.0 - factors) @ matrix
        factors = np.sign(pulled) * np.maximum(np.abs(pulled) - step * penalties[:, None] / 2, 0.0)
    alive = np.abs(factors) > 1e-9
    last: Float = np.where(alive, penalties[:, None], 0.0).max(axis=0)
    return last


@pytest.mark.parametrize("seed", range(6))
def test_lasso_is_the_order_in_which_factors_vanish(seed: int) -> None:
    matrix = _matrix(np.random.default_rng(seed), 6)
    order = lasso_order(matrix)
    assert sorted(order.tolist()) == list(range(6))
    last = _vanishing(matrix, np.geomspace(1e-4, 1.0, 60) * 2 * np.abs(matrix.sum(axis=1)).max())[order]
    # Both know the penalties up to the width of a step.
    assert (np.maximum.accumulate(last) <= 1.3 * last).all()


def test_lasso_lets_one_of_two_that_cancel_or_add_nothing_go_first() -> None:
    rng = np.random.default_rng(3)
    z = rng.standard_normal((200, 5))
    z[:, 1] = 0.0
    z[:, 3] = -0.5 * z[:, 4]  # what is left of both can do without 3
    order = lasso_order(z.T @ z).tolist()
    assert order[:2] == [1, 3]
    np.testing.assert_array_equal(lasso_order(np.zeros((3, 3))), np.arange(3))


def test_taylor_scores_are_the_powers_of_the_contributions() -> None:
    matrix = _matrix(np.random.default_rng(0))
    np.testing.assert_array_equal(taylor_scores(matrix), np.diag(matrix))
    np.testing.assert_array_equal(order_of(np.array([2.0, 1.0, 2.0, 0.0])), [3, 1, 0, 2])


@pytest.mark.parametrize("order", [1, 2])
def test_norms_of_several_producers_count_alike(order: int) -> None:
    rng = np.random.default_rng(order)
    weights = [rng.standard_normal((6, 4, 3, 3)), 1000 * rng.standard_normal((4, 5))]
    labels = [np.array([0, 1, 2, 0, -1, 3]), np.array([3, 2, 1, 0])]
    norms = [np.linalg.norm(w.reshape(len(w), -1), order, axis=1) for w in weights]
    first = np.array([norms[0][0] + norms[0][3], norms[0][1], norms[0][2], norms[0][5]])
    wanted = first / first.mean() + norms[1][::-1] / norms[1].mean()
    np.testing.assert_allclose(norm_scores(weights, labels, 4, order), wanted)
    np.testing.assert_array_equal(norm_scores([np.zeros((2, 3))], [np.array([0, 1])], 3, order), 0.0)


def test_norms_of_another_order_are_refused() -> None:
    with pytest.raises(ValueError, match="order 3"):
        norm_scores([np.ones((2, 2))], [np.arange(2)], 2, 3)
