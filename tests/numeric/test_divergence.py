"""Divergence of class probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.numeric.divergence import divergences


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def test_by_hand() -> None:
    p, q = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.25, 0.75], [0.5, 0.5]])
    expected = [0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75), np.log(2)]
    np.testing.assert_allclose(divergences(p, q), expected, rtol=1e-12)


@given(st.integers(0, 1000), st.integers(1, 5), st.integers(2, 9))
def test_logits_and_their_probabilities_agree(seed: int, rows: int, classes: int) -> None:
    a, b = np.random.default_rng(seed).normal(size=(2, rows, classes)) * 3
    a[0, 0] = -1.0  # no row of logits passes for probabilities
    found = divergences(a, b)
    np.testing.assert_allclose(divergences(_softmax(a), _softmax(b)), found, atol=1e-9)
    assert (found > -1e-12).all()
    np.testing.assert_allclose(divergences(a, a + 7), np.zeros(rows), atol=1e-12)


def test_a_lost_class_is_far_and_finite() -> None:
    (found,) = divergences(np.array([[0.5, 0.5]], np.float32), np.array([[1.0, 0.0]], np.float32))
    assert found == pytest.approx(0.5 * np.log(0.25) - 0.5 * np.log(np.finfo(np.float32).tiny))
