from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxcomp.gate.layers import LayerTimes, layers_line, slowed_most, slower_layers

LAYERS, ROUNDS = 40, 60


def network(seed: int, slower: float = 1.0, bias: float = 0.02) -> Callable[[int], LayerTimes]:
    """Measurements of forty layers on a noisy machine, one of which takes `slower` times as long as in the base.

    Jitter of 5 %, spikes that strike single layers and whole runs, two states of the frequency, drift, and layers that
    are faster or slower by up to `bias` as long as a session lives.
    """
    rng = np.random.default_rng(seed)
    base = rng.uniform(0.02, 1.0, LAYERS)
    base[0], base[7] = 1e-4, 0.6
    other = base.copy()
    other[7] *= slower
    other[0] *= 30  # too small to matter

    def measure(attempt: int) -> LayerTimes:
        del attempt
        state = np.repeat(rng.choice([1.0, 1.25], ROUNDS // 10), 10) * (1 + 0.05 * np.sin(np.arange(ROUNDS) / 20))

        def noisy(own: np.ndarray) -> np.ndarray:
            steady = (own * (1 + rng.uniform(-bias, bias, LAYERS)))[:, None] * state
            spikes = np.where(rng.random((LAYERS, ROUNDS)) < 0.02, 2, 1) * np.where(rng.random(ROUNDS) < 0.05, 2, 1)
            return np.asarray(steady * spikes * np.exp(rng.normal(0, 0.05, (LAYERS, ROUNDS))))

        return LayerTimes(tuple(f"conv{k}" for k in range(LAYERS)), noisy(base), noisy(other))

    return measure


def test_layers_of_the_same_model_pass_whatever_the_noise() -> None:
    for seed in range(20):
        line, _ = layers_line(network(seed), 5.0)
        assert line.verdict == "pass", line


def test_a_layer_a_fifth_slower_fails_by_its_name() -> None:
    for seed in range(20):
        line, _ = layers_line(network(seed, 1.2), 10.0)
        assert (line.verdict, line.where) == ("fail", ("conv7",)), line
        assert line.figures["low"] > 10
        assert line.figures["value"] == pytest.approx(20, abs=7)
        assert "slower in all 3 measurements: conv7 +" in line.why


def test_a_layer_that_is_slow_in_one_measurement_only_passes() -> None:
    slow, same = network(1, 1.5), network(2)
    line, _ = layers_line(lambda attempt: (slow if attempt == 0 else same)(attempt), 10.0)
    assert line.verdict == "pass"
    assert "in measurement 2 no layer was over the limit" in line.why


def test_a_bound_is_corrected_for_the_number_of_layers() -> None:
    rng = np.random.default_rng(3)
    noise = np.exp(rng.normal(0, 0.25, (2, ROUNDS)))
    few = LayerTimes(("a",), noise[:1], 1.25 * noise[1:])
    found = slower_layers([few], 0.0)
    assert [one.name for one in found] == ["a"]
    calm = np.ones((200, ROUNDS))
    many = LayerTimes(("a", *(f"b{k}" for k in range(200))), np.vstack([few.base, calm]), np.vstack([few.other, calm]))
    stricter = slower_layers([many], 0.0)
    assert not stricter or stricter[0].low < found[0].low


def test_what_cannot_be_compared_does_not_count() -> None:
    rounds = np.ones(12)
    times = LayerTimes(
        ("kept", "gone", "new"), np.stack([rounds, rounds, 0 * rounds]), np.stack([rounds, 0 * rounds, rounds])
    )
    assert slower_layers([times], 0.0) == ()
    line, _ = layers_line(lambda _: times, 10.0)
    assert line.verdict == "pass"
    assert line.why == "not in the base, and not judged: new, 50 % of the time"
    empty = LayerTimes((), np.empty((0, 3)), np.empty((0, 3)))
    assert layers_line(lambda _: empty, 10.0)[0].verdict == "pass"


def test_models_that_share_no_names_are_not_let_pass() -> None:
    own, none = np.ones((2, 12)), np.zeros((2, 12))
    renamed = LayerTimes(("a", "b", "c", "d"), np.vstack([own, none]), np.vstack([none, 9 * own]))
    line, times = layers_line(lambda _: renamed, 10.0)
    assert (line.verdict, times) == ("skipped", renamed)
    assert "only 0 % of the time" in line.why


def test_what_is_told_is_what_decided() -> None:
    """A layer that is a little over the limit every time passes for what sessions differ by, and the line says so."""
    base = np.ones((1, 12))
    line, _ = layers_line(lambda _: LayerTimes(("a",), base, 1.12 * base), 10.0)
    assert line.verdict == "pass"
    assert line.why == "no layer was over the limit beyond what sessions differ by"
    line, _ = layers_line(lambda k: LayerTimes(("a",), base, (1.5 if k == 0 else 1.02) * base), 10.0)
    assert (line.verdict, line.value) == ("pass", "+2 % at most")


def test_the_layers_that_lost_most_are_named() -> None:
    base = np.array([[1.0], [2.0], [3.0], [0.0], [5.0]]) * np.ones(8)
    other = np.array([[1.5], [4.0], [3.1], [0.2], [1.0]]) * np.ones(8)
    found = slowed_most(LayerTimes(("a", "b", "c", "new", "faster"), base, other))
    assert [one.name for one in found] == ["b", "a", "new"]
    assert found[2].ratio == np.inf
