"""Fits that are held against samples they have not seen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.numeric.heldout import fitted, merged
from onnxcomp.numeric.moments import Moments

Float = NDArray[np.float64]


def moments_of(x: Float, y: Float) -> Moments:
    n = len(x)
    return Moments(x.T @ x / n, x.mean(0), n, y.T @ x / n, y.mean(0), np.square(y).mean(0))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), first=st.integers(2, 30), second=st.integers(2, 30))
def test_merged_moments_are_those_of_all_samples(seed: int, first: int, second: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((first + second, 4)), rng.standard_normal((first + second, 3))
    found = merged(moments_of(x[:first], y[:first]), moments_of(x[first:], y[first:]))
    whole = moments_of(x, y)
    assert found.count == whole.count
    assert found.yx is not None and whole.yx is not None and found.yy is not None and whole.yy is not None
    np.testing.assert_allclose(found.xx, whole.xx, atol=1e-12)
    np.testing.assert_allclose(found.yx, whole.yx, atol=1e-12)
    np.testing.assert_allclose(found.yy, whole.yy, atol=1e-12)


def test_moments_without_targets_are_refused() -> None:
    bare = Moments(np.eye(2), np.zeros(2), 3)
    with pytest.raises(ValueError, match="no targets"):
        merged(bare, bare)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_few_samples_of_many_columns_are_not_followed(seed: int) -> None:
    """With fewer samples than columns and noisy targets, the original weight serves unseen samples better."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((5, 60))

    def samples(n: int) -> tuple[Float, Float]:
        x = rng.standard_normal((n, 60))
        return x, x @ weight.T + 6.0 * rng.standard_normal((n, 5))

    (xa, ya), (xb, yb) = samples(20), samples(20)
    ((rows, bias, _),) = fitted([(moments_of(xa, ya), moments_of(xb, yb))], [weight])
    loose = np.linalg.lstsq(np.concatenate([xa, xb]), np.concatenate([ya, yb]), rcond=None)[0].T
    x = rng.standard_normal((500, 60))

    def off(other: NDArray[np.floating], offset: Float) -> float:
        return float(np.square(x @ (other - weight).T + offset).mean())

    assert off(rows, bias) < 0.5 * off(loose, np.zeros(5))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), biased=st.booleans())
def test_many_samples_are_followed(seed: int, biased: bool) -> None:
    rng = np.random.default_rng(seed)
    true, weight = rng.standard_normal((3, 6)), rng.standard_normal((3, 6))
    x = rng.standard_normal((4000, 6)) + (1.0 if biased else 0.0)
    y = x @ true.T + (2.0 if biased else 0.0)
    ((rows, bias, error),) = fitted(
        [(moments_of(x[::2], y[::2]), moments_of(x[1::2], y[1::2]))], [weight], biased=biased
    )
    np.testing.assert_allclose(rows, true, atol=0.01)
    np.testing.assert_allclose(bias, 2.0 if biased else 0.0, atol=0.02)
    assert error < 1e-4


def test_targets_that_never_change_are_hit() -> None:
    x, y = np.random.default_rng(0).standard_normal((50, 3)), np.full((50, 2), 7.0)
    ((rows, bias, error),) = fitted([(moments_of(x[:25], y[:25]), moments_of(x[25:], y[25:]))], [np.zeros((2, 3))])
    np.testing.assert_allclose(rows, 0.0, atol=1e-6)
    np.testing.assert_allclose(bias, 7.0)
    assert error < 1e-6
