"""prune on many architectures: channels that are nothing go for nothing, and what it does not understand stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import onnxcomp
from onnxcomp.contract import Context
from onnxcomp.data import open_feeds
from onnxcomp.graph.groups import find_groups
from onnxcomp.passes.prune import Prune
from onnxcomp.pipeline import Step

Parsed = Callable[..., ir.Model]
InContext = Callable[..., Context]
OutputsOf = Callable[..., dict[str, NDArray[Any]]]
Arrays = Mapping[str, NDArray[Any]]

C3 = "Conv<pads=[1,1,1,1]>"
HALF = "<kernel_shape=[2,2],strides=[2,2]>"
# Name: body, shapes of random constants, given constants. x is (N, 4, 8, 8); groups have 8 or 4 channels.
MODELS: dict[str, tuple[str, dict[str, tuple[int, ...]], dict[str, Any]]] = {
    "residual": (
        f"a = {C3}(x, w1, b1) r = Relu(a) c = {C3}(r, w2) s = Relu(c) d = {C3}(s, w3, b3) e = Add(r, d) f = Relu(e)"
        " y = Conv(f, w4)",
        {"w1": (8, 4, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "w3": (8, 8, 3, 3), "b3": (8,), "w4": (3, 8, 1, 1)},
        {},
    ),
    "inverted residual with a gate": (
        "a = Conv(x, w1, b1) c = Relu(a) d = Conv<group=8,pads=[1,1,1,1]>(c, w2) e = GlobalAveragePool(d)"
        " f = Conv(e, w3, b3) g = Relu(f) h = Conv(g, w4) i = HardSigmoid(h) j = Mul(i, d) k = Conv(j, w5)"
        " y = Add(k, x)",
        {"w1": (8, 4, 1, 1), "b1": (8,), "w2": (8, 1, 3, 3), "w3": (4, 8, 1, 1), "b3": (4,), "w4": (8, 4, 1, 1)}
        | {"w5": (4, 8, 1, 1)},
        {},
    ),
    "U-Net": (
        f"a = {C3}(x, w1, b1) r = Relu(a) p = MaxPool{HALF}(r) b = {C3}(p, w2) s = Relu(b)"
        f" u = ConvTranspose{HALF}(s, w3) c = Concat<axis=1>(u, r, x) z = {C3}(c, w4) v = Relu(z) y = Conv(v, w5)",
        {
            "w1": (8, 4, 3, 3),
            "b1": (8,),
            "w2": (8, 8, 3, 3),
            "w3": (8, 8, 2, 2),
            "w4": (8, 20, 3, 3),
            "w5": (3, 8, 1, 1),
        },
        {},
    ),
    "shuffle": (
        "a = Conv(x, w1) r = Relu(a) s, t = Split<axis=1>(r) u = Conv(t, w2) v = Relu(u) f = Concat<axis=1>(s, v)"
        " g = Reshape(f, five) h = Transpose<perm=[0,2,1,3,4]>(g) i = Reshape(h, four) y = Conv(i, w3)",
        {"w1": (8, 4, 1, 1), "w2": (4, 4, 1, 1), "w3": (3, 8, 1, 1)},
        {"five": [0, 2, 4, 8, 8], "four": [0, -1, 8, 8]},
    ),
    "flattened": (
        f"a = {C3}(x, w1, b1) p = MaxPool{HALF}(a) f = Flatten(p) g = Gemm<transB=1,alpha=0.5>(f, w2, b2) r = Relu(g)"
        " h = Gemm<beta=2.0>(r, w3, b3) s = Relu(h) y = MatMul(s, w4)",
        {"w1": (8, 4, 3, 3), "b1": (8,), "w2": (8, 128), "b2": (8,), "w3": (8, 8), "b3": (8,), "w4": (8, 3)},
        {},
    ),
    "detector": (
        f"a = {C3}(x, w1) r = Relu(a) b = Conv<strides=[2,2],pads=[1,1,1,1]>(r, w2) s = Relu(b) i = Conv(r, w3)"
        " j = Conv(s, w4) k = Transpose<perm=[0,2,3,1]>(i) l = Transpose<perm=[0,2,3,1]>(j) m = Reshape(k, rows)"
        " n = Reshape(l, rows) q = Concat<axis=1>(m, n) y = Sigmoid(q)",
        {"w1": (8, 4, 3, 3), "w2": (8, 8, 3, 3), "w3": (6, 8, 1, 1), "w4": (6, 8, 1, 1)},
        {"rows": [0, -1, 3]},
    ),
}
X = {"x": np.random.default_rng(2).standard_normal((48, 4, 8, 8)).astype(np.float32)}
RANK = {"flattened": 2, "detector": 3}


def built(parsed: Parsed, name: str, side: str = "8,8") -> ir.Model:
    body, shapes, given = MODELS[name]
    rng = np.random.default_rng(1)
    arrays = {k: (rng.standard_normal(s) / np.sqrt(np.prod(s[1:], dtype=float))) for k, s in shapes.items()}
    out = ",".join("NCHW"[: RANK.get(name, 4)])
    text = f"g (float[N,4,{side}] x) => (float[{out}] y) {{ {body} }}"
    if "Split" in body:
        text = text.replace("Split<axis=1>", "Split<axis=1,num_outputs=2>")
    constants = {k: np.asarray(array, np.int64) for k, array in given.items()}
    return parsed(text, opset=18, **{k: a.astype(np.float32) for k, a in arrays.items()}, **constants)


def written_zero(model: ir.Model) -> None:
    """Let every second channel of each group be nothing, in place, but for what it is in the middle of the model."""
    groups = find_groups(model)
    gone = np.zeros(groups.count + 1, np.bool_)
    for group in groups.groups:
        gone[group.classes[::2]] = True
    layers = {**groups.writes, **groups.channelwise}
    for node, labels in layers.items():
        for index in (1, 2):
            value = node.inputs[index] if len(node.inputs) > index else None
            if value is None or value.const_value is None:
                continue
            array = value.const_value.numpy().copy()
            outer = index == 1 and (node.op_type in ("ConvTranspose", "MatMul") or _untransposed(node))
            np.moveaxis(array, 1 if outer else 0, 0)[gone[labels]] = 0
            value.const_value = ir.tensor(array, name=value.name)


def _untransposed(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and not node.attributes.get_int("transB", 0)


@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize("name", list(MODELS))
def test_channels_that_are_nothing_go_for_nothing(
    name: str, data: bool, parsed: Parsed, in_context: InContext, outputs_of: OutputsOf
) -> None:
    model = built(parsed, name)
    written_zero(model)
    want = outputs_of(model, X)["y"].astype(np.float64)
    context = in_context(data=open_feeds(X, model) if data else None)
    sizes = {node.outputs[0].name: len(labels) for node, labels in find_groups(model).writes.items()}
    report = Prune(channels=0.5).run(model, context)
    got = outputs_of(model, X)["y"]
    assert report.changes and np.square(got - want).sum() <= 1e-10 * np.square(want).sum()
    left = {node.outputs[0].name: len(labels) for node, labels in find_groups(model).writes.items()}
    assert sum(left.values()) < 0.75 * sum(sizes.values())


@pytest.mark.parametrize("name", list(MODELS))
def test_dynamic_shapes_and_budgets(name: str, parsed: Parsed) -> None:
    side = "H,W" if name not in ("shuffle", "flattened") else "8,8"
    model = built(parsed, name, side)
    options: dict[str, Any] = {"objective": "macs", "data": X}
    result = onnxcomp.optimize(model, "prune(size=0.6)", **options)
    (step,) = result.report.steps
    assert (step.kept and step.after.bytes <= 0.6 * step.before.bytes) or step.report.notes
    again = onnxcomp.optimize(model, "prune(size=0.6)", **options, replay=result.report.choices)
    assert _graph(again.model) == _graph(result.model)
    held = onnxcomp.optimize(model, "prune(size=0.6)", **options, min_sqnr=18.0)
    quality = held.report.after.quality
    assert held.report.failures == () and quality is not None and min(quality.sqnr.values()) >= 18


def _graph(model: ir.Model) -> bytes:
    return ir.to_proto(model).graph.SerializeToString(deterministic=True)


def untouched(model: ir.Model, spec: str = "prune(channels=0.5)", **options: Any) -> dict[str, str]:
    """The reasons of a run that must not change the model at all."""
    given: dict[str, Any] = {"objective": "macs"}
    folded = onnxcomp.optimize(model, "fold", **(given | options))
    result = onnxcomp.optimize(model, spec, **(given | options))
    step: Step = result.report.steps[-1]
    assert step.report.changes == () and _graph(result.model) == _graph(folded.model)
    return {skip.site: skip.reason for skip in step.report.skips}


PAIR = f"[a] a = {C3}(x, w) r = Relu(a) [b] y = {C3}(r, v)"


def pair(dtype: type = np.float32) -> Arrays:
    rng = np.random.default_rng(0)
    return {k: rng.standard_normal(s).astype(dtype) for k, s in (("w", (8, 4, 3, 3)), ("v", (3, 8, 3, 3)))}


def test_weights_that_are_no_floats_of_single_precision_stay(parsed: Parsed) -> None:
    half = parsed(f"g (float16[N,4,8,8] x) => (float16[N,3,8,8] y) {{ {PAIR} }}", **pair(np.float16))
    assert untouched(half) == dict.fromkeys("ab", "the weight is float16, not float32")
    arrays = dict(pair())
    arrays["v"] = np.where(np.arange(3 * 8 * 9).reshape(3, 8, 3, 3) == 5, np.nan, arrays["v"])
    broken = parsed(f"g (float[N,4,8,8] x) => (float[N,3,8,8] y) {{ {PAIR} }}", **arrays)
    assert untouched(broken) == {"a": "b: the weight holds NaN or Inf", "b": "the weight holds NaN or Inf"}


def test_weights_that_callers_override_or_layers_share_stay(parsed: Parsed) -> None:
    proto = ir.to_proto(parsed(f"g (float[N,4,8,8] x) => (float[N,3,8,8] y) {{ {PAIR} }}", **pair()))
    proto.graph.input.append(onnx.helper.make_tensor_value_info("v", 1, [3, 8, 3, 3]))
    reasons = untouched(ir.from_proto(proto))
    assert reasons["b"] == "the weight 'v' can be overridden by a graph input" and reasons["a"] == f"b: {reasons['b']}"
    text = f"g (float[N,8,8,8] x) => (float[N,8,8,8] y) {{ [a] a = {C3}(x, w) r = Relu(a) [b] y = {C3}(r, w) }}"
    shared = parsed(text, w=np.ones((8, 8, 3, 3), np.float32))
    assert untouched(shared) == {"a": "the weight is shared with b", "b": "the weight is shared with a"}


def test_what_bodies_read_stays(parsed: Parsed) -> None:
    text = f"""g (float[N,4,8,8] x, bool c) => (float[N,3,8,8] y) {{ [a] a = {C3}(x, w) r = Relu(a)
      y = If (c) <then_branch = t () => (float[N,3,8,8] o) {{ [p] o = {C3}(r, v) }},
                  else_branch = e () => (float[N,3,8,8] q) {{ [q] q = {C3}(r, v) }}> }}"""
    reasons = untouched(parsed(text, **pair()))
    assert reasons["a"] == "a body reads r" and reasons["p"].startswith("inside a subgraph")


def test_models_without_layers(parsed: Parsed) -> None:
    for spec in ("prune", "prune(channels=0.5)", "prune(keep=0.5)", "compress", "compress(macs=0.5)"):
        model = parsed("g (float[N,4,8,8] x) => (float[N,4,8,8] y) { y = Relu(x) }")
        assert untouched(model, spec, data=X) == {}


def test_a_transformer_is_left_alone(parsed: Parsed) -> None:
    text = """g (float[N,16,8] x) => (float[N,16,3] y) {
      [in] e = MatMul(x, w0) [q] q = MatMul(e, wq) [k] k = MatMul(e, wk) [v] v = MatMul(e, wv)
      l = Transpose<perm=[0,2,1]>(k) s = MatMul(q, l) p = Softmax(s) o = MatMul(p, v) [o] t = MatMul(o, wo)
      r = Add(e, t) n = LayerNormalization(r, g, b) [up] i = MatMul(n, w1) j = Add(i, b1) h = Relu(j)
      [down] m = MatMul(h, w2) c = Add(m, n) [out] y = MatMul(c, w3) }"""
    shapes = {"w0": (8, 8), "wq": (8, 8), "wk": (8, 8), "wv": (8, 8), "wo": (8, 8), "g": (8,), "b": (8,)}
    shapes |= {"w1": (8, 24), "b1": (24,), "w2": (24, 8), "w3": (8, 3)}
    rng = np.random.default_rng(0)
    model = parsed(text, **{k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()})
    reasons = untouched(model)
    assert {name for name, reason in reasons.items() if "transformer" in reason} >= {"q", "k", "v", "o", "up"}
