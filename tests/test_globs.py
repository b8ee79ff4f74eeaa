"""Globs that match nothing are named."""

from __future__ import annotations

import onnx_ir as ir
from onnx import parser

from onnxcomp.contract import Override
from onnxcomp.globs import idle_globs


def test_only_those_that_match_nothing_are_named() -> None:
    model = ir.from_proto(
        parser.parse_model(
            '<ir_version: 9, opset_import: ["": 17]> g (float[1] x) => (float[1] y) {[conv1] y = Relu(x)}'
        )
    )
    overrides = ((Override("conv*", None), Override("Relu", {"a": 1})), (Override("Conv", None), Override("conf1", {})))
    assert idle_globs(model, ("conv1", "*/head"), overrides) == [
        "--exclude '*/head' matches nothing in the model",
        "the recipe's layer 'Conv' matches nothing in the model; did you mean 'conv1'?",
        "the recipe's layer 'conf1' matches nothing in the model; did you mean 'conv1'?",
    ]
    assert idle_globs(model, ("*",), ()) == []
