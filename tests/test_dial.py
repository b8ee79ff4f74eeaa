"""The dial finds the largest amount that holds, in few runs."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.dial import Reading, turn


class Noisy:
    """Noise of amount ** power * scale under a limit of 1; keeps the amounts that were tried."""

    def __init__(self, scale: float, power: float = 1.0) -> None:
        self.scale, self.power = scale, power
        self.tried: list[float] = []

    def noise(self, amount: float) -> float:
        return float(self.scale * amount**self.power)

    def __call__(self, amount: float) -> Reading[float]:
        self.tried.append(amount)
        noise = self.noise(amount)
        return Reading(amount, 1.0 / noise if noise else inf, noise <= 1.0)

    def turned(self, most: float = 1.0) -> tuple[float, Reading[float]]:
        amount, reading = turn(self(1.0), self, most)
        assert reading.result == amount in self.tried and len(self.tried) <= 6
        assert len(set(self.tried)) == len(self.tried), self.tried
        return amount, reading


@pytest.mark.parametrize("power", [0.7, 1.0, 1.4])
@pytest.mark.parametrize("scale", [1.3, 5.0, 60.0])
def test_down_until_it_holds(scale: float, power: float) -> None:
    amount, reading = Noisy(scale, power).turned()
    best = scale ** (-1 / power)
    assert reading.holds and 0.4 * best < amount <= best


@pytest.mark.parametrize("power", [0.7, 1.0, 1.4])
@pytest.mark.parametrize("scale", [0.5, 0.1, 0.03])
def test_up_where_there_is_room(scale: float, power: float) -> None:
    noisy = Noisy(scale, power)
    amount, reading = noisy.turned(most=1e6)
    assert reading.holds and 0.3 * scale ** (-1 / power) < amount and amount > 1.0


def test_never_above_the_most() -> None:
    noisy = Noisy(0.01)
    assert noisy.turned(most=1.0)[0] == 1.0 and noisy.tried == [1.0]
    noisy = Noisy(0.01)
    assert noisy.turned(most=8.0)[0] == 8.0 and max(noisy.tried) == 8.0


def test_close_enough_is_enough() -> None:
    noisy = Noisy(0.95)
    assert noisy.turned(most=32.0)[0] == 1.0 and noisy.tried == [1.0]


def test_no_noise_at_all_is_turned_up_step_by_step() -> None:
    noisy = Noisy(0.0)
    assert noisy.turned(most=32.0)[0] == 32.0
    assert noisy.tried[:3] == [1.0, 4.0, 16.0]


def test_where_nothing_holds_the_least_is_left() -> None:
    noisy = Noisy(1e12)
    amount, reading = noisy.turned()
    assert not reading.holds and amount == min(noisy.tried) < 1e-4


def test_a_limit_that_the_noise_does_not_explain() -> None:
    """A drop of accuracy may break where the slack tells of room: then it is turned down in small steps."""
    tried: list[float] = []

    def run(amount: float) -> Reading[float]:
        tried.append(amount)
        return Reading(amount, 4.0, amount <= 0.5)

    amount, reading = turn(run(1.0), run)
    assert reading.holds and 0.3 < amount <= 0.5 and len(tried) <= 6


@given(st.floats(1e-6, 1e6), st.floats(0.3, 3.0), st.sampled_from([1.0, 32.0]))
def test_what_is_returned_holds_or_nothing_did(scale: float, power: float, most: float) -> None:
    noisy = Noisy(scale, power)
    amount, reading = noisy.turned(most)
    assert amount <= most
    assert reading.holds or all(noisy.noise(tried) > 1.0 for tried in noisy.tried)
    assert amount == max((t for t in noisy.tried if noisy.noise(t) <= 1.0), default=min(noisy.tried))
