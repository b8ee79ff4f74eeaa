"""Images with a grid for each channel: the same function in floating point, exact on integers for 8-bit pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.contract import PassReport
from onnxcomp.data import Feeds, open_feeds, synthetic_feeds
from onnxcomp.legality.checker import check_model
from onnxcomp.quantize.inputs import Spread, spread_inputs
from onnxcomp.runtime.fusion import fusion_proof
from onnxcomp.runtime.session import open_session, run

Builder = Callable[..., ir.Model]
Quantizer = Callable[..., tuple[ir.Model, PassReport]]
Float = NDArray[np.float32]

MEANS, DEVIATIONS = np.array([0.485, 0.456, 0.406, 0.2]), np.array([0.229, 0.224, 0.225, 0.5])
# Attributes of the convolution, shape of its weight, size of its output.
GEOMETRIES = [
    ("pads=[1,1,1,1]", (8, 4, 3, 3), 8),
    ("pads=[0,1,2,3]", (8, 4, 3, 3), 0),
    ("strides=[2,2], pads=[1,1,1,1]", (8, 4, 3, 3), 4),
    ("dilations=[2,2], pads=[2,2,2,2]", (8, 4, 3, 3), 8),
    ("group=2, pads=[1,1,1,1]", (8, 2, 3, 3), 8),
    ("group=4", (8, 1, 3, 3), 6),
    ("pads=[0,0,0,0]", (8, 4, 1, 1), 8),
]


def image(count: int = 16, seed: int = 0) -> Float:
    """8-bit pixels, normalised channel by channel."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 4, 8, 8))
    pixels[0, :, 0, :2] = 0, 255
    shape = (1, 4, 1, 1)
    normalised: Float = ((pixels / 255 - MEANS.reshape(shape)) / DEVIATIONS.reshape(shape)).astype(np.float32)
    return normalised


def one(build: Builder, attributes: str, shape: tuple[int, ...], *, bias: bool = True) -> ir.Model:
    parts = "(x, w, b)" if bias else "(x, w)"
    graph = f"g (float[N,4,8,8] x) => (float[N,8,H,W] y) {{ [first] a = Conv<{attributes}>{parts} y = Relu(a) }}"
    return build(graph, {"w": shape, "b": (8,)} if bias else {"w": shape})


def outputs(model: ir.Model, x: Float) -> Float:
    result: Float = run(open_session(model, optimize="off"), {"x": x})[0]
    return result


def spread(model: ir.Model, x: Float) -> tuple[Spread, ...]:
    return spread_inputs(model, open_feeds({"x": x}, model), lambda node: True)


def parameters(model: ir.Model) -> tuple[Any, Any]:
    pair = next(node for node in model.graph if node.op_type == "QuantizeLinear")
    scale, zero = (v.const_value.numpy() for v in pair.inputs[1:3] if v is not None and v.const_value is not None)
    return scale, zero


def pixels_of(model: ir.Model) -> dict[str, Any]:
    """Context of a run on images."""
    feeds: Feeds = open_feeds({"x": image()}, model)
    return {"data": feeds}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("attributes", "shape", "size"), GEOMETRIES)
def test_the_function_stays(attributes: str, shape: tuple[int, ...], size: int, bias: bool, build: Builder) -> None:
    model = one(build, attributes, shape, bias=bias)
    x = image()
    before = outputs(model, x)
    [found] = spread(model, x)
    assert (found.source, found.exact) == ("x", True)
    after = outputs(model, x)
    assert after.shape == before.shape and (not size or before.shape[-1] == size)
    np.testing.assert_allclose(after, before, atol=1e-5 * float(np.abs(before).max()), rtol=1e-5)


def test_pads_become_a_node_only_where_there_are_any(build: Builder) -> None:
    for attributes, pads in (("pads=[1,1,1,1]", 1), ("pads=[0,0,0,0]", 0), ("strides=[1,1]", 0)):
        model = one(build, attributes, (8, 4, 3, 3))
        spread(model, image())
        assert [node.op_type for node in model.graph] == ["Pad"] * pads + ["Mul", "Add", "Conv", "Relu"]


def test_pixels_are_quantized_exactly(build: Builder, quantize: Quantizer) -> None:
    """Read back, they are off by one constant for each channel, as the normalised 0 has to be a code."""
    model = one(build, "strides=[1,1]", (8, 4, 3, 3))
    quantized, report = quantize(model, inputs="auto", rounding="gram", context=pixels_of(model))
    scale, zero = (array.astype(np.float64).reshape(1, 4, 1, 1) for array in parameters(quantized))
    x = image(seed=5).astype(np.float64)
    errors = (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale - x
    assert np.ptp(errors, axis=(0, 2, 3)).max() < 1e-5
    assert (np.abs(errors) < 0.5 * scale).all()
    assert report.changes[0].facts["input.exact"] is True


@pytest.mark.parametrize("attributes", ["pads=[1,1,1,1]", "strides=[1,1]", "group=4, strides=[1,1]"])
def test_the_first_layer_errs_by_its_weights_and_output_only(
    attributes: str, build: Builder, quantize: Quantizer
) -> None:
    model = one(build, attributes, (8, 1, 3, 3) if "group" in attributes else (8, 4, 3, 3))
    x = image(seed=5)
    truth = outputs(model, x)
    errors: list[float] = []
    for inputs in ("tensor", "auto"):
        quantized, _ = quantize(model, inputs=inputs, rounding="gram", context=pixels_of(model))
        scale = quantized.graph.initializers["y.scale"].const_value
        assert scale is not None
        rest = outputs(quantized, x) - truth
        inner = rest[..., 1:-1, 1:-1] if "pads" in attributes else rest
        inner = inner[(truth > 0)[..., 1:-1, 1:-1] if "pads" in attributes else truth > 0]
        # What is left when the rounding of the output is taken off.
        errors.append(float(np.square(inner).mean()) - float(scale.numpy()) ** 2 / 12)
    assert errors[1] < 0.75 * errors[0]


def test_one_channel_two_readers_and_another_reader_stay(build: Builder, quantize: Quantizer) -> None:
    cases = {
        "g (float[N,1,8,8] x) => (float[N,8,6,6] y) { y = Conv(x, w) }": {"w": (8, 1, 3, 3)},
        "g (float[N,4,8,8] x) => (float[N,4,8,8] y) { a = Conv(x, w) y = Add(a, x) }": {"w": (4, 4, 1, 1)},
        "g (float[N,4,8,8] x) => (float[N,4,8,8] y) { a = Relu(x) y = Conv(a, w) }": {"w": (4, 4, 1, 1)},
    }
    for graph, shapes in cases.items():
        model = build(graph, shapes)
        assert spread(model, image()[:, : 1 if "[N,1" in graph else 4]) == ()
        quantized, _ = quantize(model, inputs="auto", rounding="gram")
        assert parameters(quantized)[0].shape == ()


def test_padding_that_depends_on_the_size_stays(build: Builder) -> None:
    graph = 'g (float[N,4,H,W] x) => (float[N,8,A,B] y) { y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w) }'
    assert spread(build(graph, {"w": (8, 4, 3, 3)}), image()) == ()


def test_an_input_whose_layer_stays_float_is_untouched(build: Builder, quantize: Quantizer) -> None:
    model = build(
        "g (float[N,4,8,8] x) => (float[N,8,8,8] y) { [first] a = Conv(x, v) b = Relu(a) [second] y = Conv(b, w) }",
        {"v": (8, 4, 1, 1), "w": (8, 8, 1, 1)},
    )
    quantized, report = quantize(
        model, inputs="auto", rounding="gram", context={**pixels_of(model), "exclude": ("first",)}
    )
    assert [change.site for change in report.changes] == ["second"]
    first = next(node for node in quantized.graph if node.name == "first")
    assert first.inputs[0] is quantized.graph.inputs[0]
    assert parameters(quantized)[0].shape == ()


def test_continuous_values_get_a_range_for_each_channel(build: Builder, quantize: Quantizer) -> None:
    model = one(build, "pads=[1,1,1,1]", (8, 4, 3, 3))
    x = np.random.default_rng(0).standard_normal((16, 4, 8, 8)).astype(np.float32)
    x *= np.array([1, 10, 100, 1000], np.float32).reshape(1, 4, 1, 1)
    quantized, report = quantize(model, inputs="auto", rounding="gram", context={"data": open_feeds({"x": x}, model)})
    scale, zero = parameters(quantized)
    np.testing.assert_allclose(scale, np.ptp(x, axis=(0, 2, 3)) / 255, rtol=1e-5)
    assert zero.dtype == np.uint8
    assert report.changes[0].facts["input.exact"] is False


@pytest.mark.parametrize("target", ["ort-x86", "ort-arm", "ort-mobile"])
@pytest.mark.parametrize(("attributes", "shape", "size"), GEOMETRIES[:1] + GEOMETRIES[4:])
def test_every_convolution_fuses_and_nothing_is_illegal(
    attributes: str, shape: tuple[int, ...], size: int, target: str, build: Builder, quantize: Quantizer
) -> None:
    model = build(
        f"g (float[1,4,8,8] x) => (float[1,8,{size},{size}] y)"
        f" {{ [first] a = Conv<{attributes}>(x, u, b) r = Relu(a) [second] y = Conv(r, w) }}",
        {"u": shape, "w": (8, 8, 1, 1), "b": (8,)},
    )
    quantized, _ = quantize(
        model, target=target, inputs="auto", rounding="gram", context={"data": open_feeds({"x": image()}, model)}
    )
    fates = {fate.node: fate.kernel for fate in fusion_proof(quantized, int8_kernels=target != "ort-x86")}
    assert fates["first"] == fates["second"] == "QLinearConv"
    assert [finding for finding in check_model(quantized, target) if finding.severity == "error"] == []


def test_int8_activations_are_the_same_numbers_with_other_zero_points(build: Builder, quantize: Quantizer) -> None:
    model = one(build, "pads=[1,1,1,1]", (8, 4, 3, 3))
    x86, arm = (
        quantize(model, target=t, inputs="auto", rounding="gram", context=pixels_of(model))[0]
        for t in ("ort-x86", "ort-arm")
    )
    (scale, zero), (other_scale, other_zero) = parameters(x86), parameters(arm)
    assert scale.shape == zero.shape == (4,) and (zero.dtype, other_zero.dtype) == (np.uint8, np.int8)
    np.testing.assert_array_equal(scale, other_scale)
    np.testing.assert_array_equal(zero.astype(int) - 128, other_zero)
    np.testing.assert_array_equal(outputs(x86, image(seed=9)), outputs(arm, image(seed=9)))


def test_tensorrt_has_one_scale(build: Builder, quantize: Quantizer) -> None:
    model = one(build, "pads=[1,1,1,1]", (8, 4, 3, 3))
    quantized, _ = quantize(model, target="tensorrt", inputs="auto", rounding="gram", context=pixels_of(model))
    assert parameters(quantized)[0].shape == ()


def test_without_fitted_biases_there_is_one_scale(build: Builder, quantize: Quantizer) -> None:
    """The constants by which pixels miss their grids would stay, and add up over a patch."""
    model = one(build, "pads=[1,1,1,1]", (8, 4, 3, 3))
    auto, tensor = (quantize(model, inputs=i, context=pixels_of(model))[0] for i in ("auto", "tensor"))
    np.testing.assert_array_equal(outputs(auto, image(seed=9)), outputs(tensor, image(seed=9)))


def test_made_up_data_say_nothing_of_channels(build: Builder, quantize: Quantizer) -> None:
    model = one(build, "pads=[1,1,1,1]", (8, 4, 3, 3))
    made_up = {"data": None, "stand_in": synthetic_feeds(model, 0, 8)}
    quantized, _ = quantize(model, inputs="auto", rounding="gram", context=made_up)
    assert parameters(quantized)[0].shape == ()
