from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from onnxcomp.gate import speed
from onnxcomp.gate.line import Line
from onnxcomp.gate.speed import latency_line, repeated, speedup_line, tail_line
from onnxcomp.runtime.latency import Latency, PairedSpeed, Percentiles, latency_of, paired_speed

MakeMachine = Callable[..., Any]
RUN_S = 0.02


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated time needs no garbage collected, which takes longer than all the rest."""
    monkeypatch.setattr("gc.collect", lambda: 0)


def speedup(machine: MakeMachine, seed: int, slower: float, limit: float = 1.0) -> Line:
    """The line of a model that takes `slower` times as long as its base, on a noisy machine."""
    m = machine(seed)

    def measure(attempt: int) -> PairedSpeed:
        openers = m.opener(RUN_S, "base"), m.opener(RUN_S * slower, "own")
        number, swapped = speed.sessions(attempt), bool(attempt % 2)
        return paired_speed(
            *openers, against=limit, sessions=number, swapped=swapped, clock=m.clock, seed=seed + attempt
        )

    return speedup_line(measure, limit)[0]


@pytest.mark.parametrize("seed", range(20))
def test_the_same_model_passes_against_itself_whatever_the_noise(machine: MakeMachine, seed: int) -> None:
    line = speedup(machine, seed, 1.0)
    assert line.passed
    assert line.figures["low"] <= line.figures["value"] <= line.figures["high"]


@pytest.mark.parametrize("seed", range(20))
def test_a_model_a_fifth_slower_fails_whatever_the_noise(machine: MakeMachine, seed: int) -> None:
    line = speedup(machine, seed, 1.2)
    assert line.verdict == "fail"
    assert line.figures["value"] == pytest.approx(1 / 1.2, rel=0.06)
    assert "3 measurements, all of them too slow" in line.why


def test_latency_is_judged_alike(machine: MakeMachine) -> None:
    for seed, (limit, verdicts) in enumerate(
        ((15.0, {"fail"}), (40.0, {"pass"}), (22.0, {"pass", "fail", "inconclusive"}))
    ):
        m = machine(seed)

        def measure(attempt: int, m: Any = m, limit: float = limit) -> Latency:
            return latency_of(m.opener(RUN_S), against=limit, rounds=60, clock=m.clock, seed=attempt)

        line, found = latency_line(measure, limit)
        assert line.verdict in verdicts
        assert line.figures["limit"] == limit
        assert f"{found.ms:.3g} ms" in line.value
        assert "99 % within" in line.why


def measured(ratio: float, low: float, high: float) -> PairedSpeed:
    some = Percentiles(1.0, 1.0, 1.0)
    return PairedSpeed(ratio, low, high, 1.0, 1.0, some, some, 100, 4, 1, True)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ((1.3, 1.25, 1.35), "pass"),
        ((1.1, 1.05, 1.15), "fail"),
        ((1.21, 1.15, 1.25), "inconclusive"),  # the limit inside the interval: the median decides
        ((1.195, 1.15, 1.25), "inconclusive"),  # within what a clock resolves
        ((1.18, 1.15, 1.25), "fail"),
        ((1.205, 1.204, 1.206), "inconclusive"),  # no interval is narrower than a clock resolves
        ((1.195, 1.194, 1.196), "inconclusive"),
    ],
)
def test_the_rule(found: tuple[float, float, float], verdict: str) -> None:
    tries: list[int] = []

    def measure(attempt: int) -> PairedSpeed:
        tries.append(attempt)
        return measured(*found)

    line, _ = speedup_line(measure, 1.2)
    assert line.verdict == verdict
    assert tries == ([0, 1, 2] if verdict == "fail" else [0])


def test_what_fails_once_and_not_again_passes() -> None:
    results = [measured(1.0, 0.99, 1.01), measured(1.3, 1.28, 1.32)]
    line, found = speedup_line(lambda attempt: results[attempt], 1.2)
    assert (line.verdict, found.attempts) == ("pass", 2)
    assert "at attempt 2" in line.why


def test_the_tail_is_judged_by_itself() -> None:
    def found(p99: float) -> Latency:
        return Latency(1.0, 0.9, 1.1, Percentiles(1.0, 2.0, p99), 200, 4, 1, True)

    assert tail_line(lambda _: found(3.0), 4.0)[0].verdict == "pass"
    line, _ = tail_line(lambda _: found(5.0), 4.0)
    assert (line.verdict, line.figures["value"]) == ("fail", 5.0)
    assert "3 measurements" in line.why


def test_attempts_are_numbered_and_one_at_least() -> None:
    assert repeated(lambda k: k, lambda k: "pass" if k == 1 else "fail") == (1, "pass", 2)
    with pytest.raises(ValueError, match="at least one"):
        repeated(lambda k: k, lambda _: "pass", 0)
    assert speed.ATTEMPTS == 3
