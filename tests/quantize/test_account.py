"""What the int8 pass tells of every tensor: its range, scale and method."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxcomp.contract import Override, PassReport
from onnxcomp.data import open_feeds

Builder = Callable[..., ir.Model]
Quantizer = Callable[..., tuple[ir.Model, PassReport]]
Sqnr = Callable[[ir.Model, ir.Model], float]

TWO = "g (float[N,8,8,8] x) => (float[N,8,B,C] y) { [first] a = Conv(x, v)  b = Relu(a)  [second] y = Conv(b, w) }"
SHAPES = {"v": (8, 8, 1, 1), "w": (8, 8, 3, 3)}


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


def test_the_facts_of_an_input_with_a_grid_for_each_channel_name_the_input(build: Builder, quantize: Quantizer) -> None:
    model = build(TWO, SHAPES)
    channels = np.linspace(1, 4, 8).reshape(1, 8, 1, 1)
    x = (np.random.default_rng(0).standard_normal((16, 8, 8, 8)) * channels).astype(np.float32)
    data = {"data": open_feeds({"x": x}, model)}
    quantized, report = quantize(model, inputs="auto", rounding="gram", context=data)
    facts = report.changes[0].facts
    assert (facts["input.tensor"], facts["input.method"], facts["input.channels"]) == ("x", "channel", 8)
    pair = next(node for node in quantized.graph if node.op_type == "QuantizeLinear")
    scales, zeros = (v.const_value.numpy() for v in pair.inputs[1:3] if v is not None and v.const_value is not None)
    assert facts["input.scale"] == pytest.approx(scales.max(), rel=1e-5)
    assert facts["input.low"] == pytest.approx((-zeros.astype(float) * scales).min(), rel=1e-5)
    assert facts["input.high"] == pytest.approx(((255 - zeros.astype(float)) * scales).max(), rel=1e-5)


def test_facts_have_six_digits_and_the_model_all(build: Builder, quantize: Quantizer) -> None:
    quantized, report = quantize(build(TWO, SHAPES))
    scale = report.changes[0].facts["output.scale"]
    tensor = quantized.graph.initializers["b.scale"].const_value
    assert tensor is not None
    exact = float(tensor.numpy())
    assert isinstance(scale, float)
    assert scale == float(f"{exact:.6g}") != exact
    numbers = [fact for change in report.changes for fact in change.facts.values() if isinstance(fact, float)]
    assert len(numbers) > 10
    assert all(number == float(f"{number:.6g}") for number in numbers)


def test_the_range_of_an_input_is_its_first_readers(build: Builder, quantize: Quantizer) -> None:
    given = (Override("first", {"calibration": "entropy"}), Override("second", {"calibration": "auto"}))
    _, report = quantize(build(TWO, SHAPES), calibration="percentile", context={"overrides": given})
    first, second = report.changes
    assert first.facts["input.method"] == first.facts["output.method"] == "entropy"
    assert second.facts["output.method"] in ("mse", "minmax")


def test_concat_inputs_share_the_scale_of_the_result(build: Builder, quantize: Quantizer) -> None:
    model = build(
        "g (float[N,8,8,8] x) => (float[N,8,8,8] y)"
        "{ a = Conv(x, v)  r = Relu(a)  b = Conv(x, u)  s = Relu(b)  c = Concat<axis=1>(r, s)  y = Conv(c, w) }",
        {"v": (8, 8, 1, 1), "u": (8, 8, 1, 1), "w": (8, 16, 1, 1)},
    )
    _, report = quantize(model)
    concat = next(c for c in report.changes if c.summary.startswith("Concat"))
    assert concat.facts["input.scale"] == concat.facts["input2.scale"] == concat.facts["output.scale"]


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
