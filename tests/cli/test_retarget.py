"""`onnxcomp retarget`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper


@pytest.fixture
def int8(run: Any, cnn: Path, images: Path, tmp_path: Path) -> Path:
    """The small classifier on integers, for x86."""
    path = tmp_path / "int8.onnx"
    passes = "int8(calibration=mse,rounding=nearest,inputs=tensor)"
    got = run("optimize", cnn, "-p", passes, "--data", images, "-o", path, "--objective", "macs", "--quiet")
    assert got.code == 0, got.err
    return path


def types(path: Path) -> set[str]:
    """Types of the scalar zero points."""
    arrays = [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    return {array.dtype.name for array in arrays if not array.ndim and array.dtype.kind in "iu"}


def test_to_arm_and_back(run: Any, int8: Path, tmp_path: Path) -> None:
    arm, back = tmp_path / "arm.onnx", tmp_path / "back.onnx"
    got = run("retarget", int8, "--target", "ort-arm", "-o", arm)
    assert got.code == 0, got.err
    assert got.out.startswith("ort-x86 -> ort-arm: ")
    assert "bit for bit" in got.out
    assert (types(int8), types(arm)) == ({"uint8"}, {"int8"})
    assert run("retarget", arm, "--target", "ort-x86", "-o", back).code == 0
    assert back.read_bytes() == int8.read_bytes()


def test_over_itself(run: Any, int8: Path) -> None:
    assert run("retarget", int8, "--target", "ort-arm", "-o", int8).code == 0
    assert types(int8) == {"int8"}


def test_json(run: Any, int8: Path, tmp_path: Path) -> None:
    got = run("retarget", int8, "--target", "tensorrt", "-o", tmp_path / "trt.onnx", "--json")
    document = json.loads(got.out)
    assert document["schema"] == "onnxcomp.retarget/1"
    assert (document["source"], document["target"], document["exact"]) == ("ort-x86", "tensorrt", False)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("coreml", "the CoreML provider has no quantized operators"),
        ("ort-amr", "no target 'ort-amr'; did you mean 'ort-arm'?"),
    ],
)
def test_targets_that_cannot_be(run: Any, int8: Path, tmp_path: Path, target: str, message: str) -> None:
    out = tmp_path / "out.onnx"
    got = run("retarget", int8, "--target", target, "-o", out)
    assert got.code == 2
    assert message in got.err
    assert not out.exists()


def test_a_float_model(run: Any, cnn: Path, tmp_path: Path) -> None:
    got = run("retarget", cnn, "--target", "ort-arm", "-o", tmp_path / "out.onnx")
    assert got.code == 2
    assert "there is nothing to retarget" in got.err


def test_no_such_file(run: Any, tmp_path: Path) -> None:
    got = run("retarget", tmp_path / "none.onnx", "--target", "ort-arm", "-o", tmp_path / "out.onnx")
    assert got.code == 2
    assert "there is no file" in got.err
