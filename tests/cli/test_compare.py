"""`onnxcomp compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper


@pytest.fixture
def damaged(make: Any, parts: Any) -> Path:
    """The small classifier with noise on the weights of its second convolution."""
    nodes, arrays = parts
    noise = np.random.default_rng(0).normal(size=arrays["w2"].shape).astype(np.float32)
    path: Path = make(nodes, {**arrays, "w2": arrays["w2"] + 0.02 * noise}, name="damaged.onnx")
    return path


def test_the_layer_at_fault_is_named(run: Any, cnn: Path, damaged: Path, images: Path) -> None:
    got = run("compare", cnn, damaged, "--data", images)
    assert got.code == 0, got.err
    assert got.out.startswith("compared on 100 samples from ")
    assert "at fault: conv2 (Conv, tensor c2) adds the most noise" in got.out
    assert "same top-1 class: " in got.out


def test_json(run: Any, cnn: Path, damaged: Path, images: Path) -> None:
    got = run("compare", cnn, damaged, "--data", images, "--json")
    document = json.loads(got.out)
    assert document["schema"] == "onnxcomp.comparison/1"
    assert document["synthetic"] is False
    layers = {layer["tensor"]: layer for layer in document["layers"]}
    assert list(layers) == ["c1", "r1", "c2", "r2", "p", "f", "y"]
    assert layers["c1"]["sqnr"] == "inf"
    assert layers["c1"]["cosine"] == pytest.approx(1)
    assert 5 < layers["c2"]["sqnr"] < 40
    assert document["fault"]["layer"] == "conv2"
    # 0.02 * N(0, 1) on weights of variance 2 / 288: noise to signal is 4e-4 / 6.9e-3
    assert layers["c2"]["sqnr"] == pytest.approx(10 * np.log10(2 / 288 / 4e-4), abs=1.5)


def test_no_data_is_said_first(run: Any, cnn: Path, damaged: Path) -> None:
    got = run("compare", cnn, damaged, "--shapes", "x:1x3x16x16", "--seed", "1")
    assert got.code == 0, got.err
    assert got.out.splitlines()[0].startswith("no real data was used")


def test_a_model_equals_itself(run: Any, cnn: Path, images: Path) -> None:
    got = run("compare", cnn, cnn, "--data", images)
    assert got.code == 0, got.err
    assert "no shared tensor differs" in got.out
    assert "exact" in got.out


def test_different_signatures_cannot_be_compared(run: Any, make: Any, cnn: Path, images: Path) -> None:
    other = make(
        [helper.make_node("Relu", ["z"], ["y"])],
        {},
        inputs=(("z", 1, ["N", 10]),),
        outputs=(("y", 1, ["N", 10]),),
        name="o.onnx",
    )
    got = run("compare", cnn, other, "--data", images)
    assert got.code == 2
    assert got.err == "onnxcomp: error: the models cannot be compared: inputs x against z\n"


def test_a_missing_model(run: Any, cnn: Path, tmp_path: Path) -> None:
    got = run("compare", cnn, tmp_path / "no.onnx")
    assert got.code == 2
    assert got.err.startswith("onnxcomp: error: there is no file ")
