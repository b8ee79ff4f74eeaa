"""Profiles of models and of pairs of models; what depends on the clock is simulated."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.errors import DataError, InputError, ModelError
from onnxcomp.runtime import measuring, pairprofile, profiling
from onnxcomp.runtime.attribution import Attribution
from onnxcomp.runtime.measuring import Effort, adjustment_of, calm
from onnxcomp.runtime.ortprofile import TracedKernel
from onnxcomp.runtime.pairprofile import groups_of, profile_pair, verdict
from onnxcomp.runtime.profilercost import ProfilerCost, profiler_cost
from onnxcomp.runtime.profiling import profile_model
from onnxcomp.runtime.settings import SessionSettings

Parsed = Callable[..., ir.Model]
Arrays = dict[str, Any]
BRIEF = Effort(runs=24, warmup=1, budget_s=0.5)
COST = ProfilerCost(0.5, 3.0, 0.05, 0.01, 0.2)


@pytest.fixture(autouse=True)
def known_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the profiler takes longer than everything else here."""

    def known(_: SessionSettings) -> ProfilerCost:
        return COST

    for module in (profiling, pairprofile):
        monkeypatch.setattr(module, "profiler_cost", known)


@pytest.fixture
def one(samples: Arrays) -> Arrays:
    return {"x": samples["x"][:1]}


def test_a_profile_adds_up(stack: ir.Model, one: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = ir.to_proto(stack).SerializeToString()
    found = profile_model(stack, one, effort=BRIEF)
    assert ir.to_proto(stack).SerializeToString() == before
    assert list(tmp_path.iterdir()) == []  # the runtime's profile is gone
    assert {layer.layer for layer in found.layers} <= {"a", "b", "c", "pool", "flat", "head"}
    assert sum(kernel.ms for kernel in found.kernels) + found.outside_ms == pytest.approx(found.total_ms)
    assert sum(layer.ms for layer in found.layers) == pytest.approx(sum(kernel.ms for kernel in found.kernels))
    assert [layer.ms for layer in found.layers] == sorted((layer.ms for layer in found.layers), reverse=True)
    assert sum(kernel.share for kernel in found.kernels) + found.outside_ms / found.total_ms == pytest.approx(1)
    assert all(kernel.p50 <= kernel.p90 <= kernel.p99 for kernel in found.kernels)
    assert found.wall.p50 <= found.wall.p90 <= found.wall.p99
    agreement = found.agreement
    assert agreement.profile_ms == found.total_ms
    assert agreement.difference == pytest.approx(found.total_ms / agreement.wall_ms - 1)
    assert agreement.profiler_ms > 3e-3 * len(found.kernels) / 1.35
    assert found.runs == found.profiled_runs in (24, 48)  # as many again where something else ran


def test_as_many_runs_as_were_asked_for(stack: ir.Model, one: Arrays) -> None:
    found = profile_model(stack, one, effort=Effort(runs=1, warmup=0))
    assert (found.runs, found.profiled_runs, found.warmup) == (1, 1, 0)
    assert found.agreement.adjustment == 1.0  # one run tells nothing of the profiler


def test_the_runtimes_profile_does_not_grow_without_end(
    stack: ir.Model, one: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_EVENTS", 300)
    found = profile_model(stack, one, effort=Effort(runs=10_000, warmup=0))
    assert found.profiled_runs < 600


def test_disturbed_runs_are_repeated_once(stack: ir.Model, one: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[measuring.Subject] = []

    def disturbed(self: measuring.Subject, _: ProfilerCost) -> bool:
        asked.append(self)
        return True

    monkeypatch.setattr(measuring.Subject, "disturbed", disturbed)
    assert profile_model(stack, one, effort=Effort(runs=16, warmup=0)).runs == 32
    assert len(asked) == 1


def test_bodies_are_counted_once(parsed: Parsed) -> None:
    model = parsed(
        """g (float[1,8] x) => (float[1,8] y) {
          [pre] p = Relu(x)
          [loop] y = Loop(n, t, p) <body = b (int64 i, bool c, float[1,8] v) => (bool c2, float[1,8] w)
            { c2 = Identity(c) [inside] w = Exp(v) }> }""",
        n=np.array(5, np.int64),
        t=np.array(True),
    )
    found = profile_model(model, {"x": np.zeros((1, 8), np.float32)}, effort=BRIEF)
    assert [kernel.layer for kernel in found.kernels] == ["pre", "loop"]
    assert found.total_ms < 2 * found.agreement.wall_ms + 0.1


def test_scalars_are_fed_as_scalars(parsed: Parsed) -> None:
    model = parsed("g (float[1,8] x, float r) => (float[1,8] y) { [a] s = Mul(x, r) [b] y = Relu(s) }")
    feed = {"x": np.ones((1, 8), np.float32), "r": np.array(2.0, np.float32)}
    assert {layer.layer for layer in profile_model(model, feed, effort=BRIEF).layers} == {"a", "b"}
    assert profile_pair(model, model, feed, effort=BRIEF).speed.rounds > 0


def test_shape_arithmetic_is_on_integers(parsed: Parsed) -> None:
    model = parsed("g (float[N,8] x) => (int64[2] y, float[N,8] z) { [shape] y = Shape(x) [neg] z = Neg(x) }")
    found = profile_model(model, {"x": np.zeros((2, 8), np.float32)}, effort=BRIEF)
    assert {kernel.layer: kernel.arithmetic for kernel in found.kernels}["neg"] == "float"


def test_two_models_layer_by_layer(stack: ir.Model, one: Arrays) -> None:
    other = stack.clone()
    relu = next(node for node in other.graph if node.name == "act_b")
    relu.op_type = "Exp"  # which is not fused
    found = profile_pair(stack, other, one, effort=Effort(runs=24, warmup=1, budget_s=0.2))
    for profile, side in ((found.base, "base_kernels"), (found.other, "other_kernels")):
        kernels = [kernel for layer in found.layers for kernel in getattr(layer, side)]
        assert sorted(kernels) == sorted(kernel.kernel for kernel in profile.kernels)
    layers = {layer.layer: layer for layer in found.layers}
    assert "act_b" in layers["b"].origins
    assert {"Exp"} < set(layers["b"].other_kernels)
    assert len(layers["b"].base_series) == len(layers["b"].other_series) >= 3
    changes = [abs(layer.change_ms) for layer in found.layers]
    assert changes == sorted(changes, reverse=True)
    assert sum(layer.base_ms for layer in found.layers) + found.base.outside_ms == pytest.approx(found.base.total_ms)
    assert found.verdict == verdict(found.speed.ratio, found.speed.low, found.speed.high)


def made(layer: str, *origins: str) -> Attribution:
    return Attribution("Conv", layer, (layer, *origins), (layer,), ("Conv",), (), False)


def test_layers_that_are_fused_differently_are_grouped() -> None:
    base = [made("a", "relu_a"), made("b", "add", "relu"), made("short"), made("gone")]
    other = [made("a"), made("relu_a"), made("b"), made("short", "add"), made("relu"), made("new")]
    groups = {group.layer: group for group in groups_of(base, other)}
    assert set(groups) == {"a", "b", "gone", "new"}
    assert (groups["a"].base, groups["a"].other) == ((0,), (0, 1))
    assert set(groups["b"].origins) == {"b", "add", "relu", "short"}
    assert (groups["b"].base, groups["b"].other) == ((1, 2), (2, 3, 4))
    assert (groups["gone"].other, groups["new"].base) == ((), ())


@given(
    st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4, unique=True), max_size=8), st.integers(0, 8)
)
@settings(max_examples=30)
def test_groups_part_all_kernels(parts: list[list[str]], cut: int) -> None:
    kernels = [made(*part) for part in parts]
    base, other = kernels[:cut], kernels[cut:]
    groups = groups_of(base, other)
    for side, places in ((base, [k for g in groups for k in g.base]), (other, [k for g in groups for k in g.other])):
        assert sorted(places) == list(range(len(side)))
    origins = [origin for group in groups for origin in group.origins]
    assert len(origins) == len(set(origins))
    for group in groups:
        assert all(set(base[k].origins) <= set(group.origins) for k in group.base)


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((1.5, 1.2, 1.9), "faster"),
        ((0.8, 0.7, 0.9), "slower"),
        ((1.0, 0.97, 1.03), "same"),
        ((1.005, 1.002, 1.01), "same"),
        ((1.1, 0.95, 1.3), "inconclusive"),
    ],
)
def test_what_may_be_concluded(interval: tuple[float, float, float], said: str) -> None:
    assert verdict(*interval) == said


def test_calm_runs_are_not_the_disturbed_ones() -> None:
    rng = np.random.default_rng(0)
    times = rng.normal(1.0, 0.01, 200)
    times[rng.choice(200, 110, replace=False)] += rng.uniform(1, 5, 110)  # more than half of them
    assert times[calm(times)].max() < 1.1
    assert calm(np.array([3.0, 1.0])).tolist() == [0, 1]


def test_the_profilers_cost_is_fitted_within_limits() -> None:
    rng = np.random.default_rng(0)

    def rounds(ms: float) -> list[list[float]]:
        return [list(rng.normal(ms, 0.001, 8) / 1e3) for _ in range(20)]

    assert adjustment_of(rounds(1.23), rounds(1.0), 0.2e-3) == pytest.approx(1.15, abs=0.03)
    assert adjustment_of(rounds(3.0), rounds(1.0), 0.2e-3) == 1.35
    assert adjustment_of(rounds(1.0), rounds(1.0), 0.2e-3) == 1 / 1.35
    assert adjustment_of(rounds(1.2)[:2], rounds(1.0)[:2], 0.1e-3) == 1.0


@pytest.mark.parametrize("threads", [1, 2])
def test_the_profiler_costs_something(threads: int) -> None:
    found = profiler_cost(SessionSettings(threads))
    small = TracedKernel("n", "Relu", "CPUExecutionProvider", 2, 4, True, False)
    large = TracedKernel("n", "Sum", "CPUExecutionProvider", 12, 48, True, True)
    assert 0 < found.of(small) <= found.of(large)


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"warmup": -1}, {"budget_s": 0.0}, {"budget_s": float("nan")}])
def test_efforts_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Effort(**wrong)


def test_what_cannot_be_profiled(parsed: Parsed, stack: ir.Model, one: Arrays) -> None:
    with pytest.raises(InputError, match="side by side"):
        profile_model(stack, one, settings=SessionSettings(inter_op_threads=2))
    with pytest.raises(DataError, match="no input 'x'"):
        profile_model(stack, {})
    failing = parsed("g (float[N,3] x) => (float[M,2] y) { y = Reshape(x, s) }", s=np.array([-1, 2]))
    with pytest.raises(ModelError, match="could not run the model"):
        profile_model(failing, {"x": np.zeros((1, 3), np.float32)})
    constant = parsed("g (float[1] x) => (float[1] y) { y = Neg(c) }", c=np.ones(1, np.float32))
    with pytest.raises(ModelError, match="nothing to profile"):
        profile_model(constant, {"x": np.zeros(1, np.float32)})
    with pytest.raises(InputError, match="cannot be compared"):
        profile_pair(stack, failing, one)
