"""The solver where it has to thin its states, and where limits are odd."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.numeric import knapsack
from onnxcomp.numeric.knapsack import Options, solve

Float = NDArray[np.float64]


def problem(resources: int, sites: int = 14, options: int = 8) -> list[Options]:
    rng = np.random.default_rng(7)
    made: list[Options] = []
    for _ in range(sites):
        use = rng.uniform(0.0, 1.0, (options, resources)) * 10 ** rng.uniform(-1, 1)
        use[0] = 0.0
        goal = (use.max() - use.mean(axis=1)) * np.exp(0.3 * rng.standard_normal(options))
        made.append(Options(np.arange(options), goal, use))
    return made


def goal_of(sites: list[Options], picks: list[int]) -> float:
    return float(sum(site.goal[pick] for site, pick in zip(sites, picks, strict=True)))


def use_of(sites: list[Options], picks: list[int]) -> Float:
    total: Float = np.sum([site.use[pick] for site, pick in zip(sites, picks, strict=True)], axis=0)
    return total


@pytest.mark.parametrize("resources", [1, 2])
def test_few_states_are_nearly_as_good(monkeypatch: pytest.MonkeyPatch, resources: int) -> None:
    sites = problem(resources)
    limits = 0.4 * np.sum([site.use.max(axis=0) for site in sites], axis=0)
    best = solve(sites, limits)
    monkeypatch.setattr(knapsack, "_STATES", 40)
    monkeypatch.setattr(knapsack, "_STATES_VECTOR", 40)
    thinned = solve(sites, limits)
    assert best is not None and thinned is not None
    for picks in (best, thinned):
        assert (use_of(sites, picks) <= limits).all()
    assert goal_of(sites, thinned) == pytest.approx(goal_of(sites, best), rel=0.02)


def test_two_resources_that_no_price_meets() -> None:
    # The middle is above every hull: whatever the prices, one of the ends is better.
    site = Options(np.arange(3), np.array([0.0, 5.0, 0.0]), np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]]))
    assert solve([site, site], np.array([2.0, 2.0])) in ([0, 2], [2, 0])
    assert solve([site], np.array([1.0, 1.0])) == [1]
    assert solve([site], np.array([0.5, 0.5])) is None


def test_a_limit_of_nothing() -> None:
    sites = [Options(np.arange(2), np.array([3.0, 0.0]), np.array([[0.0], [1e-300]]))]
    assert solve(sites, np.zeros(1)) == [0]
    assert solve(sites, np.array([1e-300])) == [1]
