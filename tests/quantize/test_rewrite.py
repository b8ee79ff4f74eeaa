"""What the int8 rewrite does with awkward models, and what it says about it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.contract import Override, PassReport, Value
from onnxcomp.errors import InputError
from onnxcomp.quantize.placement import place
from onnxcomp.quantize.processor import saturates
from onnxcomp.runtime.fusion import fusion_proof
from onnxcomp.targets.target import Scheme, load_target

Builder = Callable[..., ir.Model]
Quantizer = Callable[..., tuple[ir.Model, PassReport]]
Sqnr = Callable[[ir.Model, ir.Model], float]

TWO = "g (float[N,8,8,8] x) => (float[N,8,B,C] y) { [first] a = Conv(x, v)  b = Relu(a)  [second] y = Conv(b, w) }"
SHAPES = {"v": (8, 8, 1, 1), "w": (8, 8, 3, 3)}


def scheme() -> Scheme:
    found = load_target("ort-x86").scheme
    assert found is not None
    return found


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def reasons(report: PassReport) -> dict[str, str]:
    return {skip.site: skip.reason for skip in report.skips}


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


def test_every_tensor_of_a_change_has_its_range_scale_and_method(build: Builder, quantize: Quantizer) -> None:
    _, report = quantize(build(TWO, SHAPES), calibration="percentile", percentile=99.0)
    first, second = report.changes
    assert (first.site, second.site) == ("first", "second")
    assert first.facts["input.tensor"] == "x"
    assert first.facts["output.tensor"] == second.facts["input.tensor"] == "b"
    assert first.facts["output.method"] == "percentile"
    assert first.facts["output.zero_point"] == 0
    low, high, scale = (second.facts[f"output.{key}"] for key in ("low", "high", "scale"))
    assert isinstance(low, float) and isinstance(high, float) and isinstance(scale, float)
    assert low < 0 < high
    assert scale == pytest.approx((high - low) / 255, rel=1e-5)
    assert first.after.bytes < first.before.bytes


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


def test_concat_inputs_share_the_scale_of_the_result(build: Builder, quantize: Quantizer) -> None:
    model = build(
        "g (float[N,8,8,8] x) => (float[N,8,8,8] y)"
        "{ a = Conv(x, v)  r = Relu(a)  b = Conv(x, u)  s = Relu(b)  c = Concat<axis=1>(r, s)  y = Conv(c, w) }",
        {"v": (8, 8, 1, 1), "u": (8, 8, 1, 1), "w": (8, 16, 1, 1)},
    )
    _, report = quantize(model)
    concat = next(c for c in report.changes if c.summary.startswith("Concat"))
    assert concat.facts["input.scale"] == concat.facts["input2.scale"] == concat.facts["output.scale"]


def test_small_products_at_the_end_stay_float(build: Builder, quantize: Quantizer) -> None:
    model = build(
        "g (float[N,8,8,8] x) => (float[N,10] y)"
        "{ a = Conv(x, v)  p = GlobalAveragePool(a)  f = Flatten(p)  [head] y = Gemm(f, w) }",
        {"v": (8, 8, 1, 1), "w": (8, 10)},
    )
    quantized, report = quantize(model)
    assert "ends the network" in reasons(report)["head"]
    assert ops(quantized)[-3:] == ["GlobalAveragePool", "Flatten", "Gemm"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ConvTranspose(x, w)", "no integer kernel for ConvTranspose"),
        ("Conv(x, z)", "not a constant"),
        ("Gemm<transA=1>(q, g)", "transA is set"),
        ("Gemm<alpha=0.5>(q, g)", "alpha is not 1"),
        ("MatMul(q, q)", "product of two activations"),
        ("MatMul(x, cube)", "3 axes"),
    ],
)
def test_what_is_refused(text: str, reason: str, build: Builder) -> None:
    graph = f"g (float[1,8,8,8] x, float[8,8,3,3] z, float[200,200] q) => (y) {{ [site] y = {text} }}"
    shapes = {"w": (8, 8, 3, 3), "g": (200, 200), "cube": (8, 8, 8)}
    model = build(graph.replace("(y)", "(float[A,B] y)" if "q" in text else "(float[A,B,C,D] y)"), shapes)
    plan = place(model, scheme())
    assert not plan.weighted
    assert not plan.tensors
    assert [skip.site for skip in plan.skips] == ["site"]
    assert reason in plan.skips[0].reason


def test_nan_and_overridable_weights_are_refused(build: Builder) -> None:
    model = build(
        "g (float[N,8,8,8] x) => (float[N,8,8,8] y) { [nan] a = Conv(x, u)  [over] b = Conv(a, v)  y = Conv(b, w) }",
        dict.fromkeys("uvw", (8, 8, 1, 1)),
    )
    values = model.graph.initializers
    values["u"].const_value = ir.tensor(np.full((8, 8, 1, 1), np.nan, np.float32), name="u")
    model.graph.inputs.append(values["v"])
    plan = place(model, scheme())
    assert {s.site: s.reason for s in plan.skips} == {
        "nan": "the weight holds NaN or Inf",
        "over": "the weight 'v' can be overridden by a graph input",
    }
    assert len(plan.weighted) == 1


def test_what_is_quantized_already_is_left_as_it_is(build: Builder, quantize: Quantizer) -> None:
    once, _ = quantize(build(TWO, SHAPES))
    twice, report = quantize(once)
    assert not report.changes
    assert set(reasons(report).values()) == {"already quantized"}
    assert ir.to_proto(once).SerializeToString() == ir.to_proto(twice).SerializeToString()


def test_bodies_are_left_alone(build: Builder, quantize: Quantizer) -> None:
    model = build(
        """g (float[1,8,8,8] x) => (float[1,8,8,8] y) <bool flag = {1}> {
            [outside] a = Conv(x, v)
            y = If (flag) <
                then_branch = t () => (float[1,8,8,8] p) { [inside] p = Conv(a, v) },
                else_branch = e () => (float[1,8,8,8] q) { q = Relu(a) }
            >
        }""",
        {"v": (8, 8, 1, 1)},
    )
    quantized, report = quantize(model)
    assert "inside a subgraph" in reasons(report)["inside"]
    kernels = {f.node: f.kernel for f in fusion_proof(quantized)}
    assert kernels["outside"] == "QLinearConv"


def test_globs_and_recipes_leave_layers_alone_and_set_options(build: Builder, quantize: Quantizer) -> None:
    model = build(TWO, SHAPES)
    _, report = quantize(model, context={"exclude": ("fir*",)})
    assert reasons(report) == {"first": "excluded by the user"}
    _, report = quantize(
        model, context={"overrides": (Override("Conv", None), Override("second", {"calibration": "minmax"}))}
    )
    assert reasons(report) == {"first": "left alone by the recipe"}
    assert report.changes[0].facts["output.method"] == "minmax"
    with pytest.raises(InputError, match=r"int8\.calibration: 'best' is not"):
        quantize(model, context={"overrides": (Override("second", {"calibration": "best"}),)})


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


def test_the_range_of_an_input_is_its_first_readers(build: Builder, quantize: Quantizer) -> None:
    given = (Override("first", {"calibration": "entropy"}), Override("second", {"calibration": "auto"}))
    _, report = quantize(build(TWO, SHAPES), calibration="percentile", context={"overrides": given})
    first, second = report.changes
    assert first.facts["input.method"] == first.facts["output.method"] == "entropy"
    assert second.facts["output.method"] in ("mse", "minmax")


def test_facts_have_six_digits_and_the_model_all(build: Builder, quantize: Quantizer) -> None:
    quantized, report = quantize(build(TWO, SHAPES))
    scale = report.changes[0].facts["output.scale"]
    exact = float(stored(quantized, "b.scale"))
    assert isinstance(scale, float)
    assert scale == float(f"{exact:.6g}") != exact
    numbers = [fact for change in report.changes for fact in change.facts.values() if isinstance(fact, float)]
    assert len(numbers) > 10
    assert all(number == float(f"{number:.6g}") for number in numbers)


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


def test_a_large_partner_behind_an_add_does_not_widen_the_range(build: Builder, quantize: Quantizer) -> None:
    """Both operands are signed and one is far larger: where it is very negative, the other one is no larger for it."""
    model = build(
        "g (float[N,8,8,8] x) => (float[N,8,8,8] y)"
        "{ a = Conv(x, v)  b = Conv(x, u)  s = Add(a, b)  t = Relu(s)  y = Conv(t, v) }",
        {"v": (8, 8, 1, 1), "u": (8, 8, 1, 1)},
    )
    large = model.graph.initializers["u"].const_value
    assert large is not None
    model.graph.initializers["u"].const_value = ir.tensor(20 * large.numpy(), name="u")
    _, report = quantize(model, calibration="minmax")
    add = next(change for change in report.changes if change.summary.startswith("Add"))
    assert add.facts["input.tensor"] == "a"
    high, other_high = add.facts["input.high"], add.facts["input2.high"]
    assert isinstance(high, float) and isinstance(other_high, float)
    assert high < other_high / 10


def test_what_a_relu_behind_an_add_cuts_off_does_not_widen_the_range(
    build: Builder, quantize: Quantizer, sqnr: Sqnr
) -> None:
    model = build(
        "g (float[N,8,8,8] x) => (float[N,8,8,8] y)"
        "{ a = Conv(x, v, low)  r = Relu(x)  b = Conv(r, u)  c = Relu(b)  s = Add(a, c)  t = Relu(s)  y = Conv(t, v) }",
        {"v": (8, 8, 1, 1), "u": (8, 8, 1, 1), "low": (8,)},
    )
    model.graph.initializers["low"].const_value = ir.tensor(np.full(8, -0.7, np.float32), name="low")
    quantized, report = quantize(model, calibration="minmax")
    add = next(change for change in report.changes if change.summary.startswith("Add"))
    assert add.facts["input.tensor"] == "a"
    low, other_high = add.facts["input.low"], add.facts["input2.high"]
    assert isinstance(low, float) and isinstance(other_high, float)
    assert low >= -other_high - 0.1  # the sum is below 0 from there on
    assert sqnr(model, quantized) > 22
