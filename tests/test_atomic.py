"""A save that fails or is interrupted leaves everything as it was."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import ModelProto, numpy_helper

from onnxcomp import modelio
from onnxcomp.errors import OutputError

SIDE = 64  # a weight of 16 KB: above the threshold for external data


def build(opset: int = 21, ir_version: int = 10) -> ModelProto:
    """A one-node model with a large initializer `w` and a small one `b`."""
    proto = onnx.parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> g (float[N,{SIDE}] x) => (float[N,{SIDE}] y)'
        " { t = MatMul(x, w)  y = Add(t, b) }"
    )
    rng = np.random.default_rng(0)
    proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal((SIDE, SIDE), np.float32), "w"))
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(SIDE, np.float32), "b"))
    return proto


def write(path: Path, proto: ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def write_external(path: Path, proto: ModelProto | None = None, location: str | None = None) -> Path:
    """Write a model whose tensors of 1 KB and more lie in one data file."""
    location = location or f"{path.name}.data"
    onnx.save(proto or build(), path, save_as_external_data=True, location=location, size_threshold=1024)
    return path


def outputs(path: Path) -> np.ndarray:
    """What ORT computes for a fixed input."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = np.random.default_rng(1).standard_normal((2, SIDE), np.float32)
    return np.asarray(session.run(None, {"x": feed})[0])


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def weight(model: ir.Model, name: str = "w") -> ir.TensorProtocol:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor


@pytest.fixture
def existing(tmp_path: Path) -> Path:
    """An external-data model at out.onnx, and nothing else."""
    return write_external(tmp_path / "out.onnx")


def changed(path: Path) -> ir.Model:
    model = modelio.load(path)
    model.graph.initializers["w"].const_value = ir.tensor(weight(model).numpy() * 2, name="w")
    return model


@pytest.mark.parametrize(
    ("code", "message"),
    [(errno.ENOSPC, "the disk is full. What was there before is untouched"), (errno.EACCES, "Permission denied")],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_leaves_everything_as_it_was(
    existing: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, message: str
) -> None:
    before = outputs(existing)
    model, real, calls = changed(existing), getattr(os, call), 0

    def failing(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:  # the third replace is the model's own, after its data have been moved
            raise OSError(code, os.strerror(code), "somewhere")
        return real(*args)

    if call == "fsync":
        calls = 1  # the second fsync is the model's
    monkeypatch.setattr(os, call, failing)
    with pytest.raises(OutputError, match=message) as caught:
        modelio.save(model, existing)
    monkeypatch.undo()
    assert calls >= 3 and caught.value.exit_code == 3
    assert names(existing.parent) == ["out.onnx", "out.onnx.data"]
    np.testing.assert_array_equal(outputs(existing), before)


def test_a_real_write_error(tmp_path: Path) -> None:
    """A file-size limit makes write() itself fail, as a full disk does."""
    write(tmp_path / "out.onnx", build())
    script = (
        "import resource, signal, sys; from onnxcomp import modelio; from onnxcomp.errors import OutputError\n"
        "model = modelio.load(sys.argv[1]); signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: modelio.save(model, sys.argv[1])\n"
        "except OutputError as error: sys.exit(f'{error.exit_code} {error}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "out.onnx"], capture_output=True, text=True, check=False
    )
    assert done.stderr.startswith("3 cannot write") and "File too large" in done.stderr
    assert names(tmp_path) == ["out.onnx"]
    assert (tmp_path / "out.onnx").read_bytes() == build().SerializeToString()


def test_ctrl_c_while_writing_leaves_everything_as_it_was(existing: Path) -> None:
    before, model = outputs(existing), modelio.load(existing)

    def interrupted() -> ir.TensorProtocol:
        raise KeyboardInterrupt

    lazy = ir.LazyTensor(interrupted, ir.DataType.FLOAT, ir.Shape([SIDE, SIDE]), name="w")
    model.graph.initializers["w"].const_value = lazy
    with pytest.raises(KeyboardInterrupt):
        modelio.save(model, existing)
    assert names(existing.parent) == ["out.onnx", "out.onnx.data"]
    np.testing.assert_array_equal(outputs(existing), before)
    assert model.graph.initializers["w"].const_value is lazy


def test_ctrl_c_between_the_renames_waits(existing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, real = changed(existing), os.replace

    def replace(source: Path, target: Path) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        real(source, target)

    expected = weight(model).numpy()
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        modelio.save(model, existing)
    monkeypatch.undo()
    assert names(existing.parent) == ["out.onnx", "out.onnx.data"]
    np.testing.assert_array_equal(weight(modelio.load(existing)).numpy(), expected)
