"""Ranges that are chosen by what they do to the layers behind a tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.calibration.ranges import collect_histograms
from onnxcomp.contract import Context
from onnxcomp.data import Feeds, open_feeds
from onnxcomp.modelio import to_bytes
from onnxcomp.numeric.ranges import Range
from onnxcomp.passes.int8 import Int8
from onnxcomp.quantize.behind import Reach, reaches
from onnxcomp.quantize.choosing import candidates, choose_ranges, reader_errors
from onnxcomp.quantize.parameters import Parameters, uncut
from onnxcomp.quantize.placement import Plan, place
from onnxcomp.targets.target import load_target

Builder = Callable[..., ir.Model]
Image = NDArray[np.float32]

TAIL = "g (float[N,4,16,16] x) => (float[N,4,16,16] z) { y = Conv(x, v)  r = Relu(y)  z = Conv(r, w) }"
RESIDUAL = """g (float[N,4,8,8] x) => (float[N,4,8,8] z) {
    a = Conv(x, v)  b = Relu(a)  c = Conv(b, w)  d = Add(c, b)  e = Relu(d)  z = Conv(e, w)
}"""
MOVED = """g (float[N,4,8,8] x) => (float[N,4,4,4] z) {
    a = Conv(x, v)  b = Relu(a)  p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(b)  q = Transpose<perm=[0,1,3,2]>(p)
    s = Conv<strides=[2,2]>(x, v)  t = Concat<axis=1>(q, s)  z = Conv(t, u)
}"""
SHAPES = {"v": (4, 4, 1, 1), "w": (4, 4, 1, 1)}


def plan_of(model: ir.Model, target: str = "ort-x86") -> Plan:
    scheme = load_target(target).scheme
    assert scheme is not None
    return place(model, scheme)


def heavy_tailed(seed: int = 0) -> Image:
    """Channel 0 is 0 but for a few large values; the others are normal."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((8, 4, 16, 16)).astype(np.float32)
    x[:, 0] = np.where(rng.random((8, 16, 16)) < 0.004, 60.0, 0.0)
    return x


def with_weight(model: ir.Model, name: str, rows: NDArray[np.float64]) -> ir.Model:
    value = model.graph.initializers[name]
    value.const_value = ir.tensor(rows.reshape(4, 4, 1, 1).astype(np.float32), name=name)
    return model


def chosen(model: ir.Model, x: Image, target: str = "ort-x86") -> dict[str, Range]:
    feeds, plan = open_feeds({"x": x}, model), plan_of(model, target)
    return choose_ranges(model, plan, collect_histograms(model, plan.roots, feeds), feeds)


def reach_of(model: ir.Model, root: str) -> Reach:
    return next(reaches(model, plan_of(model), [root]))


def test_a_tail_that_the_next_layer_reads_is_kept(build: Builder) -> None:
    model = with_weight(build(TAIL, SHAPES), "v", np.outer(np.ones(4), [1.0, 0.0, 0.0, 0.0]))
    assert chosen(model, heavy_tailed())["x"].high > 59.9


def test_a_tail_that_the_next_layer_ignores_is_cut_off(build: Builder) -> None:
    model = with_weight(build(TAIL, SHAPES), "v", np.outer(np.ones(4), [0.0, 1.0, 1.0, 1.0]))
    assert 2.5 < chosen(model, heavy_tailed())["x"].high < 30


def test_where_every_range_is_as_good_least_squares_is_taken(build: Builder) -> None:
    model = with_weight(build(TAIL, SHAPES), "v", np.zeros((4, 4)))
    assert chosen(model, heavy_tailed())["x"].method == "mse"


def test_the_least_error_wins(build: Builder) -> None:
    model = build(TAIL, SHAPES)
    feeds, plan = open_feeds({"x": heavy_tailed()}, model), plan_of(model)
    histograms = collect_histograms(model, plan.roots, feeds)
    for root, best in choose_ranges(model, plan, histograms, feeds).items():
        some = candidates(plan, root, histograms[root])
        errors = reader_errors(model, plan, {root: [p for _, p in some]}, feeds)[root]
        assert best == some[errors.index(min(errors))][0]
        assert len({p for _, p in some}) == len(some) > 1


def test_an_add_counts_behind_its_relu(build: Builder) -> None:
    model = build(RESIDUAL, SHAPES)
    assert reach_of(model, "c").stops == ("e",)
    assert reach_of(model, "c").sides == ("b",)
    assert set(reach_of(model, "b").stops) == {"c", "e"}


def test_the_error_is_that_of_the_readers_outputs(build: Builder) -> None:
    model = build(RESIDUAL, SHAPES)
    x = heavy_tailed()[:, :, :8, :8]
    tried, plan = [Parameters(0.05, 100), Parameters(0.3, 40)], plan_of(model)
    errors = reader_errors(model, plan, {"c": tried, "x": tried[:1]}, open_feeds({"x": x}, model))
    assert errors["x"] == [0.0]
    values = {n: v.const_value.numpy().reshape(4, 4) for n, v in model.graph.initializers.items() if v.const_value}
    b = np.maximum(np.einsum("oi,nihw->nohw", values["v"], x), 0)
    c = np.einsum("oi,nihw->nohw", values["w"], b)
    exact = np.maximum(c + b, 0)
    for error, parameters in zip(errors["c"], tried, strict=True):
        rest = np.maximum(uncut(c, parameters) + b, 0) - exact
        along = np.sum(np.sum(rest * exact, axis=(1, 2, 3)) ** 2 / np.sum(exact**2, axis=(1, 2, 3)))
        noise = np.sum(rest**2) + len(plan.roots) / 4 * along
        assert error == pytest.approx(noise / np.sum(exact**2), rel=1e-2)


def test_what_only_moves_values_is_looked_through(build: Builder) -> None:
    model = build(MOVED, {"v": (4, 4, 1, 1), "u": (4, 8, 1, 1)})
    reach = reach_of(model, "b")
    assert reach.stops == ("z",)
    assert [node.op_type for node in reach.nodes] == ["MaxPool", "Transpose", "Concat", "Conv"]
    assert reach.sides == ("s",)


def test_a_result_of_the_model_counts_itself(build: Builder) -> None:
    model = build(
        "g (float[N,4,8,8] x) => (float[N,4,8,8] a, float[N,4,8,8] z) { a = Conv(x, v)  z = Conv(a, w) }", SHAPES
    )
    assert reach_of(model, "a").stops == ("a", "z")
    x = np.random.default_rng(0).standard_normal((8, 4, 8, 8)).astype(np.float32)
    fine, coarse = reader_errors(
        model, plan_of(model), {"a": [Parameters(0.05, 128), Parameters(0.5, 128)]}, open_feeds({"x": x}, model)
    )["a"]
    assert 0 < fine < coarse


def test_what_a_body_reads_counts_itself(build: Builder) -> None:
    model = build(
        """g (float[N,4,8,8] x, bool c) => (float[N,4,8,8] z) {
            a = Conv(x, v)
            t = If(c) <then_branch = yes () => (float[N,4,8,8] m) { m = Exp(a) },
                       else_branch = no () => (float[N,4,8,8] k) { k = Neg(a) }>
            b = Conv(a, w)
            z = Add(b, t)
        }""",
        SHAPES,
    )
    assert set(reach_of(model, "a").stops) == {"a", "b"}


@pytest.mark.parametrize("target", ["tensorrt", "ort-arm"])
def test_candidates_fit_the_scheme(target: str, build: Builder) -> None:
    model = build(RESIDUAL.replace("N,4", "N,32"), {"v": (32, 32, 1, 1), "w": (32, 32, 1, 1)})
    x = np.tile(heavy_tailed()[:, :, :8, :8], (1, 8, 1, 1))
    feeds, plan = open_feeds({"x": x}, model), plan_of(model, target)
    histograms = collect_histograms(model, plan.roots, feeds)
    ranges = choose_ranges(model, plan, histograms, feeds)
    assert set(ranges) == set(plan.roots) != set()
    if target == "tensorrt":
        assert all(r.low == pytest.approx(-r.high) for r in ranges.values())
        every = [p for root in plan.roots for _, p in candidates(plan, root, histograms[root])]
        assert {(p.zero_point, p.dtype) for p in every} == {(0, "int8")}
    else:
        assert ranges == chosen(model, x)


def test_the_same_data_give_the_same_ranges_and_the_model_stays(build: Builder) -> None:
    model = build(RESIDUAL, SHAPES)
    before = to_bytes(model)
    first = chosen(model, heavy_tailed()[:, :, :8, :8])
    assert first == chosen(model, heavy_tailed()[:, :, :8, :8])
    assert to_bytes(model) == before


def test_a_batch_that_the_model_fixes_is_not_cut(build: Builder) -> None:
    model = build(TAIL.replace("N,", "2,"), SHAPES)
    free = chosen(build(TAIL, SHAPES), heavy_tailed())
    fixed = chosen(model, heavy_tailed())
    assert {n: r.method for n, r in fixed.items()} == {n: r.method for n, r in free.items()}


def test_the_pass_gives_each_tensor_its_rule(build: Builder, tmp_path: Path) -> None:
    model = build(TAIL, SHAPES)
    with_weight(model, "v", np.array([[0.0, 1.0, 1.0, 1.0], [0.0, 1.0, -1.0, 1.0], [0.0, 1.0, 1.0, -1.0], [0] * 4]))
    feeds: Feeds = open_feeds({"x": np.repeat(heavy_tailed(), 2, axis=0)}, model)
    context = Context(target=load_target("ort-x86"), workdir=tmp_path, data=feeds)
    report = Int8(inputs="tensor", rounding="nearest").run(model, context)
    assert report.changes[0].facts["input.tensor"] == "x"
    assert float(str(report.changes[0].facts["input.high"])) < 30
