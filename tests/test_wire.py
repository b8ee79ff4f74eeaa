"""Streamed bytes are protobuf's own bytes."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp import modelio
from onnxcomp.errors import ModelError, OnnxcompError
from onnxcomp.wire import serialize, skeleton


def model() -> ir.Model:
    """Weights of several kinds and sizes, some above the size from which they are streamed, every field in use."""
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[N] x) => (float[N] y) {y = Relu(x)}'
    )
    rng = np.random.default_rng(0)
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT4, TensorProto.BOOL)
    for size in (0, 1, 16_383, 16_384, 140_000):
        for kind in kinds:
            values = rng.integers(0, 2, size).astype(helper.tensor_dtype_to_np_dtype(kind))
            tensor = numpy_helper.from_array(values, f"w{kind}_{size}")
            if size % 2:
                tensor.doc_string = "doc"
            tensor.metadata_props.add(key="k", value="v")
            proto.graph.initializer.append(tensor)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(["a"] * 20_000, np.object_), "words"))
    proto.doc_string, proto.producer_name = "doc", "me"
    proto.metadata_props.add(key="k", value="v")
    return modelio.from_proto(proto)


def test_bytes_are_canonical_protobuf() -> None:
    one = model()
    content = modelio.to_bytes(one)
    assert onnx.load_model_from_string(content).SerializeToString() == content
    assert content == skeleton(one, {}).SerializeToString()


def test_large_tensors_are_not_copied_beforehand() -> None:
    whole = serialize(model())
    assert sum(len(piece) for piece in whole.pieces if isinstance(piece, bytes)) < 0.6 * whole.size
    assert sum(not isinstance(piece, bytes) for piece in whole.pieces) == 5  # five of 64 KB and more, the words apart


def test_the_model_is_as_before() -> None:
    one = model()
    before = {name: value.const_value for name, value in one.graph.initializers.items()}
    modelio.to_bytes(one)
    assert {name: value.const_value for name, value in one.graph.initializers.items()} == before


def test_a_tensor_that_misstates_its_size_is_an_error() -> None:
    one = model()
    lazy = ir.LazyTensor(lambda: ir.tensor(np.ones(3, np.float32)), ir.DataType.FLOAT, ir.Shape([1 << 16]), name="lazy")
    one.graph.register_initializer(ir.Value(name="lazy", const_value=lazy))
    with pytest.raises(OnnxcompError, match="a tensor misstates its size"):
        serialize(one).write(BytesIO())


def test_what_has_no_place_in_a_protobuf_is_an_error() -> None:
    one = model()
    one.graph.node(0).name = "\ud800"
    with pytest.raises(ModelError, match=r"the model cannot be written: .*surrogates not allowed"):
        modelio.to_bytes(one)
