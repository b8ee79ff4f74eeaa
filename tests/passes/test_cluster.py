"""cluster: what is stored, what the runtime makes of it, what is shared, what the data gain, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import onnxcomp
from onnxcomp.allocation.problem import Setting
from onnxcomp.api import Result
from onnxcomp.contract import Context, Override
from onnxcomp.errors import DataError, InputError, OptionError
from onnxcomp.graph.edit import origin_of
from onnxcomp.options import replace_options
from onnxcomp.passes.cluster import Cluster
from onnxcomp.quantize.stored import evaluate_decoded
from onnxcomp.runtime.session import open_session, run

Parsed = Callable[..., ir.Model]
InContext = Callable[..., Context]
Array = NDArray[Any]

NET = """g (float[N,16,10,10] x) => (float[N,10] y) {
  [strided] a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, wa, ba) ra = Relu(a)
  [grouped] b = Conv<pads=[1,1,1,1], group=2>(ra, wb) rb = Relu(b)
  [deep] c = Conv<pads=[1,1,1,1], group=48>(rb, wc, bc) rc = Relu(c)
  [point] d = Conv(rc, wd) rd = Relu(d)
  f = Reshape(rd, shape) [line] i = Conv<pads=[1,1]>(f, we) ri = Relu(i)
  p = GlobalAveragePool(ri) fi = Flatten(p) [head] y = MatMul(fi, wf) }"""
SHAPES = {
    "wa": (48, 16, 3, 3), "wb": (48, 24, 3, 3), "wc": (48, 1, 3, 3), "wd": (16, 48, 1, 1), "we": (64, 16, 3),
    "wf": (64, 10), "ba": (48,), "bc": (48,),
}  # fmt: skip
STORED = {"strided", "grouped", "deep", "line"}


def _arrays() -> dict[str, Array]:
    """Kernels whose taps are alike, as those of trained layers are; biases small."""
    rng = np.random.default_rng(0)
    made: dict[str, Array] = {"shape": np.array([0, 16, 25])}
    for name, shape in SHAPES.items():
        array = 0.1 * rng.standard_normal(shape)
        if len(shape) > 2:
            array = sum(np.roll(array, k, -1) for k in (0, 1)) / np.sqrt(np.prod(shape[1:])) * 10
        made[name] = np.asarray(array, np.float32)
    return made


@pytest.fixture
def net(parsed: Parsed) -> ir.Model:
    return parsed(NET, **_arrays())


def _inputs(count: int = 24, seed: int = 1) -> Mapping[str, Array]:
    """Smooth images, whose neighbouring channels are alike."""
    x = np.random.default_rng(seed).standard_normal((count, 16, 10, 10)).astype(np.float32)
    return {"x": (x + np.roll(x, 1, 1) + np.roll(x, 1, 2) + np.roll(x, 1, 3)).astype(np.float32)}


def _run(model: ir.Model, passes: str, **options: Any) -> Result:
    given: dict[str, Any] = {"objective": "size"}
    return onnxcomp.optimize(model, passes, **(given | options))


def _sqnr(result: Result) -> float:
    quality = result.report.after.quality
    assert quality is not None
    return min(quality.sqnr.values())


def _weights(model: ir.Model) -> dict[str, ir.Value]:
    """What the convolutions, behind all that decodes, read as their weights."""
    found = {origin_of(node): node.inputs[1] for node in model.graph if node.op_type == "Conv"}
    return {name: value for name, value in found.items() if value is not None and name in STORED}


def _initializers(model: ir.Model, ending: str) -> list[Array]:
    found = [v.const_value for name, v in model.graph.initializers.items() if name.endswith(ending)]
    return [tensor.numpy() for tensor in found if tensor is not None]


def _decoded(model: ir.Model, site: str, bits: int, shape: tuple[int, ...]) -> Array:
    """The weight that the codes of a layer stand for, read with numpy alone; templates of the layer's own."""
    own: dict[str, list[Array]] = {}
    for node in model.graph:
        if origin_of(node) == site and node.name is not None:
            values = [v.const_value.numpy() for v in node.inputs if v is not None and v.const_value is not None]
            own[node.name.removeprefix(f"{site}.")] = values
    if "index.shifted" in own:
        planes = own["index.shifted"][0]
        index: Array = np.zeros(8 * len(planes), np.int64)
        for k in range(bits):
            index += np.unpackbits(planes[:, 0, k], bitorder="little").astype(np.int64) << k
        index = index.reshape(own["index"][0])
    else:
        index = own["index"][0].astype(np.int64)
    assert index.shape == shape[:2] and index.min() >= 0 and index.max() < 2**bits
    templates = own["templates"][0]
    assert templates.dtype == np.int8 and templates.shape == (2**bits, *shape[2:])
    shapes = (templates.astype(np.float32) * own["units"][0])[index]
    if "a" not in own:
        return np.asarray(shapes * own["scaled"][0] + own["weight"][0])
    a, b = (own[name][0].astype(np.float32) for name in ("a", "b"))
    if "gain" in own:
        a, b = a * own["gain"][0], b * own["level"][0]
    return np.asarray(shapes * a + b)


FORMS = [(1, "fp32"), (3, "fp16"), (4, "int8"), (5, "int4"), (6, "fp32"), (7, "int8")]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form[0]}-{form[1]}")
def test_the_runtime_decodes_what_was_stored(net: ir.Model, in_context: InContext, form: tuple[int, str]) -> None:
    dense = net.clone()
    options = replace_options(Cluster(scope="layer"), dict(zip(("bits", "coefficients"), form, strict=True)))
    report = options.run(net, in_context())
    onnx.checker.check_model(ir.to_proto(net), full_check=True)
    sites = {c.site for c in report.changes}
    assert sites >= STORED - {"deep"}
    values = _weights(net)
    for change in report.changes:
        assert change.choice == {"bits": form[0], "coefficients": form[1]}
        assert change.after.bytes < change.before.bytes and change.after.macs == change.before.macs
        (node,) = (n for n in dense.graph if n.name == change.site)
        weight = node.inputs[1]
        assert weight is not None and weight.const_value is not None
        (decoded,) = evaluate_decoded(net, [values[change.site]])
        wanted = _decoded(net, change.site, form[0], weight.const_value.numpy().shape)
        np.testing.assert_allclose(decoded, wanted, rtol=1e-6, atol=1e-7)
        weight.const_value = ir.tensor(np.ascontiguousarray(wanted, np.float32), name=weight.name)
    feed = dict(_inputs(2))
    got, want = (run(open_session(m, optimize="off"), feed)[0] for m in (net, dense))
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(
    ("bits", "coefficients", "index", "a", "opset"),
    [
        (2, "int8", ml_dtypes.uint2, np.int8, 25),
        (4, "int4", ml_dtypes.uint4, ml_dtypes.int4, 21),
        (8, "fp16", np.uint8, np.float16, 17),
    ],
)
def test_numbers_have_the_smallest_type_and_the_opset_follows(
    net: ir.Model, in_context: InContext, bits: int, coefficients: str, index: Any, a: Any, opset: int
) -> None:
    options = replace_options(Cluster(), {"bits": bits, "coefficients": coefficients})
    report = options.run(net, in_context())
    assert {array.dtype for array in _initializers(net, "index.codes")} == {np.dtype(index)}
    assert {array.dtype for ending in (".a.codes", ".b.codes") for array in _initializers(net, ending)} == {np.dtype(a)}
    assert net.opset_imports[""] == opset
    raised = (f"opset raised from 17 to {opset}, which has the types of the stored weights",)
    assert report.notes == (raised if opset > 17 else ())


@pytest.mark.parametrize("spec", ["cluster(bits=5)", "cluster(bits=4,coefficients=fp32,scope=layer)"])
def test_decoders_are_gone_when_the_runtime_has_loaded(net: ir.Model, tmp_path: Path, spec: str) -> None:
    result = _run(net, spec)
    plain, coded = tmp_path / "plain.onnx", tmp_path / "coded.onnx"
    open_session(_run(net, "fold").model, dump=plain)
    open_session(result.model, dump=coded)
    before, after = ([n.op_type for n in onnx.load(p).graph.node] for p in (plain, coded))
    assert after == before
    path = tmp_path / "m.onnx"
    result.save(path)
    assert path.stat().st_size == result.report.after.bytes < result.report.before.bytes / 2.5


def test_templates_of_the_model_are_stored_and_decoded_once(net: ir.Model, in_context: InContext) -> None:
    """One table for each size of kernel."""
    shared, own = net.clone(), net.clone()
    Cluster(bits=5).run(shared, in_context())
    Cluster(bits=5, scope="layer").run(own, in_context())
    assert sorted(t.shape for t in _initializers(shared, "templates.codes")) == [(32, 3), (32, 3, 3)]
    assert sorted(t.shape for t in _initializers(own, "templates.codes")) == [(32, 3), *[(32, 3, 3)] * 3]
    (value,) = (v for n, v in shared.graph.initializers.items() if "templates" in n and v.shape == ir.Shape([32, 3, 3]))
    assert [node.op_type for node, _ in value.uses()] == ["Cast"]
    gathers = [n for n in shared.graph if n.op_type == "Gather"]
    assert len(gathers) == 4 and len({n.inputs[0] for n in gathers}) == 2


def test_layers_that_are_left_alone_have_no_say_in_the_templates(net: ir.Model, in_context: InContext) -> None:
    alone, both = net.clone(), net.clone()
    Cluster(bits=4).run(alone, in_context(exclude=("grouped", "deep", "line")))
    Cluster(bits=4).run(both, in_context())
    own = net.clone()
    Cluster(bits=4, scope="layer").run(own, in_context(exclude=("grouped", "deep", "line")))
    tables = [_initializers(m, "strided.templates.codes")[0] for m in (alone, both, own)]
    np.testing.assert_array_equal(tables[0], tables[2])
    assert (tables[0] != tables[1]).any()


def test_data_bring_the_outputs_closer(net: ir.Model) -> None:
    """Most where they choose the templates, too."""
    data, judge = _inputs(), _inputs(16, 7)
    specs = ("bits=4", "bits=4,assignment=correlation", "bits=4,fit=weights")
    found = [_sqnr(_run(net, f"cluster({spec})", data=data, eval=judge)) for spec in specs]
    assert found[0] > found[1] + 0.3 and found[1] > found[2] + 0.5, found


def test_data_help_a_trained_model() -> None:
    models = Path(__file__).parents[2] / "models"
    data, judge = (np.load(models / f"digits_{name}.npz") for name in ("calibration", "eval"))
    some, labelled = {n: data[n][:16] for n in data.files if n != "labels"}, {n: judge[n][:64] for n in judge.files}
    found: list[Result] = []
    for fit in ("auto", "weights"):
        spec = f"cluster(bits=6,fit={fit})"
        found.append(onnxcomp.optimize(models / "digits_resnet.onnx", spec, data=some, eval=labelled, objective="size"))
    assert _sqnr(found[0]) > _sqnr(found[1]) + 1
    quality, before = found[0].report.after.quality, found[0].report.before.quality
    assert quality is not None and before is not None and quality.top1 is not None and before.top1 is not None
    assert quality.top1 > before.top1 - 0.05
    assert found[0].report.after.bytes < found[0].report.before.bytes / 4


def test_the_same_run_and_a_replay_give_the_same_bytes(net: ir.Model) -> None:
    own = (Override("grouped", {"bits": 5, "coefficients": "fp16"}), Override("line", None))
    options: dict[str, Any] = {"data": _inputs(16), "overrides": [own], "exclude": ["dee*"]}
    first, second = (_run(net, "cluster(bits=4)", **options) for _ in range(2))
    texts = [ir.to_proto(r.model).SerializeToString(deterministic=True) for r in (first, second)]
    assert texts[0] == texts[1]
    again = _run(net, "cluster(bits=4)", replay=first.report.choices, **options)
    graphs = [ir.to_proto(r.model).graph.SerializeToString(deterministic=True) for r in (first, again)]
    assert graphs[0] == graphs[1]
    (step,) = first.report.steps
    chosen = {c.site: (c.choice["bits"], c.choice["coefficients"]) for c in step.report.changes}
    assert chosen == {"strided": (4, "int8"), "grouped": (5, "fp16")}
    reasons = {s.site: s.reason for s in step.report.skips}
    assert reasons["line"] == "left alone by the recipe" and reasons["deep"] == "excluded by the user"


def test_int8_behind_computes_on_integers(net: ir.Model) -> None:
    result = _run(net, "cluster(bits=5),int8", data=_inputs(), objective="macs")
    convolutions = [fate for fate in result.report.fates if fate.op_type == "Conv"]
    assert len(convolutions) == 5 and all(fate.integer for fate in convolutions)
    assert _sqnr(result) > _sqnr(_run(net, "cluster(bits=5)", data=_inputs())) - 2


@pytest.mark.parametrize("behind", ["int4", "palettize"])
def test_what_stores_weights_does_so_once(net: ir.Model, behind: str) -> None:
    result = _run(net, f"cluster(bits=5),{behind}")
    first, second = result.report.steps
    stored = {c.site for c in first.report.changes}
    reasons = {s.site: s.reason for s in second.report.skips}
    assert stored == STORED and not stored & {c.site for c in second.report.changes}
    assert all("cluster" in reasons[site] for site in stored)


def test_a_fixed_batch_and_one_of_any_size(net: ir.Model) -> None:
    model = _run(net, "cluster(bits=5)").model
    for count in (1, 3):
        assert run(open_session(model), dict(_inputs(count)))[0].shape == (count, 10)


def test_milder_settings() -> None:
    setting: Setting | None = Setting((10,), "int4")
    seen: list[tuple[int, str]] = []
    while setting is not None:
        seen.append((setting.ranks[0], setting.order))
        setting = Cluster().milder(setting)
    assert seen == [(10, "int4"), (10, "int8"), (10, "fp16"), (11, "fp16"), (12, "fp16")]


# Refusals.


def test_a_few_kernels_of_a_size_are_not_worth_templates(net: ir.Model, in_context: InContext) -> None:
    """512 templates of three weights are less than 1,024 kernels, those of nine more than 48 in all."""
    report = Cluster(bits=9).run(net, in_context(exclude=("strided", "grouped")))
    assert [c.site for c in report.changes] == ["line"]
    (reason,) = (s.reason for s in report.skips if s.site == "deep")
    assert reason == "templates of 3x3 would take more than the model's few kernels of that size save"


def test_sites_that_stay_say_why(net: ir.Model, in_context: InContext) -> None:
    weight = net.graph.initializers["wb"].const_value
    assert weight is not None
    zeros = weight.numpy().copy()
    zeros[:, :8] = 0.0
    net.graph.initializers["wb"].const_value = ir.tensor(zeros, name="wb")
    bad = np.full(SHAPES["we"], np.nan, np.float32)
    net.graph.initializers["we"].const_value = ir.tensor(bad, name="we")
    report = Cluster(scope="layer").run(net, in_context())
    reasons = {s.site: s.reason for s in report.skips}
    assert reasons["point"] == "kernels of 1x1 have no shape to share"
    assert reasons["grouped"] == "its zeros would be lost; use palettize, or leave sparsity out"
    assert reasons["deep"].startswith("too few weights (432): ") and reasons["deep"].endswith(" bytes in codes")
    assert reasons["line"] == "the weight holds NaN or Inf"
    assert [c.site for c in report.changes] == ["strided"]


@pytest.mark.parametrize("options", [{"bits": 0}, {"bits": 13}, {"coefficients": "int2"}, {"scope": "all"}])
def test_options_have_ranges(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        replace_options(Cluster(), options)


def test_data_are_needed_where_they_are_asked_for(net: ir.Model) -> None:
    with pytest.raises(DataError, match=r"cluster\(fit=data\) needs calibration data: give --data, or use fit=auto"):
        _run(net, "cluster(fit=data)")


@pytest.mark.parametrize("target", ["tensorrt", "coreml"])
def test_targets_that_do_not_decode_at_load_are_refused(net: ir.Model, target: str) -> None:
    with pytest.raises(InputError, match=f"cluster: {target} does not decode stored weights when it loads a model"):
        _run(net, "cluster", target=target)
