"""Layers behind removed channels are fitted to what the original computed: targets, exactness, what is left alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.calibration.beside import Beside
from onnxcomp.channels.applying import Decided, layers_of, reshape
from onnxcomp.channels.recover import recover
from onnxcomp.contract import Context
from onnxcomp.data import open_feeds
from onnxcomp.graph.fold.shapes import infer_shapes
from onnxcomp.graph.groups import find_groups
from onnxcomp.runtime.session import open_session, output_names, run

Parsed = Callable[..., ir.Model]
InContext = Callable[..., Context]
OutputsOf = Callable[..., dict[str, NDArray[Any]]]
KINDS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

C3 = "Conv<pads=[1,1,1,1]>"
NET = f"""g (float[N,4,6,6] x) => (float[N,3,12,12] y) {{
  [u] u = {C3}(x, wu, bu) a = Relu(u)
  [p] p1 = {C3}(a, wp, bp) p2 = Relu(p1) [q] q1 = {C3}(p2, wq, bq) [sum] s = Add(q1, a) b = Relu(s)
  [g] g1 = Conv<group=2>(b, wg, bg) g2 = Relu(g1) [t] t1 = ConvTranspose<kernel_shape=[2,2],strides=[2,2]>(g2, wt)
  [y] y = Conv(t1, wy) }}"""
SHAPES: dict[str, tuple[int, ...]] = {
    "wu": (8, 4, 3, 3),
    "bu": (8,),
    "wp": (10, 8, 3, 3),
    "bp": (10,),
    "wq": (8, 10, 3, 3),
    "bq": (8,),
} | {"wg": (12, 4, 1, 1), "bg": (12,), "wt": (12, 6, 2, 2), "wy": (3, 6, 1, 1)}
X = np.random.default_rng(8).standard_normal((96, 4, 6, 6)).astype(np.float32)


def nothing(node: ir.Node) -> None:
    """Nothing is refused."""
    del node


def weights() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(5)
    return {
        name: (rng.standard_normal(shape) / np.sqrt(float(np.prod(shape[1:])))).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def without(model: ir.Model, **gone: list[int]) -> tuple[ir.Model, Mapping[str, Any]]:
    """A clone without some output channels of layers, by the name of their output, and what is left of values."""
    model = model.clone()
    groups = find_groups(model, nothing)
    removed = np.zeros(groups.count + 1, np.bool_)
    for node, labels in groups.writes.items():
        removed[labels[gone.get(node.outputs[0].name or "", [])]] = True
    assert removed.any() and not removed[0]
    kept = reshape(model, Decided(removed), nothing)
    infer_shapes(model)
    return model, kept


def error(outputs_of: OutputsOf, original: ir.Model, model: ir.Model, feed: NDArray[Any] = X) -> float:
    want, got = (outputs_of(own, {"x": feed})["y"].astype(np.float64) for own in (original, model))
    return float(np.square(got - want).sum() / np.square(want).sum())


def test_targets_are_the_originals_at_the_channels_left(parsed: Parsed, in_context: InContext) -> None:
    """Those of the last layer of a block are what is missing to the original's sum."""
    original = parsed(NET, **weights())
    model, kept = without(original, u=[1, 4], p1=[0, 3, 7])
    assert set(kept) >= {"u", "a", "p1", "p2", "q1", "s", "b"} and kept["p1"][1].tolist() == [1, 2, 4, 5, 6, 8, 9]
    feeds = open_feeds({"x": X}, original)
    traced: dict[bool, dict[str, NDArray[Any]]] = {}
    for own in (original, model):
        clone = own.clone()
        clone.graph.outputs.extend(v for node in clone.graph for v in node.outputs if v.name in ("a", "p1", "s", "p2"))
        traced[own is model] = dict(zip(("y", "a", "p1", "p2", "s"), _run(clone), strict=True))
    left = kept["s"][1]
    assert left.tolist() == [2, 3, 6, 7]  # both halves of what the grouped convolution reads stay alike
    beside = Beside(original, model, kept, feeds, in_context().workdir, kinds=KINDS)
    try:
        found: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
        for site in layers_of(model).values():
            if site.name in ("u", "p", "q"):
                beside.advance(site)
                parts = list(beside.batches(site))
                found[site.name] = np.concatenate([x for x, _ in parts]), np.concatenate([t for _, t in parts])
            assert beside.repeats(site) == (site.name == "u")
    finally:
        beside.close()
    np.testing.assert_allclose(found["p"][1], traced[False]["p1"][:, kept["p1"][1]], atol=1e-5)
    np.testing.assert_allclose(found["p"][0], traced[True]["a"], atol=1e-5)
    np.testing.assert_allclose(found["q"][1], traced[False]["s"][:, left] - traced[True]["a"], atol=1e-5)
    np.testing.assert_allclose(found["q"][0], traced[True]["p2"], atol=1e-5)


def _run(model: ir.Model) -> list[NDArray[Any]]:
    session = open_session(model, optimize="off")
    got = dict(zip(output_names(session), run(session, {"x": X}), strict=True))
    return [got[name] for name in ("y", "a", "p1", "p2", "s")]


def test_what_is_linear_in_the_rest_is_not_missed(parsed: Parsed, in_context: InContext, outputs_of: OutputsOf) -> None:
    """A channel that two others add up to, and one that never changes, are made up for exactly, with bias and all."""
    arrays = weights()
    arrays["wp"][3], arrays["bp"][3] = arrays["wp"][1], arrays["bp"][1]
    arrays["wp"][6], arrays["bp"][6] = 0.0, 0.7
    original = parsed(NET, **arrays)
    model, kept = without(original, p1=[3, 6])
    assert error(outputs_of, original, model) > 0.001
    context = in_context(data=open_feeds({"x": X}, original))
    done = recover(original, model, "test", context, kept)
    assert error(outputs_of, original, model) < 5e-4  # the pull towards the weights as they were remains
    assert set(done) >= {"q1"} and done["q1"].error is not None and done["q1"].error < 5e-3


def test_every_layer_behind_repairs_what_is_lost(parsed: Parsed, in_context: InContext, outputs_of: OutputsOf) -> None:
    original = parsed(NET, **weights())
    model, kept = without(original, u=[1, 4], p1=[0, 3, 7], g1=[2, 9], t1=[5])
    plain, before = error(outputs_of, original, model), {v.name: v for v in model.graph.initializers.values()}
    first, last = (next(v.const_value for v in before.values() if v.name == n) for n in ("wu", "wt"))
    done = recover(original, model, "test", in_context(data=open_feeds({"x": X}, original)), kept)
    assert set(done) == {"p1", "q1", "g1", "y"}  # u reads what it did, and a transposed convolution is not fitted
    left = {name: value.const_value for name, value in model.graph.initializers.items()}
    assert left["wu"] is first and left["wt"] is last
    fresh = np.random.default_rng(77).standard_normal(X.shape).astype(np.float32)
    assert error(outputs_of, original, model) < 0.6 * plain
    assert error(outputs_of, original, model, fresh) < 0.7 * plain


def test_a_single_sample_is_followed_with_a_strong_pull(
    parsed: Parsed, in_context: InContext, outputs_of: OutputsOf
) -> None:
    original = parsed(NET, **weights())
    model, kept = without(original, u=[1, 4], p1=[0, 3, 7], g1=[2, 9])
    plain, one = error(outputs_of, original, model), X[:1]
    assert set(recover(original, model, "test", in_context(data=open_feeds({"x": one}, original)), kept))
    assert error(outputs_of, original, model, one) < 0.5 * plain
    assert error(outputs_of, original, model) < plain


def test_excluded_layers_are_not_fitted(parsed: Parsed, in_context: InContext) -> None:
    original = parsed(NET, **weights())
    model, kept = without(original, p1=[0, 3])
    context = in_context(data=open_feeds({"x": X}, original), exclude=("g",))
    assert set(recover(original, model, "test", context, kept)) == {"q1", "y"}
    untouched = original.clone()
    assert recover(original, untouched, "test", context) == {}


def test_products_get_no_bias(parsed: Parsed, in_context: InContext, outputs_of: OutputsOf) -> None:
    text = """g (float[N,7,6] x) => (float[N,7,3] y) {
      [m] a = MatMul(x, wa) r = Relu(a) [n] b = MatMul(r, wb) c = Add(b, bias) s = Relu(c) [o] y = MatMul(s, wc) }"""
    rng = np.random.default_rng(3)
    shapes = {"wa": (6, 9), "wb": (9, 8), "bias": (8,), "wc": (8, 3)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["wa"][:, 4] = 2 * arrays["wa"][:, 2]
    original = parsed(text, **arrays)
    model, kept = without(original, a=[4], b=[1])
    x = rng.standard_normal((64, 7, 6)).astype(np.float32)
    plain = error(outputs_of, original, model, x)
    done = recover(original, model, "test", in_context(data=open_feeds({"x": x}, original)), kept)
    assert set(done) == {"b", "y"} and done["b"].error is not None and done["b"].error < 1e-3
    assert error(outputs_of, original, model, x) < 0.7 * plain
    assert [node.op_type for node in model.graph] == [node.op_type for node in original.graph]


@pytest.mark.parametrize("wide", [False, True])
def test_layers_too_wide_for_a_gram_stay(
    parsed: Parsed, in_context: InContext, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = parsed(NET, **weights())
    model, kept = without(original, p1=[0, 3])
    monkeypatch.setattr("onnxcomp.channels.scoring._WIDEST", 71 if wide else 72)
    done = recover(original, model, "test", in_context(data=open_feeds({"x": X}, original)), kept)
    assert ("q1" in done) == (not wide) and "g1" in done
