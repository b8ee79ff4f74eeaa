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
    assert got.err == ""
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


def test_a_layer_that_was_folded_away_is_named_with_what_holds_it(
    run: Any, make: Any, parts: Any, images: Path
) -> None:
    nodes, arrays = parts
    rng = np.random.default_rng(0)
    norm = helper.make_node("BatchNormalization", ["c2", "g", "o", "m", "v"], ["n2"], name="bn2")
    nodes[3].input[0] = "n2"
    statistics = {key: rng.uniform(0.5, 1.5, 32).astype(np.float32) for key in ("g", "o", "m", "v")}
    base = make([*nodes[:3], norm, *nodes[3:]], {**arrays, **statistics}, name="base.onnx")
    # the same with the normalisation in the weights, and noise on top
    factor = statistics["g"] / np.sqrt(statistics["v"] + 1e-5)
    folded = {
        **arrays,
        "w2": arrays["w2"] * factor[:, None, None, None]
        + 0.02 * rng.normal(size=arrays["w2"].shape).astype(np.float32),
        "b2": statistics["o"] - statistics["m"] * factor,
    }
    nodes[2].output[0] = "n2"
    nodes[2].input.append("b2")
    got = run("compare", base, make(nodes, folded, name="folded.onnx"), "--data", images)
    assert got.code == 0, got.err
    assert "at fault: bn2 (BatchNormalization, tensor n2), which conv2 computes in the other model, adds" in got.out
    assert got.err == ""


def test_models_of_different_origin_are_warned_of(run: Any, cnn: Path, make: Any, parts: Any, images: Path) -> None:
    nodes, arrays = parts
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [f"other_{name}" if name in ("c1", "r1", "c2", "r2", "p", "f") else name for name in names]
    got = run("compare", cnn, make(nodes, arrays, name="other.onnx"), "--data", images)
    assert got.code == 0
    assert "warning: only 1 of 7 tensors of " in got.err
