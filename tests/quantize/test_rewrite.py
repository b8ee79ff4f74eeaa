"""What the int8 rewrite does with awkward models, and what it says about it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.contract import Override, PassReport, Value
from onnxcomp.runtime.fusion import fusion_proof
from onnxcomp.runtime.processor import saturates

Builder = Callable[..., ir.Model]
Quantizer = Callable[..., tuple[ir.Model, PassReport]]
Sqnr = Callable[[ir.Model, ir.Model], float]

TWO = "g (float[N,8,8,8] x) => (float[N,8,B,C] y) { [first] a = Conv(x, v)  b = Relu(a)  [second] y = Conv(b, w) }"
SHAPES = {"v": (8, 8, 1, 1), "w": (8, 8, 3, 3)}


def stored(model: ir.Model, name: str) -> NDArray[np.generic]:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def plain_bits() -> int:
    return 7 if saturates() else 8


def test_outputs_keep_their_names_and_float_readers_read_what_was_quantized(
    build: Builder, quantize: Quantizer
) -> None:
    model = build(
        "g (float[N,8,8,8] x) => (float[N,8,8,8] a, float[N,8,8,8] t, float[N,8,6,6] y)"
        "{ a = Conv(x, v)  t = Tanh(a)  y = Conv(a, w) }",
        SHAPES,
    )
    quantized, _ = quantize(model)
    assert [v.name for v in quantized.graph.outputs] == ["a", "t", "y"]
    assert [v.producer().op_type for v in quantized.graph.outputs] == [  # type: ignore[union-attr]
        "DequantizeLinear",
        "Tanh",
        "DequantizeLinear",
    ]
    assert [f.kernel for f in fusion_proof(quantized) if f.op_type == "Conv"] == ["QLinearConv"] * 2
    assert all(v.shape == w.shape for v, w in zip(model.graph.outputs, quantized.graph.outputs, strict=True))


def test_weights_are_stored_as_int8(build: Builder, quantize: Quantizer) -> None:
    quantized, _ = quantize(build(TWO, SHAPES))
    types = {name: v.const_value.dtype for name, v in quantized.graph.initializers.items() if v.const_value is not None}
    assert types["w.quantized"] == types["v.quantized"] == ir.DataType.INT8
    assert "w" not in types


def test_a_shared_weight_is_stored_once(build: Builder, quantize: Quantizer, sqnr: Sqnr) -> None:
    model = build(
        "g (float[N,8,8,8] x) => (float[N,8,8,8] y) { a = Conv(x, v, b)  c = Relu(a)  y = Conv(c, v) }",
        {"v": (8, 8, 1, 1), "b": (8,)},
    )
    quantized, report = quantize(model)
    assert len(report.changes) == 2
    assert sum("v.quantized" in name for name in quantized.graph.initializers) == 1
    assert [f.kernel for f in fusion_proof(quantized)] == ["QLinearConv"] * 2
    assert sqnr(model, quantized) > 22


def test_a_shared_bias_is_quantized_for_each_reader(build: Builder, quantize: Quantizer, sqnr: Sqnr) -> None:
    model = build(
        "g (float[N,8,8,8] x) => (float[N,8,8,8] y) { a = Conv(x, v, b)  c = Relu(a)  y = Conv(c, u, b) }",
        {"v": (8, 8, 1, 1), "u": (8, 8, 1, 1), "b": (8,)},
    )
    quantized, _ = quantize(model)
    assert [f.kernel for f in fusion_proof(quantized)] == ["QLinearConv"] * 2
    assert sqnr(model, quantized) > 22


def test_a_relu_whose_input_has_another_reader_costs_no_fusion(build: Builder, quantize: Quantizer, sqnr: Sqnr) -> None:
    model = build(
        "g (float[N,8,8,8] x) => (float[N,8,8,8] y)"
        "{ a = Conv(x, v)  r = Relu(a)  c = Conv(r, u)  s = Add(a, c)  y = Conv(s, v) }",
        {"v": (8, 8, 1, 1), "u": (8, 8, 1, 1)},
    )
    quantized, _ = quantize(model)
    fates = fusion_proof(quantized)
    assert [f.kernel for f in fates] == ["QLinearConv", "QLinearConv", "QLinearAdd", "QLinearConv"]
    assert sqnr(model, quantized) > 22


def test_concat_of_positive_and_signed_inputs_keeps_the_relu_exact(
    build: Builder, quantize: Quantizer, sqnr: Sqnr
) -> None:
    model = build(
        "g (float[N,8,8,8] x) => (float[N,8,8,8] y)"
        "{ a = Conv(x, v)  r = Relu(a)  b = Conv(x, u)  c = Concat<axis=1>(r, b)  y = Conv(c, w) }",
        {"v": (8, 8, 1, 1), "u": (8, 8, 1, 1), "w": (8, 16, 1, 1)},
    )
    quantized, report = quantize(model)
    assert all(f.integer for f in fusion_proof(quantized))
    concat = next(c for c in report.changes if c.summary.startswith("Concat"))
    assert concat.facts["input.zero_point"] == 0
    assert concat.facts["output.zero_point"] != 0
    assert sqnr(model, quantized) > 22


def test_layers_have_their_own_weights_and_biases(build: Builder, quantize: Quantizer) -> None:
    model = build(TWO, SHAPES)
    plain, _ = quantize(model, calibration="minmax")
    options: dict[str, Value] = {"weights": "minmax", "reduce_range": "on", "bias_correction": "off"}
    own, report = quantize(model, calibration="minmax", context={"overrides": (Override("second", options),)})
    first, second = report.changes
    assert (first.facts["weight.scales"], first.facts["weight.bits"]) == ("mse", plain_bits())
    assert (second.facts["weight.scales"], second.facts["weight.bits"]) == ("minmax", 7)
    assert np.abs(stored(own, "w.quantized")).max() == 63
    assert np.array_equal(stored(own, "v.quantized"), stored(plain, "v.quantized"))
    bias_of = {n.name: len(n.inputs) for n in own.graph if n.op_type == "Conv"}
    assert bias_of == {"first": 3, "second": 2}  # a correction needs a bias, where there was none
    assert any("1 of 2 weights have 7 bits" in note for note in report.notes) or plain_bits() == 7


def test_a_shared_weight_with_two_rules_is_stored_twice(build: Builder, quantize: Quantizer, sqnr: Sqnr) -> None:
    model = build(
        "g (float[N,8,8,8] x) => (float[N,8,8,8] y) { a = Conv(x, v)  b = Relu(a)  [second] y = Conv(b, v) }",
        {"v": (8, 8, 1, 1)},
    )
    quantized, _ = quantize(model, context={"overrides": (Override("second", {"weights": "minmax"}),)})
    assert sum(name.startswith("v.quantized") for name in quantized.graph.initializers) == 2
    assert sqnr(model, quantized) > 22


def test_tiny_weights_with_a_large_bias_do_not_overflow(build: Builder, quantize: Quantizer, sqnr: Sqnr) -> None:
    model = build(TWO.replace("Conv(b, w)", "Conv(b, w, big)"), SHAPES | {"big": (8,)})
    weight = model.graph.initializers["w"]
    assert weight.const_value is not None
    values = weight.const_value.numpy().copy()
    values[3] *= 1e-12
    values[5] = 0
    weight.const_value = ir.tensor(values, name="w")
    model.graph.initializers["big"].const_value = ir.tensor(np.full(8, 3, np.float32), name="big")
    quantized, _ = quantize(model)
    assert [f.kernel for f in fusion_proof(quantized)] == ["QLinearConv"] * 2
    assert sqnr(model, quantized) > 22


def test_the_same_input_gives_the_same_bytes(build: Builder, quantize: Quantizer) -> None:
    model = build(TWO, SHAPES)
    first, second = (ir.to_proto(quantize(model)[0]).SerializeToString() for _ in range(2))
    assert first == second


def test_bias_correction_brings_outputs_closer(build: Builder, quantize: Quantizer, sqnr: Sqnr) -> None:
    model = build(
        "g (float[N,8,8,8] x) => (float[N,8,8,8] y) { a = Relu(x)  b = Conv(a, v)  y = Conv(b, u) }",
        {"v": (8, 8, 1, 1), "u": (8, 8, 1, 1)},
    )
    plain, _ = quantize(model, bias_correction="off", reduce_range="on")
    corrected, _ = quantize(model, bias_correction="on", reduce_range="on")
    assert sqnr(model, corrected) > sqnr(model, plain)


def test_provenance_of_what_is_inserted(build: Builder, quantize: Quantizer) -> None:
    quantized, _ = quantize(build(TWO, SHAPES))
    made = [n for n in quantized.graph if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {n.metadata_props["onnxcomp.pass"] for n in made} == {"int8"}
    by_name = {n.name: n.metadata_props["onnxcomp.origin"] for n in made}
    assert by_name["w.DQ"] == "second"
    assert by_name["y.Q"] == "second"


def test_a_node_without_a_name_is_still_called_after_its_output(build: Builder, quantize: Quantizer) -> None:
    model = build("g (float[N,8,8,8] x) => (float[N,8,8,8] y) { y = Conv(x, v) }", {"v": (8, 8, 1, 1)})
    quantized, report = quantize(model)
    assert [change.site for change in report.changes] == ["y"]
    assert [fate.node for fate in fusion_proof(quantized)] == ["y"]
