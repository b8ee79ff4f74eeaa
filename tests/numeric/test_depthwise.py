"""Sums of depthwise-separable blocks, in both orders of the nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.numeric import depthwise, pointwise
from onnxcomp.numeric.depthwise import DepthwiseErrors
from onnxcomp.numeric.moments import Moments, predicted_error, regularised, squared_residual
from onnxcomp.numeric.pointwise import PointwiseErrors
from onnxcomp.numeric.taps import tap_gram, tap_tails

Float = NDArray[np.float64]
CI, CO, KERNEL = 7, 11, (2, 3)
TAPS = 6


@dataclass(frozen=True)
class Order:
    """One order of the nodes."""

    split: Callable[..., tuple[Float, Float]]
    fit: Callable[..., tuple[Float, Float]]
    compose: Callable[[Float, Float], Float]
    balance: Callable[[Float, Float, Float | None], tuple[Float, Float]]
    errors: type[DepthwiseErrors] | type[PointwiseErrors]
    slices: Callable[[Float], Float]


ORDERS = {
    "dw": Order(
        depthwise.split_depthwise,
        depthwise.fit_depthwise,
        depthwise.compose_depthwise,
        depthwise.balance_depthwise,
        DepthwiseErrors,
        lambda weight: np.moveaxis(weight, 1, 0).reshape(weight.shape[1], len(weight), -1),
    ),
    "pw": Order(
        pointwise.split_pointwise,
        pointwise.fit_pointwise,
        pointwise.compose_pointwise,
        pointwise.balance_pointwise,
        PointwiseErrors,
        lambda weight: weight.reshape(*weight.shape[:2], -1),
    ),
}
orders = st.sampled_from(list(ORDERS.values()))
seeds = st.integers(0, 99)


def _moments(x: Float, y: Float) -> Moments:
    n = len(x)
    return Moments(x.T @ x / n, x.mean(0), n, y.T @ x / n, y.mean(0), (y**2).mean(0))


def _problem(seed: int, noise: float = 0.0, n: int = 400) -> tuple[Float, Moments]:
    """A weight and the moments of correlated non-negative patches, as after a ReLU, with (noisy) targets."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((CO, CI, *KERNEL))
    d = CI * TAPS
    mixing = rng.standard_normal((d, d)) * np.arange(1, d + 1) ** -0.8
    x = np.maximum(rng.standard_normal((n, d)) @ mixing.T + 0.3, 0.0)
    y = x @ weight.reshape(CO, -1).T + rng.standard_normal(CO)
    return weight, _moments(x, y + noise * y.std() * rng.standard_normal(y.shape))


def _error(weight: Float, moments: Moments) -> float:
    assert moments.mean_y is not None
    return predicted_error(weight, moments.mean_y - weight.reshape(len(weight), -1) @ moments.mean_x, moments)


def _objective(fitted: Float, weight: Float, moments: Moments, damping: float) -> float:
    covariance = regularised(moments.centred(), weight.reshape(CO, -1), damping)
    return squared_residual(fitted.reshape(CO, -1), covariance)


@given(seed=seeds, order=orders)
def test_all_blocks_give_the_weight_back(seed: int, order: Order) -> None:
    weight, moments = _problem(seed)
    full = min(order.slices(weight).shape[1:])
    np.testing.assert_allclose(order.compose(*order.split(weight, full)), weight, atol=1e-10)
    np.testing.assert_allclose(order.compose(*order.fit(weight, moments, full)), weight, atol=1e-5)


@given(seed=seeds, order=orders, rank=st.integers(1, 6))
def test_the_weight_s_error_is_the_sum_of_squared_tails(seed: int, order: Order, rank: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((CO, CI, *KERNEL))
    slices = order.slices(weight)
    rest = order.compose(*order.split(weight, rank)) - weight
    tails = sum(float(np.square(np.linalg.svd(s, compute_uv=False)[rank:]).sum()) for s in slices)
    assert float(np.vdot(rest, rest)) == pytest.approx(tails, abs=1e-10)
    assert tap_tails(tap_gram(slices))[rank] == pytest.approx(tails / np.vdot(weight, weight), abs=1e-12)


@given(seed=seeds, order=orders, rank=st.integers(1, 5), noise=st.sampled_from([0.0, 0.2]))
def test_data_beat_the_weight(seed: int, order: Order, rank: int, noise: float) -> None:
    weight, moments = _problem(seed, noise)
    plain = order.compose(*order.split(weight, rank))
    fitted = order.compose(*order.fit(weight, moments, rank, damping=0.0))
    assert _error(fitted, moments) <= _error(plain, moments) + 1e-9


@given(seed=seeds, order=orders, rank=st.integers(1, 5), damping=st.sampled_from([0.0, 1e-2, 0.3]))
def test_sweeps_only_lower_the_objective(seed: int, order: Order, rank: int, damping: float) -> None:
    weight, moments = _problem(seed, noise=0.2)
    losses = [
        _objective(
            order.compose(*order.fit(weight, moments, rank, sweeps=n, damping=damping)), weight, moments, damping
        )
        for n in range(4)
    ]
    assert all(b <= a * (1 + 1e-8) + 1e-12 for a, b in pairwise(losses))
    assert losses[3] < losses[0]


@pytest.mark.parametrize("sweeps", [0, 1])
@given(seed=seeds, order=orders, noise=st.sampled_from([0.0, 0.2]))
def test_predicted_errors_are_those_of_the_fit(sweeps: int, seed: int, order: Order, noise: float) -> None:
    weight, moments = _problem(seed, noise)
    errors = order.errors(weight, moments, sweeps=sweeps, damping=0.0)
    for rank in (1, 3, 4):
        fitted = order.compose(*order.fit(weight, moments, rank, sweeps=sweeps, damping=0.0))
        assert errors(rank) == pytest.approx(_error(fitted, moments), rel=1e-5, abs=1e-8)


@given(seed=seeds)
def test_many_blocks_depthwise_first_are_predicted_without_sweeps(seed: int) -> None:
    weight, moments = _problem(seed)
    errors = DepthwiseErrors(weight, moments, sweeps=1, damping=0.0)
    fitted = depthwise.compose_depthwise(*depthwise.fit_depthwise(weight, moments, 5, sweeps=0, damping=0.0))
    assert errors(5) == pytest.approx(_error(fitted, moments), rel=1e-5, abs=1e-8)
    assert errors(6) == pytest.approx(0.0, abs=1e-8)


def test_some_outputs_stand_for_many_pointwise_first() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((300, CI, *KERNEL)) * np.geomspace(0.1, 3, 300)[:, None, None, None]
    x = np.maximum(rng.standard_normal((400, CI * TAPS)), 0.0)
    moments = _moments(x, x @ weight.reshape(300, -1).T)
    whole = _error(pointwise.compose_pointwise(*pointwise.fit_pointwise(weight, moments, 2, sweeps=1)), moments)
    assert PointwiseErrors(weight, moments)(2) == pytest.approx(whole, rel=0.1)


@given(seed=seeds, rank=st.integers(1, 4))
def test_pointwise_weights_behind_the_filters_are_least_squares(seed: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    weight, _ = _problem(seed)
    x = np.maximum(rng.standard_normal((300, CI * TAPS)) + rng.standard_normal((300, 1)), 0.0)
    y = np.tanh(x @ weight.reshape(CO, -1).T)
    filters, points = depthwise.fit_depthwise(weight, _moments(x, y), rank, damping=0.0)
    features = depthwise.depthwise_features(filters, x)
    seen = x @ depthwise.compose_depthwise(filters, points).reshape(CO, -1).T
    np.testing.assert_allclose(features @ points.reshape(CO, -1).T, seen, atol=1e-9)
    centred = features - features.mean(0)
    best = np.linalg.lstsq(centred, y - y.mean(0), rcond=None)[0]
    np.testing.assert_allclose(centred @ points.reshape(CO, -1).T, centred @ best, atol=1e-4)


def test_conjugate_gradients_reach_the_least_squares_pointwise_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointwise, "_CG_STEPS", 200)
    weight, moments = _problem(3)
    points, filters = pointwise.fit_pointwise(weight, moments, 2, sweeps=0, damping=0.0)
    covariance = moments.centred()
    xx = covariance.xx.reshape(CI, TAPS, CI, TAPS)
    for o in range(CO):
        own = filters[o].reshape(2, TAPS)
        gram = np.einsum("rt,itju,su->risj", own, xx, own).reshape(2 * CI, 2 * CI)
        cross = np.einsum("rt,it->ri", own, covariance.yx[o].reshape(CI, TAPS)).ravel()
        np.testing.assert_allclose(points[o].ravel(), np.linalg.solve(gram, cross), rtol=1e-4, atol=1e-6)


@given(seed=seeds, order=orders, rank=st.integers(1, 4), data=st.booleans())
def test_balance_keeps_the_product_and_gives_channels_unit_energy(
    seed: int, order: Order, rank: int, data: bool
) -> None:
    weight, moments = _problem(seed)
    xx = moments.xx if data else np.eye(CI * TAPS)
    rng = np.random.default_rng(seed)
    skewed = [f * np.exp(rng.standard_normal((1, rank, *(1,) * (f.ndim - 2)))) for f in order.split(weight, rank)]
    balanced = order.balance(skewed[0], skewed[1], xx if data else None)
    np.testing.assert_allclose(order.compose(*balanced), order.compose(*skewed), atol=1e-10)
    if order is ORDERS["dw"]:
        own = xx.reshape(CI, TAPS, CI, TAPS)
        filters = balanced[0].reshape(CI, rank, TAPS)
        energy = np.einsum("irt,itiu,iru->ir", filters, own, filters)
    else:
        mean = np.einsum("itjt->ij", xx.reshape(CI, TAPS, CI, TAPS)) / TAPS
        energy = np.einsum("ori,ij,orj->or", balanced[0], mean, balanced[0])
    np.testing.assert_allclose(energy, 1.0, rtol=1e-9)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_dead_channels_cost_nothing(order: Order) -> None:
    weight, moments = _problem(1)
    alive = np.repeat(np.arange(CI) != 2, TAPS)
    dead = Moments(moments.xx * np.outer(alive, alive), moments.mean_x * alive, moments.count).with_weight(weight)
    for damping in (0.0, 1e-2):
        fitted = order.compose(*order.fit(weight, dead, 4, damping=damping))
        assert np.isfinite(fitted).all()
        assert _error(fitted, dead) < 0.05
    silent = order.compose(*order.fit(0 * weight, dead.with_weight(0 * weight), 2))
    assert np.array_equal(silent, 0 * weight)
    assert order.errors(0 * weight, dead.with_weight(0 * weight))(2) == 0.0


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_what_does_not_fit_is_refused(order: Order) -> None:
    weight, moments = _problem(0)
    for rank in (0, 7):
        with pytest.raises(ValueError, match=f"{rank} blocks are not in 1..6"):
            order.split(weight, rank)
        with pytest.raises(ValueError, match=f"{rank} blocks are not in 1..6"):
            order.fit(weight, moments, rank)
    with pytest.raises(ValueError, match="moments of 42 dimensions do not fit a weight of shape"):
        order.fit(weight[:, 1:], moments, 1)
    with pytest.raises(ValueError, match="has no channels and taps"):
        order.split(weight[:, :, 0, 0], 1)


@settings(max_examples=10)
@given(seed=seeds, order=orders)
def test_the_layout_of_the_kernel_is_no_matter(seed: int, order: Order) -> None:
    weight, moments = _problem(seed)
    first, second = order.fit(weight, moments, 2)
    flat = order.fit(weight.reshape(CO, CI, TAPS), moments, 2)
    for one, other in zip((first, second), flat, strict=True):
        np.testing.assert_array_equal(one.reshape(other.shape), other)
    assert (first if order is ORDERS["dw"] else second).shape[2:] == KERNEL
