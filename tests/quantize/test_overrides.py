"""onnxruntime's TensorQuantOverrides: what is given is written, what cannot be written is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcomp.contract import Context, PassReport
from onnxcomp.errors import InputError
from onnxcomp.passes.int8 import Int8
from onnxcomp.runtime.fusion import fusion_proof
from onnxcomp.targets.target import load_target

Builder = Callable[..., ir.Model]
Quantizer = Callable[..., tuple[ir.Model, PassReport]]
Write = Callable[[Any], str]

GRAPH = """g (float[1,8,6,6] x) => (float[1,4,6,6] y) {
    [one] c = Conv<pads=[1,1,1,1]>(x, w, b)  r = Relu(c)  t = Add(r, x)  [two] y = Conv(t, v) }"""
SHAPES = {"w": (8, 8, 3, 3), "b": (8,), "v": (4, 8, 1, 1)}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def go(content: Any) -> str:
        path = tmp_path / "overrides.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return go


def arrays(model: ir.Model) -> dict[str, Any]:
    return {name: v.const_value.numpy() for name, v in model.graph.initializers.items() if v.const_value is not None}


def parameters(model: ir.Model, tensor: str) -> tuple[float, int]:
    """Scale and zero point with which a tensor is quantized."""
    for node in model.graph:
        if node.op_type == "QuantizeLinear" and node.inputs[0] is not None and node.inputs[0].name == tensor:
            scale, zero = (
                v.const_value.numpy() for v in node.inputs[1:] if v is not None and v.const_value is not None
            )
            return float(scale), int(zero)
    raise AssertionError(f"{tensor} is not quantized")


@pytest.mark.parametrize(
    "entry, wanted",
    [
        ({"scale": 0.02, "zero_point": 100}, (0.02, 100)),
        ({"scale": [0.02], "zero_point": [100], "quant_type": "QUInt8"}, (0.02, 100)),
        ({"scale": 0.02, "zero_point": -28, "quant_type": "QInt8"}, (0.02, 100)),
        ({"rmin": -1.0, "rmax": 4.1}, (5.1 / 255, 50)),
        ({"rmin": 1.0, "rmax": 5.1}, (5.1 / 255, 0)),
        ({"rmin": -1.0, "rmax": 2.0, "symmetric": True}, (4.0 / 255, 128)),
    ],
)
def test_an_activation_is_stored_as_given(
    entry: dict[str, Any], wanted: tuple[float, int], build: Builder, quantize: Quantizer, write: Write
) -> None:
    quantized, _ = quantize(build(GRAPH, SHAPES), overrides=write({"t": [entry]}))
    scale, zero = parameters(quantized, "t")
    assert scale == pytest.approx(wanted[0], rel=1e-6) and zero == wanted[1]
    assert all(fate.integer for fate in fusion_proof(quantized))


def test_what_is_open_is_found_from_data(build: Builder, quantize: Quantizer, write: Write) -> None:
    model = build(GRAPH, SHAPES)
    plain, _ = quantize(model, calibration="minmax")
    quantized, report = quantize(model, calibration="minmax", overrides=write({"x": [{"symmetric": True}]}))
    assert parameters(plain, "t") == parameters(quantized, "t")
    assert parameters(quantized, "x")[1] == 128 != parameters(plain, "x")[1]
    facts = report.changes[0].facts
    assert facts["input.zero_point"] == 128


def test_weights_have_the_scales_that_are_given(build: Builder, quantize: Quantizer, write: Write) -> None:
    model = build(GRAPH, SHAPES)
    scales = [0.005, 0.006, 0.007, 0.008]
    entries = [{"axis": 0, "scale": scales[0], "zero_point": 0}]
    entries += [{"scale": scale, "zero_point": 0} for scale in scales[1:]]
    quantized, _ = quantize(model, overrides=write({"v": entries}))
    found = arrays(quantized)
    np.testing.assert_array_equal(found["v.scale"], np.array(scales, np.float32))
    levels = np.clip(np.round(arrays(model)["v"] / np.array(scales, np.float32).reshape(-1, 1, 1, 1)), -128, 127)
    np.testing.assert_array_equal(found["v.quantized"], levels)
    assert all(fate.integer for fate in fusion_proof(quantized))


def test_one_entry_without_an_axis_is_one_scale(build: Builder, quantize: Quantizer, write: Write) -> None:
    model = build(GRAPH, SHAPES)
    content = {"w": [{"rmin": -0.5, "rmax": 0.4}], "v": [{"quant_type": "QInt8", "reduce_range": True}]}
    quantized, _ = quantize(model, overrides=write(content))
    found = arrays(quantized)
    np.testing.assert_allclose(found["w.scale"], np.full(8, 0.5 / 127), rtol=1e-6)
    np.testing.assert_allclose(found["v.scale"], np.full(4, np.abs(arrays(model)["v"]).max() / 63), rtol=1e-6)
    assert np.abs(found["v.quantized"]).max() == 63


def test_another_scale_for_each_channel_is_found_where_only_the_axis_is_given(
    build: Builder, quantize: Quantizer, write: Write
) -> None:
    model = build(GRAPH, SHAPES)
    quantized, _ = quantize(model, overrides=write({"v": [{"axis": -4, "symmetric": True}]}))
    peaks = np.abs(arrays(model)["v"]).reshape(4, -1).max(axis=1)
    np.testing.assert_allclose(arrays(quantized)["v.scale"], peaks / 127, rtol=1e-6)


def test_tensors_that_are_not_quantized_are_named(build: Builder, quantize: Quantizer, write: Write) -> None:
    _, report = quantize(build(GRAPH, SHAPES), overrides=write({"c": [{"rmin": 0, "rmax": 1}]}))
    assert "overrides without effect, as these tensors are not quantized: c" in report.notes


REFUSED = {
    "no tensor 'tt'": {"tt": [{"rmin": 0, "rmax": 1}]},
    "'convert' is refused": {"t": [{"convert": {"quant_type": "QInt8"}}]},
    "no key 'scal'; did you mean 'scale'": {"t": [{"scal": 1}]},
    "overrides of 't': 'quant_type' is 'QInt16', not QUInt8 or QInt8": {"t": [{"quant_type": "QInt16"}]},
    "'scale' and 'zero_point' come together": {"t": [{"scale": 1}]},
    "'rmin' and 'rmax' come together": {"t": [{"rmax": 1}]},
    "'rmin' is above 'rmax'": {"t": [{"rmin": 2, "rmax": 1}]},
    "'rmin' counts for nothing beside 'scale'": {"t": [{"scale": 1, "zero_point": 0, "rmin": 0, "rmax": 1}]},
    "'scale' is -1, not a positive number": {"t": [{"scale": -1, "zero_point": 0}]},
    "'symmetric' is 1, not true or false": {"t": [{"symmetric": 1}]},
    "'zero_point' is 0.5, not a whole number": {"t": [{"scale": 1, "zero_point": 0.5}]},
    "'zero_point' 200 is not of QInt8": {"t": [{"scale": 1, "zero_point": 200, "quant_type": "QInt8"}]},
    "2 entries need an 'axis'": {"w": [{"symmetric": True}, {"symmetric": True}]},
    "'axis' is for weights": {"t": [{"axis": 1}]},
    "'reduce_range' is for weights": {"t": [{"reduce_range": True}]},
    "the operator before it would not fuse": {"r": [{"scale": 0.02, "zero_point": 3}]},
    "'axis' 1; the kernel has its scales along axis 0": {"v": [{"axis": 1}]},
    "2 entries for 4 channels": {"v": [{"axis": 0}, {}]},
    "integer kernels take symmetric weights": {"v": [{"symmetric": False}]},
    "'zero_point' 3; weights take 0 only": {"v": [{"scale": 0.01, "zero_point": 3}]},
    "weights are stored as int8": {"v": [{"quant_type": "QUInt8"}]},
    "'quant_type' is not the same for all channels": {"v": [{"axis": 0}, {"quant_type": "QInt8"}, {}, {}]},
    "the scale of a bias": {"b": [{"rmin": 0, "rmax": 1}]},
    "does not fit int32": {"w": [{"scale": 1e-12, "zero_point": 0}]},
    "are not JSON": "{",
    "are not an object of tensor names": [],
    "a list of one entry": {"t": []},
    "not an object": {"t": [3]},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_honoured_is_refused(message: str, build: Builder, tmp_path: Path, write: Write) -> None:
    model = build(GRAPH, SHAPES)
    chosen = Int8(overrides=write(REFUSED[message]))
    from onnxcomp.data import synthetic_feeds

    context = Context(load_target("ort-x86"), tmp_path, data=synthetic_feeds(model, seed=0))
    with pytest.raises(InputError) as error:
        chosen.requires(model, context)
        chosen.run(model, context)
    assert message in str(error.value)


def test_tensors_of_one_scale_cannot_have_two(build: Builder, quantize: Quantizer, write: Write) -> None:
    model = build(
        """g (float[1,8,6,6] x) => (float[1,4,3,3] y) {
            c = Conv(x, w)  m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c)  y = Conv(m, v) }""",
        {"w": (8, 8, 1, 1), "v": (4, 8, 1, 1)},
    )
    content = {"c": [{"rmin": -1, "rmax": 1}], "m": [{"rmin": -1, "rmax": 2}]}
    with pytest.raises(InputError, match="'m': it shares one scale with 'c'"):
        quantize(model, overrides=write(content))


WIDE = """g (float[1,16,6,6] x) => (float[1,16,6,6] y) {
    [one] c = Conv(x, w)  [two] d = Conv(c, v)  [three] y = Conv(d, v) }"""


def test_a_symmetric_target_takes_zero_point_0_in_either_type(
    build: Builder, quantize: Quantizer, write: Write
) -> None:
    model = build(WIDE, {"w": (16, 16, 1, 1), "v": (16, 16, 1, 1)})
    content = {
        "x": [{"scale": 0.02, "zero_point": 128, "quant_type": "QUInt8"}],
        "c": [{"rmin": -1.0, "rmax": 2.54}],
        "v": [{"scale": 0.01, "zero_point": 0}],
    }
    quantized, _ = quantize(model, target="tensorrt", overrides=write(content))
    for name in ("x", "c"):
        scale, zero_point = parameters(quantized, name)
        assert scale == pytest.approx(0.02)
        assert zero_point == 0
    np.testing.assert_array_equal(arrays(quantized)["v.scale"], np.full(16, 0.01, np.float32))


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"scale": 0.02, "zero_point": 3}, "'zero_point' gives 3; the target takes zero point 0 only"),
        ({"symmetric": False}, "'symmetric' is false, and the target takes zero point 0 only"),
    ],
)
def test_a_symmetric_target_refuses_the_rest(
    entry: dict[str, Any], message: str, build: Builder, quantize: Quantizer, write: Write
) -> None:
    model = build(WIDE, {"w": (16, 16, 1, 1), "v": (16, 16, 1, 1)})
    with pytest.raises(InputError, match=message):
        quantize(model, target="tensorrt", overrides=write({"c": [entry]}))


def test_a_file_that_is_missing(build: Builder, tmp_path: Path) -> None:
    model = build(GRAPH, SHAPES)
    with pytest.raises(InputError, match=r"cannot read the overrides .*none.json: No such file"):
        Int8(overrides=str(tmp_path / "none.json")).requires(model, Context(load_target("ort-x86"), tmp_path))


def test_the_file_that_onnxruntime_takes_gives_the_same_parameters(
    build: Builder, quantize: Quantizer, write: Write, tmp_path: Path
) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    class Reader:
        def __init__(self) -> None:
            self.left = [{"x": np.random.default_rng(0).standard_normal((1, 8, 6, 6)).astype(np.float32)}]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    content: dict[str, list[dict[str, Any]]] = {
        "t": [{"rmin": -1.0, "rmax": 3.0}],
        "x": [{"scale": 0.03, "zero_point": 120}],
        "v": [{"axis": 0, "rmin": -0.4, "rmax": 0.5}, *({"rmin": -0.3, "rmax": 0.2} for _ in range(3))],
    }
    model = build(GRAPH, SHAPES)
    onnx.save(ir.to_proto(model), tmp_path / "in.onnx")
    reader: Any = Reader()
    quantize_static(
        tmp_path / "in.onnx",
        tmp_path / "theirs.onnx",
        reader,
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"TensorQuantOverrides": numpied(content)},
    )
    theirs = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(tmp_path / "theirs.onnx").graph.initializer}
    ours, _ = quantize(model, overrides=write(content))
    for tensor in ("t", "x"):
        assert parameters(ours, tensor) == (float(theirs[f"{tensor}_scale"]), int(theirs[f"{tensor}_zero_point"]))
    np.testing.assert_array_equal(arrays(ours)["v.scale"], theirs["v_scale"])
    np.testing.assert_array_equal(arrays(ours)["v.quantized"], theirs["v_quantized"])


def numpied(content: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    types = {"scale": np.float32, "zero_point": np.uint8, "rmin": np.float32, "rmax": np.float32}
    return {
        tensor: [{k: np.array(v, types[k]) if k in types else v for k, v in entry.items()} for entry in entries]
        for tensor, entries in content.items()
    }
