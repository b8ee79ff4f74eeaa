"""Models that somebody quantized before: every pass keeps them, says so of every site, and changes no bit of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

from onnxcomp import optimize
from onnxcomp.pipeline import PipelineReport
from onnxcomp.runtime.session import open_session, run

PIPELINES = ["fold", "int8", "tucker2", "tucker2,int8"]
# Large enough that tucker2 would rewrite the second one.
SHAPES = {"w": (32, 3, 3, 3), "b": (32,), "v": (64, 32, 3, 3), "c": (64,), "f": (64, 10), "g": (10,)}
GRAPH = """g (float[N,3,16,16] x) => (float[N,10] y) {
    [one] a = Conv<pads=[1,1,1,1]>(x, w, b)  r = Relu(a)  [two] d = Conv<pads=[1,1,1,1]>(r, v, c)
    e = Relu(d)  p = GlobalAveragePool(e)  h = Flatten(p)  [three] y = Gemm(h, f, g) }"""

# Form, and the arguments that make onnxruntime's quantizer write it.
FORMS: dict[str, dict[str, Any]] = {
    "QDQ S8S8 per channel": {"activation_type": QuantType.QInt8, "per_channel": True},
    "QDQ S8S8 per tensor": {"activation_type": QuantType.QInt8, "per_channel": False},
    "QDQ U8S8 per channel": {"activation_type": QuantType.QUInt8, "per_channel": True},
    "QDQ U8S8 per tensor": {"activation_type": QuantType.QUInt8, "per_channel": False},
    "QDQ with float weights": {
        "activation_type": QuantType.QInt8,
        "per_channel": True,
        "extra_options": {"AddQDQPairToWeight": True, "ActivationSymmetric": True, "QuantizeBias": False},
    },
    "QOperator": {"activation_type": QuantType.QUInt8, "quant_format": QuantFormat.QOperator},
    "in part": {"activation_type": QuantType.QUInt8, "per_channel": True, "nodes_to_exclude": ["two"]},
}
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "QLinear", "QGemm", "MatMulNBits")


class _Reader:
    def __init__(self) -> None:
        self.left = [{"x": _images(16, 0)}]

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return self.left.pop() if self.left else None


def _images(count: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, 3, 16, 16)).astype(np.float32)


def _float_model() -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17, "com.microsoft": 1]>\n{GRAPH}')
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(0, 0.2, shape).astype(np.float32), name))
    return onnx.shape_inference.infer_shapes(model)


@pytest.fixture(scope="module", params=FORMS)
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """The model in one of the forms."""
    folder = tmp_path_factory.mktemp("quantized")
    onnx.save(_float_model(), folder / "in.onnx")
    options: dict[str, Any] = {"quant_format": QuantFormat.QDQ, "weight_type": QuantType.QInt8, **FORMS[request.param]}
    method = CalibrationMethod.MinMax
    reader: Any = _Reader()
    quantize_static(folder / "in.onnx", folder / "out.onnx", reader, calibrate_method=method, **options)
    return onnx.load(folder / "out.onnx")


def _parts(model: onnx.ModelProto) -> list[tuple[Any, ...]]:
    """Every quantized node with its attributes and what its constants hold, in no order."""
    arrays = {i.name: (i.data_type, numpy_helper.to_array(i).tobytes()) for i in model.graph.initializer}
    parts = [
        (
            node.op_type,
            node.domain,
            tuple(sorted(a.SerializeToString() for a in node.attribute)),
            tuple(arrays.get(name, ("", name)) for name in node.input),
            tuple(node.output),
        )
        for node in model.graph.node
        if node.op_type.startswith(_QUANTIZED)
    ]
    return sorted(parts, key=repr)


def _skips(report: PipelineReport) -> dict[str, str]:
    return {skip.site: skip.reason for done in report.steps for skip in done.report.skips}


def _optimized(model: onnx.ModelProto, pipeline: str) -> tuple[onnx.ModelProto, PipelineReport]:
    result = optimize(model, pipeline, data={"x": _images(64, 1)}, eval={"x": _images(16, 2)}, objective="macs")
    return ir.to_proto(result.model), result.report


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_what_is_quantized_is_kept(quantized: onnx.ModelProto, pipeline: str) -> None:
    found, report = _optimized(quantized, pipeline)
    assert _parts(found) == _parts(quantized)
    changed = {change.site for step in report.steps for change in step.report.changes}
    assert changed <= {"two"} and ("two" not in changed or _is_float(quantized, "two"))
    if not changed:
        assert [node.op_type for node in found.graph.node] == [node.op_type for node in quantized.graph.node]
        images = {"x": _images(8, 3)}
        before, after = (run(open_session(m.SerializeToString()), images)[0] for m in (quantized, found))
        np.testing.assert_array_equal(before, after)
    assert report.failures == ()
    if pipeline == "fold":
        return
    skips = _skips(report)
    convolutions = [node.name for node in quantized.graph.node if node.op_type in ("Conv", "QLinearConv")]
    assert len(convolutions) == 2 and set(convolutions) <= set(skips) | changed
    assert all("quantized" in skips[name] for name in convolutions if not _is_float(quantized, name))


def _is_float(model: onnx.ModelProto, name: str) -> bool:
    """Whether the weight of a node is a plain initializer."""
    node = next(node for node in model.graph.node if node.name == name)
    return node.op_type == "Conv" and node.input[1] in {value.name for value in model.graph.initializer}


@pytest.fixture(scope="module")
def ours() -> onnx.ModelProto:
    return _optimized(_float_model(), "int8(reduce_range=off)")[0]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_what_int8_made_is_kept(ours: onnx.ModelProto, pipeline: str) -> None:
    twice, report = _optimized(ours, pipeline)
    assert _parts(twice) == _parts(ours)
    assert not [change for step in report.steps for change in step.report.changes]
    if pipeline != "fold":
        assert {_skips(report)[name].split(" by int8:")[0] for name in ("one", "two")} == {"already quantized"}


PACKED = """g (float[N,64] x) => (float[N,32] y) {
    [packed] h = com.microsoft.MatMulNBits<K=64, N=64, bits=4, block_size=32>(x, q, s)
    r = Relu(h)  [plain] y = Gemm(r, w) }"""


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_weights_of_few_bits_are_kept_and_the_rest_may_be_quantized(pipeline: str) -> None:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17, "com.microsoft": 1]>\n{PACKED}')
    rng = np.random.default_rng(0)
    for name, array in {
        "q": rng.integers(0, 256, (64, 2, 16)).astype(np.uint8),
        "s": rng.uniform(0.01, 0.02, (64, 2)).astype(np.float32),
        "w": rng.standard_normal((64, 512)).astype(np.float32)[:, :32].repeat(16, axis=1)[:, :32],
    }.items():
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    rows = {"x": rng.standard_normal((64, 64)).astype(np.float32)}
    result = optimize(model, pipeline, data=rows, eval=rows, objective="macs")
    found = ir.to_proto(result.model)
    assert [p for p in _parts(found) if p[0] == "MatMulNBits"] == [p for p in _parts(model) if p[0] == "MatMulNBits"]
    if "int8" in pipeline:
        assert _skips(result.report)["packed"] == "already quantized: its weights are packed into few bits"
