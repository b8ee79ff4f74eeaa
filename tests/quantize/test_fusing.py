"""Every form that the placement writes is fused by the installed runtime, and computes what the float model does."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from onnxcomp.contract import PassReport
from onnxcomp.runtime.fusion import fusion_proof

Builder = Callable[..., ir.Model]
Quantizer = Callable[..., tuple[ir.Model, PassReport]]
Sqnr = Callable[[ir.Model, ir.Model], float]

# Operators between two convolutions: text, integer kernel.
BETWEEN = {
    "Relu(a)": None,
    "Clip(a, zero, six)": None,
    "Clip(a, minus, six)": None,
    "Add(a, x)": "QLinearAdd",
    "Mul(a, a)": "QLinearMul",
    "Concat<axis=1>(a, x)": "QLinearConcat",
    "Sigmoid(a)": "QLinearSigmoid",
    "LeakyRelu(a)": "QLinearLeakyRelu",
    "AveragePool<kernel_shape=[2,2]>(a)": "QLinearAveragePool",
    "GlobalAveragePool(a)": "QLinearGlobalAveragePool",
    "MaxPool<kernel_shape=[2,2]>(a)": "NhwcMaxPool",
    'Resize<mode="nearest">(a,,sizes)': "Resize",
    "Reshape(a, shape)": "Reshape",
    "Slice(a, one, three, two)": "Slice",
    "Gather<axis=2>(a, picks)": "Gather",
    "Pad(a, pads)": "Pad",
    'Pad<mode="reflect">(a, pads)': "Pad",
}
CONSTANTS = """<float zero = {0}, float six = {6}, float minus = {-1}, float[4] sizes = {1,1,2,2}, int64[4] shape =
    {1,-1,4,4}, int64[1] one = {1}, int64[1] three = {3}, int64[1] two = {2}, int64[3] picks = {0,2,1},
    int64[8] pads = {0,0,1,1,0,0,1,1}>"""


@pytest.mark.parametrize("text", BETWEEN)
def test_what_lies_between_two_convolutions_is_fused(
    text: str, build: Builder, quantize: Quantizer, sqnr: Sqnr
) -> None:
    channels = {"Concat<axis=1>(a, x)": 16, "Reshape(a, shape)": 32}.get(text, 8)
    graph = f"""g (float[1,8,8,8] x) => (float[A,B,C,D] y) {CONSTANTS} {{
        a = Conv<pads=[1,1,1,1]>(x, w, bias)
        b = {text}
        y = Conv(b, v)
    }}"""
    model = build(graph, {"w": (8, 8, 3, 3), "bias": (8,), "v": (8, channels, 1, 1)})
    quantized, report = quantize(model)
    fates = {fate.op_type: fate for fate in fusion_proof(quantized)}
    assert fates["Conv"].kernel == "QLinearConv"
    assert all(fate.integer for fate in fusion_proof(quantized)), fates
    operator = text.split("(")[0].split("<")[0]
    if BETWEEN[text] is None:
        assert operator not in fates
    elif operator != "Pad":  # computed on the stored integers: no pair touches it
        assert fates[operator].kernel == BETWEEN[text]
    assert not report.skips
    assert sqnr(model, quantized) > 25


@pytest.mark.parametrize(
    "text", ["HardSwish(a)", "Tanh(a)", "ReduceMean<axes=[2,3], keepdims=1>(a)", 'Resize<mode="linear">(a,,sizes)']
)
def test_convolutions_fuse_around_operators_without_an_integer_kernel(
    text: str, build: Builder, quantize: Quantizer, sqnr: Sqnr
) -> None:
    graph = f"""g (float[1,8,8,8] x) => (float[A,B,C,D] y) {CONSTANTS} {{
        a = Conv<pads=[1,1,1,1]>(x, w)  b = {text}  y = Conv(b, v)
    }}"""
    model = build(graph, {"w": (8, 8, 3, 3), "v": (8, 8, 1, 1)})
    quantized, _ = quantize(model)
    fates = fusion_proof(quantized)
    assert [fate.kernel for fate in fates if fate.op_type == "Conv"] == ["QLinearConv"] * 2
    others = [fate for fate in fates if fate.op_type != "Conv"]
    assert all(not fate.integer and fate.reason for fate in others)
    assert sqnr(model, quantized) > 25


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ((8, 8, 3, 3), "pads=[1,1,1,1]"),
        ((8, 1, 3, 3), "group=8, pads=[1,1,1,1]"),
        ((8, 4, 3, 3), "group=2, strides=[2,2]"),
        ((8, 8, 3, 3), "dilations=[2,2], pads=[2,2,2,2]"),
        ((8, 8, 3, 3), 'auto_pad="SAME_UPPER", strides=[2,2]'),
        ((8, 8, 1, 3), "pads=[0,0,0,2]"),
    ],
)
def test_convolutions_of_every_geometry(
    kernel: tuple[int, ...], attributes: str, build: Builder, quantize: Quantizer, sqnr: Sqnr
) -> None:
    model = build(
        f"g (float[N,8,8,8] x) => (float[N,B,C,D] y) {{ a = Conv<{attributes}>(x, w, b) y = Relu(a) }}",
        {"w": kernel, "b": (8,)},
    )
    quantized, _ = quantize(model)
    assert [(f.kernel, f.integer) for f in fusion_proof(quantized)] == [("QLinearConv", True)]
    assert sqnr(model, quantized) > 28


@pytest.mark.parametrize(("shape", "kernel"), [("N,8,16", (8, 8, 3)), ("N,8,4,4,4", (8, 8, 3, 3, 3))])
def test_one_and_three_dimensional_convolutions(
    shape: str, kernel: tuple[int, ...], build: Builder, quantize: Quantizer, sqnr: Sqnr
) -> None:
    result = ",".join("ABCDE"[: len(kernel)])
    model = build(f"g (float[{shape}] x) => (float[{result}] y) {{ y = Conv(x, w) }}", {"w": kernel})
    quantized, _ = quantize(model)
    assert fusion_proof(quantized)[0].kernel == "QLinearConv"
    assert sqnr(model, quantized) > 28


@pytest.mark.parametrize(
    ("text", "shapes", "kernel"),
    [
        ("Gemm(x, w, b)", {"w": (256, 128), "b": (128,)}, "QGemm"),
        ("Gemm<transB=1>(x, w, b)", {"w": (128, 256), "b": (128,)}, "QGemm"),
        ("Gemm(x, w)", {"w": (256, 128)}, "QGemm"),
        ("MatMul(x, w)", {"w": (256, 128)}, "MatMulIntegerToFloat"),
    ],
)
def test_products_end_in_float_without_a_rounded_output(
    text: str, shapes: dict[str, tuple[int, ...]], kernel: str, build: Builder, quantize: Quantizer, sqnr: Sqnr
) -> None:
    model = build(f"g (float[N,256] x) => (float[N,128] y) {{ y = {text} }}", shapes)
    quantized, _ = quantize(model)
    assert [(f.kernel, f.integer) for f in fusion_proof(quantized)] == [(kernel, True)]
    assert [n.op_type for n in quantized.graph].count("QuantizeLinear") == 1
    assert sqnr(model, quantized) > 35


def test_a_chain_of_links_is_integer_throughout(build: Builder, quantize: Quantizer) -> None:
    model = build(
        "g (float[N,8,8,8] x) => (float[N,8,8,8] y)"
        "{ a = Conv(x, u)  b = Conv<pads=[1,1,1,1]>(a, v)  c = Conv(b, w)  y = Relu(c) }",
        {"u": (4, 8, 1, 1), "v": (4, 4, 3, 3), "w": (8, 4, 1, 1)},
    )
    quantized, _ = quantize(model)
    assert [f.kernel for f in fusion_proof(quantized)] == ["QLinearConv"] * 3


def test_silu_and_squeeze_and_excitation(build: Builder, quantize: Quantizer, sqnr: Sqnr) -> None:
    model = build(
        """g (float[N,8,8,8] x) => (float[N,8,8,8] y) {
            a = Conv(x, u)  s = Sigmoid(a)  b = Mul(a, s)
            p = GlobalAveragePool(b)  q = Conv(p, v)  r = Relu(q)  t = Conv(r, w)  gate = Sigmoid(t)
            c = Mul(b, gate)  y = Conv(c, u)
        }""",
        {"u": (8, 8, 1, 1), "v": (4, 8, 1, 1), "w": (8, 4, 1, 1)},
    )
    quantized, _ = quantize(model)
    assert all(f.integer for f in fusion_proof(quantized))
    assert sqnr(model, quantized) > 20
