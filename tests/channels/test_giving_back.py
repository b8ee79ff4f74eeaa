"""Layers that are given back to hold a budget."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from onnxcomp.channels.applying import Decided
from onnxcomp.graph.fold.shapes import infer_shapes
from onnxcomp.graph.groups import find_groups

_MODEL = """<ir_version: 8, opset_import: ["": 17]> g (float[1, 3, 8, 8] x) => (float[1, 5, 8, 8] y) {
  [a] a = Conv(x, u)
  [d] d = Conv<group=8>(a, v)
  [p] p = Conv(d, w)
  [y] y = Conv(p, o)
}"""


@pytest.mark.parametrize(("name", "stay"), [("a", "ad"), ("d", "ad"), ("p", "adp"), ("y", "p")])
def test_the_channels_that_a_layer_reads_and_writes_come_back(name: str, stay: str) -> None:
    """Those of a depthwise layer as well, which neither mixes channels nor makes any."""
    model = ir.from_proto(onnx.parser.parse_model(_MODEL))
    shapes = {"u": (8, 3, 1, 1), "v": (8, 1, 1, 1), "w": (6, 8, 1, 1), "o": (5, 6, 1, 1)}
    values = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for constant, shape in shapes.items():
        value = values[constant]
        value.const_value = ir.tensor(np.ones(shape, np.float32), name=constant)
        model.graph.register_initializer(value)
    infer_shapes(model)
    groups = find_groups(model)
    removed = np.ones(groups.count + 1, np.bool_)
    removed[0] = False
    left = Decided(removed).without(model, lambda node: None, frozenset({name})).removed
    kept = {value.name: not left[labels].any() for value, (_, labels) in groups.tensors.items()}
    assert kept == {tensor: tensor in stay for tensor in "adp"}
