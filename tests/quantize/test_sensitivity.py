"""What each layer alone does to the outputs, and what a budget makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from glob import escape
from math import inf, log10

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import onnxcomp
from onnxcomp.api import Result
from onnxcomp.contract import Override, Pass, PassReport
from onnxcomp.data import open_feeds
from onnxcomp.errors import OptionError
from onnxcomp.memo import Memo
from onnxcomp.quantize import rewrite, sensitivity
from onnxcomp.quantize.trial import output_errors
from onnxcomp.recipe import Recipe
from onnxcomp.recipe_yaml import from_yaml
from onnxcomp.report.schema import report_document

Builder = Callable[..., ir.Model]
Quantizer = Callable[..., tuple[ir.Model, PassReport]]

CHAIN = """g (float[N,8,8,8] x) => (float[N,8] y) {
    [first] a = Conv(x, u)  b = Relu(a)  [second] c = Conv(b, v)  [sum] d = Add(c, b)  [third] e = Conv(d, w)
    f = GlobalAveragePool(e)  y = Flatten(f) }"""
WEIGHTS = dict.fromkeys("uvw", (8, 8, 1, 1))


@pytest.fixture
def model(build: Builder) -> ir.Model:
    return build(CHAIN, WEIGHTS)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that sensitivities are measured."""
    calls: list[int] = []
    measure = sensitivity.sensitivities

    def counting(*args: object, **kwargs: object) -> object:
        calls.append(1)
        return measure(*args, **kwargs)  # type: ignore[arg-type]  # the arguments of the real one

    monkeypatch.setattr(rewrite, "sensitivities", counting)
    return calls


def _data(count: int = 64, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, 8, 8, 8)).astype(np.float32)


def _optimized(model: ir.Model, passes: str | Sequence[Pass], **options: object) -> Result:
    return onnxcomp.optimize(model, passes, data={"x": _data()}, objective="macs", **options)  # type: ignore[arg-type]


def _bytes(model: ir.Model) -> bytes:
    copy = model.clone()
    copy.metadata_props.clear()
    return ir.to_proto(copy).SerializeToString(deterministic=True)


def test_each_is_what_that_layer_alone_does(model: ir.Model, quantize: Quantizer) -> None:
    options = {"calibration": "minmax", "rounding": "nearest", "sensitivity": "on", "equalize": "off"}
    _, report = quantize(model, **options)
    found = {own.site: own for own in report.sensitivity}
    assert set(found) == {"first", "second", "third"}
    assert [own.error for own in report.sensitivity] == sorted((own.error for own in found.values()), reverse=True)
    feeds = open_feeds({"x": _data(32)}, model)
    for site, own in found.items():
        others = frozenset({"first", "second", "third", "sum"} - {site})
        alone, _ = quantize(model, context={"given_back": others}, **(options | {"sensitivity": "off"}))
        assert own.error == pytest.approx(output_errors(model, [alone], feeds, limit=32)[0], rel=0.3)
        assert own.sqnr == pytest.approx(-10 * log10(own.error)) and own.samples == 32
        assert own.kl is not None and 0 < own.kl < 0.01 and own.drop_points is None
    assert {c.site: c.error for c in report.changes} == {s: o.error for s, o in found.items()} | {"sum": 0.0}


def test_it_is_measured_where_it_is_wanted(model: ir.Model, quantize: Quantizer, counted: list[int]) -> None:
    for context, option, times in [
        ({}, "auto", 0),
        ({"budgeted": True}, "auto", 1),
        ({"budgeted": True, "replay": {"first": {}}}, "auto", 0),
        ({"budgeted": True}, "off", 0),
        ({}, "on", 1),
    ]:
        counted.clear()
        _, report = quantize(model, context=context, sensitivity=option)
        assert len(counted) == times and len(report.sensitivity) == 3 * times


def test_one_layer_has_no_measuring_of_its_own(model: ir.Model) -> None:
    with pytest.raises(OptionError, match="sensitivity holds for the whole model, not for the layer 'first'"):
        _optimized(model, "int8", overrides=[[Override("first", {"sensitivity": "on"})]])


def test_runs_with_one_memo_measure_once(model: ir.Model, quantize: Quantizer, counted: list[int]) -> None:
    memo = Memo()
    first = quantize(model, context={"memo": memo, "budgeted": True})[1]
    second = quantize(model, context={"memo": memo, "budgeted": True, "given_back": frozenset({"third"})})[1]
    assert len(counted) == 1 and second.sensitivity == first.sensitivity
    assert {c.site for c in second.changes} == {"first", "second"}


def test_evaluation_data_come_first_and_labels_give_the_drop(model: ir.Model) -> None:
    x = _data(96, seed=5)
    labels = np.random.default_rng(2).integers(0, 8, len(x))
    plain = _optimized(model, "int8(sensitivity=on)").report.steps[0].report.sensitivity
    unlabelled = _optimized(model, "int8(sensitivity=on)", eval={"x": x}).report.steps[0].report.sensitivity
    scored = (
        _optimized(model, "int8(sensitivity=on)", eval={"x": x, "labels": labels}).report.steps[0].report.sensitivity
    )
    assert {own.samples for own in plain} == {32} and {own.samples for own in unlabelled} == {96}
    assert [replace(own, drop_points=None) for own in scored] == list(unlabelled)
    assert all(own.drop_points is not None and abs(own.drop_points) < 5 for own in scored)


def test_few_bits_go_up_before_anything_is_float(model: ir.Model, counted: list[int]) -> None:
    before = _optimized(model, "int8(weight_bits=3)")
    assert before.report.after.quality is not None
    worst = min(before.report.after.quality.sqnr.values())
    result = _optimized(model, "int8(weight_bits=3)", min_sqnr=worst + 2)
    (step,) = result.report.steps
    assert result.report.failures == () and len(counted) == 1
    kept = {c.site: c.facts["weight.bits"] for c in step.report.changes if "budget" in c.facts}
    assert kept and set(kept.values()) == {8} and len(kept) < 3
    assert {own.site for own in step.report.sensitivity[: len(kept)]} == set(kept)
    assert result.report.recipe["layers"] == [{escape(site): {"weight_bits": 8} for site in kept}]
    raised = next(c for c in step.report.changes if c.site in kept)
    assert raised.facts["budget"] == "weight_bits=8, to hold the accuracy budget" and raised.error is None


def test_own_options_of_a_layer_are_kept(model: ir.Model) -> None:
    own = [[Override("*", {"calibration": "minmax", "weight_bits": 2})]]
    result = _optimized(model, "int8", min_sqnr=38.0, overrides=own)
    recorded = result.report.recipe["layers"]
    assert isinstance(recorded, list)
    layers: dict[str, object] = recorded[0]
    raised = {site: options for site, options in layers.items() if site != "*"}
    assert raised and list(raised.values()) == [{"calibration": "minmax", "weight_bits": 8}] * len(raised)


@pytest.mark.parametrize("passes", ["int8(weight_bits=2)", "int8"])
def test_what_holds_the_budget_replays(model: ir.Model, passes: str) -> None:
    before = _optimized(model, passes).report.after.quality
    assert before is not None
    first = _optimized(model, passes, min_sqnr=min(before.sqnr.values()) + 3)
    assert first.report.failures == () and "layers" in first.report.recipe
    recipe = from_yaml(json.dumps(report_document(first.report)))
    assert isinstance(recipe, Recipe)
    again = _optimized(
        model,
        recipe.build(),
        overrides=[entry.layers for entry in recipe.passes],
        replay=recipe.replay,
        min_sqnr=recipe.min_sqnr,
    )
    assert _bytes(again.model) == _bytes(first.model)


def test_a_model_without_float_outputs_has_nothing_to_rank(build: Builder, quantize: Quantizer) -> None:
    body = "g (float[N,8,8,8] x) => (int64[N,1,8,8] y) { [site] a = Conv(x, w) b = Relu(a) y = ArgMax<axis=1>(b) }"
    _, report = quantize(build(body, {"w": (8, 8, 1, 1)}), sensitivity="on")
    assert [(own.site, own.error, own.sqnr, own.kl) for own in report.sensitivity] == [("site", 0.0, inf, None)]
