"""Globs that match nothing are named."""

from __future__ import annotations

import onnx_ir as ir
import pytest
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


@pytest.mark.parametrize(
    ("glob", "hint"),
    [
        ("blok1*", "; did you mean 'block1*'?"),
        ("Block1_*", "; did you mean 'block1_*'?"),
        ("block1_cnov?", "; did you mean 'block1_conv?'?"),
        ("block[34]*", ""),
        ("*_elsewhere", ""),
    ],
)
def test_a_misspelt_glob_is_mended_as_a_glob(glob: str, hint: str) -> None:
    text = "{[block1_conv1] a = Relu(x) [block1_conv] b = Relu(a) [block2_conv2] y = Relu(b)}"
    model = ir.from_proto(
        parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> g (float[1] x) => (float[1] y) {text}')
    )
    assert idle_globs(model, (glob,), ()) == [f"--exclude {glob!r} matches nothing in the model{hint}"]
