"""optimize() end to end: bytes that come again, honest reports, and input that is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp import modelio
from onnxcomp.api import EARLIER, RECIPE, VERSION, Result, optimize
from onnxcomp.contract import Override
from onnxcomp.errors import DataError, InputError, ModelError, OptionError, UnknownPassError
from onnxcomp.graph.fold import fold
from onnxcomp.interop.graphsurgeon import GraphSurgeonPass
from onnxcomp.passes.tucker2 import Tucker2
from onnxcomp.recipe_yaml import load_recipe
from onnxcomp.report.schema import report_document
from onnxcomp.runtime.timing import Speedup

Parsed = Callable[..., ir.Model]
Planted = Callable[..., NDArray[np.float32]]
OutputsOf = Callable[[ir.Model, Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]
TEXT = """g (float[N,24,8,8] x) => (float[N,10] y) {
  [one] a = Conv<pads=[1,1,1,1]>(x, w1, b1) [act1] r = Relu(a)
  [two] c = Conv<pads=[1,1,1,1]>(r, w2, b2) [act2] s = Relu(c)
  [pool] p = GlobalAveragePool(s) [flat] f = Flatten(p) [head] y = Gemm<transB=1>(f, w3) }"""


def _noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def model(parsed: Parsed, planted: Planted) -> ir.Model:
    """A small classifier; its convolutions are low rank, with a little noise."""
    arrays = {
        "w1": planted((32, 24, 3, 3), 6, 7, seed=1) + 0.004 * _noise(32, 24, 3, 3, seed=2),
        "w2": planted((32, 32, 3, 3), 7, 6, seed=3) + 0.004 * _noise(32, 32, 3, 3, seed=4),
        "b1": 0.1 * _noise(32),
        "b2": 0.1 * _noise(32, seed=5),
        "w3": _noise(10, 32, seed=6),
    }
    return parsed(TEXT, **{name: array.astype(np.float32) for name, array in arrays.items()})


@pytest.fixture
def data() -> dict[str, NDArray[np.float32]]:
    """Seventy samples."""
    return {"x": _noise(70, 24, 8, 8, seed=7)}


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Replace the stopwatch: `sites` and `models` are the speed-ups measured from here on."""
    ratios = {"sites": 2.0, "models": 1.5}

    def paired(base: object, other: object, feed: object, **options: object) -> Speedup:
        return Speedup(ratios["models"], ratios["models"], ratios["models"], ratios["models"], 1.0, 100)

    def chain_speedups(site: object, chains: Sequence[object], opset: int, context: object) -> list[float]:
        return [ratios["sites"]] * len(chains)

    monkeypatch.setattr("onnxcomp.pipeline.paired", paired)
    monkeypatch.setattr("onnxcomp.choose.chain_speedups", chain_speedups)
    return ratios


def _bytes(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def _sites(result: Result) -> list[str]:
    return [change.site for step in result.report.steps for change in step.report.changes]


def test_a_model_is_compressed_and_accounted_for(
    model: ir.Model, data: dict[str, NDArray[np.float32]], outputs_of: OutputsOf, tmp_path: Path
) -> None:
    before = _bytes(model)
    result = optimize(model, "tucker2(energy=0.99)", data=data)
    report = result.report
    assert _bytes(model) == before and _sites(result) == ["one", "two"]
    assert report.after.bytes < report.before.bytes and report.after.nodes == report.before.nodes + 4
    assert report.after.cost.parameters < report.before.cost.parameters
    assert report.after.quality is not None and report.after.quality.sqnr["y"] > 15
    assert report.speedup is not None and report.speedup.ratio == 1.5 and report.failures == ()
    assert not report.synthetic and report.warnings == () and "70 samples" in report.data
    result.save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_size == report.after.bytes
    loaded = modelio.load(tmp_path / "out.onnx")
    np.testing.assert_array_equal(outputs_of(loaded, data)["y"], outputs_of(result.model, data)["y"])
    json.dumps(report_document(report), allow_nan=False)


@pytest.mark.parametrize("kind", ["path", "proto", "ir"])
def test_every_form_of_a_model_is_taken(model: ir.Model, tmp_path: Path, kind: str) -> None:
    given: Any = model
    if kind == "proto":
        given = ir.to_proto(model)
    elif kind == "path":
        given = tmp_path / "in.onnx"
        modelio.save(model, given)
    assert _sites(optimize(given, [Tucker2(ranks="8x8"), "fold"], objective="size")) == ["one", "two"]


def test_the_file_says_how_it_was_made(model: ir.Model, data: dict[str, NDArray[np.float32]]) -> None:
    result = optimize(model, "fold,tucker2(ranks=8x8)", data=data, seed=3, exclude=["two"], min_sqnr=1.0)
    recipe = json.loads(result.model.metadata_props[RECIPE])
    assert recipe == {
        "passes": ["fold", "tucker2(ranks=8x8)"],
        "target": "ort-x86",
        "objective": "latency",
        "seed": 3,
        "exclude": ["two"],
        "min_sqnr": 1.0,
        "choices": [{}, {"one": {}}],  # what the pass itself says is not repeated
    }
    assert result.model.metadata_props[VERSION] == result.report.version


@pytest.mark.parametrize("with_data", [True, False])
def test_a_replay_gives_the_same_bytes(
    model: ir.Model, data: dict[str, NDArray[np.float32]], clock: dict[str, float], with_data: bool
) -> None:
    overrides = [[Override("two", {"ranks": "9x5"})]]
    options: dict[str, Any] = {"data": data if with_data else None, "seed": 5, "overrides": overrides}
    first = optimize(model, "tucker2(rank=vbmf)", **options)
    assert _sites(first) == ["one", "two"]
    assert first.report.choices[0]["two"] != first.report.choices[0]["one"]
    again = optimize(model, "tucker2(rank=vbmf)", **options)
    assert _bytes(again.model) == _bytes(first.model)
    clock.update(sites=0.1, models=0.1)
    replayed = optimize(model, "tucker2(rank=vbmf)", **options, replay=first.report.choices)
    assert _bytes(replayed.model) == _bytes(first.model) and replayed.report.speedup is None


def test_the_written_recipe_replays(model: ir.Model, clock: dict[str, float], tmp_path: Path) -> None:
    """From the model alone: overrides, what was given back and what was rolled back come again."""
    overrides = [[Override("two", None), Override("one", {"fit": "weights"})], []]
    first = optimize(model, "tucker2(ranks=8x8),fold", exclude=["hea[d]"], overrides=overrides)
    assert _sites(first) == ["one"]
    first.save(tmp_path / "out.onnx")
    report = tmp_path / "report.json"
    report.write_text(json.dumps(report_document(first.report)))
    clock.update(sites=0.1, models=0.1)
    for source in (tmp_path / "out.onnx", report):
        recipe = load_recipe(source)
        again = optimize(
            model,
            recipe.build(),
            overrides=[entry.layers for entry in recipe.passes],
            exclude=recipe.exclude,
            replay=recipe.replay,
            seed=recipe.seed,
        )
        assert _bytes(again.model) == _bytes(first.model)


def test_what_was_given_back_is_in_the_recipe(model: ir.Model, data: dict[str, NDArray[np.float32]]) -> None:
    first = optimize(
        model, "tucker2(ranks=1x1)", data=data, min_sqnr=15.0, overrides=[[Override("one", {"ranks": "8x8"})]]
    )
    assert _sites(first) == ["one"] and first.report.recipe["layers"] == [{"one": {"ranks": "8x8"}, "two": None}]
    assert first.report.failures == ()
    reasons = {s.site: s.reason for s in first.report.steps[0].report.skips}
    assert reasons == {"two": "given back to hold the accuracy budget"}


@pytest.mark.parametrize("how", ["site", "model", "refused"])
def test_a_model_that_stays_differs_in_no_tensor(model: ir.Model, clock: dict[str, float], how: str) -> None:
    clock.update(sites=0.9 if how == "site" else 2.0, models=0.9 if how == "model" else 2.0)
    result = optimize(model, "tucker2(ranks=999x999)" if how == "refused" else "tucker2(ranks=8x8)")
    reference = model.clone()
    fold(reference)
    report = result.report
    for key in (RECIPE, VERSION):
        del result.model.metadata_props[key]
    assert _bytes(result.model) == _bytes(reference)
    (step,) = report.steps
    if how == "model":
        assert not step.kept and step.why.startswith("slower: 0.90x of the speed before")
        assert report.choices == ({},)
    else:
        assert step.kept and step.report.changes == ()
        wanted = {"site": "does not pay: ", "refused": "reaches the full "}[how]
        assert len(step.report.skips) == 2 and all(wanted in s.reason for s in step.report.skips)


def test_a_model_without_sites_is_written_all_the_same(parsed: Parsed, outputs_of: OutputsOf) -> None:
    model = parsed("g (float[N,4] x) => (float[N,4] y) { h = Relu(x) y = Neg(h) }")
    result = optimize(model, "tucker2")
    x = {"x": _noise(3, 4)}
    np.testing.assert_array_equal(outputs_of(result.model, x)["y"], outputs_of(model, x)["y"])
    (step,) = result.report.steps
    assert step.kept and (step.report.changes, step.report.skips) == ((), ()) and result.report.failures == ()


def test_no_passes_only_fold(model: ir.Model) -> None:
    result = optimize(model, [])
    assert result.report.steps == () and result.model.graph.num_nodes() == 7


def test_a_foreign_target_times_nothing(model: ir.Model, clock: dict[str, float]) -> None:
    clock.update(sites=0.1, models=0.1)
    result = optimize(model, "tucker2(ranks=8x8)", target="tensorrt")
    assert _sites(result) == ["one", "two"]
    assert result.report.speedup is None and result.report.fates == ()
    assert all(c.speedup is None for c in result.report.steps[0].report.changes)


def test_a_result_slower_than_the_input_is_given_up(
    model: ir.Model, clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pass may look faster than its predecessor: against the input itself the result must not lose."""
    ratios = [1.2, 0.8, 0.8]

    def paired(base: object, other: object, feed: object, **options: object) -> Speedup:
        ratio = ratios.pop(0)
        return Speedup(ratio, ratio, ratio, ratio, 1.0, 100)

    monkeypatch.setattr("onnxcomp.pipeline.paired", paired)
    result = optimize(model, "tucker2(ranks=8x8)")
    (step,) = result.report.steps
    assert not step.kept and step.why == "slower: the result runs at 0.80x of the input's speed"
    assert result.model.graph.num_nodes() == 7 and result.report.speedup is None


def test_few_samples_and_shared_ones_are_warned_of(model: ir.Model, data: dict[str, NDArray[np.float32]]) -> None:
    few = {"x": data["x"][:5]}
    warnings = optimize(model, "tucker2(ranks=8x8)", data=few, eval=data).report.warnings
    assert warnings[0] == "only 5 calibration samples; 64 or more are advised"
    assert "5 samples are in both the calibration and the evaluation data" in warnings[1]


def test_without_data_the_report_says_so(model: ir.Model) -> None:
    report = optimize(model, "tucker2(ranks=8x8)").report
    assert report.synthetic and "synthetic" in report.data
    assert report.before.quality is None and report.after.quality is None


def test_labels_measure_accuracy(model: ir.Model, data: dict[str, NDArray[np.float32]], outputs_of: OutputsOf) -> None:
    labels = outputs_of(model, data)["y"].argmax(1)
    result = optimize(model, "tucker2(energy=0.99)", data=data, eval={**data, "labels": labels}, max_drop=100.0)
    before, after = result.report.before.quality, result.report.after.quality
    assert before is not None and after is not None and before.top1 == 1.0
    assert after.top1 is not None and after.top1 > 0.5 and result.report.failures == ()


def test_everything_may_be_given_back(model: ir.Model, data: dict[str, NDArray[np.float32]]) -> None:
    result = optimize(model, "tucker2(ranks=1x1)", data=data, min_sqnr=60.0)
    assert _sites(result) == [] and result.report.failures == () and result.report.choices == ({},)
    assert result.report.recipe["layers"] == [{"one": None, "two": None}]
    quality = result.report.after.quality
    assert quality is not None and quality.sqnr["y"] > 60


@pytest.mark.parametrize(
    ("passes", "options", "error", "message"),
    [
        ("tucker3", {}, UnknownPassError, "did you mean 'tucker2'"),
        ("tucker2(rnk=vbmf)", {}, OptionError, "did you mean 'rank'"),
        ("tucker2", {"objective": "speed"}, InputError, "no objective 'speed'; there are latency, size, macs"),
        ("tucker2", {"target": "ort-x85"}, InputError, "did you mean 'ort-x86'"),
        ("tucker2", {"max_drop": 1.0}, InputError, "--max-drop needs labelled evaluation data; give --eval"),
        ("tucker2", {"require_data": True}, DataError, "no calibration data: --require-data was given"),
        ("tucker2(fit=data)", {}, DataError, "needs calibration data: give --data, or use fit=auto"),
        ("tucker2", {"data": {"z": np.ones((4, 24, 8, 8))}}, DataError, "x"),
        ("tucker2", {"replay": [{}, {}]}, InputError, "replay: 2 entries for 1 passes"),
        ("tucker2", {"overrides": [[], []]}, InputError, "overrides: 2 entries for 1 passes"),
        ("tucker2", {"overrides": [[Override("one", {"rank": "low"})]]}, OptionError, "rank"),
    ],
)
def test_what_cannot_be_is_refused(
    model: ir.Model, passes: str, options: dict[str, Any], error: type[InputError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        optimize(model, passes, **options)
    assert caught.value.exit_code == 2


def test_a_drop_needs_labels(model: ir.Model, data: dict[str, NDArray[np.float32]]) -> None:
    with pytest.raises(InputError, match="--max-drop needs labelled evaluation data"):
        optimize(model, "tucker2", eval=data, max_drop=1.0)


def test_a_model_that_the_runtime_refuses_is_refused(model: ir.Model) -> None:
    proto = ir.to_proto(model)
    proto.graph.node[0].op_type = "Convv"
    with pytest.raises(ModelError, match="ONNX Runtime cannot load this model"):
        optimize(proto, "tucker2")
    with pytest.raises(ModelError, match=r"missing\.onnx does not exist"):
        optimize("missing.onnx", "tucker2")


def test_a_run_that_begins_with_fold_reports_it(parsed: Callable[..., ir.Model]) -> None:
    scale = np.full((1, 2, 1, 1), 2.0, np.float32)
    model = parsed(
        "g (float[N,2,4,4] x) => (float[N,A,B,C] y) { [conv] h = Conv(x, w) [double] y = Mul(h, scale) }",
        w=np.ones((2, 2, 3, 3), np.float32),
        scale=scale,
    )
    explicit, implicit = optimize(model, "fold", objective="macs"), optimize(model, "tucker2", objective="macs")
    assert [c.site for c in explicit.report.steps[0].report.changes] == ["conv"] and explicit.report.folded == ()
    assert any("conv" in line for line in implicit.report.folded)
    assert [n.op_type for n in explicit.model.graph] == [n.op_type for n in implicit.model.graph] == ["Conv"]


def test_a_graphsurgeon_function_is_a_pass_like_any_other(model: ir.Model) -> None:
    def rename(graph: Any) -> None:
        graph.nodes[0].name = "renamed"

    result = optimize(model, [GraphSurgeonPass(rename)], objective="macs")
    assert result.report.recipe["passes"] == ["graphsurgeon"] and result.report.steps[0].kept
    assert "renamed" in [node.name for node in result.model.graph]


def test_an_earlier_recipe_is_kept(model: ir.Model) -> None:
    first = optimize(model, "tucker2(ranks=4x4)", objective="macs").model
    recipe = first.metadata_props[RECIPE]
    again = optimize(first, "tucker2(ranks=999x999)", objective="macs").model
    assert again.metadata_props[RECIPE] == recipe and EARLIER not in again.metadata_props
    other = optimize(first, "int8", objective="macs").model
    assert other.metadata_props[EARLIER] == recipe and other.metadata_props[RECIPE] != recipe
