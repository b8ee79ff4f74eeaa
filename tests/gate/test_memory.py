from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxcomp import modelio
from onnxcomp.errors import ModelError
from onnxcomp.gate.memory import memory_line, peak_growth

Parsed = Callable[..., ir.Model]
MB = 1 << 20


@pytest.fixture
def heavy(parsed: Parsed, tmp_path: Path) -> Path:
    """A model of 32 MB of weights that makes 32 MB of activations."""
    side = 2048
    weight = np.full((side, side), 1e-3, np.float32)
    text = f"agraph (float[N,{side}] x) => (float[N,{side}] y) {{ h = MatMul(x, w) y = MatMul(h, v) }}"
    modelio.save(parsed(text, w=weight, v=weight + 1), tmp_path / "heavy.onnx")
    return tmp_path / "heavy.onnx"


def test_the_growth_holds_weights_and_activations(heavy: Path) -> None:
    one = peak_growth(heavy, {"x": np.ones((1, 2048), np.float32)})
    many = peak_growth(heavy, {"x": np.ones((2048, 2048), np.float32)})
    assert 30 * MB < one < 150 * MB
    assert many > one + 24 * MB


def test_a_model_that_does_not_run_says_why(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match="peak memory was not measured"):
        peak_growth(tmp_path / "bad.onnx", {"x": np.ones(1, np.float32)})


def test_a_process_that_dies_is_no_measurement(heavy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(ModelError, match="ended early: exit code 1"):
        peak_growth(heavy, {"x": np.ones((1, 2048), np.float32)})


def test_the_lesser_of_two_measurements_counts() -> None:
    found = iter([70 * MB, 60 * MB])
    line = memory_line(lambda: next(found), 64 * MB, None)
    assert (line.verdict, line.value, line.limit) == ("pass", "60 MB", "at most 64 MB")
    line = memory_line(lambda: 70 * MB, 64 * MB, lambda: 80 * MB)
    assert (line.verdict, line.why) == ("fail", "the base takes 80 MB")


def test_what_cannot_be_measured_is_skipped() -> None:
    def failing() -> int:
        raise ModelError("no /proc")

    line = memory_line(failing, 1, None)
    assert (line.verdict, line.why) == ("skipped", "no /proc")
