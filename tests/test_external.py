"""External data are read when used, from where they may be, and never lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxcomp import modelio
from onnxcomp.errors import ModelError
from onnxcomp.external import MappedTensor

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


def weight(model: ir.Model, name: str = "w") -> ir.TensorProtocol:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor


def test_external_data_are_read_only_when_used(tmp_path: Path) -> None:
    path = write_external(tmp_path / "m.onnx")
    model = modelio.load(path)
    tensor = weight(model)
    assert isinstance(tensor, MappedTensor) and "mapping" not in vars(tensor.raw.file)
    np.testing.assert_array_equal(tensor.numpy(), numpy_helper.to_array(build().graph.initializer[0]))
    assert not tensor.numpy().flags.writeable
    assert modelio.to_bytes(model) == modelio.to_bytes(modelio.from_proto(build()))


@pytest.mark.parametrize("kind", ["INT4", "UINT2", "FLOAT4E2M1", "BFLOAT16", "FLOAT8E4M3FN"])
def test_every_element_type_can_be_mapped(tmp_path: Path, kind: str) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, kind))
    array = np.tile(np.array([0, 1, 1], np.float32), 2999).astype(dtype)
    proto = build()
    proto.graph.initializer.append(numpy_helper.from_array(array, "q"))
    model = modelio.load(write_external(tmp_path / "m.onnx", proto))
    assert isinstance(weight(model, "q"), MappedTensor)
    assert weight(model, "q").numpy().tobytes() == array.tobytes()
    modelio.save(model, tmp_path / "out.onnx")
    again = onnx.load(tmp_path / "out.onnx").graph.initializer[2]
    assert numpy_helper.to_array(again).tobytes() == array.tobytes()


def point_at(path: Path, location: str) -> None:
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = location
    write(path, proto)


def lie_about_length(path: Path) -> None:
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        entry.value = "4" if entry.key == "length" else entry.value
    write(path, proto)


def link_out(path: Path) -> None:
    data = modelio.sidecar(path)
    data.rename(path.parent.parent / "elsewhere.data")
    data.symlink_to(path.parent.parent / "elsewhere.data")


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: modelio.sidecar(path).unlink(), "m.onnx.data, which does not exist; copy it next to the model"),
    (lambda path: os.truncate(modelio.sidecar(path), 1000), "which has only 1000; the data file is truncated"),
    (lambda path: point_at(path, "../m.onnx.data"), "'../m.onnx.data', which leaves the model's folder; refused"),
    (lambda path: point_at(path, "/etc/passwd"), "'/etc/passwd', which leaves the model's folder; refused"),
    (lambda path: point_at(path, ""), "'', which leaves the model's folder; refused"),
    (lambda path: point_at(path, "."), "which is not a file; the model is damaged"),
    (lie_about_length, "of shape [64, 64] takes 16384 bytes; the model says 4 at 0"),
    (link_out, "a link that leaves the model's folder; copy the data next to the model"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_bad_external_data_are_refused(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    (tmp_path / "inner").mkdir()
    path = write_external(tmp_path / "inner" / "m.onnx")
    damage(path)
    with pytest.raises(ModelError) as caught:
        modelio.load(path)
    assert caught.value.exit_code == 2
    assert message in str(caught.value) and "tensor 'w'" in str(caught.value)


def test_a_cache_of_links_loads(tmp_path: Path) -> None:
    """Download caches keep `snapshot/m.onnx` and its data as links into one folder of blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    write_external(blobs / "m.onnx")
    (blobs / "m.onnx").rename(blobs / "0a")
    (blobs / "m.onnx.data").rename(blobs / "0b")
    (snapshot / "m.onnx").symlink_to("../blobs/0a")
    (snapshot / "m.onnx.data").symlink_to("../blobs/0b")
    assert weight(modelio.load(snapshot / "m.onnx")).numpy().shape == (SIDE, SIDE)
    assert modelio.file_bytes(snapshot / "m.onnx") == sum(blob.stat().st_size for blob in blobs.iterdir())
    (blobs / "0b").unlink()
    with pytest.raises(ModelError, match=r"m\.onnx\.data cannot be read: No such file"):
        modelio.file_bytes(snapshot / "m.onnx")


def test_a_protobuf_with_external_data_has_no_folder(tmp_path: Path) -> None:
    proto = onnx.load(write_external(tmp_path / "m.onnx"), load_external_data=False)
    with pytest.raises(ModelError, match="a model in memory has no folder; load its file"):
        modelio.from_proto(proto)


def test_external_data_in_constant_nodes_and_branches(tmp_path: Path) -> None:
    proto = build()
    big = numpy_helper.from_array(np.full(SIDE, 3, np.float32), "inner")
    then = helper.make_graph(
        [helper.make_node("Add", ["t", "inner"], ["o"])], "then", [], [helper.make_empty_tensor_value_info("o")], [big]
    )
    constant = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.full(SIDE, 5, np.float32)))
    other = helper.make_graph(
        [constant, helper.make_node("Add", ["t", "k"], ["e"])], "else", [], [helper.make_empty_tensor_value_info("e")]
    )
    flag = numpy_helper.from_array(np.array(True), "flag")
    proto.graph.initializer.append(flag)
    proto.graph.node.insert(1, helper.make_node("If", ["flag"], ["u"], then_branch=then, else_branch=other))
    proto.graph.node[2].input[0] = "u"
    plain = write(tmp_path / "plain.onnx", proto)
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="d", size_threshold=0, convert_attribute=True)
    modelio.save(modelio.load(path), tmp_path / "out.onnx")
    np.testing.assert_array_equal(outputs(tmp_path / "out.onnx"), outputs(plain))
