"""What is saved is whole, valid and the same every time; no other file is touched."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from onnxcomp import modelio
from onnxcomp.errors import InputError, ModelError

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


def test_save_is_deterministic_and_valid(tmp_path: Path) -> None:
    model = modelio.load(write(tmp_path / "m.onnx", build()))
    modelio.save(model, tmp_path / "a.onnx")
    modelio.save(model.clone(), tmp_path / "b.onnx")
    content = (tmp_path / "a.onnx").read_bytes()
    assert content == (tmp_path / "b.onnx").read_bytes() == modelio.to_bytes(model)
    assert len(content) == modelio.serialized_bytes(model) == modelio.file_bytes(tmp_path / "a.onnx")
    onnx.checker.check_model(tmp_path / "a.onnx", full_check=True)
    np.testing.assert_array_equal(outputs(tmp_path / "a.onnx"), outputs(tmp_path / "m.onnx"))
    assert names(tmp_path) == ["a.onnx", "b.onnx", "m.onnx"]


def test_external_stays_external(tmp_path: Path) -> None:
    model = modelio.load(write_external(tmp_path / "m.onnx", location="weights.bin"))
    expected = outputs(tmp_path / "m.onnx")
    modelio.save(model, tmp_path / "out.onnx")
    first = (tmp_path / "out.onnx").read_bytes(), (tmp_path / "out.onnx.data").read_bytes()
    modelio.save(model.clone(), tmp_path / "out.onnx")
    assert first == ((tmp_path / "out.onnx").read_bytes(), (tmp_path / "out.onnx.data").read_bytes())
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)
    np.testing.assert_array_equal(outputs(tmp_path / "out.onnx"), expected)
    assert modelio.file_bytes(tmp_path / "out.onnx") == sum(map(len, first))
    assert names(tmp_path) == ["m.onnx", "out.onnx", "out.onnx.data", "weights.bin"]
    stored = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
    assert [tensor.data_location for tensor in stored] == [TensorProto.EXTERNAL, TensorProto.DEFAULT]


def test_models_over_the_limit_become_external(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = modelio.load(write(tmp_path / "m.onnx", build()))
    monkeypatch.setattr(modelio, "PROTOBUF_LIMIT", 10_000)
    with pytest.raises(ModelError, match="over the 2 GB that a protobuf can hold"):
        modelio.to_bytes(model)
    modelio.save(model, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").stat().st_size == 4 * SIDE * SIDE
    np.testing.assert_array_equal(outputs(tmp_path / "out.onnx"), outputs(tmp_path / "m.onnx"))
    with pytest.raises(ModelError, match="is over 2 GB"):
        modelio.load(tmp_path / "m.onnx")


def test_a_graph_over_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = modelio.load(write(tmp_path / "m.onnx", build()))
    monkeypatch.setattr(modelio, "PROTOBUF_LIMIT", 100)
    with pytest.raises(ModelError, match="the graph alone, without its weights, exceeds the 2 GB"):
        modelio.save(model, tmp_path / "out.onnx")
    assert names(tmp_path) == ["m.onnx"]


def test_saving_over_the_input_keeps_the_loaded_models_alive(tmp_path: Path) -> None:
    path = write_external(tmp_path / "m.onnx")
    base = modelio.load(path)
    array = weight(base).numpy().copy()
    model = base.clone()
    model.graph.initializers["w"].const_value = ir.tensor(array * 2, name="w")
    modelio.save(model, path)
    np.testing.assert_array_equal(weight(base).numpy(), array)
    np.testing.assert_array_equal(weight(modelio.load(path)).numpy(), array * 2)
    modelio.save(base, path)
    np.testing.assert_array_equal(weight(modelio.load(path)).numpy(), array)
    assert names(tmp_path) == ["m.onnx", "m.onnx.data"]


def test_a_shared_tensor_is_written_once(tmp_path: Path) -> None:
    model = modelio.load(write_external(tmp_path / "m.onnx"))
    twin = ir.Value(
        name="w2", const_value=weight(model), shape=ir.Shape([SIDE, SIDE]), type=ir.TensorType(ir.DataType.FLOAT)
    )
    model.graph.register_initializer(twin)
    modelio.save(model, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").stat().st_size == 4 * SIDE * SIDE
    again = modelio.load(tmp_path / "out.onnx")
    np.testing.assert_array_equal(weight(again, "w2").numpy(), weight(again, "w").numpy())


def test_a_model_read_by_onnx_ir_itself_is_saved_whole(tmp_path: Path) -> None:
    path = write_external(tmp_path / "m.onnx")
    model = ir.load(path)
    (tmp_path / "other").mkdir()
    modelio.save(model, tmp_path / "other" / "out.onnx")
    np.testing.assert_array_equal(outputs(tmp_path / "other" / "out.onnx"), outputs(path))


def test_a_stale_data_file_goes_with_its_model(tmp_path: Path) -> None:
    out = write_external(tmp_path / "out.onnx")
    modelio.save(modelio.from_proto(build()), out)
    assert names(tmp_path) == ["out.onnx"]


def test_a_data_file_of_someone_else_stays(tmp_path: Path) -> None:
    write_external(tmp_path / "other.onnx", location="out.onnx.data")
    write(tmp_path / "out.onnx", build())
    modelio.save(modelio.from_proto(build()), tmp_path / "out.onnx")
    assert names(tmp_path) == ["other.onnx", "out.onnx", "out.onnx.data"]
    outputs(tmp_path / "other.onnx")


@pytest.mark.parametrize("out", ["weights.bin", "w"])
def test_the_data_of_the_input_are_never_overwritten(tmp_path: Path, out: str) -> None:
    path = write_external(tmp_path / "m.onnx", location="weights.bin" if out == "weights.bin" else "w.data")
    model = modelio.load(path)
    before = outputs(path)
    with pytest.raises(InputError, match="the weights of the loaded model lie in it; choose another name") as caught:
        modelio.save(model, tmp_path / out)
    assert caught.value.exit_code == 2
    np.testing.assert_array_equal(outputs(path), before)


@pytest.mark.parametrize(
    ("place", "message"),
    [("no/such/out.onnx", "does not exist; create it first"), ("folder", "it is a folder; give the name of a file")],
)
def test_a_place_that_cannot_be_written(tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=message) as caught:
        modelio.save(modelio.from_proto(build()), tmp_path / place)
    assert caught.value.exit_code == 2
    assert names(tmp_path) == ["folder"]


def test_a_device_is_not_replaced() -> None:
    with pytest.raises(InputError, match="it is not a regular file"):
        modelio.save(modelio.from_proto(build()), "/dev/null")
    assert not Path("/dev/null").is_file()


def test_permissions_and_links(tmp_path: Path) -> None:
    old, link = tmp_path / "old.onnx", tmp_path / "out.onnx"
    old.write_text("precious")
    old.chmod(0o640)
    link.symlink_to(old)
    modelio.save(modelio.from_proto(build()), link)
    assert old.read_text() == "precious" and not link.is_symlink()
    assert link.stat().st_mode & 0o777 == 0o640
    umask = os.umask(0)
    os.umask(umask)
    modelio.save(modelio.from_proto(build()), tmp_path / "new.onnx")
    assert (tmp_path / "new.onnx").stat().st_mode & 0o777 == 0o666 & ~umask


SHARED = Path(__file__).parents[2] / "shared" / "models"


@pytest.mark.realdata
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real models of ../shared are not here")
def test_real_models_stay_valid_and_grow_by_nothing(tmp_path: Path) -> None:
    files = sorted(SHARED.glob("*.onnx"))
    assert files
    for file in files:
        out = tmp_path / "out.onnx"
        modelio.save(modelio.load(file), out)
        onnx.checker.check_model(out)
        assert out.stat().st_size <= file.stat().st_size + 64, file.name  # defaults written out
