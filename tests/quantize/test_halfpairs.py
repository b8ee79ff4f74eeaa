"""fp16 behind int8 for TensorRT: pairs are half as a whole, with the layers that read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto
from onnx.shape_inference import infer_shapes

from onnxcomp import modelio
from onnxcomp.contract import Context, PassReport
from onnxcomp.data import open_feeds
from onnxcomp.legality.checker import check_model
from onnxcomp.passes.fp16 import Fp16
from onnxcomp.passes.int8 import Int8
from onnxcomp.quantize.halfpairs import half_scales
from onnxcomp.runtime.session import open_session, run
from onnxcomp.targets.target import load_target

GRAPH = """g (float[4, 16, 8, 8] x) => (float[4, 16, 8, 8] y) {
  [one] a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
  ar = Relu (a)
  [two] b = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (ar, w2, b2)
  s = Add (b, ar)
  sr = Relu (s)
  [three] c = Conv <kernel_shape = [1, 1]> (sr, w3)
  cr = Relu (c)
  [four] d = Conv <kernel_shape = [1, 1]> (cr, w4)
  y = Sigmoid (d)
}"""
WEIGHTS: dict[str, tuple[int, ...]] = {
    "w1": (16, 16, 3, 3),
    "b1": (16,),
    "w2": (16, 16, 3, 3),
    "b2": (16,),
    "w3": (16, 16, 1, 1),
    "w4": (16, 16, 1, 1),
}
X = np.random.default_rng(7).standard_normal((16, 16, 8, 8)).astype(np.float32)


def _halved(
    build: Callable[..., ir.Model], folder: Path, target: str = "tensorrt", exclude: tuple[str, ...] = ()
) -> tuple[ir.Model, ir.Model, PassReport]:
    model = build(GRAPH, WEIGHTS)
    original = model.clone()
    feeds = open_feeds({"x": X}, model)
    Int8(rounding="nearest").run(model, Context(load_target(target), folder, data=feeds))
    report = Fp16(scope="model").run(model, Context(load_target(target), folder, data=feeds, exclude=exclude))
    return original, model, report


def _types(model: ir.Model, path: Path) -> tuple[onnx.ModelProto, dict[str, int]]:
    modelio.save(model, path)
    proto = infer_shapes(onnx.load(path), check_type=True, strict_mode=True)
    known = {v.name: v.type.tensor_type.elem_type for v in (*proto.graph.value_info, *proto.graph.input)}
    return proto, known | {t.name: t.data_type for t in proto.graph.initializer}


def test_pairs_and_layers_are_half(build: Callable[..., ir.Model], tmp_path: Path) -> None:
    original, model, _ = _halved(build, tmp_path)
    proto, types = _types(model, tmp_path / "m.onnx")
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear":
            assert types[node.input[0]] == types[node.input[1]] == TensorProto.FLOAT16
        elif node.op_type == "DequantizeLinear":
            assert types[node.input[1]] == types[node.output[0]] == TensorProto.FLOAT16
        elif node.op_type == "Conv":
            assert {types[name] for name in node.input} == {TensorProto.FLOAT16}
    assert [v.type.tensor_type.elem_type for v in (*proto.graph.input, *proto.graph.output)] == [TensorProto.FLOAT] * 2
    assert sum(node.op_type == "QuantizeLinear" for node in proto.graph.node) >= 3
    wanted, found = (run(open_session(m), {"x": X[:4]})[0] for m in (original, model))
    assert np.square(found - wanted).sum() < 1e-3 * np.square(wanted).sum()
    assert not [f for f in check_model(model, load_target("tensorrt")) if f.severity == "error"]


def test_a_layer_that_stays_float_keeps_its_pairs_float(build: Callable[..., ir.Model], tmp_path: Path) -> None:
    _, model, report = _halved(build, tmp_path, exclude=("three",))
    proto, types = _types(model, tmp_path / "m.onnx")
    makers = {name: node for node in proto.graph.node for name in node.output}
    convs = [node for node in proto.graph.node if node.op_type == "Conv"]
    assert {types[convs[2].input[0]], types[convs[2].input[1]]} == {TensorProto.FLOAT}
    assert {types[convs[1].input[0]], types[convs[1].input[1]]} == {TensorProto.FLOAT16}
    for name in (n for conv in convs[:3] for n in conv.input[:2]):
        assert makers[name].op_type == "DequantizeLinear"
    assert any("shares a pair" in skip.reason for skip in report.skips)


def test_other_targets_keep_quantized_models_as_they_are(build: Callable[..., ir.Model], tmp_path: Path) -> None:
    _, _, report = _halved(build, tmp_path, target="ort-x86")
    assert not report.changes
    assert {skip.reason for skip in report.skips} == {"already quantized"}


def test_scales_stay_positive() -> None:
    halves = half_scales(np.array([1e-9, 3e-8, 1e-3], np.float32))
    assert (halves > 0).all()
    assert halves[2] == np.float16(1e-3)
