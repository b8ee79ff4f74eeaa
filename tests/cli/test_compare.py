"""`onnxcomp compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from onnx import helper

from onnxcomp.report.schemas import load_schema


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
    headline, *rest = got.out.splitlines()
    assert headline.startswith("outputs agree to ")
    assert headline.endswith(" dB; conv2 (weights changed) adds most, 100.0 % of the noise")
    assert got.err == ""
    assert any(line.startswith("compared on 100 samples from ") for line in rest)
    assert any(line.startswith("same top-1 class: ") for line in rest)


def test_json(run: Any, cnn: Path, damaged: Path, images: Path) -> None:
    got = run("compare", cnn, damaged, "--data", images, "--json")
    document = json.loads(got.out)
    check(document)
    assert document["synthetic"] is False
    layers = {layer["tensor"]: layer for layer in document["layers"]}
    assert list(layers) == ["c1", "r1", "c2", "r2", "p", "f", "y"]
    assert layers["c1"]["sqnr"] == "inf"
    assert layers["c1"]["cosine"] == pytest.approx(1)
    assert document["fault"]["layer"] == "conv2"
    assert document["ranked"] == ["r2"]
    # 0.02 * N(0, 1) on weights of variance 2 / 288: noise to signal is 4e-4 / 6.9e-3
    assert layers["c2"]["sqnr"] == pytest.approx(10 * np.log10(2 / 288 / 4e-4), abs=1.5)


def check(document: dict[str, Any]) -> None:
    """The document is one of the published schema, which allows no key more and none less."""
    validator = jsonschema.Draft202012Validator(load_schema(document["schema"]))
    validator.validate(document)
    for part in (document, document["outputs"][0], document["layers"][0]):
        for changed in ({**part, "more": 1}, dict(list(part.items())[1:])):
            wrong = json.loads(json.dumps(document).replace(json.dumps(part), json.dumps(changed)))
            assert wrong != document
            assert not validator.is_valid(wrong)


def test_no_data_is_said_first(run: Any, cnn: Path, damaged: Path) -> None:
    got = run("compare", cnn, damaged, "--shapes", "x:1x3x16x16", "--seed", "1")
    assert got.code == 0, got.err
    assert got.out.splitlines()[0].startswith("no real data was used")


def test_a_model_equals_itself(run: Any, cnn: Path, images: Path) -> None:
    got = run("compare", cnn, cnn, "--data", images)
    assert got.code == 0, got.err
    assert got.out.startswith("outputs are equal; no layer differs beyond rounding\n")


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
    assert "dB; conv2 (weights changed) adds most, 100.0 % of the noise" in got.out
    assert "c2" not in got.out.split("Not compared")[0]
    assert "no counterpart: what follows is folded into it" in got.out
    assert got.err == ""


def test_models_of_different_origin_are_warned_of(run: Any, cnn: Path, make: Any, images: Path) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["m"], name="mean"),
        helper.make_node("Flatten", ["m"], ["v"]),
    ]
    nodes.append(helper.make_node("Gemm", ["v", "w"], ["y"], name="other"))
    got = run("compare", cnn, make(nodes, {"w": np.ones((3, 10), np.float32)}, name="other.onnx"), "--data", images)
    assert got.code == 0
    assert "warning: only 1 of 7 tensors of the base are in the other model" in got.err


@pytest.mark.parametrize("suffix", ["json", "md", "html"])
def test_report_files(run: Any, cnn: Path, damaged: Path, images: Path, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"compare.{suffix}"
    got = run("compare", cnn, damaged, "--data", images, "--report", file, "--quiet")
    assert got.code == 0, got.err
    text = file.read_text("utf-8")
    assert "conv2" in text
    if suffix == "json":
        check(json.loads(text))
    else:
        assert "All compared tensors" in text


def test_accuracy_of_both(run: Any, cnn: Path, damaged: Path, images: Path) -> None:
    got = run("compare", cnn, damaged, "--data", images, "--eval", images, "--json")
    document = json.loads(got.out)
    check(document)
    accuracy = document["accuracy"]
    assert accuracy["samples"] == 100
    assert accuracy["drop_points"] == pytest.approx(100 * (accuracy["base"] - accuracy["other"]))
    assert accuracy["low"] <= accuracy["drop_points"] <= accuracy["high"]
    assert document["flipped"] == len(document["flips"]) == round(100 * (1 - document["agreement"]))


def test_few_layers_are_listed(run: Any, cnn: Path, damaged: Path, images: Path, make: Any, parts: Any) -> None:
    nodes, arrays = parts
    other = make(nodes, {**arrays, "w1": 1.1 * arrays["w1"], "w3": 1.1 * arrays["w3"]}, name="two.onnx")
    got = run("compare", cnn, other, "--data", images, "--top", "1", "--samples", "10", "--attribute", "5")
    assert "Layers by the error they add (1 of 2)" in got.out
    assert "layers on 10 samples of them" in got.out
    assert "measured on 5 samples" in got.out
    estimated = run("compare", cnn, other, "--data", images, "--attribute", "0", "--json")
    assert json.loads(estimated.out)["share_samples"] == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--report", "compare.txt"), "the name must end in .json, .md, .html"),
        (("--samples", "0"), "--samples"),
        (("--data", "missing.npz"), "missing.npz: no such file or folder"),
        (("--eval", "missing.npz"), "missing.npz: no such file or folder"),
    ],
)
def test_bad_calls(run: Any, cnn: Path, damaged: Path, flags: tuple[str, str], said: str) -> None:
    got = run("compare", cnn, damaged, *flags)
    assert got.code == 2
    assert said in got.err
    assert got.out == ""


def test_a_report_never_replaces_a_model(run: Any, cnn: Path, damaged: Path, tmp_path: Path) -> None:
    model = damaged.rename(tmp_path / "model.json")
    got = run("compare", cnn, model, "--report", model)
    assert got.code == 2
    assert "would be written over" in got.err


def test_labels_are_needed_for_accuracy(run: Any, cnn: Path, damaged: Path, images: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.npz"
    with np.load(images) as arrays:
        np.savez(bare, x=arrays["x"])
    got = run("compare", cnn, damaged, "--data", images, "--eval", bare)
    assert got.code == 2
    assert "has no labels" in got.err
