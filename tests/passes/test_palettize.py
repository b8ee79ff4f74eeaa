"""palettize: what is stored, what the runtime makes of it, what the data gain, and what is refused."""

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
from onnxcomp.passes.palettize import Palettize
from onnxcomp.quantize.stored import evaluate_decoded
from onnxcomp.runtime.session import open_session, run

Parsed = Callable[..., ir.Model]
InContext = Callable[..., Context]
Array = NDArray[Any]

NET = """g (float[N,16,12,12] x) => (float[N,40] y) {
  [strided] a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, wa, ba) ra = Relu(a)
  [grouped] b = Conv<pads=[1,1,1,1], group=2>(ra, wb) rb = Relu(b)
  [deep] c = Conv<pads=[2,2,2,2], group=32>(rb, wc, bc) rc = Relu(c)
  [up] d = ConvTranspose<strides=[2,2], group=2>(rc, wd, bd) rd = Relu(d)
  p = GlobalAveragePool(rd) f = Flatten(p)
  [turned] g = Gemm<transB=1>(f, we, be) rg = Relu(g)
  [gemm] h = Gemm(rg, wf, bf) s = Reshape(h, shape)
  [line] i = Conv<pads=[1,1]>(s, wg) ri = Relu(i) fi = Flatten(ri)
  [product] y = MatMul(fi, wh) }"""
SHAPES = {
    "wa": (32, 16, 3, 3), "wb": (32, 16, 3, 3), "wc": (32, 1, 5, 5), "wd": (32, 8, 4, 4), "we": (64, 16),
    "wf": (64, 192), "wg": (16, 24, 3), "wh": (128, 40), "ba": (32,), "bc": (32,), "bd": (16,), "be": (64,),
    "bf": (192,),
}  # fmt: skip
LAYERS = ("strided", "grouped", "deep", "up", "turned", "gemm", "line", "product")


@pytest.fixture
def net(parsed: Parsed) -> ir.Model:
    """Every kind of layer; weights at random, biases small."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Array] = {}
    for name, shape in SHAPES.items():
        size = 0.1 if len(shape) == 1 else np.sqrt(2 / np.prod(shape[1:]))
        arrays[name] = (size * rng.standard_normal(shape)).astype(np.float32)
    return parsed(NET, **arrays, shape=np.array([0, 24, 8]))


def _inputs(count: int = 24, seed: int = 1) -> Mapping[str, Array]:
    """Smooth images, whose neighbouring channels are alike."""
    x = np.random.default_rng(seed).standard_normal((count, 16, 12, 12)).astype(np.float32)
    return {"x": (x + np.roll(x, 1, 1) + np.roll(x, 1, 2) + np.roll(x, 1, 3)).astype(np.float32)}


def _sqnr(result: Result) -> float:
    quality = result.report.after.quality
    assert quality is not None
    return min(quality.sqnr.values())


def _run(model: ir.Model | Path, passes: str, **options: Any) -> Result:
    given: dict[str, Any] = {"objective": "size"}
    return onnxcomp.optimize(model, passes, **(given | options))


def _weights(model: ir.Model) -> dict[str, ir.Value]:
    """What the operators of the layers, behind all that decodes, read as their weights."""
    kinds = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    found = {origin_of(n): n.inputs[1] for n in model.graph if n.op_type in kinds}
    return {name: value for name, value in found.items() if value is not None and name in LAYERS}


def _constants(model: ir.Model, site: str) -> dict[str, list[Array]]:
    """The constants of the nodes that stand for a layer, by role."""
    found: dict[str, list[Array]] = {}
    for node in model.graph:
        if origin_of(node) == site and node.name is not None:
            values = [v.const_value.numpy() for v in node.inputs if v is not None and v.const_value is not None]
            found[node.name.removeprefix(f"{site}.")] = values
    return found


def _decoded(model: ir.Model, site: str, bits: int, shape: tuple[int, ...]) -> Array:
    """The weight that the codes of a layer stand for, read with numpy alone."""
    constants = _constants(model, site)
    if "index" in constants and "index.shifted" not in constants:
        index = constants["index"][0].astype(np.int64)
    else:
        planes = constants["index.shifted"][0]  # (count / 8, 1, bits) of eight places each
        flat = sum(np.unpackbits(planes[:, 0, k], bitorder="little").astype(np.int64) << k for k in range(bits))
        index = np.asarray(flat).reshape(constants["index"][0])
    assert index.min() >= 0 and index.max() < 2**bits
    if "entry" in constants:
        index = index + constants["entry"][0]
    table = constants["table"][0]
    assert table.dtype == np.int8 and np.abs(table.astype(int)).max() <= 127
    weight = table[index].astype(np.float32) * constants["weight"][0]
    if table.ndim == 1:
        return np.asarray(weight.reshape(shape))
    rows = weight.reshape(len(weight), -1)
    return np.asarray(rows.T if site in ("turned", "gemm", "product") else rows.reshape(shape))


# Bits, vector and what shares a table: every width of an index, every length of a vector.
FORMS = [
    *((1, 1, "tensor"), (7, 1, "tensor"), (8, 1, "tensor"), (2, 1, "channel"), (3, 1, "group"), (5, 1, "channel")),
    *((4, 2, "tensor"), (6, 3, "tensor"), (5, 5, "tensor"), (3, 8, "tensor"), (6, 9, "tensor")),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form)))
def test_the_runtime_decodes_what_was_stored(net: ir.Model, in_context: InContext, form: tuple[int, int, str]) -> None:
    original = net.clone()
    options = replace_options(Palettize(), dict(zip(("bits", "vector", "per"), form, strict=True)))
    assert isinstance(options, Palettize)
    report = options.run(net, in_context())
    onnx.checker.check_model(ir.to_proto(net), full_check=True)
    assert {c.site for c in report.changes} | {s.site for s in report.skips} == set(LAYERS)
    assert len(report.changes) >= (7 if options.per == "tensor" else 6)
    values = _weights(net)
    dense = original.clone()
    for change in report.changes:
        assert change.choice["bits"] == options.bits and change.choice["per"] == options.per
        (node,) = (n for n in dense.graph if n.name == change.site)
        (decoded,) = evaluate_decoded(net, [values[change.site]])
        wanted = _decoded(net, change.site, options.bits, decoded.shape)
        np.testing.assert_array_equal(decoded, wanted)
        weight = node.inputs[1]
        assert weight is not None
        turned = wanted.T if weight.shape != ir.Shape(wanted.shape) else wanted  # Gemm of transB is stored without
        weight.const_value = ir.tensor(np.ascontiguousarray(turned), name=weight.name)
        assert change.after.bytes < change.before.bytes and change.after.macs == change.before.macs
    feed = dict(_inputs(2))
    got, want = (run(open_session(m, optimize="off"), feed)[0] for m in (net, dense))
    np.testing.assert_allclose(got, want, atol=1e-5)


# The type of stored indices, and the opset that it takes. A layer whose planes are no smaller has none.
TYPES = {
    1: (ml_dtypes.uint2, 25),
    2: (ml_dtypes.uint2, 25),
    3: (ml_dtypes.uint4, 21),
    4: (ml_dtypes.uint4, 21),
    5: (np.uint8, 21),
    8: (np.uint8, 17),
}


@pytest.mark.parametrize("bits", TYPES)
def test_indices_have_the_smallest_type_and_the_opset_follows(net: ir.Model, in_context: InContext, bits: int) -> None:
    report = Palettize(bits=bits).run(net, in_context())
    dtype, opset = TYPES[bits]
    assert _constants(net, "turned")["index"][0].dtype == dtype
    assert net.opset_imports[""] == opset
    raised = (f"opset raised from 17 to {opset}, which has the types of the stored weights",)
    assert report.notes == (raised if opset > 17 else ())


def test_planes_are_for_large_weights(net: ir.Model, in_context: InContext) -> None:
    """3 bits in planes are three quarters of what they take in 4, but for the nodes that put them together."""
    Palettize(bits=3).run(net, in_context())
    shifted = {site for site in LAYERS if "index.shifted" in _constants(net, site)}
    assert shifted == {"strided", "grouped", "up", "gemm", "product"}
    assert _constants(net, "gemm")["index.shifted"][0].nbytes == 3 * 64 * 192 // 8
    assert _constants(net, "turned")["index"][0].dtype == ml_dtypes.uint4


def test_the_opset_of_a_model_that_has_the_types_stays(parsed: Parsed, in_context: InContext) -> None:
    rng = np.random.default_rng(0)
    text = "g (float[N,16,8,8] x) => (float[N,32,a,b] y) { [only] y = Conv(x, w) }"
    w = rng.standard_normal((32, 16, 3, 3)).astype(np.float32)
    for opset, bits in ((21, 4), (22, 8), (25, 2)):
        model = parsed(text, opset=opset, w=w)
        report = Palettize(bits=bits).run(model, in_context())
        assert report.changes and report.notes == () and model.opset_imports[""] == opset
    small = parsed(text.replace("32", "2"), w=w[:2, :, :2, :2])
    report = Palettize(bits=8).run(small, in_context())
    assert not report.changes and report.notes == () and small.opset_imports[""] == 17  # nothing was stored
    own = (Override("only", {"bits": 2}),)
    model = parsed(text, w=w)
    Palettize().run(model, in_context(overrides=own))
    assert model.opset_imports[""] == 25


@pytest.mark.parametrize("spec", ["palettize(bits=3)", "palettize(bits=8,vector=4)", "palettize(per=group)"])
def test_decoders_are_gone_when_the_runtime_has_loaded(net: ir.Model, tmp_path: Path, spec: str) -> None:
    result = _run(net, spec)
    plain, coded = tmp_path / "plain.onnx", tmp_path / "coded.onnx"
    open_session(_run(net, "fold").model, dump=plain)
    open_session(result.model, dump=coded)
    before, after = ([n.op_type for n in onnx.load(p).graph.node] for p in (plain, coded))
    assert after == before


def test_the_file_is_as_small_as_was_said(net: ir.Model, tmp_path: Path) -> None:
    """8 bits for 4 weights and 4 bits for one, of which the rest of the file is no part."""
    sizes: dict[str, int] = {}
    for spec in ("palettize(bits=8)", "palettize", "palettize(bits=2)"):
        result = _run(net, spec)
        path = tmp_path / "m.onnx"
        result.save(path)
        onnx.checker.check_model(str(path), full_check=True)
        assert path.stat().st_size == result.report.after.bytes
        sizes[spec] = result.report.after.bytes
        (step,) = result.report.steps
        assert step.kept and {c.site for c in step.report.changes} == set(LAYERS)
    weights = sum(int(np.prod(s)) for name, s in SHAPES.items() if name.startswith("w"))
    eight, four, two = sizes.values()
    assert eight - four == pytest.approx(weights / 2 + 8 * 240, abs=200)  # 256 entries become 16
    assert four - two == pytest.approx(weights / 4 + 8 * 12, abs=200)


def test_data_bring_the_outputs_closer(net: ir.Model) -> None:
    data, judge = _inputs(), _inputs(16, 7)
    for spec in ("palettize(bits=2,fit=auto)", "palettize(bits=6,vector=4,fit=auto)"):
        blind = _sqnr(_run(net, spec.replace("auto", "weights"), data=data, eval=judge))
        fitted = _sqnr(_run(net, spec, data=data, eval=judge))
        assert fitted > blind + 2, spec


def test_data_help_a_trained_model() -> None:
    models = Path(__file__).parents[2] / "models"
    data, judge = (np.load(models / f"digits_{name}.npz") for name in ("calibration", "eval"))
    some, labelled = {n: data[n][:16] for n in data.files if n != "labels"}, {n: judge[n][:64] for n in judge.files}
    found: list[Result] = []
    for fit in ("auto", "weights"):
        spec = f"palettize(bits=2,fit={fit})"
        found.append(_run(models / "digits_resnet.onnx", spec, data=some, eval=labelled))
    assert _sqnr(found[0]) > _sqnr(found[1]) + 4
    quality, before = found[0].report.after.quality, found[0].report.before.quality
    assert quality is not None and before is not None and quality.top1 is not None and before.top1 is not None
    assert quality.top1 > before.top1 - 0.03
    assert found[0].report.after.bytes < found[0].report.before.bytes / 5


def test_the_same_run_and_a_replay_give_the_same_bytes(net: ir.Model) -> None:
    own = (Override("grouped", {"bits": 3}), Override("MatMul", {"vector": 2}))
    options: dict[str, Any] = {"data": _inputs(16), "overrides": [own], "exclude": ["gemm"]}
    first = _run(net, "palettize", **options)
    texts = [ir.to_proto(_run(net, "palettize", **options).model).SerializeToString(deterministic=True)]
    texts.append(ir.to_proto(first.model).SerializeToString(deterministic=True))
    assert texts[0] == texts[1]
    again = _run(net, "palettize", replay=first.report.choices, **options)
    graphs = [ir.to_proto(r.model).graph.SerializeToString(deterministic=True) for r in (first, again)]
    assert graphs[0] == graphs[1]


def test_layers_of_their_own(net: ir.Model) -> None:
    own = (Override("grouped", {"bits": 3}), Override("MatMul", {"vector": 2, "bits": 8}), Override("deep", None))
    (step,) = _run(net, "palettize", overrides=[own], exclude=["g*m"]).report.steps
    chosen = {c.site: (c.choice["bits"], c.choice["vector"]) for c in step.report.changes}
    assert chosen["grouped"] == (3, 1) and chosen["product"] == (8, 2) and chosen["strided"] == (4, 1)
    reasons = {s.site: s.reason for s in step.report.skips}
    assert reasons == {"deep": "left alone by the recipe", "gemm": "excluded by the user"}


def test_int8_behind_computes_on_integers(net: ir.Model) -> None:
    data = _inputs()
    result = _run(net, "palettize(bits=5),int8", data=data, objective="macs")
    convolutions = [fate for fate in result.report.fates if fate.op_type == "Conv"]
    assert len(convolutions) == 4 and all(fate.integer for fate in convolutions)
    assert result.report.after.bytes < _run(net, "int8", objective="macs").report.after.bytes


@pytest.mark.parametrize("behind", ["int4", "cluster", "pow2"])
def test_what_stores_weights_does_so_once(net: ir.Model, behind: str) -> None:
    result = _run(net, f"palettize,{behind}")
    stored = {c.site for c in result.report.steps[0].report.changes}
    reasons = {s.site: s.reason for s in result.report.steps[1].report.skips}
    assert stored and not result.report.steps[1].report.changes
    assert all("palettize" in reason for site, reason in reasons.items() if site in stored)
    assert any("palettize" in warning for warning in result.report.warnings)


def test_pruned_weights_keep_their_zeros(net: ir.Model) -> None:
    data = _inputs()
    result = _run(net, "sparsity(amount=0.75),palettize(bits=4)", data=data)
    found = _weights(result.model)
    for name, weight in zip(found, evaluate_decoded(result.model, list(found.values())), strict=True):
        assert np.mean(weight == 0.0) >= 0.74, name
    assert result.report.after.bytes < _run(net, "palettize(bits=4)").report.after.bytes
    (_, step) = _run(net, "sparsity(amount=0.75),palettize(bits=8,vector=4)", data=data).report.steps
    assert all("its zeros would be lost in vectors" in s.reason for s in step.report.skips if s.site != "up")


def test_a_budget_takes_milder_options(net: ir.Model) -> None:
    data = _inputs()
    without = _run(net, "palettize(bits=2)", data=data)
    limit = _sqnr(without) + 2
    result = _run(net, "palettize(bits=2)", data=data, min_sqnr=limit)
    assert result.report.failures == () and _sqnr(result) >= limit
    (step,) = result.report.steps
    assert {c.choice["bits"] for c in step.report.changes} == {2, 3}  # some have more bits, none is given back
    assert {c.site for c in step.report.changes} == set(LAYERS)


# Refusals.


def test_vectors_share_one_table() -> None:
    for per in ("group", "channel"):
        with pytest.raises(OptionError, match=f"palettize: vector=2 and per={per} exclude each other; give one"):
            replace_options(Palettize(), {"vector": 2, "per": per})


@pytest.mark.parametrize("options", [{"bits": 0}, {"bits": 9}, {"vector": 0}, {"vector": 65}, {"per": "row"}])
def test_options_have_ranges(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        replace_options(Palettize(), options)


def test_data_are_needed_where_they_are_asked_for(net: ir.Model) -> None:
    with pytest.raises(DataError, match=r"palettize\(fit=data\) needs calibration data: give --data, or use fit=auto"):
        _run(net, "palettize(fit=data)")


@pytest.mark.parametrize("target", ["tensorrt", "coreml"])
def test_targets_that_do_not_decode_at_load_are_refused(net: ir.Model, target: str) -> None:
    with pytest.raises(InputError, match=f"palettize: {target} does not decode stored weights when it loads a model"):
        _run(net, "palettize", target=target)


def test_sites_that_stay_say_why(parsed: Parsed, in_context: InContext) -> None:
    rng = np.random.default_rng(0)
    text = """g (float[N,16,8,8] x) => (float[N,8,8,8] y) {
      [bad] a = Conv(x, wa) [small] b = Conv(a, wb)
      [up] y = ConvTranspose<pads=[1,1,1,1]>(b, wc) }"""
    arrays = {"wa": (16, 16, 3, 3), "wb": (8, 16, 1, 1), "wc": (8, 8, 5, 5)}
    made = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in arrays.items()}
    made["wa"][0, 0, 0, 0] = np.nan
    model = parsed(text, **made)
    report = Palettize(bits=8, vector=2).run(model, in_context())
    reasons = {s.site: s.reason for s in report.skips}
    assert not report.changes and model.opset_imports[""] == 17
    assert reasons["bad"] == "the weight holds NaN or Inf"
    assert reasons["small"].startswith("too few weights (128): ") and reasons["small"].endswith(" bytes in codes")
    assert reasons["up"] == "vectors of a ConvTranspose would cross channels; give vector=1"


def test_milder_settings_end_at_eight_bits() -> None:
    setting: Setting | None = Setting((6, 9), "tensor")
    seen: list[tuple[int, ...]] = []
    while setting is not None:
        seen.append(setting.ranks)
        setting = Palettize().milder(setting)
    assert seen == [(6, 9), (6, 3), (6, 1), (7, 1), (8, 1)]
