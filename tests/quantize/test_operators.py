"""Weighted operators of every kind: what is fused where that is claimed, what stays float and why."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxcomp.contract import PassReport
from onnxcomp.graph.fold import fold
from onnxcomp.runtime.fusion import fusion_proof

Builder = Callable[..., ir.Model]
Quantizer = Callable[..., tuple[ir.Model, PassReport]]
Sqnr = Callable[[ir.Model, ir.Model], float]

STRIDED = ", strides=[{2}], dilations=[{2}]"


def kernels(model: ir.Model) -> dict[str, str]:
    return {fate.node: fate.kernel for fate in fusion_proof(model)}


def reasons(report: PassReport) -> dict[str, str]:
    return {skip.site: skip.reason for skip in report.skips}


@pytest.mark.parametrize(
    "rank, group, extra",
    [(1, 1, ""), (1, 8, STRIDED), (2, 2, ""), (2, 8, STRIDED), (3, 1, STRIDED), (3, 2, ""), (3, 8, "")],
)
def test_convolutions_of_every_rank_and_grouping_fuse(
    rank: int, group: int, extra: str, build: Builder, quantize: Quantizer, sqnr: Sqnr
) -> None:
    ones, twos = ",".join("1" * 2 * rank), ",".join("2" * rank)
    sizes, unknown = ",".join("8" * rank), ",".join("CDE"[:rank])
    model = build(
        f"""g (float[1,8,{sizes}] x) => (float[A,B,{unknown}] y) {{
            [one] a = Conv<pads=[{ones}], group={group}{extra.replace("{2}", twos)}>(x, w, b)
            r = Relu(a)
            m = MaxPool<kernel_shape=[{twos}]>(r)
            [two] y = Conv<group={group}>(m, v) }}""",
        {"w": (8, 8 // group, *(3,) * rank), "b": (8,), "v": (8, 8 // group, *(1,) * rank)},
    )
    quantized, report = quantize(model)
    assert not report.skips
    found = kernels(quantized)
    assert (found["one"], found["two"]) == ("QLinearConv", "QLinearConv")
    assert sqnr(model, quantized) > 20


def test_a_transposed_convolution_stays_float_between_two_that_fuse(
    build: Builder, quantize: Quantizer, sqnr: Sqnr
) -> None:
    model = build(
        """g (float[1,8,6,6] x) => (float[A,B,C,D] y) {
            [one] a = Conv(x, w)  [up] t = ConvTranspose<strides=[2,2]>(a, u, b)  [two] y = Conv(t, v) }""",
        {"w": (8, 8, 3, 3), "u": (8, 4, 2, 2), "b": (4,), "v": (8, 4, 1, 1)},
    )
    quantized, report = quantize(model)
    assert reasons(report) == {"up": "the runtime has no integer kernel for ConvTranspose"}
    assert kernels(quantized) == {"one": "QLinearConv", "up": "ConvTranspose", "two": "QLinearConv"}
    assert {"u", "b"} <= set(quantized.graph.initializers)
    assert sqnr(model, quantized) > 20


@pytest.mark.parametrize("trans, bias", [(0, None), (1, ()), (0, (1,)), (1, (32,)), (0, (1, 32))])
def test_gemm_with_alpha_and_beta_fuses_once_folded(
    trans: int, bias: tuple[int, ...] | None, build: Builder, quantize: Quantizer, sqnr: Sqnr
) -> None:
    third = "" if bias is None else ", b"
    model = build(
        f"""g (float[N,16] x) => (float[A,B] y) {{
            [one] a = Gemm<transB={trans}, alpha=0.5, beta=2.0>(x, w{third})  r = Relu(a)
            [two] y = Gemm<alpha=3.0>(r, v) }}""",
        {"w": (32, 16) if trans else (16, 32), "v": (32, 520)} | ({} if bias is None else {"b": bias}),
    )
    folded = model.clone()
    fold(folded)
    quantized, report = quantize(folded)
    assert not report.skips
    assert kernels(quantized) == {"one": "QGemm", "two": "QGemm"}
    assert sqnr(model, quantized) > 12
    before, report = quantize(model)
    assert "one" in reasons(report) and kernels(before)["one"] in ("Gemm", "FusedGemm")


def test_gemm_of_transposed_data_stays_float(build: Builder, quantize: Quantizer) -> None:
    model = build(
        "g (float[32,32] x) => (float[A,B] y) { [one] a = Gemm<transA=1>(x, w)  [two] y = Gemm(a, v) }",
        {"w": (32, 320), "v": (320, 64)},
    )
    _, report = quantize(model)
    assert reasons(report) == {"one": "transA is set"}


def test_products_of_activations_stay_float_between_projections_that_fuse(
    build: Builder, quantize: Quantizer, sqnr: Sqnr
) -> None:
    model = build(
        """g (float[1,16,64] x) => (float[A,B,C] y) {
            [q] q = MatMul(x, wq)  [k] k = MatMul(x, wk)  [v] v = MatMul(x, wv)
            t = Transpose<perm=[0,2,1]>(k)  [scores] s = MatMul(q, t)  p = Softmax(s)
            [mix] o = MatMul(p, v)  [out] y = MatMul(o, wo) }""",
        {"wq": (64, 64), "wk": (64, 64), "wv": (64, 64), "wo": (64, 320)},
    )
    quantized, report = quantize(model)
    assert reasons(report) == dict.fromkeys(("scores", "mix"), "a product of two activations: it is faster in float")
    assert {fate.node for fate in fusion_proof(quantized) if fate.integer} == {"q", "k", "v", "out"}
    assert sqnr(model, quantized) > 15


def test_the_constant_may_be_the_left_operand(build: Builder, quantize: Quantizer) -> None:
    model = build(
        "g (float[1,32,32] x) => (float[A,B,C] y) { [left] a = MatMul(w, x)  [right] y = MatMul(a, v) }",
        {"w": (32, 32), "v": (32, 640)},
    )
    quantized, report = quantize(model)
    assert reasons(report) == {"left": "its data input is a constant"}
    assert kernels(quantized)["right"] == "MatMulIntegerToFloat"


@pytest.mark.parametrize("kind, gates", [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_stay_float(kind: str, gates: int, build: Builder, quantize: Quantizer, sqnr: Sqnr) -> None:
    model = build(
        f"""g (float[1,1,16] x) => (float[A,B,C] y) <int64[1] one = {{1}}> {{
            [before] a = MatMul(x, v)  [cell] h, last = {kind}<hidden_size=32>(a, w, r)
            f = Squeeze(h, one)  [after] y = MatMul(f, u) }}""",
        {"v": (16, 64), "w": (1, 32 * gates, 64), "r": (1, 32 * gates, 32), "u": (32, 640)},
    )
    quantized, report = quantize(model)
    assert reasons(report) == {"cell": f"no runtime here has an integer kernel for {kind}, and no pass rewrites it"}
    assert {fate.node for fate in fusion_proof(quantized) if fate.integer} >= {"before", "after"}
    np.testing.assert_array_equal(
        quantized.graph.initializers["w"].const_value.numpy(),  # type: ignore[union-attr]
        model.graph.initializers["w"].const_value.numpy(),  # type: ignore[union-attr]
    )
    assert sqnr(model, quantized) > 15


def test_loop_bodies_are_left_alone(build: Builder, quantize: Quantizer) -> None:
    model = build(
        """g (float[1,8,6,6] x) => (float[1,8,6,6] y) <int64 times = {2}, bool go = {1}> {
            [outside] a = Conv(x, v)
            y = Loop(times, go, a) <body = b (int64 i, bool c, float[1,8,6,6] s) => (bool d, float[1,8,6,6] t) {
                d = Identity(c)  [inside] t = Conv(s, v) }> }""",
        {"v": (8, 8, 1, 1)},
    )
    quantized, report = quantize(model)
    assert reasons(report) == {"inside": "inside a subgraph (If, Loop or Scan body)"}
    assert kernels(quantized)["outside"] == "QLinearConv"
    assert "v" in quantized.graph.initializers


def test_a_weight_of_two_convolutions_is_stored_once(build: Builder, quantize: Quantizer, sqnr: Sqnr) -> None:
    model = build(
        """g (float[1,8,6,6] x) => (float[A,B,C,D] y) {
            [one] a = Conv<pads=[1,1,1,1]>(x, w, b)  r = Relu(a)  [two] y = Conv<pads=[1,1,1,1]>(r, w, b) }""",
        {"w": (8, 8, 3, 3), "b": (8,)},
    )
    quantized, _ = quantize(model, bias_correction="off")
    assert kernels(quantized) == {"one": "QLinearConv", "two": "QLinearConv"}
    stored = quantized.graph.initializers
    assert [name for name in stored if name.startswith("w.quantized")] == ["w.quantized"]
    assert "w" not in stored and "b" not in stored
    # One bias under two input scales is two biases.
    biases = [stored[name].const_value.numpy() for name in stored if name.startswith("b.quantized")]  # type: ignore[union-attr]
    assert len(biases) == 2 and not np.array_equal(biases[0], biases[1])
    assert sqnr(model, quantized) > 20


@pytest.mark.parametrize(
    "third, outputs", [("z = Neg(w)", ", float[8,8,1,1] z"), ("[up] z = ConvTranspose(c, w)", ", float[A,B,C,D] z")]
)
def test_a_weight_that_something_else_reads_stays_beside_its_integers(
    third: str, outputs: str, build: Builder, quantize: Quantizer, sqnr: Sqnr
) -> None:
    model = build(
        f"""g (float[1,8,6,6] x) => (float[A,B,C,D] y{outputs}) {{
            [one] a = Conv(x, w)  [two] c = Conv(a, v)  [three] y = Conv(c, v)  {third} }}""",
        {"w": (8, 8, 1, 1), "v": (8, 8, 1, 1)},
    )
    quantized, _ = quantize(model)
    found = kernels(quantized)
    assert (found["one"], found["three"]) == ("QLinearConv", "QLinearConv")
    assert {"w", "w.quantized"} <= set(quantized.graph.initializers)
    assert sqnr(model, quantized) > 15
