"""What the runtime would run in float after all gets no pairs; the report says so."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from onnxcomp.contract import PassReport
from onnxcomp.quantize import fusing
from onnxcomp.runtime.fusion import NodeFate, fusion_proof

Builder = Callable[..., ir.Model]
Quantizer = Callable[..., tuple[ir.Model, PassReport]]
Sqnr = Callable[[ir.Model, ir.Model], float]

# Products that the runtime merges with what follows unless their output is rounded.
MERGED = {
    "[site] a = Gemm(x, w, b) r = Relu(a) [head] y = Gemm(r, v)": "QGemm",
    "[site] a = MatMul(x, w) y = Add(a, b)": "QLinearMatMul",
    "[site] a = MatMul(x, w) s = Add(a, b) r = Relu(s) [head] y = Gemm(r, v)": "QLinearMatMul",
}


@pytest.mark.parametrize("body", MERGED)
def test_products_that_would_be_merged_in_float_get_a_rounded_output(
    body: str, build: Builder, quantize: Quantizer, sqnr: Sqnr
) -> None:
    shapes = {"w": (256, 128), "b": (128,)} | ({"v": (128, 10)} if "head" in body else {})
    model = build(f"g (float[N,256] x) => (float[A,B] y) {{ {body} }}", shapes)
    quantized, report = quantize(model)
    fates = {fate.node: fate for fate in fusion_proof(quantized)}
    assert [change.site for change in report.changes] == ["site"]
    assert (fates["site"].kernel, fates["site"].integer) == (MERGED[body], True)
    assert sqnr(model, quantized) > 30


def test_what_does_not_fuse_is_undone(
    build: Builder, quantize: Quantizer, monkeypatch: pytest.MonkeyPatch, sqnr: Sqnr
) -> None:
    """A runtime without an integer kernel for what the scheme promises."""

    def stubborn(model: ir.Model, *, int8_kernels: bool) -> tuple[NodeFate, ...]:
        assert not int8_kernels
        kernels = {"Gemm": "FusedGemm", "Add": "Add"}
        return tuple(
            NodeFate(f.node, f.op_type, kernels[f.op_type], False, "not today") if f.op_type in kernels else f
            for f in fusion_proof(model)
        )

    monkeypatch.setattr(fusing, "fusion_proof", stubborn)
    model = build(
        """g (float[N,8,8,8] x) => (float[N,256] y) {
            [first] a = Conv(x, v)  [sum] s = Add(a, x)  [second] c = Conv(s, v)
            f = Flatten(c)  [last] y = Gemm(f, w) }""",
        {"v": (8, 8, 1, 1), "w": (512, 256)},
    )
    quantized, report = quantize(model)
    assert {c.site for c in report.changes} == {"first", "second"}
    assert {s.site: s.reason for s in report.skips} == {
        "last": "the runtime would run it in float, as FusedGemm: not today",
        "sum": "the runtime would run it in float, as Add: not today",
    }
    fates = {fate.node: fate for fate in fusion_proof(quantized)}
    assert fates["first"].integer and fates["second"].integer
    assert not fates["sum"].integer and fates["last"].reason == "not quantized"
    assert sqnr(model, quantized) > 25


def test_a_model_in_which_nothing_fuses_is_left_as_it_is(
    build: Builder, quantize: Quantizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(model: ir.Model, *, int8_kernels: bool) -> tuple[NodeFate, ...]:
        assert not int8_kernels
        return tuple(NodeFate(f.node, f.op_type, f.op_type, False, "no") for f in fusion_proof(model))

    monkeypatch.setattr(fusing, "fusion_proof", never)
    model = build("g (float[N,8,8,8] x) => (float[N,8,8,8] y) { y = Conv(x, v) }", {"v": (8, 8, 1, 1)})
    quantized, report = quantize(model)
    assert not report.changes
    assert report.notes == ("nothing to quantize",)
    assert ir.to_proto(quantized) == ir.to_proto(model)
