"""Operators that do the work of a convolution or a product in another form."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from onnxcomp.contract import Skip
from onnxcomp.graph.foreign import foreign_reason, is_quantized
from onnxcomp.graph.products import weighted_sites

CONTRIB = "com.microsoft"


def node(op_type: str, domain: str = "") -> ir.Node:
    return ir.node(op_type, [ir.Value(name="x"), ir.Value(name="w")], domain=domain, name="it")


@pytest.mark.parametrize(
    "op_type, domain, kind, reason",
    [
        ("QLinearConv", "", "Conv", "already quantized"),
        ("QLinearMatMul", "", "MatMul", "already quantized"),
        ("ConvInteger", "ai.onnx", "Conv", "already quantized"),
        ("QGemm", CONTRIB, "Gemm", "already quantized"),
        ("MatMulNBits", CONTRIB, "MatMul", "packed into few bits"),
        ("FusedConv", CONTRIB, "Conv", "onnxruntime fused"),
        ("LSTM", "", "LSTM", "no runtime here has an integer kernel for LSTM"),
    ],
)
def test_what_stands_for_an_operator_says_why_it_stays(op_type: str, domain: str, kind: str, reason: str) -> None:
    found = foreign_reason(node(op_type, domain))
    assert found is not None and reason in found
    assert foreign_reason(node(op_type, domain), kind) == found
    assert foreign_reason(node(op_type, domain), "Another") is None
    assert is_quantized(node(op_type, domain)) == (found == "already quantized")


@pytest.mark.parametrize(
    "op_type, domain", [("Conv", ""), ("Relu", ""), ("MatMulNBits", "mine"), ("QLinearConv", "mine"), ("Attention", "")]
)
def test_others_are_none_of_these(op_type: str, domain: str) -> None:
    assert foreign_reason(node(op_type, domain)) is None


@pytest.mark.parametrize("op_type", ["QuantizeLinear", "DynamicQuantizeLinear", "QLinearAdd"])
def test_a_node_that_rounds_activations_makes_a_quantized_model(op_type: str) -> None:
    assert is_quantized(node(op_type, CONTRIB if op_type == "QLinearAdd" else ""))
    assert not is_quantized(node("DequantizeLinear"))


def test_sites_of_a_kind_include_what_stands_for_it() -> None:
    nodes = [node("QLinearConv"), node("MatMulNBits", CONTRIB), node("LSTM")]
    for number, made in enumerate(nodes):
        made.name = str(number)
    model = ir.Model(ir.Graph([], [], nodes=nodes, opset_imports={"": 17}), ir_version=9)
    found = list(weighted_sites(model, ("Conv", "MatMul")))
    assert all(isinstance(site, Skip) for site in found)
    assert [site.site for site in found if isinstance(site, Skip)] == ["0", "1"]
