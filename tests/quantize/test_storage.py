from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxcomp import modelio
from onnxcomp.cost import stored_bytes
from onnxcomp.graph.edit import add_initializer
from onnxcomp.quantize.storage import admit, narrow
from onnxcomp.runtime.session import open_session, run


def _scaling(codes: NDArray[np.generic], opset: int) -> ir.Model:
    """y = x * float(codes)."""
    shape = list(codes.shape)
    graph = helper.make_graph(
        [helper.make_node("Cast", ["q"], ["f"], to=TensorProto.FLOAT), helper.make_node("Mul", ["x", "f"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [helper.make_tensor("q", TensorProto.INT8, shape, np.zeros(shape, np.int8).tobytes(), raw=True)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = modelio.from_proto(proto)
    old = model.graph.initializers.pop("q")
    old.replace_all_uses_with(add_initializer(model.graph, "q", codes))
    return model


@pytest.mark.parametrize(
    ("bits", "signed", "low", "high", "type_", "per_byte"),
    [
        (4, True, -8, 7, TensorProto.INT4, 2),
        (4, False, 0, 15, TensorProto.UINT4, 2),
        (3, True, -4, 3, TensorProto.INT4, 2),
        (2, True, -2, 1, TensorProto.INT2, 4),
        (2, False, 0, 3, TensorProto.UINT2, 4),
        (8, True, -128, 127, TensorProto.INT8, 1),
    ],
)
def test_the_file_holds_packed_codes_and_the_runtime_reads_them(
    tmp_path: Path, bits: int, signed: bool, low: int, high: int, type_: int, per_byte: int
) -> None:
    codes = np.random.default_rng(0).integers(low, high + 1, (7, 9))
    array = narrow(codes, bits, signed=signed)
    model = _scaling(array, 17)
    assert admit(model, bits) is None
    path = tmp_path / "m.onnx"
    modelio.save(model, path)
    [tensor] = onnx.load(path).graph.initializer
    assert tensor.data_type == type_
    assert len(tensor.raw_data) == -(-codes.size // per_byte) == stored_bytes(array)
    assert not tensor.int32_data
    onnx.checker.check_model(str(path))
    [out] = run(open_session(path), {"x": np.ones(codes.shape, np.float32)})
    np.testing.assert_array_equal(out, codes)


def test_the_first_code_lies_in_the_lowest_bits(tmp_path: Path) -> None:
    for bits, codes, wanted in ((4, [1, 2, 3], [0x21, 0x03]), (2, [1, 2, 3, 0, 1], [0b00111001, 0b01])):
        model = _scaling(narrow(np.array(codes), bits, signed=False), 25)
        modelio.save(model, tmp_path / "m.onnx")
        [tensor] = onnx.load(tmp_path / "m.onnx").graph.initializer
        assert list(tensor.raw_data) == wanted


def test_codes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit 4 bits"):
        narrow(np.array([8]), 3)
    with pytest.raises(ValueError, match="do not fit 2 bits"):
        narrow(np.array([-1]), 2, signed=False)
    with pytest.raises(ValueError, match="9 bits"):
        narrow(np.array([0]), 9)
    assert narrow(np.zeros((0, 3)), 4).shape == (0, 3)


def test_the_opset_is_raised_only_as_far_as_the_type_needs() -> None:
    codes = np.zeros((2, 2), np.int8)
    for bits, opset, version in ((8, 17, 8), (4, 21, 10), (3, 21, 10), (2, 25, 13)):
        model = _scaling(codes, 17)
        assert admit(model, bits) is None
        assert (model.opset_imports[""], model.ir_version) == (opset, version)
    newer = _scaling(codes, 26)
    assert admit(newer, 4) is None
    assert newer.opset_imports[""] == 26


def test_a_model_that_cannot_be_converted_stays_as_it_is() -> None:
    model = _scaling(np.zeros((2, 2), np.int8), 17)
    source = ir.Value(name="a")
    node = ir.node("Identity", [source])
    graph = ir.Graph([source], list(node.outputs), nodes=[node], opset_imports={"": 17}, name="f")
    model.functions[("local", "f", "")] = ir.Function("local", "f", "", graph=graph, attributes=[])
    assert admit(model, 4) == "functions cannot be converted"
    assert (model.opset_imports[""], model.ir_version) == (17, 8)
