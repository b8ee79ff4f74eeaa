"""ORT format: the runtime loads what is written, and both files appear or neither."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxcomp import modelio
from onnxcomp.errors import InputError, ModelError, OutputError
from onnxcomp.runtime.ortformat import OrtStyle, check_destination, config_path, save_as, save_ort
from onnxcomp.runtime.session import open_session, run
from onnxcomp.targets.target import load_target

TEXT = "g (float[1, 4, 8, 8] x) => (float[1, 4, 6, 6] y) { c = Conv(x, k)\n y = Relu(c) }"


@pytest.fixture
def model(parsed: Callable[..., ir.Model]) -> ir.Model:
    kernel = np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32)
    return parsed(TEXT, k=kernel)


@pytest.mark.parametrize(("style", "arm"), [("runtime", True), ("fixed", True), ("fixed", False)])
def test_the_runtime_loads_what_is_written(model: ir.Model, tmp_path: Path, style: OrtStyle, arm: bool) -> None:
    path = tmp_path / "a b.ort"
    assert save_ort(model, path, style=style, arm=arm) == (path, tmp_path / "a b.required_operators.config")
    assert path.read_bytes()[4:8] == b"ORTM"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a b.ort", "a b.required_operators.config"]
    feed = {"x": np.random.default_rng(1).standard_normal((1, 4, 8, 8)).astype(np.float32)}
    session: Any = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (expected,) = run(open_session(model), feed)
    np.testing.assert_allclose(session.run(None, feed)[0], expected, rtol=1e-5, atol=1e-6)


def test_the_list_of_operators(model: ir.Model, tmp_path: Path) -> None:
    save_ort(model, tmp_path / "m.ort")
    lines = config_path(tmp_path / "m.ort").read_text("utf-8").splitlines()
    assert lines[0] == "# Operators that m.ort needs"
    assert any(line.startswith("ai.onnx;11;") and "Conv" in line for line in lines)
    assert not any(str(tmp_path) in line or "tmp" in line for line in lines)


def test_the_converter_is_not_steered_by_the_environment(
    model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_ort(model, tmp_path / "a.ort", style="fixed")
    monkeypatch.setenv("ORT_CONVERT_ONNX_MODELS_TO_ORT_OPTIMIZATION_LEVEL", "disable")
    save_ort(model, tmp_path / "b.ort", style="fixed")
    assert (tmp_path / "a.ort").read_bytes() == (tmp_path / "b.ort").read_bytes()


def test_what_the_runtime_cannot_convert(parsed: Callable[..., ir.Model], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot write the model as \.ort: .*Relu"):
        save_ort(parsed("g (int16[4] x) => (int16[4] y) { y = Relu(x) }"), tmp_path / "m.ort")
    assert list(tmp_path.iterdir()) == []


def test_both_files_or_neither(model: ir.Model, tmp_path: Path) -> None:
    (tmp_path / "m.ort").mkdir()
    with pytest.raises((InputError, OutputError)):
        save_ort(model, tmp_path / "m.ort")
    assert [file.name for file in tmp_path.iterdir()] == ["m.ort"]


@pytest.mark.parametrize(
    ("name", "target", "style", "words"),
    [
        ("m.ort", "tensorrt", None, "tensorrt reads no .ort files; write 'm.onnx'"),
        ("m.ort", "ort-x86", "quick", "'quick' is not one of runtime, fixed"),
        ("m.onnx", "ort-x86", "fixed", "end it in .ort"),
    ],
)
def test_destinations_that_make_no_sense(name: str, target: str, style: str | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_destination(name, load_target(target), style)


def test_any_other_name_is_onnx(model: ir.Model, tmp_path: Path) -> None:
    assert save_as(model, tmp_path / "m.onnx", load_target("tensorrt")) == (tmp_path / "m.onnx",)
    assert modelio.load(tmp_path / "m.onnx").graph.num_nodes() == 2


def test_the_default_style_is_that_of_the_target(model: ir.Model, tmp_path: Path) -> None:
    for target in ("ort-mobile", "ort-arm"):
        save_as(model, tmp_path / f"{target}.ort", load_target(target))
    save_ort(model, tmp_path / "runtime.ort", style="runtime")
    save_ort(model, tmp_path / "fixed.ort", style="fixed")
    size = {path.stem: path.stat().st_size for path in tmp_path.glob("*.ort")}
    assert size["ort-mobile"] == size["runtime"] > size["fixed"] == size["ort-arm"]


def test_an_ort_file_is_no_input(model: ir.Model, tmp_path: Path) -> None:
    save_ort(model, tmp_path / "m.ort")
    with pytest.raises(ModelError, match="is in ORT format, which cannot be compiled further"):
        modelio.load(tmp_path / "m.ort")
