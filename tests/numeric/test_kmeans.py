"""k-means: the points it finds, the weights it heeds, and how near the best centers it comes."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.numeric.kmeans import kmeans

Float = NDArray[np.float64]

seeds = st.integers(0, 2**32 - 1)


def _loss(points: Float, weights: Float, centers: Float) -> float:
    far = np.square(points[:, None] - centers).sum(axis=2).min(axis=1)
    return float(far @ weights)


@given(seeds, st.integers(2, 4))
@settings(max_examples=20)
def test_as_many_different_points_as_centers_are_all_found(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    different = rng.standard_normal((8, width))
    points = np.concatenate([different, different[rng.integers(0, 8, 60)]])
    weights = rng.uniform(0.1, 1.0, len(points))
    found = kmeans(points, weights, 8, seed=seed)
    assert found.shape == (8, width) and _loss(points, weights, found) < 1e-20


@given(seeds, st.integers(1, 3), st.sampled_from([1, 3, 20]))
@settings(max_examples=20)
def test_fewer_points_than_centers_are_kept_as_they_are(seed: int, width: int, count: int) -> None:
    points = np.random.default_rng(seed).standard_normal((count, width))
    found = kmeans(points, np.ones(count), 20)
    assert found.shape == (20, width) and _loss(points, np.ones(count), found) == 0.0
    assert {tuple(p) for p in found} == {tuple(p) for p in points}


@given(seeds, st.sampled_from([1, 2]))
@settings(max_examples=20)
def test_points_of_no_weight_have_no_say(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    points, weights = rng.standard_normal((80, width)), rng.uniform(0.1, 1.0, 80)
    far = np.concatenate([points, 100 + rng.standard_normal((30, width))])
    np.testing.assert_array_equal(kmeans(far, np.concatenate([weights, np.zeros(30)]), 4), kmeans(points, weights, 4))


def test_no_point_of_any_weight() -> None:
    assert not kmeans(np.ones((5, 2)), np.zeros(5), 3).any()
    assert kmeans(np.ones((0, 2)), np.zeros(0), 3).shape == (3, 2)


@given(seeds, st.sampled_from([1, 3]))
@settings(max_examples=10)
def test_equal_points_do_no_harm(seed: int, width: int) -> None:
    found = kmeans(np.full((50, width), 0.3), np.ones(50), 4, seed=seed)
    np.testing.assert_allclose(found, 0.3)


@pytest.mark.parametrize("width", [1, 4])
def test_a_seed_decides_all_of_it(width: int) -> None:
    points, weights = np.random.default_rng(0).standard_normal((5000, width)), np.ones(5000)
    first, again, other = (kmeans(points, weights, 8, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    if width == 1:
        assert (np.diff(first[:, 0]) >= 0).all()


def test_of_very_many_points_a_sample_does() -> None:
    """A tenth of the points, drawn at random, loses a few percent."""
    points = np.random.default_rng(0).standard_normal((20_000, 2))
    sampled = kmeans(points, np.ones(20_000), 8)
    every = min(_loss(points, np.ones(20_000), points[np.random.default_rng(s).choice(20_000, 8)]) for s in range(20))
    assert _loss(points, np.ones(20_000), sampled) < 0.9 * every
    assert abs(sampled.mean(axis=0)).max() < 0.3


@given(seeds, st.sampled_from([1, 2]))
@settings(max_examples=10)
def test_centers_go_where_the_weight_is(seed: int, width: int) -> None:
    points = np.random.default_rng(seed).uniform(0.0, 1.0, (400, width))
    weights = np.where(points[:, 0] < 0.3, 50.0, 1.0)
    heeded, plain = (kmeans(points, own, 12, seed=seed) for own in (weights, np.ones(400)))
    assert _loss(points, weights, heeded) < 0.95 * _loss(points, weights, plain)
    assert (heeded[:, 0] < 0.3).sum() >= (plain[:, 0] < 0.3).sum()


def test_single_values_come_close_to_the_best_of_all() -> None:
    """Best centers split sorted values into runs; with 14 of them all splits can be tried."""
    ratios: list[float] = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        x, w = np.sort(rng.standard_normal(14)), rng.uniform(0.1, 1.0, 14)
        best = np.inf
        for cuts in combinations(range(1, 14), 3):
            runs = list(zip((0, *cuts), (*cuts, 14), strict=True))
            best = min(
                best, sum(float(w[a:b] @ np.square(x[a:b] - np.average(x[a:b], weights=w[a:b]))) for a, b in runs)
            )
        ratios.append(_loss(x[:, None], w, kmeans(x[:, None], w, 4)) / best)
    assert min(ratios) >= 1 - 1e-9 and np.mean(ratios) < 1.3, ratios
