"""``onnxcomp check``: exit codes, the table, JSON, shapes, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

FAST = ("--objective", "size")


@pytest.fixture
def quantized(run: Any, cnn: Path, tmp_path: Path) -> Path:
    """The classifier with uint8 activations, which TensorRT refuses."""
    path = tmp_path / "int8.onnx"
    assert run("optimize", cnn, "-p", "int8", "-o", path, *FAST).code == 0
    return path


def test_a_legal_model(run: Any, cnn: Path) -> None:
    got = run("check", cnn)
    assert (got.code, got.err) == (0, "")
    assert got.out.startswith("passed: 1 of 1")
    assert "legal for ort-x86  0 errors, 0 warnings  pass" in got.out


def test_warnings_do_not_fail(run: Any, cnn: Path) -> None:
    got = run("check", cnn, "--target", "ort-mobile")
    assert (got.code, got.err) == (0, "")
    assert "legal for ort-mobile  0 errors, 1 warning  pass" in got.out
    for word in ("node", "rule", "remedy", "mobile-shape", "[N,3,16,16]"):
        assert word in got.out


def test_an_illegal_model(run: Any, quantized: Path) -> None:
    got = run("check", quantized, "--target", "tensorrt")
    assert got.code == 1
    assert got.out.startswith("failed: 1 of 1: target")
    assert "trt-storage" in got.out
    assert "--target tensorrt" in got.out
    assert got.err.startswith("onnxcomp: error: ")
    assert len(got.err.splitlines()) <= 2


def test_json(run: Any, quantized: Path) -> None:
    got = run("check", quantized, "--target", "tensorrt", "--json")
    document = json.loads(got.out)
    assert got.code == 1
    assert (document["schema"], document["target"], document["legal"]) == ("onnxcomp.check/2", "tensorrt", False)
    assert set(document["findings"][0]) == {"severity", "node", "rule", "message", "remedy"}
    severities = [finding["severity"] for finding in document["findings"]]
    assert severities == sorted(severities)
    assert document["written"] == []


def test_shapes_are_fixed(run: Any, cnn: Path, tmp_path: Path) -> None:
    out = tmp_path / "fixed.onnx"
    got = run("check", cnn, "--target", "ort-mobile", "--shapes", "x:2x3x16x16", "-o", out, "--json")
    document = json.loads(got.out)
    assert (got.code, document["findings"], document["written"]) == (0, [], [str(out)])
    written = onnx.load(out)
    dims = [
        [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*written.graph.input, *written.graph.output)
    ]
    assert dims == [[2, 3, 16, 16], [2, 10]]
    assert run("check", out, "--target", "ort-mobile").code == 0


def test_without_output_nothing_is_written(run: Any, cnn: Path, tmp_path: Path) -> None:
    before = cnn.read_bytes()
    assert run("check", cnn, "--shapes", "x:1x3x16x16").code == 0
    assert cnn.read_bytes() == before
    assert [file for file in tmp_path.iterdir() if file.suffix == ".onnx"] == [cnn]


@pytest.mark.parametrize("style", [(), ("--ort-style", "fixed")])
def test_ort_format(run: Any, cnn: Path, tmp_path: Path, style: tuple[str, ...]) -> None:
    got = run("check", cnn, "--target", "ort-mobile", "-o", tmp_path / "m.ort", *style)
    assert got.code == 0
    assert str(tmp_path / "m.required_operators.config") in got.out.replace("\n", "")
    assert (tmp_path / "m.ort").read_bytes()[4:8] == b"ORTM"
    assert "Conv" in (tmp_path / "m.required_operators.config").read_text("utf-8")


def test_an_illegal_model_is_not_written(run: Any, quantized: Path, tmp_path: Path) -> None:
    got = run("check", quantized, "--target", "tensorrt", "-o", tmp_path / "out.onnx")
    assert got.code == 1
    assert "was not written" in got.err
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--target", "tensort"), "did you mean 'tensorrt'?"),
        (("--target", "tensorrt", "-o", "x.ort"), "reads no .ort files"),
        (("-o", "nowhere/x.onnx"), "does not exist"),
        (("--shapes", "x"), "is not NAME:SIZES"),
        (("--shapes", "z:1x3x16x16"), "there is no input 'z'"),
        (("--ort-style", "fixed"), "give one with -o OUT.ort"),
        (("-o", "x.onnx", "--ort-style", "fixed"), "end it in .ort"),
        (("-o", "x.ort", "--ort-style", "quick"), "not one of runtime, fixed"),
    ],
)
def test_bad_calls(run: Any, cnn: Path, arguments: tuple[str, ...], words: str) -> None:
    got = run("check", cnn, *arguments)
    assert (got.code, got.out) == (2, "")
    assert words in got.err


def test_bad_input(run: Any, cnn: Path, tmp_path: Path) -> None:
    assert run("check", tmp_path / "none.onnx").code == 2
    assert run("optimize", cnn, "-p", "fold", "--target", "ort-mobile", "-o", tmp_path / "m.ort", *FAST).code == 0
    got = run("check", tmp_path / "m.ort")
    assert got.code == 2
    assert "is in ORT format" in got.err


def test_optimize_writes_ort_format(run: Any, cnn: Path, tmp_path: Path) -> None:
    got = run("optimize", cnn, "-p", "int8", "--target", "ort-arm", "-o", tmp_path / "m.ort", *FAST)
    assert got.code == 0, got.err
    assert sorted(f.name for f in tmp_path.iterdir() if f.name.startswith("m.")) == [
        "m.ort",
        "m.required_operators.config",
    ]


def test_optimize_refuses_ort_format_for_tensorrt_at_once(run: Any, cnn: Path, tmp_path: Path) -> None:
    got = run("optimize", cnn, "-p", "int8", "--target", "tensorrt", "-o", tmp_path / "m.ort")
    assert (got.code, got.out) == (2, "")
    assert "reads no .ort files" in got.err


def test_optimize_does_not_write_what_the_target_refuses(run: Any, quantized: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    report = tmp_path / "report.json"
    got = run("optimize", quantized, "-p", "fold", "--target", "tensorrt", "-o", out, "--report", report, *FAST)
    assert got.code == 1
    assert "the input itself breaks rule trt-" in got.err
    assert not out.exists()
    assert json.loads(report.read_text("utf-8"))["failures"]
    assert run("optimize", quantized, "-p", "fold", "--target", "tensorrt", "-o", out, "--keep-failed", *FAST).code == 1
    assert out.exists()


def test_optimize_warns_of_what_costs_speed(run: Any, cnn: Path, tmp_path: Path) -> None:
    got = run("optimize", cnn, "-p", "fold", "--target", "tensorrt", "-o", tmp_path / "out.onnx", *FAST)
    assert got.code == 0
    assert "warning: tensorrt: x: the input has free dimensions" in got.err


def test_names_from_the_model_do_not_steer_the_terminal(run: Any, make: Any) -> None:
    nodes = [helper.make_node("Softplus", ["x"], ["y"], name="a\x1b[31mb")]
    ports = {"inputs": (("x", 1, [1, 4]),), "outputs": (("y", 1, [1, 4]),)}
    got = run("check", make(nodes, {"unused": np.zeros(1, np.float32)}, **ports), "--target", "ort-mobile")
    assert got.code == 0
    assert "\x1b" not in got.out
    assert "\\x1b" in got.out
