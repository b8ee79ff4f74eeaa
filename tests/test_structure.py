"""Depth, branches, types, shared constants, quantization and the recipe of a graph."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.record import RECIPE, VERSION
from onnxcomp.structure import Stored, structure_of

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 16])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)


def graph(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray] | None = None) -> ir.Model:
    """A model from x to y."""
    arrays = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    made = helper.make_graph(nodes, "g", [X], [Y], arrays)
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


def relu(before: str, after: str) -> onnx.NodeProto:
    return helper.make_node("Relu", [before], [after])


def test_the_longest_path_and_the_values_that_branch() -> None:
    nodes = [relu("x", "a"), relu("a", "b"), relu("b", "c"), helper.make_node("Add", ["a", "c"], ["y"])]
    found = structure_of(graph(nodes))
    assert (found.depth, found.branches) == (4, 1)
    square = structure_of(graph([helper.make_node("Mul", ["x", "x"], ["y"])]))
    assert (square.depth, square.branches) == (1, 0)  # one node reads it twice


def test_constants_by_type_and_those_that_are_shared() -> None:
    square, scale = np.zeros((16, 16), np.float32), np.array([1, 1], np.int64)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Reshape", ["b", "s"], ["c"]),
        helper.make_node("Reshape", ["c", "s"], ["y"]),
    ]
    found = structure_of(graph(nodes, {"w": square, "s": scale}))
    assert found.stored == (Stored("float", 1, 256, 1024), Stored("int64", 1, 2, 16))
    assert [(own.tensor, own.readers, own.bytes) for own in found.shared] == [("w", 2, 1024)]  # no shapes


@pytest.mark.parametrize(
    ("operators", "quantized"),
    [
        (["Relu"], "no"),
        (["DequantizeLinear"], "weights"),
        (["MatMulNBits"], "weights"),
        (["QuantizeLinear", "DequantizeLinear"], "qdq"),
        (["QuantizeLinear", "QLinearConv", "DequantizeLinear"], "qoperator"),
        (["DynamicQuantizeLinear", "ConvInteger"], "dynamic"),
    ],
)
def test_whether_it_is_quantized(operators: list[str], quantized: str) -> None:
    names = ["x", *(f"v{index}" for index in range(len(operators) - 1)), "y"]
    nodes = [helper.make_node(kind, [a], [b]) for kind, a, b in zip(operators, names, names[1:], strict=False)]
    assert structure_of(graph(nodes)).quantized == quantized


def test_what_an_earlier_run_left() -> None:
    model = graph([relu("x", "y")])
    model.metadata_props[RECIPE] = json.dumps({"passes": ["fold", "int8"], "choices": [{}, {}]})
    model.metadata_props[VERSION] = "0.1"
    made = structure_of(model).made
    assert made is not None
    assert (made.version, made.passes, made.recipe["choices"]) == ("0.1", ("fold", "int8"), [{}, {}])


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "7", '{"passes": 3}', '{"passes": [[]]}', "[" * 100_000])
def test_metadata_that_are_no_recipe(text: str) -> None:
    model = graph([relu("x", "y")])
    model.metadata_props[RECIPE] = text
    assert structure_of(model).made is None
