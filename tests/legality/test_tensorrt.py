"""The rules of TensorRT: one model breaks each, and one that is close does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxcomp.legality.checker import check_model
from onnxcomp.legality.finding import Finding

Found = Callable[..., dict[str, Finding]]
Swap = tuple[str, str]


def trt(groups: Any, *swaps: Swap, **changes: Any) -> ir.Model:
    model: ir.Model = groups(*swaps, **({"runtime": "tensorrt", "signed": True} | changes))
    return model


def places(model: ir.Model, rule: str) -> set[str]:
    return {finding.node for finding in check_model(model, "tensorrt") if finding.rule == rule}


def test_what_is_well_quantized_breaks_nothing(groups: Any) -> None:
    assert check_model(trt(groups), "tensorrt") == ()


def test_what_is_quantized_for_x86_is_illegal(groups: Any, found: Found) -> None:
    findings = found(groups(), "tensorrt")
    assert {"trt-zero-point", "trt-storage"} <= set(findings)
    assert all(finding.severity == "error" for finding in findings.values() if finding.rule != "trt-idle-pair")


def test_zero_points(groups: Any, found: Found) -> None:
    model = trt(groups, z=np.array(3, np.int8))
    assert places(model, "trt-zero-point") == {"quantize", "dequantize"}
    assert "zero point 3" in found(model, "tensorrt")["trt-zero-point"].message
    fed = trt(groups, ("8] x)", "8] x, int8 z)"))
    fed.graph.initializers.pop("z", None)
    assert "not a constant" in found(fed, "tensorrt")["trt-zero-point"].message


def test_zero_points_may_be_missing(groups: Any, found: Found) -> None:
    text = ("QuantizeLinear(x, s, z)", "QuantizeLinear<output_dtype = 3>(x, s)"), ("(xq, s, z)", "(xq, s)")
    assert found(trt(groups, *text, opset=21), "tensorrt") == {}


def test_storage(groups: Any, found: Found) -> None:
    model = trt(groups, z=np.array(0, np.uint8))
    assert places(model, "trt-storage") == {"quantize", "dequantize"}
    assert "uint8" in found(model, "tensorrt")["trt-storage"].message


def test_an_integer_bias(groups: Any, found: Found) -> None:
    pair = ("[conv]", "[bias] bd = DequantizeLinear(b, os)\n  [conv]")
    model = trt(groups, ("wd, b)", "wd, bd)"), pair, b=np.zeros(16, np.int32))
    finding = found(model, "tensorrt")["trt-bias"]
    assert (finding.severity, finding.node) == ("error", "bias")
    assert "float32" in finding.remedy


@pytest.mark.parametrize(("scale", "words"), [(0.0, "scale 0.0"), (-0.5, "scale -0.5"), (float("nan"), "scale nan")])
def test_scales_are_positive(groups: Any, found: Found, scale: float, words: str) -> None:
    finding = found(trt(groups, ws=np.full(16, scale, np.float32)), "tensorrt")["trt-scale"]
    assert (finding.severity, finding.node) == ("error", "weights")
    assert words in finding.message


def test_scales_are_constant(groups: Any, found: Found) -> None:
    model = trt(groups, ("8] x)", "8] x, float moving)"), ("(x, s, z)", "(x, moving, z)"))
    finding = found(model, "tensorrt")["trt-scale"]
    assert finding.node == "quantize"
    assert "run time" in finding.message
    folded = trt(groups, ("[quantize]", "half = Mul(s, s)\n  [quantize]"), ("(x, s, z)", "(x, half, z)"))
    assert "trt-scale" not in found(folded, "tensorrt")


def test_one_scale_a_slice(groups: Any) -> None:
    model = trt(groups, ws=np.ones(8, np.float32), wz=np.zeros(8, np.int8))
    assert places(model, "trt-scale-count") == {"weights"}
    uneven = trt(groups)
    uneven.graph.initializers["wz"].const_value = ir.tensor(np.zeros(4, np.int8), name="wz")
    assert places(uneven, "trt-scale-count") == {"weights"}


def test_one_scale_an_activation(groups: Any, found: Found) -> None:
    scales = {"s": np.full(16, 0.1, np.float32), "z": np.zeros(16, np.int8)}
    model = trt(groups, **scales)
    assert places(model, "trt-activation-axis") == {"quantize", "dequantize"}
    single = {"s": np.full(1, 0.1, np.float32), "z": np.zeros(1, np.int8)}
    assert found(trt(groups, **single), "tensorrt") == {}


@pytest.mark.parametrize(
    ("operator", "weight", "axis", "wanted"),
    [
        ("Conv(xd, wd)", (16, 16, 1, 1), 1, 0),
        ("ConvTranspose(xd, wd)", (16, 16, 1, 1), 0, 1),
        ("MatMul(xd, wd)", (16, 16), 0, 1),
        ("MatMul(xd, wd)", (16, 16, 16), 1, 2),
    ],
)
def test_the_axis_of_a_weight(
    groups: Any, found: Found, operator: str, weight: tuple[int, ...], axis: int, wanted: int
) -> None:
    text = f"""
    g (float[16, 16, 16, 16] x) => (float[16, 16, 16, 16] y) {{
      xq = QuantizeLinear(x, s, z)
      xd = DequantizeLinear(xq, s, z)
      wd = DequantizeLinear<axis = AXIS>(w, ws, wz)
      [layer] l = {operator}
      y = Conv(l, k)
    }}
    """
    array = np.ones(weight, np.int8)
    wrong = groups.of(text.replace("AXIS", str(axis)), signed=True, w=array)
    finding = found(wrong, "tensorrt")["trt-weight-axis"]
    assert (finding.severity, finding.node) == ("error", "layer")
    assert f"axis {axis}; {operator.split('(')[0]} wants axis {wanted}" in finding.message
    right = groups.of(text.replace("AXIS", str(wanted - len(weight))), signed=True, w=array)
    assert "trt-weight-axis" not in found(right, "tensorrt")


@pytest.mark.parametrize(("transposed", "wanted"), [(0, 1), (1, 0)])
def test_the_axis_of_a_gemm(groups: Any, found: Found, transposed: int, wanted: int) -> None:
    text = f"""
    g (float[32, 16] x) => (float[32, 1] y) {{
      xq = QuantizeLinear(x, s, z)
      xd = DequantizeLinear(xq, s, z)
      wd = DequantizeLinear<axis = AXIS>(w, ws, wz)
      [layer] l = Gemm<transB = {transposed}>(xd, wd)
      y = MatMul(l, k)
    }}
    """
    arrays = {"w": np.ones((16, 16), np.int8), "k": np.ones((16, 1), np.float32)}
    assert "trt-weight-axis" in found(
        groups.of(text.replace("AXIS", str(1 - wanted)), signed=True, **arrays), "tensorrt"
    )
    assert found(groups.of(text.replace("AXIS", str(wanted)), signed=True, **arrays), "tensorrt") == {}


def test_four_bits(groups: Any, found: Found) -> None:
    def model(columns: int, dtype: Any = TensorProto.INT4) -> ir.Model:
        proto = helper.make_model(
            helper.make_graph(
                [
                    helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], name="weights", axis=1),
                    helper.make_node("MatMul", ["x", "wd"], ["y"], name="layer"),
                ],
                "g",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 32])],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, columns])],
                [
                    helper.make_tensor("w", dtype, [32, columns], [1] * 32 * columns),
                    helper.make_tensor("ws", TensorProto.FLOAT, [columns], [0.1] * columns),
                ],
            ),
            opset_imports=[helper.make_opsetid("", 21)],
            ir_version=10,
        )
        return ir.from_proto(proto)

    assert found(model(32), "tensorrt") == {}
    assert "last dimension is 33" in found(model(33), "tensorrt")["trt-4-bit"].message
    assert "uint4" in found(model(32, TensorProto.UINT4), "tensorrt")["trt-storage"].message


def test_four_bit_activations(groups: Any, found: Found) -> None:
    text = ("QuantizeLinear(x, s, z)", "QuantizeLinear<output_dtype = 22>(x, s)"), ("(xq, s, z)", "(xq, s)")
    assert "activations" in found(trt(groups, *text, opset=21), "tensorrt")["trt-4-bit"].message


def test_operators_on_integers(groups: Any, found: Found) -> None:
    pad = ("[dequantize] xd = DequantizeLinear(xq", "[pad] xp = Pad(xq, p, z)\n  [dequantize] xd = DequantizeLinear(xp")
    model = trt(groups, pad, p=np.zeros(8, np.int64))
    finding = found(model, "tensorrt")["trt-integer-operator"]
    assert (finding.severity, finding.node) == ("error", "pad")


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ("Det(x)", "does not know Det"),
        ("com.microsoft.Gelu(x)", "domain 'com.microsoft'"),
    ],
)
def test_operators_that_the_parser_lacks(found: Found, node: str, words: str) -> None:
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node(node.split("(")[0].rpartition(".")[2], ["x"], ["y"], name="odd")],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        ),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
        ir_version=9,
    )
    proto.graph.node[0].domain = node.split("(")[0].rpartition(".")[0]
    finding = found(ir.from_proto(proto), "tensorrt")["trt-operator"]
    assert (finding.severity, finding.node) == ("error", "odd")
    assert words in finding.message


def test_quantized_operators(groups: Any) -> None:
    text = """
    g (float[1, 16, 8, 8] x) => (float[1, 16, 6, 6] y) {
      xq = QuantizeLinear(x, s, z)
      [conv] cq = QLinearConv(xq, s, z, w, ws, wz, os, z)
      y = DequantizeLinear(cq, os, z)
    }
    """
    findings = [f for f in check_model(groups.of(text, signed=True), "tensorrt") if f.node == "conv"]
    assert [f.rule for f in findings] == ["trt-operator"]


@pytest.mark.parametrize(("opset", "legal"), [(25, True), (26, False), (17, True)])
def test_opsets(groups: Any, found: Found, opset: int, legal: bool) -> None:
    model = groups.of("g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y) { y = Conv(x, k) }", opset=opset)
    assert ("trt-opset" not in found(model, "tensorrt")) == legal


@pytest.mark.parametrize(
    ("text", "legal"),
    [
        ("g (uint8[4] x) => (float[4] y) { y = Cast<to = 1>(x) }", True),
        ("g (uint8[4] x) => (uint8[4] y) { [odd] t = Add(x, x)\n y = Identity(t) }", False),
        ("g (float[4] x) => (float[4] y) { [odd] t = Cast<to = 5>(x)\n y = Cast<to = 1>(t) }", False),
        ("g (int64[4] x) => (float[4] y) { y = Cast<to = 1>(x) }", True),
    ],
)
def test_types(groups: Any, text: str, legal: bool) -> None:
    findings = [f for f in check_model(groups.of(text), "tensorrt") if f.rule == "trt-type"]
    assert bool(findings) != legal
    assert legal or (findings[0].severity, findings[0].node) == ("error", "odd")


@pytest.mark.parametrize(
    ("text", "legal"),
    [
        ("y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x)", True),
        ("y = MaxPool<kernel_shape = [2, 2], strides = [2, 2], dilations = [2, 2]>(x)", False),
        ("y, i = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x)\n j = Identity(i)", False),
        ('y = Resize<mode = "linear">(x, , f)', True),
        ('y = Resize<mode = "cubic">(x, , f)', False),
        ('y = Resize<mode = "linear", antialias = 1>(x, , f)', False),
        ("y, i = TopK<axis = 2>(x, three)", True),
        ("y, i = TopK<axis = 2, sorted = 0>(x, three)", False),
    ],
)
def test_restrictions(groups: Any, found: Found, text: str, legal: bool) -> None:
    ports = "(float[1, 2, 8, 8] x) => (float[A, B, C, D] y" + (", int64[E, F, G, H] j)" if "j =" in text else ")")
    arrays = {"f": np.ones(4, np.float32), "three": np.array([3], np.int64)}
    model = groups.of(f"g {ports} {{ {text} }}", opset=18, **arrays)
    assert ("trt-restriction" not in found(model, "tensorrt")) == legal


def test_what_is_not_valid_onnx(groups: Any, found: Found) -> None:
    model = groups.of("g (float[2, 3] x) => (float[2, 4] y) { y = MatMul(x, m) }", m=np.ones((3, 4), np.float32))
    assert "trt-valid" not in found(model, "tensorrt")
    model.graph[0].attributes.add(ir.AttrString("unknown", "x"))
    finding = found(model, "tensorrt")["trt-valid"]
    assert (finding.severity, finding.node) == ("error", "")
    assert "unknown" in finding.message
