"""Pareto fronts, hulls and the Lagrangian frontier."""

from __future__ import annotations

from itertools import pairwise
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.numeric.hull import beaten, descent, frontier, hull, pareto

Float = NDArray[np.float64]
COSTS = st.integers(1, 10**10).map(float)
LOSSES = st.floats(1e-8, 10.0)
OPTION = st.tuples(COSTS, LOSSES | st.just(inf) | st.just(0.0))


@st.composite
def site(draw: st.DrawFn, most: int = 12) -> tuple[Float, Float]:
    options = [(draw(COSTS), 0.0), *draw(st.lists(OPTION, max_size=most))]
    return np.array([c for c, _ in options]), np.array([loss for _, loss in options])


def test_fronts_of_a_site() -> None:
    cost = np.array([10.0, 8.0, 8.0, 6.0, 4.0, 4.0, 12.0, 1.0])
    loss = np.array([0.0, 1.0, 1.0, 2.0, 2.5, 9.0, 0.5, inf])
    assert pareto(cost, loss) == [0, 1, 3, 4]
    assert hull(cost, loss) == [0, 4]
    assert hull(np.array([3.0, 2.0, 1.0]), np.array([0.0, 1.0, 3.0])) == [0, 1, 2]
    assert hull(np.array([3.0, 2.0, 1.0]), np.array([0.0, 1.0, 2.0])) == [0, 2]
    assert pareto(cost[:0], loss[:0]) == hull(cost[-1:], loss[-1:]) == []


@given(site())
def test_the_pareto_front_is_what_nothing_beats(options: tuple[Float, Float]) -> None:
    cost, loss = options
    front = pareto(cost, loss)
    allowed = np.isfinite(loss)
    alive = ~beaten(np.column_stack([cost, loss])) & allowed
    assert sorted(front) == np.flatnonzero(alive).tolist()
    assert all(cost[a] > cost[b] and loss[a] < loss[b] for a, b in pairwise(front))


@given(site())
def test_no_option_lies_below_the_hull(options: tuple[Float, Float]) -> None:
    cost, loss = options
    corners = hull(cost, loss)
    assert set(corners) <= set(pareto(cost, loss))
    edge = np.interp(cost, cost[corners[::-1]], loss[corners[::-1]])
    inside = (cost >= cost[corners[-1]]) & np.isfinite(loss)
    assert (loss[inside] >= edge[inside] - 1e-9 * (1e-8 + loss[inside])).all()


@given(st.lists(site(), min_size=1, max_size=6))
def test_the_frontier_is_feasible_monotone_and_convex(sites: list[tuple[Float, Float]]) -> None:
    costs, losses = [c for c, _ in sites], [loss for _, loss in sites]
    points = frontier(costs, losses)
    assert points[0][2] == [0] * len(sites)
    assert points[-1][0] == sum(c[np.isfinite(loss)].min() for c, loss in sites)
    for total, lost, picks in points:
        assert total == sum(c[p] for c, p in zip(costs, picks, strict=True))
        assert lost == pytest.approx(sum(loss[p] for loss, p in zip(losses, picks, strict=True)), rel=1e-12)
        assert lost < inf
    for (cost, loss, before), (cheaper, more, after) in pairwise(points):
        assert cheaper < cost
        assert more >= loss
        assert before != after
    for (c0, l0, _), (c1, l1, _), (c2, l2, _) in zip(points, points[1:], points[2:], strict=False):
        assert (l1 - l0) * (c1 - c2) <= (l2 - l1) * (c0 - c1) + 1e-9 * l2 * (c0 - c2)


@given(sites=st.lists(site(), min_size=1, max_size=5), price=st.floats(1e-12, 1e-3))
def test_a_price_is_best_met_on_the_frontier(sites: list[tuple[Float, Float]], price: float) -> None:
    points = frontier([c for c, _ in sites], [loss for _, loss in sites])
    best = sum(float((loss + price * cost).min()) for cost, loss in sites)
    assert min(loss + price * cost for cost, loss, _ in points) == pytest.approx(best, rel=1e-9)


def test_a_free_gain_comes_first() -> None:
    points = frontier([np.array([10.0, 7.0, 5.0])], [np.array([0.0, 0.0, 1.0])])
    assert points == [(10.0, 0.0, [0]), (7.0, 0.0, [1]), (5.0, 1.0, [2])]
    assert list(descent([np.array([10.0, 7.0])], [np.array([0.5, 0.0])])) == [[1]]


def test_of_no_sites_there_is_one_point() -> None:
    assert frontier([], []) == [(0.0, 0.0, [])]


def test_what_is_no_site() -> None:
    with pytest.raises(ValueError, match="option 0"):
        frontier([np.ones(2)], [np.array([0.1, 0.2])])
    with pytest.raises(ValueError, match="forbidden"):
        list(descent([np.ones(1)], [np.array([inf])]))
