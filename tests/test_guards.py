"""What is no model, or cannot be carried, is refused with the place and what to do; the rest is made good."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from onnxcomp import modelio
from onnxcomp.errors import ModelError

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


def outputs(path: Path) -> np.ndarray:
    """What ORT computes for a fixed input."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = np.random.default_rng(1).standard_normal((2, SIDE), np.float32)
    return np.asarray(session.run(None, {"x": feed})[0])


def weight(model: ir.Model, name: str = "w") -> ir.TensorProtocol:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor


def text_file(path: Path) -> None:
    path.write_text("hello, I am not a model\n" * 20)


def png_file(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)))


def truncated_file(path: Path) -> None:
    path.write_bytes(build().SerializeToString()[:1000])


def headless_file(path: Path) -> None:
    path.write_bytes(ModelProto(ir_version=8).SerializeToString())


def lfs_file(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")


NO_MODELS: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: None, "does not exist; check the path"),
    (lambda path: path.mkdir(), "is a folder; give the .onnx file in it"),
    (lambda path: path.touch(), "is empty; export or copy the model again"),
    (lambda path: os.mkfifo(path), "is not a regular file"),
    (text_file, "is not an ONNX model (no protobuf)"),
    (png_file, "is not an ONNX model (no protobuf)"),
    (truncated_file, "truncated or damaged; copy it again"),
    (headless_file, "is truncated: it has a header but no graph"),
    (lfs_file, "is a Git LFS pointer, not the model itself; fetch it with 'git lfs pull'"),
]


@pytest.mark.parametrize(("make", "message"), NO_MODELS)
def test_what_is_no_model_is_refused(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "m.onnx"
    make(path)
    with pytest.raises(ModelError) as caught:
        modelio.load(path)
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)
    assert str(caught.value).count("\n") <= 1


def test_unreadable_name_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot be read: embedded null byte"):
        modelio.load("a\0b")


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    whole = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] y) {y = Relu(x)}'
    )
    content, path = whole.SerializeToString(), tmp_path / "m.onnx"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ModelError):
            modelio.load(path)


def test_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    rng, whole, path = random.Random(0), build().SerializeToString(), tmp_path / "m.onnx"
    header = whole.index(b"\x08\x40\x08\x40\x10\x01")  # the payload of w is not worth hitting
    refused = 0
    for _ in range(400):
        content = bytearray(whole)
        content[rng.choice([rng.randrange(header), -1 - rng.randrange(150)])] = rng.randrange(256)
        path.write_bytes(content)
        try:
            modelio.to_bytes(modelio.load(path))
        except ModelError:
            refused += 1
    assert 50 < refused < 400


def edited(edit: Callable[[ModelProto], object], **kwargs: int) -> ModelProto:
    proto = build(**kwargs)
    edit(proto)
    return proto


def sparse(indices: list[int] | list[list[int]], dims: tuple[int, ...] = (1, SIDE)) -> onnx.SparseTensorProto:
    values = helper.make_tensor("b", TensorProto.FLOAT, [len(indices)], [2.0 + k for k in range(len(indices))])
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.array(indices, np.int64), "b_indices"), dims)


def with_sparse(indices: list[int] | list[list[int]]) -> ModelProto:
    proto = build()
    del proto.graph.initializer[1]
    proto.graph.sparse_initializer.append(sparse(indices))
    return proto


def with_type(kind: onnx.TypeProto) -> ModelProto:
    return edited(lambda proto: proto.graph.value_info.append(helper.make_value_info("t", kind)))


def with_sparse_attribute() -> ModelProto:
    proto = build()
    node = helper.make_node("Constant", [], ["c"], name="const")
    attribute = node.attribute.add(name="sparse_value", type=AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.CopyFrom(sparse([0, 3]))
    proto.graph.node.insert(0, node)
    return proto


def with_cycle() -> ModelProto:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] y) {a = Add(x, y) y = Relu(a)}'
    return onnx.parser.parse_model(text)


MAP = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
OPAQUE = onnx.TypeProto(opaque_type=onnx.TypeProto.Opaque(domain="d", name="n"))
FLOAT6 = numpy_helper.from_array(np.zeros(4, helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT6E2M3)), "six")


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (build(opset=27), "uses opset 27; ONNX Runtime loads up to 26"),
        (build(ir_version=15), "IR version 15; ONNX Runtime loads up to 13"),
        (
            edited(lambda p: p.graph.initializer.append(FLOAT6), ir_version=14),
            "IR version 14; ONNX Runtime loads up to 13",
        ),
        (edited(lambda p: p.ClearField("ir_version")), "states no IR version"),
        (edited(lambda p: p.ClearField("opset_import")), "does not say which opset"),
        (edited(lambda p: p.opset_import.add(domain="ai.onnx", version=20)), "opsets 21 and 20 of domain 'ai.onnx'"),
        (edited(lambda p: p.training_info.add()), "training information (training_info)"),
        (with_type(MAP), "value 't' is of map type"),
        (with_type(helper.make_sequence_type_proto(MAP)), "value 't' is of map type"),
        (with_type(OPAQUE), "value 't' is of opaque type"),
        (with_sparse_attribute(), "attribute 'sparse_value' of node 'const' (Constant) is a sparse tensor"),
        (with_sparse([0, SIDE]), "sparse initializer 'b' of shape [1, 64] has indices that do not fit"),
        (with_sparse([[0, 1], [1, 0]]), "sparse initializer 'b' of shape [1, 64] has indices that do not fit"),
        (edited(lambda p: p.graph.initializer[0].ClearField("name")), "an initializer of graph 'g' has no name"),
        (
            edited(lambda p: p.graph.initializer.append(p.graph.initializer[1])),
            "two initializers of graph 'g' are called 'b'",
        ),
        (edited(lambda p: p.graph.input.append(p.graph.input[0])), "two inputs of graph 'g' have the same name"),
        (edited(lambda p: p.graph.node[1].input.append("ghost")), "of graph 'g' reads 'ghost', which nothing writes"),
        (edited(lambda p: p.graph.output.add(name="ghost")), "the output 'ghost' of graph 'g' is written by no node"),
        (edited(lambda p: p.graph.node.append(p.graph.node[0])), "the value 't' of graph 'g' is written twice"),
        (edited(lambda p: setattr(p.graph.initializer[0], "data_type", 99)), "tensor 'w' has no known element type"),
        (with_cycle(), "the graph has a cycle"),
    ],
)
def test_what_cannot_be_carried_is_refused_with_the_place(tmp_path: Path, proto: ModelProto, message: str) -> None:
    path = write(tmp_path / "m.onnx", proto)
    with pytest.raises(ModelError) as caught:
        modelio.load(path)
    assert caught.value.exit_code == 2
    assert message in str(caught.value) and str(path) in str(caught.value)
    with pytest.raises(ModelError):
        modelio.from_proto(proto)


def test_ir_version_14_becomes_13(tmp_path: Path) -> None:
    model = modelio.load(write(tmp_path / "m.onnx", build(ir_version=14)))
    assert model.ir_version == 13
    modelio.save(model, tmp_path / "out.onnx")
    outputs(tmp_path / "out.onnx")


@pytest.mark.parametrize("indices", [[1, 5], [[0, 1], [0, 5]]])
def test_sparse_initializers_become_dense(tmp_path: Path, indices: list[int] | list[list[int]]) -> None:
    proto = with_sparse(indices)
    model = modelio.load(write(tmp_path / "m.onnx", proto))
    expected = np.zeros((1, SIDE), np.float32)
    expected[0, 1], expected[0, 5] = 2, 3
    np.testing.assert_array_equal(weight(model, "b").numpy(), expected)
    modelio.save(model, tmp_path / "out.onnx")
    onnx.checker.check_model(tmp_path / "out.onnx")
    np.testing.assert_array_equal(outputs(tmp_path / "out.onnx"), outputs(tmp_path / "m.onnx"))
    assert len(proto.graph.sparse_initializer) == 1


def test_a_model_without_nodes_and_odd_names_survive(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] x) {}'
    proto = onnx.parser.parse_model(text)
    proto.graph.name = "ü/\n\t'\"🙂"
    path = tmp_path / "a model ü.with.dots"
    modelio.save(modelio.load(write(path, proto)), path)
    assert modelio.load(path).graph.name == proto.graph.name
