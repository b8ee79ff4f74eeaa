"""The allocator against brute force and against HiGHS."""

from __future__ import annotations

from itertools import product
from math import fsum, inf

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.numeric.allocation import allocate, cheapest, frontier

Float = NDArray[np.float64]
Instance = tuple[list[Float], list[Float]]
COSTS = st.integers(1, 50).map(float) | st.floats(1e3, 1e10)
LOSSES = st.integers(1, 9).map(float) | st.floats(1e-8, 10.0) | st.just(inf)


@st.composite
def instance(draw: st.DrawFn, resources: int = 0) -> Instance:
    """Up to five sites of up to four options; option 0 is free of loss."""
    costs: list[Float] = []
    losses: list[Float] = []
    for _ in range(draw(st.integers(1, 5))):
        n = draw(st.integers(1, 4))
        values = draw(st.lists(COSTS, min_size=n * max(1, resources), max_size=n * max(1, resources)))
        costs.append(np.array(values).reshape((n, resources)) if resources else np.array(values))
        losses.append(np.array([0.0, *draw(st.lists(LOSSES, min_size=n - 1, max_size=n - 1))]))
    return costs, losses


def total(values: list[Float], picks: list[int] | tuple[int, ...]) -> Float:
    chosen: Float = np.sum([values[site][pick] for site, pick in enumerate(picks)], axis=0)
    return chosen


def least_loss(costs: list[Float], losses: list[Float], budget: float | Float) -> float:
    """By brute force; inf where nothing meets the budget."""
    every = product(*(range(len(loss)) for loss in losses))
    return min(
        (float(total(losses, p)) for p in every if (total(costs, p) <= np.asarray(budget) * (1 + 1e-12)).all()),
        default=inf,
    )


@given(sites=instance(), part=st.floats(0.0, 1.2))
def test_the_allocation_equals_brute_force(sites: Instance, part: float) -> None:
    costs, losses = sites
    low, high = (fsum(float(f(c)) for c in costs) for f in (np.min, np.max))
    budget = low + part * (high - low) if part else low * 0.999
    picks = allocate(costs, losses, budget)
    best = least_loss(costs, losses, budget)
    if picks is None:
        assert best == inf
        return
    assert total(costs, picks) <= budget * (1 + 1e-12)
    assert float(total(losses, picks)) == pytest.approx(best, rel=1e-6)


@given(sites=instance())
def test_budgets_that_are_met_exactly(sites: Instance) -> None:
    costs, losses = sites
    allowed = [np.where(np.isfinite(loss), c, inf) for c, loss in zip(costs, losses, strict=True)]
    least = fsum(float(c.min()) for c in allowed)
    picks = allocate(costs, losses, least)
    assert picks is not None
    assert float(total(costs, picks)) == pytest.approx(least, rel=1e-12)
    assert allocate(costs, losses, least * (1 - 1e-9)) is None
    whole = fsum(float(c[0]) for c in costs)
    unchanged = allocate(costs, losses, whole)
    assert unchanged is not None and float(total(losses, unchanged)) == 0.0


@given(sites=instance(2), parts=st.tuples(st.floats(0.1, 1.0), st.floats(0.1, 1.0)))
def test_several_budgets_at_once(sites: Instance, parts: tuple[float, float]) -> None:
    costs, losses = sites
    budget = np.array(parts) * total(costs, [0] * len(costs))
    picks = allocate(costs, losses, budget)
    best = least_loss(costs, losses, budget)
    if picks is None:
        assert best == inf
        return
    assert (total(costs, picks) <= budget * (1 + 1e-12)).all()
    # Of hundreds of combinations, none is thinned away here.
    assert float(total(losses, picks)) == pytest.approx(best, rel=1e-6)


@given(sites=instance(), allowed=st.floats(0.0, 20.0))
def test_the_cheapest_equals_brute_force(sites: Instance, allowed: float) -> None:
    costs, losses = sites
    picks = cheapest(costs, losses, allowed)
    assert float(total(losses, picks)) <= allowed * (1 + 1e-12)
    every = product(*(range(len(loss)) for loss in losses))
    best = min(float(total(costs, p)) for p in every if float(total(losses, p)) <= allowed * (1 + 1e-12))
    assert float(total(costs, picks)) == pytest.approx(best, rel=1e-6)


@given(sites=instance(), part=st.floats(0.1, 1.0), up=st.integers(-40, 40), across=st.integers(-40, 40))
def test_units_do_not_matter(sites: Instance, part: float, up: int, across: int) -> None:
    costs, losses = sites
    budget = part * fsum(float(c[0]) for c in costs)
    scaled = allocate([c * 2.0**across for c in costs], [x * 2.0**up for x in losses], budget * 2.0**across)
    picks = allocate(costs, losses, budget)
    assert (picks is None) == (scaled is None)
    if picks is not None and scaled is not None:
        assert total(losses, scaled) == pytest.approx(total(losses, picks), rel=1e-6)


@given(sites=instance(), parts=st.tuples(st.floats(0.2, 1.0), st.floats(0.2, 1.0)))
def test_a_larger_budget_never_loses_more(sites: Instance, parts: tuple[float, float]) -> None:
    costs, losses = sites
    whole = fsum(float(c[0]) for c in costs)
    found = [allocate(costs, losses, part * whole) for part in sorted(parts)]
    lost = [inf if picks is None else float(total(losses, picks)) for picks in found]
    assert lost[1] <= lost[0] * (1 + 1e-6)


def model(seed: int, sites: int, options: int) -> Instance:
    """Costs over seven orders of magnitude, losses that grow as a rank falls, each with its own scatter."""
    rng = np.random.default_rng(seed)
    costs: list[Float] = []
    losses: list[Float] = []
    for _ in range(sites):
        kept = np.concatenate([[1.0], rng.uniform(0.05, 1.0, options - 1)])
        scatter = np.exp(0.1 * rng.standard_normal(options))
        costs.append(np.round(10 ** rng.uniform(3, 10) * kept))
        losses.append(10 ** rng.uniform(-6, -1) * (1 / kept - 1) ** 1.5 * scatter)
    return costs, losses


def by_highs(costs: list[Float], losses: list[Float], budget: float) -> float:
    goal, use = np.concatenate(losses), np.concatenate(costs)
    one_each = np.repeat(np.eye(len(costs)), [len(c) for c in costs], axis=1)
    outcome = scipy.optimize.milp(
        goal * 1e3,
        integrality=np.ones(len(goal), np.int64),
        bounds=scipy.optimize.Bounds(0.0, 1.0),
        constraints=[
            scipy.optimize.LinearConstraint(one_each, 1.0, 1.0),
            scipy.optimize.LinearConstraint(use[None] / budget, -np.inf, 1.0),
        ],
    )
    assert outcome.fun is not None
    return float(outcome.fun) / 1e3


@pytest.mark.parametrize("part", [0.2, 0.33, 0.6])
def test_a_deep_model(part: float) -> None:
    costs, losses = model(1, 60, 60)
    budget = part * fsum(float(c[0]) for c in costs)
    picks = allocate(costs, losses, budget)
    assert picks is not None
    assert total(costs, picks) <= budget
    lost = float(total(losses, picks))
    assert lost <= min(loss for cost, loss, _ in frontier(costs, losses) if cost <= budget)
    assert lost == pytest.approx(by_highs(costs, losses, budget), rel=2e-4)
    assert picks == allocate(costs, losses, budget)
    back = cheapest(costs, losses, lost)
    assert total(losses, back) <= lost * (1 + 1e-12)
    assert total(costs, back) <= total(costs, picks) * (1 + 1e-3)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.floats(0.3, 0.9), st.floats(0.3, 0.9))
def test_two_resources_of_a_model(seed: int, macs: float, time: float) -> None:
    costs, losses = model(seed, 12, 10)
    rng = np.random.default_rng(seed)
    both = [np.column_stack([c, c * rng.uniform(0.7, 1.5, len(c))]) for c in costs]
    whole, least = total(both, [0] * len(both)), np.sum([b.min(axis=0) for b in both], axis=0)
    budget = least + np.array([macs, time]) * (whole - least)
    picks = allocate(both, losses, budget)
    alone = [allocate([b[:, k] for b in both], losses, float(budget[k])) for k in (0, 1)]
    lost = [float(total(losses, p)) for p in alone if p is not None]
    assert picks is not None
    assert (total(both, picks) <= budget).all()
    assert float(total(losses, picks)) >= max(lost) * (1 - 1e-4)


@pytest.mark.parametrize(
    ("costs", "losses", "budget", "words"),
    [
        ([np.ones(2)], [], 1.0, "for 1 sites"),
        ([np.ones(2)], [np.zeros(3)], 1.0, "site 0: costs"),
        ([np.ones(0)], [np.zeros(0)], 1.0, "site 0: costs"),
        ([np.ones((2, 2))], [np.zeros(2)], 1.0, "for 1 resources"),
        ([np.ones(2)], [np.zeros(2)], np.ones(2), "for 2 resources"),
        ([np.array([1.0, inf])], [np.zeros(2)], 1.0, "not finite"),
        ([np.ones(2)], [np.zeros(2)], np.nan, "budget"),
        ([np.ones(2)], [np.array([0.0, -1.0])], 1.0, "negative"),
        ([np.ones(2)], [np.array([0.0, np.nan])], 1.0, "negative or NaN"),
    ],
)
def test_what_is_no_problem(costs: list[Float], losses: list[Float], budget: float | Float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        allocate(costs, losses, budget)


def test_forbidden_options() -> None:
    costs = [np.array([9.0, 1.0, 2.0])]
    assert allocate(costs, [np.array([0.0, inf, 3.0])], 5.0) == [2]
    assert allocate(costs, [np.array([0.0, inf, inf])], 5.0) is None
    assert allocate(costs, [np.full(3, inf)], 50.0) is None
    assert cheapest(costs, [np.array([0.0, inf, 3.0])], 1e9) == [2]
    with pytest.raises(ValueError, match="more than the 1 allowed"):
        cheapest(costs, [np.array([2.0, inf, 3.0])], 1.0)


def test_a_budget_that_is_no_limit() -> None:
    costs, losses = [np.array([5.0, 4.0, 3.0]), np.ones(1)], [np.array([2.0, 1.0, 3.0]), np.zeros(1)]
    assert allocate(costs, losses, inf) == allocate(costs, losses, 1e300) == [1, 0]
    assert allocate(costs, losses, -inf) is None
    assert cheapest(costs, losses, inf) == [2, 0]
    both = [np.column_stack([c, c]) for c in costs]
    assert allocate(both, losses, np.array([inf, 4.0])) == [2, 0]


def test_of_no_sites_nothing_is_picked() -> None:
    assert allocate([], [], 1.0) == []
    assert allocate([], [], -1.0) is None
    assert cheapest([], [], 0.0) == []
