"""`onnxcomp calibrate`, and `optimize --stats`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

PLAIN = "int8(calibration=mse,rounding=nearest,inputs=tensor,equalize=off)"


@pytest.fixture
def stats(run: Any, cnn: Path, images: Path, tmp_path: Path) -> Path:
    """Statistics of the small classifier."""
    path = tmp_path / "cnn.stats.npz"
    got = run("calibrate", cnn, "--data", images, "-o", path)
    assert got.code == 0, got.err
    assert got.out == f"statistics of 3 tensors over 100 samples in {path}\n"
    return path


def optimised(run: Any, cnn: Path, out: Path, *arguments: str | Path) -> Any:
    return run("optimize", cnn, "-p", PLAIN, "-o", out, "--objective", "macs", "--json", *arguments)


def test_the_same_model_as_from_the_data(run: Any, cnn: Path, images: Path, stats: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "stats.onnx", tmp_path / "data.onnx"
    got = optimised(run, cnn, one, "--stats", stats)
    assert got.code == 0, got.err
    assert optimised(run, cnn, other, "--data", images).code == 0
    assert one.read_bytes() == other.read_bytes()
    document = json.loads(got.out)
    assert document["synthetic"] is False
    assert document["data"].startswith("statistics of 100 samples from ")
    assert document["recipe"]["stats"] == str(stats)
    assert any("ranges are those of the statistics" in note for note in document["steps"][0]["notes"])
    assert str(stats) not in onnx.load(one).metadata_props.__repr__()


def test_another_target_needs_no_second_run(run: Any, cnn: Path, stats: Path, tmp_path: Path) -> None:
    for target in ("ort-arm", "tensorrt"):
        got = optimised(run, cnn, tmp_path / f"{target}.onnx", "--stats", stats, "--target", target)
        assert got.code == 0, got.err
        assert json.loads(got.out)["steps"][0]["changes"]


def test_a_renamed_and_resaved_model_is_the_same(run: Any, cnn: Path, stats: Path, tmp_path: Path) -> None:
    model = onnx.load(cnn)
    for index, node in enumerate(model.graph.node):
        node.name = f"renamed_{index}"
    model.doc_string = "saved again"
    onnx.save(model, cnn)
    assert optimised(run, cnn, tmp_path / "out.onnx", "--stats", stats).code == 0


def test_another_model(run: Any, make: Any, parts: Any, stats: Path, tmp_path: Path) -> None:
    nodes, arrays = parts
    other = make(nodes, {**arrays, "w2": arrays["w2"] * np.float32(2)}, name="other.onnx")
    out = tmp_path / "out.onnx"
    got = optimised(run, other, out, "--stats", stats)
    assert got.code == 2
    assert f"{stats} holds statistics of another model" in got.err
    assert not out.exists()


def test_another_model_behind_fold(run: Any, make: Any, parts: Any, stats: Path, tmp_path: Path) -> None:
    nodes, arrays = parts
    other = make(nodes, {**arrays, "b1": arrays["b1"] + np.float32(1)}, name="other.onnx")
    got = run("optimize", other, "-p", "fold,int8", "-o", tmp_path / "out.onnx", "--stats", stats)
    assert got.code == 2
    assert "statistics of another model" in got.err


def test_fold_first_is_no_other_model(run: Any, cnn: Path, stats: Path, tmp_path: Path) -> None:
    got = run(
        *("optimize", cnn, "-p", f"fold,{PLAIN}", "-o", tmp_path / "out.onnx"),
        *("--stats", stats, "--objective", "macs", "--quiet"),
    )
    assert got.code == 0, got.err


def test_a_pass_before_int8_names_the_order(run: Any, cnn: Path, stats: Path, images: Path, tmp_path: Path) -> None:
    call = ("optimize", cnn, "-p", f"tucker2(ranks=8x8),{PLAIN}", "-o", tmp_path / "out.onnx", "--stats", stats)
    got = run(*call, "--objective", "macs")
    assert got.code == 2
    assert "a pass before int8 changed what they are computed from" in got.err
    got = run(*call, "--objective", "macs", "--data", images)
    assert got.code == 0, got.err
    assert "tensors that the statistics do not hold were calibrated on the data" in got.out


def test_what_a_pass_needs_data_for_is_said(run: Any, cnn: Path, stats: Path, tmp_path: Path) -> None:
    got = run(
        *("optimize", cnn, "-p", "tucker2(ranks=8x8)", "-o", tmp_path / "out.onnx"),
        *("--stats", stats, "--objective", "macs"),
    )
    assert got.code == 0, got.err
    assert "tucker2 saw the weights alone: statistics hold no samples; give --data as well" in got.err


def test_require_data_is_content_with_statistics(run: Any, cnn: Path, stats: Path, tmp_path: Path) -> None:
    assert optimised(run, cnn, tmp_path / "out.onnx", "--stats", stats, "--require-data").code == 0


def test_a_budget_is_not_measured_on_made_up_data(run: Any, cnn: Path, stats: Path, tmp_path: Path) -> None:
    got = optimised(run, cnn, tmp_path / "out.onnx", "--stats", stats, "--min-sqnr", "20")
    assert got.code == 2
    assert "an accuracy budget needs data to measure on; give --eval or --data" in got.err


def test_a_damaged_file(run: Any, cnn: Path, stats: Path, tmp_path: Path) -> None:
    stats.write_bytes(stats.read_bytes()[:-40])
    got = optimised(run, cnn, tmp_path / "out.onnx", "--stats", stats)
    assert got.code == 2
    assert "is no statistics file, or a damaged one" in got.err


def test_json(run: Any, cnn: Path, images: Path, tmp_path: Path) -> None:
    path = tmp_path / "stats.npz"
    got = run("calibrate", cnn, "--data", images, "-o", path, "--json", "--samples", "70")
    document = json.loads(got.out)
    assert document["schema"] == "onnxcomp.calibration/1"
    assert document["samples"] == 70
    assert [entry["tensor"] for entry in document["tensors"]][:2] == ["x", "r1"]
    assert all(entry["min"] <= entry["max"] for entry in document["tensors"])


def test_data_are_needed(run: Any, cnn: Path, tmp_path: Path) -> None:
    got = run("calibrate", cnn, "-o", tmp_path / "stats.npz")
    assert got.code == 2
    assert "calibrate needs real data: give --data" in got.err


def test_a_recipe_may_name_statistics(run: Any, cnn: Path, stats: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"passes: ['{PLAIN}']\nstats: {stats}\nobjective: macs\n")
    assert run("optimize", cnn, "--recipe", recipe, "-o", tmp_path / "out.onnx").code == 0
