"""One int8 model for several targets: exactly where that can be, by the target's own scheme elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxcomp import modelio
from onnxcomp.data import open_feeds
from onnxcomp.errors import InputError, ModelError
from onnxcomp.legality.checker import check_model
from onnxcomp.quantize.calibrate import calibrate
from onnxcomp.quantize.carried import RANGES, TARGET, carried
from onnxcomp.quantize.retarget import retarget
from onnxcomp.runtime.session import open_session, run

Builder = Callable[..., ir.Model]
Quantizer = Callable[..., Any]

# Residual Add, MaxPool, Concat, Pad on integers, Reshape before a Gemm that is no small head.
GRAPH = """g (float[2, 4, 8, 8] x) => (float[2, 8] y)
<int64[8] pads = {0, 4, 0, 0, 0, 4, 0, 0}, int64[2] flat = {0, -1}>
{
  a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
  ar = Relu (a)
  b = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (ar, w2, b2)
  s = Add (b, ar)
  sr = Relu (s)
  c = Conv <kernel_shape = [1, 1]> (sr, w3)
  d = Conv <kernel_shape = [1, 1]> (sr, w4)
  e = Concat <axis = 1> (c, d)
  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (e)
  q = Pad (p, pads)
  f = Conv <kernel_shape = [3, 3]> (q, w5)
  fr = Relu (f)
  i = Reshape (fr, flat)
  k = Gemm (i, w6, b6)
  kr = Relu (k)
  y = Gemm (kr, w7)
}"""
WEIGHTS: dict[str, tuple[int, ...]] = {
    "w1": (16, 4, 3, 3),
    "b1": (16,),
    "w2": (16, 16, 3, 3),
    "b2": (16,),
    "w3": (16, 16, 1, 1),
    "w4": (16, 16, 1, 1),
    "w5": (16, 40, 3, 3),
    "w6": (64, 64),
    "b6": (64,),
    "w7": (64, 8),
}


@pytest.fixture
def model(build: Builder) -> ir.Model:
    """The graph above."""
    return build(GRAPH, WEIGHTS)


@pytest.fixture
def int8(model: ir.Model, quantize: Quantizer) -> ir.Model:
    """It on integers, for x86."""
    result: ir.Model = quantize(model, calibration="mse")[0]
    return result


def sample(model: ir.Model) -> dict[str, NDArray[np.float32]]:
    shape = [d for d in model.graph.inputs[0].shape or () if isinstance(d, int)]
    return {"x": np.random.default_rng(3).standard_normal(shape).astype(np.float32)}


def unoptimised(model: ir.Model) -> list[NDArray[Any]]:
    return [np.asarray(value) for value in run(open_session(model, optimize="off"), sample(model))]


def arrays(model: ir.Model) -> dict[str, bytes]:
    return {n: v.const_value.tobytes() for n, v in model.graph.initializers.items() if v.const_value is not None}


def stored(model: ir.Model) -> set[str]:
    """Types that activations are stored in."""
    return {
        str(node.inputs[2].dtype)
        for node in model.graph
        if node.op_type == "QuantizeLinear" and node.inputs[2] is not None
    }


def test_x86_to_arm_and_back(int8: ir.Model) -> None:
    assert {node.op_type for node in int8.graph} >= {"Add", "Concat", "MaxPool", "Pad", "Reshape", "Gemm"}
    pad = next(node for node in int8.graph if node.op_type == "Pad")
    assert pad.inputs[0] is not None
    assert pad.inputs[0].dtype == ir.DataType.UINT8
    before = modelio.to_bytes(int8)
    arm = retarget(int8, "ort-arm")
    assert modelio.to_bytes(int8) == before
    assert arm.exact
    assert stored(int8) == {"UINT8"}
    assert stored(arm.model) == {"INT8"}
    onnx.checker.check_model(ir.to_proto(arm.model), full_check=True)
    for one, other in zip(unoptimised(int8), unoptimised(arm.model), strict=True):
        assert np.array_equal(one, other)
    back = retarget(arm.model, "ort-x86")
    assert arrays(back.model) == arrays(int8)
    assert modelio.to_bytes(back.model) == before


def test_the_flip_is_what_the_pass_writes_for_that_target(model: ir.Model, quantize: Quantizer, int8: ir.Model) -> None:
    def scales(quantized: ir.Model) -> dict[str, bytes]:
        return {name: content for name, content in arrays(quantized).items() if name.endswith(".scale")}

    assert scales(retarget(int8, "ort-arm").model) == scales(int8)


def test_fused_outputs_of_the_flip_agree_on_this_machine(int8: ir.Model) -> None:
    arm = retarget(int8, "ort-arm").model
    one = run(open_session(int8), sample(int8))[0]
    other = run(open_session(retarget(arm, "ort-x86").model), sample(int8))[0]
    assert np.array_equal(one, other)


def test_a_model_for_that_target_already(int8: ir.Model) -> None:
    same = retarget(int8, "ort-x86")
    assert modelio.to_bytes(same.model) == modelio.to_bytes(int8)
    assert same.summary == "its activations were uint8 already"


def codes(model: ir.Model) -> dict[str, bytes]:
    """Stored weights: what a DequantizeLinear of rank 2 and more reads, by name."""
    found = {}
    for node in model.graph:
        value = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if value is not None and value.const_value is not None and len(value.const_value.shape) > 1:
            found[value.name or ""] = value.const_value.tobytes() + node.inputs[1].const_value.tobytes()  # type: ignore[union-attr]
    return found


def test_to_tensorrt_and_back(int8: ir.Model, model: ir.Model) -> None:
    trt = retarget(int8, "tensorrt")
    assert not trt.exact
    onnx.checker.check_model(ir.to_proto(trt.model), full_check=True)
    zeros = [n.inputs[2] for n in trt.model.graph if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for zero in zeros:
        assert zero is not None
        assert zero.const_value is not None
        assert zero.dtype == ir.DataType.INT8
        assert not zero.const_value.numpy().any()
    # Weights are not rounded twice, and no convolution in front of a residual Add is rounded.
    kept = codes(trt.model)
    assert kept == {name: content for name, content in codes(int8).items() if name in kept}
    assert len(kept) >= 5
    tensors = {n.inputs[0].name for n in trt.model.graph if n.op_type == "QuantizeLinear" and n.inputs[0] is not None}
    assert "b" not in tensors
    assert "ar" in tensors
    reference, got = (unoptimised(m)[0] for m in (model, trt.model))
    assert 10 * np.log10(np.square(reference).sum() / np.square(reference - got).sum()) > 20
    back = retarget(trt.model, "ort-x86")
    kept_arrays = {n: c for n, c in arrays(back.model).items() if n in arrays(int8)}
    assert kept_arrays == {n: c for n, c in arrays(int8).items() if n in kept_arrays}
    assert back.model.metadata_props[RANGES] == int8.metadata_props[RANGES]
    assert back.model.metadata_props[TARGET] == "ort-x86"


def test_tensorrts_form_is_what_the_pass_writes_for_it(
    model: ir.Model, quantize: Quantizer, int8: ir.Model, tmp_path: Path
) -> None:
    from onnxcomp.contract import Context
    from onnxcomp.data import open_feeds
    from onnxcomp.passes.int8 import Int8
    from onnxcomp.targets.target import load_target

    direct = model.clone()
    x = np.random.default_rng(1).standard_normal((32, 4, 8, 8)).astype(np.float32)
    context = Context(load_target("tensorrt"), tmp_path, data=open_feeds({"x": x}, model))
    Int8(rounding="nearest", inputs="tensor", equalize="off", calibration="mse").run(direct, context)
    moved = retarget(int8, "tensorrt").model
    ours = {n: c for n, c in arrays(direct).items() if n.endswith(".scale")}
    assert ours
    assert {n: c for n, c in arrays(moved).items() if n.endswith(".scale")} == ours


def test_ranges_are_carried_for_every_target(int8: ir.Model) -> None:
    ranges = carried(int8)
    assert ranges is not None
    assert list(ranges) == ["x", "ar", "b", "sr", "c", "d", "e", "q", "fr", "i", "kr"]
    assert ranges["ar"].low == 0 < ranges["ar"].peak
    assert ranges["x"].low < 0 < ranges["x"].high
    assert len(int8.metadata_props[RANGES]) < 500


def test_without_its_ranges_a_model_is_refused(int8: ir.Model) -> None:
    trt = retarget(int8, "tensorrt").model
    del trt.metadata_props[RANGES]
    with pytest.raises(InputError, match=r"ort-x86 quantizes \d+ tensors whose ranges the model does not carry"):
        retarget(trt, "ort-x86")


def test_statistics_stand_in_for_ranges_that_are_not_carried(int8: ir.Model, model: ir.Model) -> None:
    statistics = calibrate(model, {"x": np.random.default_rng(1).standard_normal((32, 4, 8, 8)).astype(np.float32)})
    trt = retarget(int8, "tensorrt").model
    del trt.metadata_props[RANGES]
    back = retarget(trt, "ort-x86", stats=statistics).model
    ours, theirs = arrays(back), arrays(int8)
    # The same data and the same rule: the same ranges.
    scales = [name for name in theirs if name.endswith(".scale")]
    assert len(scales) > 10
    assert {name: ours[name] for name in scales if name in ours} == {n: theirs[n] for n in scales if n in ours}
    assert "b.scale" in ours


def test_statistics_of_another_model(int8: ir.Model, build: Builder) -> None:
    other = build(GRAPH.replace("MaxPool", "AveragePool"), WEIGHTS)
    statistics = calibrate(other, {"x": np.ones((4, 4, 8, 8), np.float32)})
    with pytest.raises(InputError, match=r"not of the float model that this one was made of: \d of \d tensors.*'q'"):
        retarget(int8, "tensorrt", stats=statistics)


def test_damaged_ranges(int8: ir.Model) -> None:
    copy = int8.clone()
    copy.metadata_props[RANGES] = '{"x":[1,0]}'
    with pytest.raises(ModelError, match=r"metadata entry onnxcomp\.ranges is damaged"):
        retarget(copy, "tensorrt")


def test_coreml_has_no_int8(int8: ir.Model) -> None:
    with pytest.raises(InputError, match="CoreML provider has no quantized operators"):
        retarget(int8, "coreml")


def test_a_float_model(model: ir.Model) -> None:
    with pytest.raises(InputError, match=r"no quantized activations.*optimize -p int8 --target ort-arm"):
        retarget(model, "ort-arm")


def test_a_model_of_quantized_operators(build: Builder) -> None:
    text = """g (float[2, 4] x) => (float[2, 4] y)
    <float s = {0.1}, uint8 z = {128}, uint8[4, 4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}>
    { q = QuantizeLinear (x, s, z)  m = QLinearMatMul (q, s, z, w, s, z, s, z)  y = DequantizeLinear (m, s, z) }"""
    with pytest.raises(InputError, match="QLinearMatMul: the model is in QOperator"):
        retarget(build(text, {}), "ort-arm")


FOREIGN = """g (float[2, 16, 8, 8] x) => (float[2, 16, 8, 8] y)
<float s = {0.05}, int8 z = {-7}, float t = {0.02}, int8 least = {-128}, int8 zero = {0}>
{
  xq = QuantizeLinear (x, s, z)
  xd = DequantizeLinear (xq, s, z)
  wd = DequantizeLinear <axis = 0> (w, ws, wz)
  a = Conv (xd, wd)
  aq = QuantizeLinear (a, t, least)
  ad = DequantizeLinear (aq, t, least)
  b = Conv (ad, wd)
  bq = QuantizeLinear (b, t, zero)
  bd = DequantizeLinear (bq, t, zero)
  c = Add (bd, ad)
  cq = QuantizeLinear (c, s, z)
  y = DequantizeLinear (cq, s, z)
}"""


@pytest.fixture
def foreign() -> ir.Model:
    """What onnxruntime's quantizer writes by default: int8 activations, Relus left to zero point -128."""
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]>\n{FOREIGN}')
    rng = np.random.default_rng(0)
    constants: dict[str, NDArray[Any]] = {
        "w": rng.integers(-127, 128, (16, 16, 1, 1)).astype(np.int8),
        "ws": rng.uniform(0.001, 0.002, 16).astype(np.float32),
        "wz": np.zeros(16, np.int8),
    }
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    onnx.checker.check_model(proto)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def test_another_tools_slow_int8_becomes_fast_uint8(foreign: ir.Model) -> None:
    result = retarget(foreign, "ort-x86")
    assert (result.source, result.exact) == ("ort-arm", True)
    assert stored(result.model) == {"UINT8"}
    assert np.array_equal(unoptimised(foreign)[0], unoptimised(result.model)[0])
    # The int8 zero that weights share with an activation stays int8 for them.
    assert [n.inputs[0].dtype for n in result.model.graph if n.outputs[0].name == "wd" and n.inputs[0]] == [
        ir.DataType.INT8
    ]
    assert arrays(retarget(result.model, "ort-arm").model) == arrays(foreign)


def test_another_tools_model_for_tensorrt(foreign: ir.Model) -> None:
    result = retarget(foreign, "tensorrt")
    # The Relu that zero point -128 stood for is back, and the weight is as it was.
    assert "Relu" in {node.op_type for node in result.model.graph}
    assert set(codes(result.model).values()) <= set(codes(foreign).values())
    reference, got = unoptimised(foreign)[0], unoptimised(result.model)[0]
    assert 10 * np.log10(np.square(reference).sum() / np.square(reference - got).sum()) > 25


def test_a_zero_point_of_its_own_where_there_was_none(build: Builder) -> None:
    text = """g (float[2, 4] x) => (float[2, 4] y) <float s = {0.05}>
    { q = QuantizeLinear (x, s)  y = DequantizeLinear (q, s) }"""
    foreign = build(text, {})
    result = retarget(foreign, "ort-arm").model
    assert stored(result) == {"INT8"}
    x = {"x": np.linspace(-1, 20, 8, dtype=np.float32).reshape(2, 4)}
    one, other = (run(open_session(m, optimize="off"), x)[0] for m in (foreign, result))
    assert np.array_equal(one, other)


def test_unsigned_weights_become_signed_with_signed_activations(build: Builder) -> None:
    text = """g (float[2, 4] x) => (float[2, 2] y)
    <float s = {0.05}, uint8 z = {128}, uint8[4, 2] w = {0, 255, 100, 120, 130, 140, 7, 9}>
    { q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  v = DequantizeLinear (w, s, z)
      y = MatMul (d, v) }"""
    foreign = build(text, {})
    result = retarget(foreign, "ort-arm").model
    weight = result.graph.initializers["w"].const_value
    assert weight is not None
    assert weight.dtype == ir.DataType.INT8
    x = {"x": np.linspace(-3, 3, 8, dtype=np.float32).reshape(2, 4)}
    one, other = (run(open_session(m, optimize="off"), x)[0] for m in (foreign, result))
    assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("output", "graph", "reason"),
    [
        ("uint8", "{ y = QuantizeLinear (x, s, z) }", "the output 'y' is of integers"),
        ("float", "{ q = QuantizeLinear (x, s, z)  y = Cast <to = 1> (q) }", "Cast. computes on integers"),
    ],
)
def test_integers_outside_of_pairs_are_refused(build: Builder, output: str, graph: str, reason: str) -> None:
    text = f"g (float[2, 4] x) => ({output}[2, 4] y) <float s = {{0.05}}, uint8 z = {{3}}> {graph}"
    with pytest.raises(ModelError, match=reason):
        retarget(build(text, {}), "ort-arm")


def test_layers_that_were_left_float_stay_float(model: ir.Model, quantize: Quantizer) -> None:
    from onnxcomp.graph.edit import origin_of

    named = model.clone()
    for node in named.graph:
        node.name = f"n_{node.outputs[0].name}"
    partly, _ = quantize(named, context={"exclude": ("n_f",)}, calibration="mse")
    result = retarget(partly, "tensorrt")
    conv = next(node for node in result.model.graph if origin_of(node) == "n_f")
    assert conv.inputs[1] is not None
    assert conv.inputs[1].is_initializer()
    assert result.notes == ("1 layers are float, as they were in the model given",)


def test_a_model_as_bytes_and_as_a_file(int8: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    modelio.save(int8, path)
    from_file = retarget(path, "ort-arm")
    from_proto = retarget(onnx.load(path), "ort-arm")
    assert modelio.to_bytes(from_file.model) == modelio.to_bytes(from_proto.model)
    from_file.save(tmp_path / "arm.onnx")
    types = {numpy_helper.to_array(t).dtype for t in onnx.load(tmp_path / "arm.onnx").graph.initializer}
    assert np.dtype(np.uint8) not in types


def test_weights_of_four_bits_stay_in_four_bits(model: ir.Model, quantize: Quantizer) -> None:
    narrow, _ = quantize(model, calibration="mse", weight_bits=4)
    packed = {name for name, value in narrow.graph.initializers.items() if value.dtype == ir.DataType.INT4}
    assert len(packed) >= 6
    moved = retarget(narrow, "ort-arm").model
    kept = {name for name, value in moved.graph.initializers.items() if value.dtype == ir.DataType.INT4}
    assert kept
    assert {name: arrays(moved)[name] for name in kept} == {name: arrays(narrow)[name] for name in kept}
    onnx.checker.check_model(ir.to_proto(moved), full_check=True)


def test_weights_of_four_bits_lie_in_eight_for_tensorrt(model: ir.Model, quantize: Quantizer) -> None:
    narrow, _ = quantize(model, calibration="mse", weight_bits=4)
    moved = retarget(narrow, "tensorrt")
    assert any("weights of few bits lie in 8" in note for note in moved.notes)
    assert not [v for v in moved.model.graph.initializers.values() if v.dtype == ir.DataType.INT4]
    assert not [f for f in check_model(moved.model, "tensorrt") if f.severity == "error"]
    back = retarget(retarget(narrow, "tensorrt").model, "ort-x86").model
    assert np.array_equal(unoptimised(back)[0], unoptimised(narrow)[0])


def test_an_input_with_a_grid_for_each_channel(model: ir.Model, quantize: Quantizer) -> None:
    (one,) = sample(model).values()
    widths = np.linspace(1, 1.6, 4, dtype=np.float32).reshape(1, 4, 1, 1)
    images = np.random.default_rng(7).standard_normal((32, *one.shape[1:])).astype(np.float32) * widths
    data = open_feeds({"x": images}, model)
    spread, _ = quantize(model, inputs="auto", rounding="gram", calibration="mse", context={"data": data})
    scales = [n.inputs[1] for n in spread.graph if n.op_type == "QuantizeLinear"]
    assert any(scale is not None and scale.shape is not None and len(scale.shape) == 1 for scale in scales)
    arm = retarget(spread, "ort-arm").model
    assert np.array_equal(unoptimised(arm)[0], unoptimised(spread)[0])
    trt = retarget(spread, "tensorrt").model
    reference, got = (unoptimised(m)[0] for m in (model, trt))
    assert 10 * np.log10(np.square(reference).sum() / np.square(reference - got).sum()) > 18
    back = retarget(trt, "ort-x86").model
    assert np.abs(unoptimised(back)[0] - unoptimised(spread)[0]).max() < 0.02 * np.abs(reference).max()
