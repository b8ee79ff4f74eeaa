"""Small models for the tests of data: every input goes through one Identity."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

Shape = list[int | str | None] | None
ModelOf = Callable[..., ir.Model]


@pytest.fixture
def model_of() -> ModelOf:
    """Return a function that builds a model from ``name=shape`` or ``name=(shape, element type)``; float by default."""

    def build(**inputs: Shape | tuple[Shape, int]) -> ir.Model:
        infos: list[onnx.ValueInfoProto] = []
        outputs: list[onnx.ValueInfoProto] = []
        nodes: list[onnx.NodeProto] = []
        for name, given in inputs.items():
            shape, kind = given if isinstance(given, tuple) else (given, TensorProto.FLOAT)
            infos.append(helper.make_tensor_value_info(name, kind, shape))
            outputs.append(helper.make_tensor_value_info(f"{name}_out", kind, shape))
            nodes.append(helper.make_node("Identity", [name], [f"{name}_out"]))
        graph = helper.make_graph(nodes, "g", infos, outputs)
        return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))

    return build
