from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxcomp.runtime.latency import Opener, latency_of, paired_speed

MakeMachine = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated time needs no garbage collected, which takes longer than all the rest."""
    monkeypatch.setattr("gc.collect", lambda: 0)


def test_the_speed_up_is_found_in_spite_of_the_noise(machine: MakeMachine) -> None:
    for seed, truth in enumerate((0.8, 1.0, 1.5, 4.0)):
        m = machine(seed)
        found = paired_speed(m.opener(0.02), m.opener(0.02 / truth), clock=m.clock)
        assert found.low <= truth * 1.01
        assert found.high >= truth * 0.99
        assert found.ratio == pytest.approx(truth, rel=0.04)
        assert found.base_ms / found.other_ms == pytest.approx(found.ratio)
        assert found.base.p50 == pytest.approx(found.base_ms, rel=0.15)
        assert found.base.p50 <= found.base.p90 <= found.base.p99
        assert found.sessions in (4, 8)
        assert found.attempts == 1


def test_intervals_count_what_lasts_as_long_as_a_session(machine: MakeMachine) -> None:
    held = 0
    for seed in range(6):
        m = machine(seed, bias=0.04)
        found = paired_speed(m.opener(0.02), m.opener(0.02), clock=m.clock, seed=seed, budget_s=2.0, rounds=32)
        held += found.low <= 1 <= found.high
    assert held >= 5


def test_a_ratio_that_hangs_in_the_balance_is_measured_longer_and_one_that_does_not_shorter(
    machine: MakeMachine,
) -> None:
    close = machine(1)
    found = paired_speed(close.opener(0.02), close.opener(0.02), against=1.0, clock=close.clock)
    assert (found.sessions, found.conclusive) == (8, False)
    far = machine(1)
    found = paired_speed(far.opener(0.02), far.opener(0.01), against=1.0, clock=far.clock)
    assert (found.sessions, found.conclusive) == (4, True)
    assert far.now < close.now / 2


def test_without_a_limit_an_interval_is_conclusive_when_it_is_narrow(machine: MakeMachine) -> None:
    calm = machine(3, bias=0.0)
    assert paired_speed(calm.opener(0.02), calm.opener(0.02), clock=calm.clock).conclusive
    wild = machine(3, bias=0.3)
    assert not paired_speed(wild.opener(0.02), wild.opener(0.02), clock=wild.clock, rounds=8).conclusive


def test_sessions_are_opened_in_changing_order_and_closed_before_the_next(machine: MakeMachine) -> None:
    m = machine(4)
    alive: list[weakref.ref[Callable[[], None]]] = []

    def watched(name: str) -> Opener:
        inner = m.opener(0.02, name)

        def opener() -> Callable[[], None]:
            assert len([one for one in alive if one() is not None]) <= 1
            call: Callable[[], None] = inner()
            alive.append(weakref.ref(call))
            return call

        return opener

    paired_speed(watched("a"), watched("b"), clock=m.clock, rounds=8)
    assert m.opened[:8] == ["a", "b", "b", "a", "a", "b", "b", "a"]
    m.opened.clear()
    paired_speed(watched("a"), watched("b"), clock=m.clock, rounds=8, swapped=True)
    assert m.opened[:4] == ["b", "a", "a", "b"]


def test_the_time_spent_is_bounded_even_where_opening_takes_long(machine: MakeMachine) -> None:
    slow = machine(5, opening=5.0)
    found = paired_speed(slow.opener(0.02), slow.opener(0.02), clock=slow.clock)
    assert found.sessions == 2  # one, and one more since the first settled nothing
    quick = machine(5)
    paired_speed(quick.opener(0.02), quick.opener(0.02), clock=quick.clock, budget_s=2.0)
    assert quick.now < 8


def test_the_latency_is_that_of_single_runs(machine: MakeMachine) -> None:
    m = machine(6)
    found = latency_of(m.opener(1e-4), clock=m.clock)
    assert found.low <= found.ms <= found.high
    assert 0.085 <= found.ms <= 0.14
    assert found.percentiles.p50 == found.ms
    # One run in twenty takes twice as long, which an average of many would hide.
    assert found.percentiles.p99 > 1.6 * found.ms
    assert found.rounds >= 4 * 32
    assert latency_of(m.opener(0.02), against=10.0, clock=m.clock).conclusive


def test_a_model_that_fails_to_open_says_so_itself(machine: MakeMachine) -> None:
    def broken() -> Callable[[], None]:
        raise RuntimeError("no such model")

    m = machine(7)
    with pytest.raises(RuntimeError, match="no such model"):
        paired_speed(m.opener(0.02), broken, clock=m.clock)


def test_a_seed_and_a_simulated_clock_give_the_same_result_again(machine: MakeMachine) -> None:
    one, other = (paired_speed(m.opener(0.02), m.opener(0.02), clock=m.clock) for m in (machine(8), machine(8)))
    assert one == other
    assert np.isfinite([one.ratio, one.low, one.high]).all()
