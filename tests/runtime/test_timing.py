from __future__ import annotations

import gc
import itertools
import time

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.errors import DataError
from onnxcomp.runtime import timing
from onnxcomp.runtime.session import open_session
from onnxcomp.runtime.timing import interleaved, median_interval, paired, time_many


def chain(length: int, size: int = 128) -> bytes:
    """`length` matrix products of [64, size] by [size, size]."""
    weight = np.full((size, size), 1 / size, np.float32)
    names = ["x", *(f"t{k}" for k in range(length - 1)), "y"]
    nodes = [oh.make_node("MatMul", [a, "w"], [b]) for a, b in itertools.pairwise(names)]
    graph = oh.make_graph(
        nodes,
        "chain",
        [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [64, size])],
        [oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [64, size])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8).SerializeToString()


FEED = {"x": np.ones((64, 128), np.float32)}


def test_a_model_with_four_times_the_work_takes_about_that_much_longer() -> None:
    result = paired(chain(48), chain(12), FEED, budget_s=3.0)
    assert 2.0 < result.ratio < 8.0
    assert result.low <= result.ratio <= result.high
    assert result.base_ms > result.other_ms > 0
    assert 0 < result.base_p10_ms <= result.base_ms
    assert 0 < result.other_p10_ms <= result.other_ms


def test_a_model_against_itself_is_no_faster() -> None:
    session = open_session(chain(8))
    result = paired(session, session, FEED, budget_s=2.0)
    assert 0.7 < result.ratio < 1.4
    assert result.rounds >= 8


def test_many_models_are_ranked() -> None:
    times = time_many([chain(48), chain(2), chain(12)], FEED, budget_s=3.0)
    assert times[1] < times[2] < times[0]  # sixfold and fourfold work: more than any neighbour takes
    assert time_many([], FEED) == []


def test_the_number_of_rounds_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_NARROW", 0.0)
    assert paired(chain(1), chain(1), FEED, rounds=20, budget_s=60.0).rounds == 20
    assert paired(chain(1), chain(1), FEED, rounds=20, budget_s=0.0).rounds == 8


class Clock:
    """Stands in for time.perf_counter; a call of a model moves it on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


def test_the_order_turns_round_and_collection_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    turns: list[str] = []
    collecting: list[bool] = []

    def call(name: str) -> None:
        clock.now += 1.0
        turns.append(name)
        collecting.append(gc.isenabled())

    times = interleaved([lambda: call("a"), lambda: call("b")], 9, 0.0, lambda done: False)
    measured = turns[6:]  # three warm-up runs each
    assert "".join(measured) == "abba" * 4
    assert times.shape == (2, 8)
    assert not any(collecting[6:])
    assert gc.isenabled()


def test_drift_cancels_in_the_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine that slows down from round to round: medians of each model alone would not show the ratio, pairs do.
    clock = Clock(monkeypatch)
    calls = 0

    def call(seconds: float) -> None:
        nonlocal calls
        clock.now += seconds * 1.3 ** (calls // 2)
        calls += 1

    times = interleaved([lambda: call(3.0), lambda: call(2.0)], 8, 0.0, lambda done: False)
    assert times[0].max() > 5 * times[0].min()
    np.testing.assert_allclose(times[0] / times[1], 1.5)


def test_short_runs_are_repeated_until_a_sample_is_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    calls = 0

    def call() -> None:
        nonlocal calls
        clock.now += 1e-4
        calls += 1

    times = interleaved([call], 8, 0.0, lambda done: False)
    np.testing.assert_allclose(times, 1e-4)
    warm = 500  # 50 ms
    assert calls == pytest.approx(warm + 8 * (20 + 1), abs=8 + 2)


@pytest.mark.parametrize(("other_s", "decided", "rounds"), [(0.5, 0.1, 16), (0.5, 0.0, 40), (1.0, 0.1, 40)])
def test_a_clear_verdict_takes_fewer_rounds(
    monkeypatch: pytest.MonkeyPatch, other_s: float, decided: float, rounds: int
) -> None:
    clock = Clock(monkeypatch)
    wobble = itertools.cycle([0.98, 0.99, 1.0, 1.01, 1.02])

    def caller(model: str, *arguments: object) -> object:
        seconds = float(model)

        def call() -> None:
            clock.now += seconds * (next(wobble) if seconds == other_s else 1.0)

        return call

    monkeypatch.setattr(timing, "_caller", caller)
    monkeypatch.setattr(timing, "_NARROW", 0.0)
    result = paired("1.001", str(other_s), {}, rounds=40, budget_s=1e6, decided=decided)
    assert result.rounds == rounds and result.ratio == pytest.approx(1 / other_s, rel=0.02)


def test_samples_pass_on_the_clock_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    wall = Clock(monkeypatch)
    own = itertools.count(0.0, 0.25)

    def call() -> None:
        wall.now += 1.0

    times = interleaved([call], 10, 8.5, lambda done: False, clock=lambda: next(own))
    np.testing.assert_array_equal(times, np.full((1, 9), 0.25))


def test_a_feed_that_does_not_fit_is_reported() -> None:
    with pytest.raises(DataError, match="no input 'x'"):
        paired(chain(1), chain(1), {"z": FEED["x"]})


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=60))
def test_the_interval_holds_the_sample_median(values: list[float]) -> None:
    array = np.array(values)
    low, high = median_interval(array)
    assert low <= np.median(array) <= high
    if len(values) < 6:
        assert (low, high) == (array.min(), array.max())


def test_the_interval_covers_the_true_median_95_times_in_100() -> None:
    draws = np.random.default_rng(0).lognormal(size=(2000, 25))
    held = [low <= 1.0 <= high for low, high in map(median_interval, draws)]
    assert 0.945 < np.mean(held) < 0.975


def test_the_ranks_are_those_of_the_tables() -> None:
    # n = 20: the 6th and the 15th value (David and Nagaraja, table of distribution-free intervals).
    assert median_interval(np.arange(1.0, 21.0)) == (6.0, 15.0)
