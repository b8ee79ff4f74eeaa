"""int4, int3, ternary, binary and pow2: what they share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp import modelio
from onnxcomp.contract import Change, Context, Override
from onnxcomp.data import Feeds, synthetic_feeds
from onnxcomp.errors import InputError
from onnxcomp.evaluate import evaluate
from onnxcomp.passes.binary import Binary
from onnxcomp.passes.int3 import Int3
from onnxcomp.passes.int4 import Int4
from onnxcomp.passes.pow2 import Pow2
from onnxcomp.passes.ternary import Ternary
from onnxcomp.quantize.weightonly import WeightOnly
from onnxcomp.runtime.session import open_session
from onnxcomp.targets.target import load_target

Parsed = Callable[..., ir.Model]
InContext = Callable[..., Context]

NET = """g (float[N,8,8,8] x) => (float[N,12] y) {
    [first] a = Conv<pads=[1,1,1,1]>(x, w, b) ra = Relu(a)
    [middle] c = Conv<pads=[1,1,1,1]>(ra, v, vb) rc = Relu(c)
    [deep] d = Conv<pads=[1,1,1,1], group=2>(rc, u) rd = Relu(d)
    p = GlobalAveragePool(rd) f = Flatten(p) [last] y = Gemm<transB=1>(f, m, mb)
}"""
PASSES: dict[str, WeightOnly] = {
    "int4": Int4(),
    "int4 blocks": Int4(block=32),
    "int3": Int3(),
    "ternary": Ternary(),
    "binary": Binary(),
    "pow2": Pow2(),
    "pow2 of 5 bits": Pow2(bits=5),
}
# Bytes of the codes of the weight `v` (32 x 32 x 3 x 3), and the opset that their type needs.
STORED = {
    "int4": (4608, 21),
    "int4 blocks": (4608, 21),
    "int3": (3456, 21),
    "ternary": (2304, 25),
    "binary": (1152, 21),
    "pow2": (4608, 21),
    "pow2 of 5 bits": (9216, 21),
}


def _arrays() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    shapes = {"w": (32, 8, 3, 3), "b": (32,), "v": (32, 32, 3, 3), "vb": (32,), "u": (32, 16, 3, 3), "m": (12, 32)}
    arrays = {n: (rng.standard_normal(s) / np.sqrt(np.prod(s[1:]))).astype(np.float32) for n, s in shapes.items()}
    return {**arrays, "mb": np.zeros(12, np.float32)}


@pytest.fixture
def net(parsed: Parsed) -> ir.Model:
    return parsed(NET, **_arrays())


def _data(model: ir.Model) -> Feeds:
    return synthetic_feeds(model, 0)


def _sqnr(model: ir.Model, original: ir.Model) -> float:
    return evaluate(model, _data(original), original).sqnr["y"]


@pytest.mark.parametrize("name", PASSES)
def test_the_file_shrinks_to_the_bits_asked_for(
    net: ir.Model, in_context: InContext, tmp_path: Path, name: str
) -> None:
    report = PASSES[name].run(net, in_context())
    modelio.save(net, tmp_path / "m.onnx")
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    proto = onnx.load(tmp_path / "m.onnx")
    size, opset = STORED[name]
    assert max(len(t.raw_data) for t in proto.graph.initializer if t.name.startswith("middle.")) == size
    assert not any(len(t.int32_data) or len(t.float_data) for t in proto.graph.initializer)
    assert proto.opset_import[0].version == opset
    assert report.notes == (f"opset raised from 17 to {opset}, which has the types of the stored weights",)
    changed = {c.site for c in report.changes}
    assert changed == {"first", "middle", "deep", "last"} - {s.site for s in report.skips}
    assert {"first", "middle", "deep"} <= changed
    for change in report.changes:
        assert change.after.bytes < change.before.bytes and change.after.macs == change.before.macs


@pytest.mark.parametrize("name", PASSES)
def test_the_runtime_folds_all_of_it_at_load(net: ir.Model, in_context: InContext, tmp_path: Path, name: str) -> None:
    plain = tmp_path / "plain.onnx"
    open_session(net, dump=plain)
    PASSES[name].run(net, in_context())
    open_session(net, dump=tmp_path / "low.onnx")
    before, after = ([n.op_type for n in onnx.load(p).graph.node] for p in (plain, tmp_path / "low.onnx"))
    assert [op.replace("MatMulNBits", "Gemm") for op in after] == before
    assert ("MatMulNBits" in after) == (not name.startswith("pow2"))


@pytest.mark.parametrize(("name", "floor"), [("int4", 15), ("int3", 10), ("ternary", 5), ("binary", 2), ("pow2", 13)])
def test_data_bring_the_outputs_closer(net: ir.Model, in_context: InContext, name: str, floor: float) -> None:
    original, blind = net.clone(), net.clone()
    PASSES[name].run(blind, in_context())
    report = PASSES[name].run(net, in_context(data=_data(original)))
    fitted = _sqnr(net, original)
    assert fitted > _sqnr(blind, original) + 2
    assert fitted > floor
    assert all(c.error is not None and 0 < c.error < 1 for c in report.changes)


def test_more_bits_and_shorter_blocks_err_less(net: ir.Model, in_context: InContext) -> None:
    original = net.clone()
    passes = [
        Int4(block=16, rounding="nearest"),
        Int4(rounding="nearest"),
        Int3(first_last="quantize", rounding="nearest"),
        Ternary(first_last="quantize", rounding="nearest"),
    ]
    found = []
    for item in passes:
        model = original.clone()
        item.run(model, in_context())
        found.append(_sqnr(model, original))
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("name", PASSES)
def test_two_runs_give_the_same_bytes(net: ir.Model, in_context: InContext, name: str) -> None:
    twin, data = net.clone(), _data(net)
    for model in (net, twin):
        PASSES[name].run(model, in_context(data=data))
    assert modelio.to_bytes(net) == modelio.to_bytes(twin)


def test_a_replayed_run_gives_the_same_bytes(net: ir.Model, in_context: InContext) -> None:
    twin, data = net.clone(), _data(net)
    report = Int3().run(net, in_context(data=data, overrides=(Override("deep", None),)))
    choices = {c.site: c.choice for c in report.changes}
    assert set(choices) == {"first", "middle", "last"}
    Int3().run(twin, in_context(data=data, replay=choices))
    assert modelio.to_bytes(net) == modelio.to_bytes(twin)


def test_first_and_last_layer(net: ir.Model, in_context: InContext) -> None:
    for item, levels in (
        (Int3(), {"first": 255, "middle": 8, "last": 255}),
        (Int3(first_last="quantize"), {"first": 8, "middle": 8, "last": 8}),
        (Int3(first_last="keep"), {"middle": 8}),
        (Int4(), {"first": 15, "middle": 15, "last": 15}),
        (Int4(first_last="int8"), {"first": 255, "middle": 15, "last": 255}),
        (Pow2(bits=3), {"first": 255, "middle": 7, "last": 255}),
        (Binary(), {"first": 255, "middle": 2, "last": 255}),
    ):
        report = item.run(net.clone(), in_context())
        found = {c.site: int(c.summary.split()[0]) for c in report.changes if c.site != "deep"}
        assert found == levels
        left = {(s.site, s.reason) for s in report.skips}
        kept = {(end, f"the {end} layer stays float: first_last=keep") for end in ("first", "last")}
        assert left == (set() if "first" in levels else kept)


def test_a_layer_of_its_own_options(net: ir.Model, in_context: InContext) -> None:
    report = Int4().run(net, in_context(overrides=(Override("middle", {"block": 16}), Override("Gemm", None))))
    summaries = {c.site: c.summary for c in report.changes}
    assert summaries["middle"] == "15 levels, blocks of 16"
    assert summaries["deep"] == "15 levels, a scale an output channel"
    assert [(s.site, s.reason) for s in report.skips] == [("last", "left alone by the recipe")]


@pytest.mark.parametrize(
    ("graph", "arrays", "reason"),
    [
        (
            "g (float[N,8,6,6] x) => (float[N,8,h,w] y) { [c] a = Conv(x, w) [d] y = Conv(a, w) }",
            {"w": (8, 8, 3, 3)},
            "the weight is shared with",
        ),
        ("g (float[N,4,6,6] x) => (float[N,2,h,w] y) { [c] y = Conv(x, w) }", {"w": (2, 4, 2, 2)}, "too few weights"),
        (
            "g (float[64,9] x) => (float[64,9] y) { [c] y = MatMul(w, x) }",
            {"w": (64, 64)},
            "its left operand is the constant",
        ),
        (
            "g (float[64,9] x) => (float[9,64] y) { [c] y = Gemm<transA=1>(x, w) }",
            {"w": (64, 64)},
            "its left operand is transposed",
        ),
    ],
)
def test_what_is_left_alone(
    parsed: Parsed, in_context: InContext, graph: str, arrays: dict[str, tuple[int, ...]], reason: str
) -> None:
    model = parsed(graph, **{n: np.ones(s, np.float32) for n, s in arrays.items()})
    before = modelio.to_bytes(model)
    report = Int4().run(model, in_context())
    assert not report.changes and not report.notes
    assert report.skips and all(reason in s.reason for s in report.skips)
    assert modelio.to_bytes(model) == before  # the opset too


def test_a_product_of_two_activations_is_no_site(parsed: Parsed, in_context: InContext) -> None:
    model = parsed("g (float[N,4,4] x) => (float[N,4,4] y) { y = MatMul(x, x) }")
    report = Int4().run(model, in_context())
    assert not report.changes and not report.skips


def test_an_opset_that_cannot_be_raised(net: ir.Model, in_context: InContext) -> None:
    source = ir.Value(name="a")
    node = ir.node("Identity", [source])
    graph = ir.Graph([source], list(node.outputs), nodes=[node], opset_imports={"": 17}, name="f")
    net.functions[("local", "f", "")] = ir.Function("local", "f", "", graph=graph, attributes=[])
    report = Int4().run(net, in_context())
    assert not report.changes
    assert {s.reason for s in report.skips} == {"the model's opset 17 stays: functions cannot be converted"}


def test_calls_that_make_no_sense(net: ir.Model, in_context: InContext) -> None:
    with pytest.raises(InputError, match=r"int4\(rounding=gram\) needs calibration data"):
        Int4(rounding="gram").requires(net, in_context())
    with pytest.raises(InputError, match="TensorRT has no Cast of packed weights"):
        Ternary().requires(net, in_context(target=load_target("tensorrt")))


def test_gemm_alpha_beta_and_a_bias_that_is_broadcast(parsed: Parsed, in_context: InContext, outputs_of: Any) -> None:
    model = parsed(
        "g (float[N,32] x) => (float[N,16] y) { [c] y = Gemm<alpha=0.5, beta=2.0, transB=1>(x, w, b) }",
        w=np.random.default_rng(0).integers(-7, 8, (16, 32)).astype(np.float32),
        b=np.full((1,), 3.0, np.float32),
    )
    feed = {"x": np.random.default_rng(1).standard_normal((4, 32)).astype(np.float32)}
    before = outputs_of(model, feed)["y"]
    report = Int4(rounding="nearest").run(model, in_context())
    assert [c.error for c in report.changes] == [pytest.approx(0, abs=1e-4)]
    np.testing.assert_allclose(outputs_of(model, feed)["y"], before, rtol=2e-2, atol=0.3)


def test_a_transformer_block_of_matrix_products(parsed: Parsed, in_context: InContext) -> None:
    rng = np.random.default_rng(0)
    arrays = {n: (rng.standard_normal((64, 64)) / 8).astype(np.float32) for n in ("q", "k", "o")}
    model = parsed(
        """g (float[N,10,64] x) => (float[N,10,64] y) {
        [query] a = MatMul(x, q) [key] b = MatMul(x, k) t = Transpose<perm=[0,2,1]>(b)
        [scores] s = MatMul(a, t) r = Relu(s) [values] v = MatMul(r, x) [out] y = MatMul(v, o) }""",
        **arrays,
    )
    original, data = model.clone(), _data(model)
    report = Int4().run(model, in_context(data=data))
    assert {c.site for c in report.changes} == {"query", "key", "out"}
    assert all(isinstance(c, Change) and c.after.macs == 64 * 64 * 10 for c in report.changes)
    assert evaluate(model, data, original).sqnr["y"] > 12


def test_inputs_that_never_change_keep_their_weights(parsed: Parsed, in_context: InContext) -> None:
    """A dead channel before a depthwise convolution; its weights are rounded all the same, and nothing is NaN."""
    rng = np.random.default_rng(0)
    scale = np.ones((8, 1, 1), np.float32)
    scale[3] = 0.0
    model = parsed(
        """g (float[N,8,8,8] x) => (float[N,64,h,k] y) {
        m = Mul(x, d) [depth] a = Conv<group=8>(m, w) [point] y = Conv(a, v) }""",
        d=scale,
        w=rng.standard_normal((64, 1, 3, 3)).astype(np.float32),
        v=rng.standard_normal((64, 64, 1, 1)).astype(np.float32) / 8,
    )
    data = _data(model)
    report = Int4().run(model, in_context(data=data))
    assert {c.site for c in report.changes} == {"depth", "point"}
    assert all(c.error is not None and 0 < c.error < 0.1 for c in report.changes)
    codes = model.graph.initializers["depth.codes.codes"].const_value
    assert codes is not None and np.abs(codes.numpy().astype(np.float32)).reshape(64, 9).max(axis=1).min() > 0
