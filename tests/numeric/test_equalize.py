"""Factors of channels: what each rule promises, on arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.numeric.equalize import Ranged, Reading, balanced, least_noise, smoothed

Float = NDArray[np.float64]


def _layer(weight: Float, reads: list[int], writes: list[int], *, energy: float = 1.0, power: float = 1.0) -> Reading:
    return Reading(
        np.asarray([reads]), np.asarray(writes), np.abs(weight), np.square(weight), np.full((1, 1), energy), power
    )


def _pair(seed: int, channels: int = 5) -> list[Reading]:
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((channels, 3)) * np.exp(rng.standard_normal((channels, 1)))
    second = rng.standard_normal((4, channels)) * np.exp(rng.standard_normal((1, channels)))
    own = list(range(1, channels + 1))
    return [_layer(first, [0] * 3, own), _layer(second, own, [0] * 4)]


def test_balanced_pair_is_the_closed_form() -> None:
    """Nagel et al., eq. 11: s_i = sqrt(r1_i / r2_i) where neither range depends on another channel."""
    layers = _pair(0)
    factors = balanced(layers, 5, limit=100.0)
    wanted = np.sqrt(layers[0].peaks.max(axis=1) / layers[1].peaks.max(axis=0))
    np.testing.assert_allclose(factors[1:-1], wanted, rtol=1e-3)
    assert factors[0] == factors[-1] == 1.0


def test_balanced_depthwise_triple_makes_all_ranges_equal() -> None:
    """The three ranges of a channel end at their geometric mean: cube roots."""
    first, depthwise, last = np.array([[8.0], [1.0]]), np.array([[1.0], [0.5]]), np.array([[1.0, 27.0]])
    middle = Reading(np.asarray([[1], [2]]), np.asarray([3, 4]), depthwise, np.square(depthwise), np.ones((1, 1)), 1.0)
    factors = balanced([_layer(first, [0], [1, 2]), middle, _layer(last, [3, 4], [0])], 4, limit=100.0)
    a, b = factors[1:3], factors[3:5]
    for channel, product in enumerate([8.0, 13.5]):
        ranges = (
            first[channel, 0] / a[channel],
            depthwise[channel, 0] * a[channel] / b[channel],
            last[0, channel] * b[channel],
        )
        np.testing.assert_allclose(ranges, product ** (1 / 3), rtol=1e-2)


def test_silent_channels_keep_their_factor() -> None:
    layers = _pair(1)
    layers[0].peaks[2] = 0.0
    assert balanced(layers, 5)[3] == 1.0
    tensors = [Ranged(np.arange(1, 6), np.array([1.0, 2.0, 0.0, 4.0, 5.0]))]
    assert smoothed(tensors, layers, 5)[3] == 1.0
    assert np.isfinite(least_noise(tensors, layers, 5)).all()


def test_smoothed_is_smoothquant() -> None:
    layers = _pair(2)
    ranges = np.array([1.0, 2.0, 3.0, 40.0, 5.0])
    factors = smoothed([Ranged(np.arange(1, 6), ranges)], layers, 5, alpha=0.5, limit=1e6)[1:-1]
    wanted = np.sqrt(ranges / layers[1].peaks.max(axis=0))
    np.testing.assert_allclose(factors, wanted / np.exp(np.log(wanted).mean()), rtol=1e-12)


@pytest.mark.parametrize("rule", ["balanced", "smoothed", "least_noise"])
def test_factors_stay_within_the_limit(rule: str) -> None:
    layers = _pair(3)
    tensors = [Ranged(np.arange(1, 6), np.geomspace(1.0, 1e4, 5))]
    factors = {
        "balanced": balanced(layers, 5, limit=1.5),
        "smoothed": smoothed(tensors, layers, 5, limit=1.5),
        "least_noise": least_noise(tensors, layers, 5, limit=1.5),
    }[rule]
    assert factors.min() >= 1 / 1.5 - 1e-12
    assert factors.max() <= 1.5 + 1e-12
    assert factors.max() > 1.4


def _noise(ranges: Float, layer: Reading, factors: Float) -> float:
    """The module's formula with true maxima."""
    activations = (ranges / factors).max() ** 2 / 255**2 * (layer.squares.sum(axis=0) * factors**2).sum()
    steps = (layer.peaks * factors).max(axis=1) ** 2 / 127**2
    return float(activations + (steps * (layer.energy / factors**2 * np.ones_like(factors)).sum()).sum())


@given(st.integers(0, 2**31), st.integers(2, 12))
def test_least_noise_lowers_the_noise(seed: int, channels: int) -> None:
    rng = np.random.default_rng(seed)
    ranges = np.exp(2 * rng.standard_normal(channels))
    layer = _pair(seed, channels)[1]
    factors = least_noise([Ranged(np.arange(1, channels + 1), ranges)], [layer], channels)[1:-1]
    # A p-norm stands for the maximum: with 12 equal entries it is 1.11 times as large.
    assert _noise(ranges, layer, factors) <= 1.25 * _noise(ranges, layer, np.ones(channels))


def test_least_noise_flattens_a_tensor_that_outweighs_its_weights() -> None:
    """Where only the activation is rounded every channel should fill the range."""
    ranges = np.array([0.5, 1.0, 2.0, 4.0])
    weight = np.ones((3, 4))
    layer = _layer(weight, [1, 2, 3, 4], [0, 0, 0])
    factors = least_noise([Ranged(np.arange(1, 5), ranges)], [layer], 4, weight_noise=0.0)[1:-1]
    np.testing.assert_allclose(factors / ranges / (factors[0] / ranges[0]), 1.0, rtol=0.2)
    gain = (4.0**2 * 4) / ((ranges / factors).max() ** 2 * (factors**2).sum())
    assert 2.5 < gain < 64 / 21.25 + 1e-9


def test_least_noise_without_noise_changes_nothing() -> None:
    silent = [Ranged(np.arange(1, 6), np.zeros(5))]
    quiet = [Reading(x.reads, x.writes, x.peaks, x.squares, x.energy, 0.0) for x in _pair(4)]
    np.testing.assert_array_equal(least_noise(silent, quiet, 5), np.ones(7))


def test_pinned_and_zero_channels_count_but_do_not_move() -> None:
    """Classes 0 and -1 share the last tensor; their factor stays 1."""
    tensor = Ranged(np.array([1, 2, 0, -1]), np.array([1.0, 3.0, 2.0, 0.0]))
    layer = _layer(np.random.default_rng(0).standard_normal((3, 4)), [1, 2, 0, -1], [0, 0, 0])
    for factors in (least_noise([tensor], [layer], 2), smoothed([tensor], [layer], 2), balanced([layer], 2)):
        assert factors.shape == (4,)
        assert factors[0] == factors[-1] == 1.0
