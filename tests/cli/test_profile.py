"""`onnxcomp profile`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from onnx import helper

from onnxcomp.report.schemas import load_schema
from onnxcomp.runtime import pairprofile, profiling
from onnxcomp.runtime.profilercost import ProfilerCost
from onnxcomp.runtime.settings import SessionSettings

BRIEF = ("--runs", "16", "--warmup", "1", "--budget", "0.3")


@pytest.fixture(autouse=True)
def known_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the profiler takes longer than everything else here."""

    def known(_: SessionSettings) -> ProfilerCost:
        return ProfilerCost(0.5, 3.0, 0.05, 0.01, 0.2)

    for module in (profiling, pairprofile):
        monkeypatch.setattr(module, "profiler_cost", known)


def valid(text: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(text)
    jsonschema.Draft202012Validator(load_schema("profile-1")).validate(document)
    return document


def test_layers_and_machine(run: Any, cnn: Path) -> None:
    got = run("profile", cnn, *BRIEF)
    assert got.code == 0, got.err
    assert " ms a run (90 % of them under " in got.out.splitlines()[0]
    for name in ("conv1", "conv2", "pool", "(outside of the layers)", "together", "made up", "machine: ", "software: "):
        assert name in got.out


def test_json_and_files(run: Any, cnn: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"profile{suffix}" for suffix in (".json", ".md", ".html")]
    flags = [part for file in files for part in ("--report", file)]
    got = run(
        "profile", cnn, *BRIEF, "--json", "--threads", "2", "--session-option", "some.key=1", "--batch", "3", *flags
    )
    assert got.code == 0, got.err
    document = valid(got.out)
    assert document == valid(files[0].read_text("utf-8"))
    assert document["settings"]["threads"] == 2
    assert document["settings"]["entries"] == {"some.key": "1"}
    assert document["inputs"] == {"x": [3, 3, 16, 16]}
    assert document["synthetic"] is True
    assert document["profile"]["runs"] in (16, 32)  # as many again where something else ran
    for file in files[1:]:
        text = file.read_text("utf-8")
        assert "conv2" in text and "order in which they run" in text


def test_against_a_base(run: Any, cnn: Path, make: Any, parts: Any, images: Path) -> None:
    nodes, arrays = parts
    nodes[3] = helper.make_node("Exp", ["c2"], ["r2"], name="relu2")
    other = make(nodes, arrays, name="other.onnx")
    got = run("profile", other, "--against", cnn, "--data", images, *BRIEF, "--json", "--quiet")
    assert (got.code, got.err) == (0, "")
    document = valid(got.out)
    assert document["against"] == str(cnn)
    assert document["synthetic"] is False
    layers = {layer["layer"]: layer for layer in document["comparison"]["layers"]}
    assert "relu2" in layers["conv2"]["origins"]  # fused in one, not in the other
    assert "Exp" in layers["conv2"]["other_kernels"]


def test_nothing_is_left_behind(run: Any, cnn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.chdir(folder)
    assert run("profile", cnn, *BRIEF).code == 0
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--runs", "0"), "0 runs measure nothing"),
        (("--warmup", "-1"), "a warm-up of -1 runs makes no sense"),
        (("--budget", "0"), "a time limit of 0 s makes no sense"),
        (("--provider", "tpu"), "no execution provider 'tpu'; it has: "),
        (("--session-option", "spin"), "session option 'spin' is not KEY=VALUE"),
        (("--shapes", "z:1x3x16x16"), "the model has no input 'z'"),
        (
            ("--batch", "2", "--shapes", "x:1x3x16x16"),
            "--batch 2: input 'x' is float32[1,3,16,16], a batch of 1 always",
        ),
        (("--data", "nowhere.npz"), "nowhere.npz"),
        (("--against", "nowhere.onnx"), "there is no file 'nowhere.onnx'"),
        (("--report", "profile.txt"), "the name must end in .json, .md, .html"),
        (("--threads", "0"), "0 is not in the range"),
    ],
)
def test_calls_that_make_no_sense(run: Any, cnn: Path, flags: tuple[str, ...], said: str) -> None:
    got = run("profile", cnn, *flags)
    assert got.code == 2
    assert said in got.err
    assert got.out == ""


def test_models_that_cannot_be_profiled(run: Any, make: Any, cnn: Path, tmp_path: Path) -> None:
    broken = tmp_path / "text.onnx"
    broken.write_text("no model")
    assert "is not an ONNX model" in run("profile", broken).err
    reshape = [helper.make_node("Reshape", ["x", "s"], ["y"], name="cut")]
    failing = make(reshape, {"s": np.array([-1, 7])}, outputs=(("y", 1, ["M", 7]),), name="failing.onnx")
    got = run("profile", failing)
    assert got.code == 2
    assert "ONNX Runtime could not run the model" in got.err
    free = make(
        [helper.make_node("Relu", ["x"], ["y"])],
        {},
        inputs=(("x", 1, ["N", "L"]),),
        outputs=(("y", 1, ["N", "L"]),),
        name="free.onnx",
    )
    got = run("profile", free)
    assert got.code == 2
    assert "give --shapes x:1x..." in got.err
    got = run("profile", free, "--against", cnn)
    assert got.code == 2
    assert "the models cannot be compared" in got.err
