"""Allocation where costs are products: against brute force, uniform choices, and the exact solver of sums."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import inf, nan, prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.numeric.allocation import allocate, cheapest
from onnxcomp.numeric.coupled import losing, trade, within

Float = NDArray[np.float64]
Picks = Sequence[int]
seeds = st.integers(0, 2**32 - 1)


class _Layers:
    """Layers that each cost a factor times the shares that the options of its variables keep."""

    def __init__(self, factors: Float, members: list[tuple[int, ...]], kept: list[Float], losses: list[Float]) -> None:
        self.factors, self.members, self.kept, self.losses = factors, members, kept, losses

    def total(self, picks: Picks) -> float:
        return float(sum(self._layer(number, picks) for number in range(len(self.factors))))

    def costs_of(self, variable: int, picks: Picks) -> Float:
        """Of the layers that the variable has a part in."""
        own = [number for number, some in enumerate(self.members) if variable in some]
        return self.kept[variable] * sum(self._layer(number, picks, variable) for number in own)

    def loss(self, picks: Picks) -> float:
        return float(sum(loss[pick] for loss, pick in zip(self.losses, picks, strict=True)))

    def _layer(self, number: int, picks: Picks, without: int = -1) -> float:
        shares = [self.kept[v][picks[v]] for v in self.members[number] if v != without]
        return float(self.factors[number] * prod(shares))

    def every(self) -> list[tuple[int, ...]]:
        return list(product(*(range(len(loss)) for loss in self.losses)))


def _chain(seed: int, count: int = 4, options: int = 4, forbidden: float = 0.0) -> _Layers:
    """Layers in a row; the more a group gives up, the more it loses."""
    rng = np.random.default_rng(seed)
    kept = [np.concatenate([[1.0], np.sort(rng.uniform(0.1, 1, options - 1))[::-1]]) for _ in range(count)]
    losses = [np.concatenate([[0.0], np.cumsum(rng.exponential(np.exp(rng.normal()), options - 1))]) for _ in kept]
    for loss in losses:
        loss[1:][rng.random(options - 1) < forbidden] = inf
    members: list[tuple[int, ...]] = [(0,), *((v, v + 1) for v in range(count - 1)), (count - 1,)]
    return _Layers(np.exp(rng.normal(0, 1, count + 1)), members, kept, losses)


def _near_optimal(ratios: list[float]) -> None:
    assert min(ratios) >= 1 - 1e-9
    assert np.mean(np.array(ratios) > 1.1) <= 0.02 and np.mean(ratios) < 1.01


def test_little_loss_within_a_budget() -> None:
    ratios = list[float]()
    for seed in range(20):
        layers = _chain(seed, forbidden=0.2 if seed % 3 == 0 else 0.0)
        every = [(layers.total(picks), layers.loss(picks), picks) for picks in layers.every()]
        for share in (0.8, 0.5, 0.3):
            budget = share * layers.total([0] * 4)
            best = min((loss for cost, loss, _ in every if cost <= budget), default=inf)
            found = within(layers.losses, layers.costs_of, layers.total, budget)
            if best == inf:
                assert found is None
                continue
            assert found is not None and layers.total(found) <= budget * (1 + 1e-9)
            ratios.append(layers.loss(found) / best)
            uniform = [loss for cost, loss, picks in every if cost <= budget and len(set(picks)) == 1]
            assert layers.loss(found) <= min(uniform, default=inf)
    _near_optimal(ratios)


def test_little_cost_with_a_loss() -> None:
    ratios = list[float]()
    for seed in range(20):
        layers = _chain(seed, forbidden=0.2 if seed % 3 == 0 else 0.0)
        every = [(layers.total(picks), layers.loss(picks)) for picks in layers.every()]
        for share in (0.0, 0.1, 0.3, 1.0):
            allowed = share * max(loss for _, loss in every if loss < inf)
            found = losing(layers.losses, layers.costs_of, layers.total, allowed)
            assert layers.loss(found) <= allowed * (1 + 1e-9)
            ratios.append(layers.total(found) / min(cost for cost, loss in every if loss <= allowed * (1 + 1e-9)))
    _near_optimal(ratios)


@given(seeds, st.floats(0.2, 0.95))
@settings(max_examples=8, deadline=None)
def test_costs_that_add_up_come_close_to_the_exact_solver(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    chain = _chain(seed, count=12, options=8)
    sums = _Layers(np.exp(rng.normal(0, 1, 12)), [(v,) for v in range(12)], chain.kept, chain.losses)
    costs = [factor * kept for factor, kept in zip(sums.factors, sums.kept, strict=True)]
    least = float(sum(cost.min() for cost in costs))
    budget = least + share * (sums.total([0] * 12) - least)
    best, found = (
        allocate(costs, sums.losses, budget),
        within(sums.losses, sums.costs_of, sums.total, budget),
    )
    assert best is not None and found is not None and sums.total(found) <= budget * (1 + 1e-9)
    assert sums.loss(found) <= 1.1 * sums.loss(best) + 1e-12
    exact = cheapest(costs, sums.losses, sums.loss(best))
    cheap = losing(sums.losses, sums.costs_of, sums.total, sums.loss(best))
    assert sums.total(cheap) <= 1.1 * sums.total(exact)


@given(seeds, st.floats(1e-3, 1e3))
@settings(max_examples=20, deadline=None)
def test_after_a_trade_no_single_change_helps(seed: int, price: float) -> None:
    layers = _chain(seed, count=6, forbidden=0.2)
    found = trade(layers.losses, layers.costs_of, [0] * 6, price)
    value = layers.loss(found) + price * layers.total(found)
    assert value <= price * layers.total([0] * 6) * (1 + 1e-12)
    for variable, option in product(range(6), range(4)):
        other = [*found[:variable], option, *found[variable + 1 :]]
        assert layers.loss(other) + price * layers.total(other) >= value * (1 - 1e-9)


def test_options_that_are_forbidden_are_left() -> None:
    layers = _chain(0, forbidden=1.0)
    assert within(layers.losses, layers.costs_of, layers.total, layers.total([0] * 4)) == [0] * 4
    assert within(layers.losses, layers.costs_of, layers.total, 0.99 * layers.total([0] * 4)) is None
    assert losing(layers.losses, layers.costs_of, layers.total, 1e9) == [0] * 4
    assert trade(layers.losses, layers.costs_of, [3] * 4, 1.0) == [0] * 4


def test_the_least_that_can_be_had_is_found() -> None:
    layers = _chain(1)
    least = min(layers.total(picks) for picks in layers.every())
    found = within(layers.losses, layers.costs_of, layers.total, least)
    assert found == [3] * 4 and found == within(layers.losses, layers.costs_of, layers.total, least)
    assert within(layers.losses, layers.costs_of, layers.total, 0.999 * least) is None


def test_what_makes_no_sense_is_refused() -> None:
    layers = _chain(0)
    with pytest.raises(ValueError, match="NaN"):
        within(layers.losses, layers.costs_of, layers.total, nan)
    with pytest.raises(ValueError, match="cannot be met"):
        losing(layers.losses, layers.costs_of, layers.total, -1.0)
    for wrong in ([0.5, 1.0], [0.0, -1.0], [0.0, nan], []):
        with pytest.raises(ValueError, match="variable 1"):
            within([np.zeros(2), np.array(wrong)], layers.costs_of, layers.total, 1.0)
