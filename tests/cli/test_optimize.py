"""`onnxcomp optimize` as a user calls it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from PIL import Image

import onnxcomp

FAST = ("--objective", "size")


def test_it_writes_a_model_and_says_what_it_did(run: Any, cnn: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    got = run("optimize", cnn, "-p", "int8", "-o", out, "--data", images, "--eval", images, *FAST)
    assert got.code == 0, got.err
    assert got.out.splitlines()[0].startswith("top-1 accuracy ")
    assert "on 100 samples" in got.out.splitlines()[0]
    for words in ("file size", "parameters", "MACs", "latency", "top-1 accuracy", "int8", "kept", "QLinearConv"):
        assert words in got.out
    onnx.checker.check_model(out)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in onnx.load(out).graph.node}
    assert "in both the calibration and the evaluation data" in got.err


def test_without_data_the_first_line_says_so(run: Any, cnn: Path, tmp_path: Path) -> None:
    got = run("optimize", cnn, "-p", "int8", "-o", tmp_path / "out.onnx", *FAST)
    assert got.code == 0, got.err
    first = got.out.splitlines()[0]
    assert "no real data was used" in first
    assert "accuracy is unknown" in first


def test_with_data_but_no_labels_the_first_line_gives_the_drift(
    run: Any, cnn: Path, images: Path, tmp_path: Path
) -> None:
    got = run("optimize", cnn, "-p", "int8", "-o", tmp_path / "out.onnx", "--data", images, *FAST)
    assert got.code == 0, got.err
    first = got.out.splitlines()[0]
    assert first.startswith("accuracy was not measured (worst output SQNR ")
    assert "same top-1 class for" in first


def test_json_is_one_document_on_stdout(run: Any, cnn: Path, tmp_path: Path) -> None:
    got = run("optimize", cnn, "-p", "tucker2(ranks=16x16),int8", "-o", tmp_path / "out.onnx", "--json", *FAST)
    assert got.code == 0, got.err
    document = json.loads(got.out)
    assert document["schema"] == "onnxcomp.report/2"
    assert [step["spec"] for step in document["steps"]] == ["tucker2(ranks=16x16)", "int8"]
    sites = [entry["site"] for step in document["steps"][:1] for entry in (*step["changes"], *step["skips"])]
    assert sorted(sites) == ["conv1", "conv2"]
    assert document["after"]["bytes"] == (tmp_path / "out.onnx").stat().st_size


def test_quiet_silences_warnings(run: Any, cnn: Path, images: Path, tmp_path: Path) -> None:
    got = run(
        "optimize", cnn, "-p", "int8", "-o", tmp_path / "o.onnx", "--data", images, "--eval", images, "--quiet", *FAST
    )
    assert (got.code, got.err) == (0, "")
    assert got.out


@pytest.mark.parametrize("source", ["r.json", "1.onnx"])
def test_a_run_replays_to_the_same_bytes(run: Any, cnn: Path, images: Path, tmp_path: Path, source: str) -> None:
    first, second, recipe = tmp_path / "1.onnx", tmp_path / "2.onnx", tmp_path / "recipe.yaml"
    recipe.write_text(
        "passes:\n- tucker2: {options: {ranks: 16x16}, layers: {conv2: {ranks: 12x8}, conv1: null}}\n- int8\n"
        "objective: size\n"
    )
    flags = ("--data", images, "--report", tmp_path / "r.json")
    got = run("optimize", cnn, "--recipe", recipe, "-o", first, *flags, "--json")
    assert got.code == 0, got.err
    (change,) = json.loads(got.out)["steps"][0]["changes"]
    assert change["site"] == "conv2"
    again = run("optimize", cnn, "--recipe", tmp_path / source, "-o", second, "--data", images)
    assert again.code == 0, again.err
    assert first.read_bytes() == second.read_bytes()


def test_the_same_call_gives_the_same_bytes(run: Any, cnn: Path, tmp_path: Path) -> None:
    outs = [tmp_path / "1.onnx", tmp_path / "2.onnx"]
    for out in outs:
        assert run("optimize", cnn, "-p", "tucker2(ranks=16x16),int8", "-o", out, "--seed", "5", *FAST).code == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_reports_in_every_form(run: Any, cnn: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"report.{suffix}" for suffix in ("json", "md", "html")]
    flags = [flag for path in paths for flag in ("--report", path)]
    assert run("optimize", cnn, "-p", "fold", "-o", tmp_path / "out.onnx", *flags, *FAST).code == 0
    assert json.loads(paths[0].read_text())["schema"] == "onnxcomp.report/2"
    assert paths[1].read_text().startswith("**no real data was used")
    assert paths[2].read_text().startswith("<!doctype html>")


def test_dry_run_prints_the_resolved_recipe_and_writes_nothing(run: Any, cnn: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "passes:\n- tucker2: {options: {fit: auto, keep: 0.5}, layers: {conv1: null}}\nseed: 3\ntarget: ort-arm\n"
    )
    got = run("optimize", cnn, "--recipe", recipe, "--seed", "9", "--shapes", "x:1x3x16x16", "--dry-run")
    assert got.code == 0, got.err
    shown = yaml.safe_load(got.out)
    assert shown["passes"] == [{"tucker2": {"options": {"keep": 0.5}, "layers": {"conv1": None}}}]
    assert (shown["seed"], shown["target"], shown["shapes"]) == (9, "ort-arm", {"x": "1x3x16x16"})
    recipe.write_text(got.out)
    assert run("optimize", cnn, "--recipe", recipe, "--dry-run").out == got.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "r.yaml"]


def test_passes_on_the_command_line_replace_those_of_the_recipe(run: Any, cnn: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("passes: [tucker2]\n")
    shown = yaml.safe_load(run("optimize", cnn, "--recipe", recipe, "-p", "int8,fold", "--dry-run").out)
    assert shown["passes"] == ["int8", "fold"]


def test_layers_of_a_recipe_are_obeyed(run: Any, cnn: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("passes:\n- tucker2: {options: {ranks: 16x16}, layers: {conv2: null}}\nobjective: size\n")
    got = run("optimize", cnn, "--recipe", recipe, "-o", tmp_path / "out.onnx", "--json")
    assert got.code == 0, got.err
    skips = {skip["site"]: skip["reason"] for skip in json.loads(got.out)["steps"][0]["skips"]}
    assert "conv2" in skips


def test_an_exclusion_that_matches_nothing_is_warned_of(run: Any, cnn: Path, tmp_path: Path) -> None:
    got = run("optimize", cnn, "-p", "fold", "-o", tmp_path / "out.onnx", "--exclude", "/conv1", *FAST)
    assert got.code == 0
    assert got.err == "onnxcomp: warning: --exclude '/conv1' matches nothing in the model; did you mean 'conv1'?\n"


def test_excluded_nodes_stay(run: Any, cnn: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    got = run("optimize", cnn, "-p", "int8", "-o", out, "--exclude", "conv*", "--exclude", "head", "--json", *FAST)
    assert got.code == 0, got.err
    changed = {change["site"] for change in json.loads(got.out)["steps"][0]["changes"]}
    assert not changed & {"conv1", "conv2", "head"}


@pytest.mark.parametrize("keep", [False, True])
def test_a_failed_budget_is_exit_1_and_no_file(
    run: Any, cnn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    real = onnxcomp.optimize

    def over_budget(*arguments: Any, **options: Any) -> onnxcomp.Result:
        result = real(*arguments, **options)
        return replace(result, report=replace(result.report, failures=("top-1 drops 3.00 points",)))

    monkeypatch.setattr(onnxcomp, "optimize", over_budget)
    out, report = tmp_path / "out.onnx", tmp_path / "r.json"
    flags = ["--keep-failed"] if keep else []
    got = run("optimize", cnn, "-p", "fold", "-o", out, "--report", report, *FAST, *flags)
    assert got.code == 1
    fate = "was written as asked" if keep else "was not written (--keep-failed writes it)"
    assert got.err == f"onnxcomp: error: top-1 drops 3.00 points\n{str(out)!r} {fate}\n"
    assert "failed: top-1 drops 3.00 points" in got.out
    assert out.exists() is keep
    assert json.loads(report.read_text())["failures"] == ["top-1 drops 3.00 points"]


def test_the_compiler_backs_off_until_the_budget_holds(run: Any, cnn: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    flags = ("--data", images, "--min-sqnr", "190", "--json")
    got = run("optimize", cnn, "-p", "tucker2(ranks=4x4)", "-o", out, *flags, *FAST)
    assert got.code == 0, got.err
    assert float(json.loads(got.out)["after"]["quality"]["sqnr"]["y"]) >= 190
    assert out.exists()


def test_a_model_with_nothing_to_do_is_written(run: Any, make: Any, tmp_path: Path) -> None:
    model = make([onnx.helper.make_node("Relu", ["x"], ["y"], name="relu")], {}, outputs=(("y", 1, ["N", 3, 16, 16]),))
    out = tmp_path / "out.onnx"
    got = run("optimize", model, "-p", "tucker2", "-o", out, *FAST)
    assert got.code == 0, got.err
    assert "nothing to do" in got.out
    assert [node.op_type for node in onnx.load(out).graph.node] == ["Relu"]


def test_out_may_be_in(run: Any, cnn: Path) -> None:
    before = cnn.stat().st_size
    got = run("optimize", cnn, "-p", "int8", "-o", cnn, *FAST)
    assert got.code == 0, got.err
    assert cnn.stat().st_size < before
    assert [path.name for path in cnn.parent.iterdir()] == ["model.onnx"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of small images."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("source", ["report", "model"])
def test_a_run_on_images_replays_with_its_preprocessing(
    run: Any, cnn: Path, pictures: Path, tmp_path: Path, source: str
) -> None:
    out, report, again = tmp_path / "o.onnx", tmp_path / "r.json", tmp_path / "again.onnx"
    call = ("optimize", cnn, "-p", "int8", "-o", out, "--data", pictures, "--report", report, "--require-data")
    got = run(*call, "--preprocess", "scale=1/64,mean=1,2,1.5,std=0.5,order=bgr", "--objective", "size")
    assert got.code == 0, got.err
    recipe = json.loads(report.read_text())["recipe"]
    assert recipe["preprocess"] == "crop=1.0,scale=0.015625,mean=1.0:2.0:1.5,std=0.5,order=bgr,label_offset=0"
    assert recipe["require_data"] is True
    given = ("--recipe", report) if source == "report" else ("--recipe", out, "--data", pictures)
    got = run("optimize", cnn, *given, "-o", again)
    assert got.code == 0, got.err
    assert again.read_bytes() == out.read_bytes()


def test_the_help_of_eval_says_what_it_needs(run: Any) -> None:
    assert "Data to measure on, likewise; with labels, accuracy." in " ".join(run("optimize", "--help").out.split())


@pytest.mark.usefixtures("brief_timing")
def test_a_timing_cache_spares_the_second_run_its_timing(
    run: Any, cnn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, call = tmp_path / "times.json", ("optimize", cnn, "-p", "tucker2(keep=0.6)", "-o", tmp_path / "out.onnx")
    assert run(*call, "--timing-cache", cache).code == 0
    written = cache.read_bytes()
    (sites,) = json.loads(written)["timings"].values()
    assert any(site["chains"] for site in sites.values())

    def timed(*arguments: Any) -> None:
        raise AssertionError("a candidate was timed")

    monkeypatch.setattr("onnxcomp.runtime.sitebench.interleaved", timed)
    got = run(*call, "--timing-cache", cache)
    assert (got.code, cache.read_bytes()) == (0, written), got.err


def test_a_damaged_timing_cache_is_refused(run: Any, cnn: Path, tmp_path: Path) -> None:
    cache, out = tmp_path / "times.json", tmp_path / "out.onnx"
    cache.write_text("{")
    got = run("optimize", cnn, "-p", "tucker2(keep=0.6)", "-o", out, "--timing-cache", cache)
    assert (got.code, out.exists()) == (2, False)
    assert got.err.count("\n") == 1 and str(cache) in got.err and "remove it" in got.err


def test_decompose_chooses_for_each_layer_and_replays(run: Any, cnn: Path, images: Path, tmp_path: Path) -> None:
    first, second, report = tmp_path / "1.onnx", tmp_path / "2.onnx", tmp_path / "r.json"
    flags = ("--data", images, "--objective", "macs")
    got = run("optimize", cnn, "-p", "decompose(macs=0.5)", "-o", first, *flags, "--report", report)
    assert got.code == 0, got.err
    (step,) = json.loads(report.read_text())["steps"]
    assert step["after"]["macs"] <= 0.5 * step["before"]["macs"]
    assert {change["site"] for change in step["changes"]} == {o["site"] for o in step["offers"] if o["chosen"]}
    again = run("optimize", cnn, "--recipe", report, "-o", second, "--data", images)
    assert again.code == 0, again.err
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("passes", "said"),
    [
        ("decompose(speedup=2)", "needs timing: objective latency and a target that runs here, not macs for ort-x86"),
        ("decompose(macs=0.5,size=0.5)", "macs and size exclude each other; give one"),
        ("decompose(fit=data)", "decompose(fit=data) needs calibration data: give --data"),
        ("decompose(forms=spacial)", "did you mean 'spatial'?"),
        ("decompose(forms=int8)", "int8 is no decomposition"),
        ("decompose(mac=0.5)", "did you mean 'macs'?"),
    ],
)
def test_decompose_says_what_is_wrong(run: Any, cnn: Path, tmp_path: Path, passes: str, said: str) -> None:
    got = run("optimize", cnn, "-p", passes, "-o", tmp_path / "o.onnx", "--objective", "macs")
    assert got.code == 2 and said in got.err and len(got.err.splitlines()) <= 3
    assert not (tmp_path / "o.onnx").exists()
