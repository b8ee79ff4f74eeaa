"""The int8 pass as a pass: options, what it requires, rehearsal, and real models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from onnxcomp import modelio
from onnxcomp.contract import Context, Override, Value
from onnxcomp.data import open_feeds, synthetic_feeds
from onnxcomp.errors import DataError, InputError, OptionError
from onnxcomp.graph.fold import fold
from onnxcomp.options import spec_of
from onnxcomp.passes.int8 import Int8
from onnxcomp.pipeline import Plan, run_passes
from onnxcomp.quantize.trial import output_errors
from onnxcomp.quantize.weighted import already_quantized
from onnxcomp.registry import build_pass
from onnxcomp.runtime.fusion import fusion_proof
from onnxcomp.runtime.timing import Speedup
from onnxcomp.spec import parse_pipeline
from onnxcomp.targets.target import load_target

SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture
def model() -> ir.Model:
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 17]>
        g (float[N,3,8,8] x) => (float[N,8,8,8] y) { a = Conv(x, v)  b = Relu(a)  y = Conv(b, w) }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in (("v", (8, 3, 1, 1)), ("w", (8, 8, 1, 1))):
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def context(tmp_path: Path, target: str = "ort-x86", **rest: object) -> Context:
    return Context(target=load_target(target), workdir=tmp_path, **rest)  # type: ignore[arg-type]


def test_a_spec_becomes_the_pass_and_back() -> None:
    text = "int8(calibration=percentile, percentile=99.9)"
    built = build_pass(parse_pipeline(text)[0])
    assert built == Int8(calibration="percentile", percentile=99.9)
    assert build_pass(parse_pipeline(spec_of(built))[0]) == built
    assert spec_of(Int8()) == "int8"


def test_coreml_is_refused(model: ir.Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no quantized operators.*structural passes.*fp16") as refusal:
        Int8().requires(model, context(tmp_path, "coreml"))
    assert refusal.value.exit_code == 2


def test_tensorrt_takes_no_weights_of_few_bits(model: ir.Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"int8\(weight_bits=4\): NVIDIA TensorRT has no Cast of packed weights"):
        Int8(weight_bits=4).requires(model, context(tmp_path, "tensorrt"))
    own = (Override("conv*", {"weight_bits": 2}),)
    with pytest.raises(InputError, match="weight_bits=2"):
        Int8().requires(model, context(tmp_path, "tensorrt", overrides=own))
    Int8(weight_bits=7).requires(model, context(tmp_path, "tensorrt"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 8}, r"int8\.samples holds for the whole model, not for the layer 'conv\*'"),
        ({"calibration": "mse", "samples": 8}, r"int8\.samples holds for the whole model"),
        ({"weights": "best"}, r"int8\.weights: 'best' is not"),
        ({"calbration": "mse"}, "has no option 'calbration'; did you mean 'calibration'"),
        ({"percentile": 101}, r"int8\.percentile: 101 is not"),
    ],
)
def test_what_a_layer_cannot_have_is_refused(
    options: dict[str, Value], message: str, model: ir.Model, tmp_path: Path
) -> None:
    given = (Override("first", {"calibration": "entropy"}), Override("conv*", options))
    with pytest.raises(OptionError, match=message):
        Int8().requires(model, context(tmp_path, overrides=given))
    Int8().requires(model, context(tmp_path, overrides=(*given[:1], Override("conv*", None))))


def test_what_a_layer_can_have_is_accepted(model: ir.Model, tmp_path: Path) -> None:
    options: dict[str, Value] = {
        "calibration": "auto",
        "weights": "minmax",
        "bias_correction": "off",
        "reduce_range": "on",
    }
    Int8(calibration="mse").requires(model, context(tmp_path, overrides=(Override("Conv", options),)))


@pytest.mark.parametrize(
    ("spec", "layer", "message"),
    [
        ("int8(percentile=99)", {}, "give that as well$"),
        ("int8(calibration=mse, percentile=99)", {"calibration": "entropy"}, "give that as well$"),
        ("int8", {"percentile": 99}, r"give that as well for the layer 'conv\*'$"),
        ("int8(calibration=percentile)", {"calibration": "mse", "percentile": 99}, "for the layer"),
    ],
)
def test_a_percentile_that_nothing_reads_is_refused(
    spec: str, layer: dict[str, Value], message: str, model: ir.Model, tmp_path: Path
) -> None:
    built = build_pass(parse_pipeline(spec)[0])
    with pytest.raises(OptionError, match=message):
        built.requires(model, context(tmp_path, overrides=(Override("conv*", layer),)))
    read = context(tmp_path, overrides=(Override("conv*", {"calibration": "percentile"}),))
    built.requires(model, read)


def test_without_any_data_the_message_says_what_to_give(model: ir.Model, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"int8 needs calibration data: give --data$"):
        Int8().run(model, context(tmp_path))
    wanted = model.graph.inputs[0]
    wanted.shape = ir.Shape(["N", 3, "H", 8])
    with pytest.raises(DataError, match=r"give --data, or --shapes x:1x3x\.\.\.x8 so that data can be made up"):
        Int8().run(model, context(tmp_path))


def test_made_up_data_are_called_so(model: ir.Model, tmp_path: Path) -> None:
    report = Int8().run(model, context(tmp_path, stand_in=synthetic_feeds(model, 0, 8)))
    assert len(report.changes) == 2
    assert any("accuracy is unknown" in note for note in report.notes)


def test_a_rehearsal_has_the_same_graph_and_touches_nothing(model: ir.Model, tmp_path: Path) -> None:
    before = ir.to_proto(model).SerializeToString()
    rehearsed = Int8().rehearse(model, context(tmp_path))
    assert ir.to_proto(model).SerializeToString() == before
    quantized = model.clone()
    Int8().run(quantized, context(tmp_path, stand_in=synthetic_feeds(model, 0, 8)))
    assert [n.op_type for n in rehearsed.graph] == [n.op_type for n in quantized.graph]
    assert all(fate.integer for fate in fusion_proof(rehearsed))


def test_of_a_second_int8_there_is_nothing_left(model: ir.Model, tmp_path: Path) -> None:
    feeds = synthetic_feeds(model, 0, 8)
    ready = context(tmp_path, stand_in=feeds)
    Int8().run(model, ready)
    assert Int8(weights="minmax").rehearse(model, ready) is model
    before = ir.to_proto(model).SerializeToString()
    report = Int8().run(model, ready)
    assert not report.changes and len(report.skips) == 2
    assert ir.to_proto(model).SerializeToString() == before


def test_the_first_of_two_int8_is_kept(model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[list[bool]] = []

    def paired(base: ir.Model, other: ir.Model, *rest: object, **options: object) -> Speedup:
        timed.append([already_quantized(base), already_quantized(other)])
        return Speedup(2.0, 1.9, 2.1, 2.0, 1.0, 100)

    monkeypatch.setattr("onnxcomp.pipeline.paired", paired)
    ready = context(tmp_path, stand_in=synthetic_feeds(model, 0, 8))
    _, steps = run_passes(model, Plan((Int8(), Int8(weights="minmax"))), ready)
    assert [(step.kept, len(step.report.changes)) for step in steps] == [(True, 2), (True, 0)]
    assert timed == [[False, True]]


def test_seven_bits_on_request(model: ir.Model, tmp_path: Path) -> None:
    report = Int8(reduce_range="on").run(model, context(tmp_path, stand_in=synthetic_feeds(model, 0, 8)))
    stored = [
        v.const_value.numpy() for n, v in model.graph.initializers.items() if n.endswith(".quantized") and v.const_value
    ]
    assert max(np.abs(a).max() for a in stored if a.dtype == np.int8) == 63
    assert {change.facts["weight.bits"] for change in report.changes} == {7}
    assert any("7 bits" in note for note in report.notes)


@pytest.mark.parametrize("calibration", ["auto", "minmax", "percentile", "entropy", "mse"])
def test_every_calibration_keeps_the_outputs(calibration: str, model: ir.Model, tmp_path: Path) -> None:
    data = np.random.default_rng(1).standard_normal((64, 3, 8, 8)).astype(np.float32)
    feeds = open_feeds(data, model)
    original = model.clone()
    report = build_pass(parse_pipeline(f"int8(calibration={calibration})")[0]).run(model, context(tmp_path, data=feeds))
    methods = {change.facts["output.method"] for change in report.changes}
    assert methods == {calibration} or (calibration == "auto" and methods <= {"mse", "minmax", "entropy", "percentile"})
    assert output_errors(original, [model], feeds, limit=64)[0] < 0.01


def test_a_model_with_nothing_to_quantize_is_left_as_it_is(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 17]> g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }'
    )
    model = ir.from_proto(proto)
    report = Int8().run(model, context(tmp_path))
    assert not report.changes
    assert report.notes == ("nothing to quantize",)
    assert ir.to_proto(model) == ir.to_proto(ir.from_proto(proto))


def shared_feeds(name: str, split: str, count: int, folder: Path) -> Path:
    """Images for a model of ../shared/models, by the loader that comes with them (in a process of its own)."""
    path = folder / f"{split}.npz"
    loader = [sys.executable, str(SHARED / "data" / "feeds.py"), name, split, str(path), "--count", str(count)]
    subprocess.run(loader, check=True, capture_output=True)
    return path


@pytest.mark.realdata
@pytest.mark.skipif(not SHARED.exists(), reason="the real models and images of ../shared are not here")
def test_resnet20_on_real_images(tmp_path: Path) -> None:
    model = modelio.load(SHARED / "models" / "resnet20_cifar10.onnx")
    fold(model)
    original = model.clone()
    data = open_feeds(shared_feeds("resnet20_cifar10", "train", 128, tmp_path), model)
    Int8().run(model, context(tmp_path, data=data))
    fates = fusion_proof(model)
    assert [f.kernel for f in fates if f.op_type == "Conv"] == ["QLinearConv"] * 19
    held_out = open_feeds(shared_feeds("resnet20_cifar10", "eval", 200, tmp_path), model)
    error = output_errors(original, [model], held_out, limit=200)[0]
    assert -10 * np.log10(error) > 30
