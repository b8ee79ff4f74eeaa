from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from onnxcomp import modelio
from onnxcomp.contract import Context, PassReport
from onnxcomp.data import synthetic_feeds
from onnxcomp.passes.fp16 import Fp16
from onnxcomp.runtime.session import open_session
from onnxcomp.verify import check_outputs, check_structure

Parsed = Callable[..., ir.Model]
InContext = Callable[..., Context]

NET = """g (float[N,8,8,8] x) => (float[N,16,8,8] y, float[N,16,16,16] big) {
    [one] a = Conv<pads=[1,1,1,1]>(x, w, b) [act] y = Relu(a)
    [two] c = Conv<pads=[1,1,1,1]>(y, v) [up] big = Resize<mode="nearest">(c, , s)
}"""


def _w(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def net(parsed: Parsed) -> ir.Model:
    scales = np.array([1, 1, 2, 2], np.float32)
    return parsed(NET, w=_w(16, 8, 3, 3), b=_w(16), v=_w(16, 16, 3, 3), s=scales)


def _run(scope: Any, model: ir.Model, context: Context) -> PassReport:
    """Run the pass and check what the compiler would."""
    before = model.clone()
    report = Fp16(scope=scope).run(model, context)
    check_structure(model, before)
    check_outputs(model, before, synthetic_feeds(before, 0).first(1))
    return report


def _stored(model: ir.Model, path: Path) -> dict[str, tuple[int, int]]:
    """Type and bytes of every initializer in the file."""
    modelio.save(model, path)
    return {t.name: (t.data_type, len(t.raw_data)) for t in onnx.load(path).graph.initializer}


def test_weights_are_halved_and_folded_at_load(net: ir.Model, in_context: InContext, tmp_path: Path) -> None:
    open_session(net, dump=tmp_path / "before.onnx")
    report = _run("weights", net, in_context())
    assert [c.site for c in report.changes] == ["one", "two"]
    assert all(c.error is not None and c.error < 1e-6 and 2 * c.after.bytes == c.before.bytes for c in report.changes)
    stored = _stored(net, tmp_path / "m.onnx")
    assert stored["w.half"] == (TensorProto.FLOAT16, 2 * 16 * 8 * 9)
    assert stored["b"] == (TensorProto.FLOAT, 4 * 16)  # too small to gain
    assert net.opset_imports[""] == 17
    open_session(net, dump=tmp_path / "after.onnx")
    graphs = [onnx.load(tmp_path / f"{which}.onnx").graph for which in ("before", "after")]
    assert [n.op_type for n in graphs[0].node] == [n.op_type for n in graphs[1].node]


def test_the_whole_model(net: ir.Model, in_context: InContext, tmp_path: Path) -> None:
    report = _run("model", net, in_context())
    assert {c.site for c in report.changes} == {"one", "two"} and not report.skips
    assert [v.dtype for v in (*net.graph.inputs, *net.graph.outputs)] == [ir.DataType.FLOAT] * 3
    stored = _stored(net, tmp_path / "m.onnx")
    assert stored["w.half"][0] == stored["b.half"][0] == stored["v.half"][0] == TensorProto.FLOAT16
    assert stored["s"][0] == TensorProto.FLOAT  # the schema of Resize wants its scales so
    kinds = {node.name: node.outputs[0].dtype for node in net.graph if node.op_type != "Cast"}
    assert set(kinds.values()) == {ir.DataType.FLOAT16}
    # One Cast in; `y` is an output and is read by a half, `big` is an output.
    assert sum(node.op_type == "Cast" for node in net.graph) == 3


def test_weights_that_overflow_stay(parsed: Parsed, in_context: InContext) -> None:
    w = _w(16, 8, 3, 3)
    w[0, 0, 0, 0] = 70000.0
    model = parsed("g (float[N,8,8,8] x) => (float[N,16,h,k] y) { [c] y = Conv(x, w) }", w=w)
    for scope in ("weights", "model"):
        report = Fp16(scope=scope).run(model, in_context())
        [skip] = report.skips
        assert skip.site == "c" and skip.reason == "'w' reaches 7e+04, over 65504, the largest half"
        assert not report.changes
    w[0, 0, 0, 0] = np.nan
    model = parsed("g (float[N,8,8,8] x) => (float[N,16,h,k] y) { [c] y = Conv(x, w) }", w=w)
    assert Fp16().run(model, in_context()).skips[0].reason == "'w' holds NaN or Inf"


def test_activations_that_would_overflow_stay_float(parsed: Parsed, in_context: InContext) -> None:
    model = parsed(
        "g (float[N,8,8,8] x) => (float[N,8,8,8] y) "
        "{ [up] a = Mul(x, k) [down] b = Mul(a, d) [c] y = Conv<pads=[1,1,1,1]>(b, w) }",
        k=np.float32(60000.0),
        d=np.float32(1e-4),
        w=_w(8, 8, 3, 3),
    )
    feeds = synthetic_feeds(model, 0)
    report = _run("model", model, in_context(stand_in=feeds))
    assert {s.site for s in report.skips} == {"up", "down"}
    assert all("halves end at 65504" in s.reason for s in report.skips)
    assert [c.site for c in report.changes] == ["c"]


def test_operators_without_a_half_form_and_bodies_stay_float(parsed: Parsed, in_context: InContext) -> None:
    model = parsed(
        """g (float[N,4] x, bool c) => (float[N,4] y, float[m] r) {
        h = MatMul(x, w)
        [if] z = If(c) <then_branch = t () => (float[a,b] p) { p = Relu(h) },
                        else_branch = e () => (float[a,b] q) { q = Neg(h) }>
        y = MatMul(z, w) [range] r = Range(zero, three, one) }""",
        w=_w(4, 4),
        zero=np.float32(0),
        three=np.float32(3),
        one=np.float32(1),
    )
    before = model.clone()
    report = Fp16(scope="model").run(model, in_context())
    reasons = {s.site: s.reason for s in report.skips}
    assert reasons == {"if": "If has a body, which stays float", "range": "Range has no float16 form"}
    check_structure(model, before)
    for branch in (True, False):
        check_outputs(model, before, {"x": _w(2, 4), "c": np.array(branch)})


def test_a_shared_weight_is_stored_once(parsed: Parsed, in_context: InContext, tmp_path: Path) -> None:
    model = parsed("g (float[N,32] x) => (float[N,32] y) { [a] h = MatMul(x, w) [b] y = MatMul(h, w) }", w=_w(32, 32))
    for scope in ("weights", "model"):
        copy = model.clone()
        _run(scope, copy, in_context())
        assert _stored(copy, tmp_path / "m.onnx") == {"w.half": (TensorProto.FLOAT16, 2048)}


def test_what_is_refused(parsed: Parsed, in_context: InContext) -> None:
    graph = "g (float[N,32] x, float[32,32] w) => (float[N,32] y) { [a] y = MatMul(x, w) }"
    model = parsed(graph, w=_w(32, 32))
    assert [s.reason for s in Fp16().run(model, in_context()).skips] == ["'w' can be overridden by a graph input"]
    quantized = parsed(
        "g (float[N,8] x) => (float[N,8] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
        s=np.float32(0.1),
        z=np.uint8(128),
    )
    report = Fp16(scope="model").run(quantized, in_context())
    assert not report.changes and {s.reason for s in report.skips} == {"already quantized"}


def test_excluded_layers(net: ir.Model, in_context: InContext) -> None:
    for scope in ("weights", "model"):
        copy = net.clone()
        report = _run(scope, copy, in_context(exclude=("two",)))
        assert [s.reason for s in report.skips] == ["excluded by the user"]
        assert "two" not in {c.site for c in report.changes}
