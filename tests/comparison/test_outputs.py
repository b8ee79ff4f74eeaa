"""What is said of the outputs, and what cannot be."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onnxcomp
from onnxcomp.compare import compare_models
from onnxcomp.comparison.outputs import compare_outputs
from onnxcomp.comparison.reading import check_inputs
from onnxcomp.data import Feeds
from onnxcomp.errors import InputError
from onnxcomp.runtime.session import open_session, run


def test_samples_of_another_class(net: ir.Model, changed: Any, images: Any, feeds: Feeds) -> None:
    other = changed(net, wh=-np.asarray(net.graph.initializers["wh"].const_value))
    found = compare_outputs(net, other, feeds)
    base, late = (run(open_session(model), {"x": images})[0] for model in (net, other))
    flipped = np.flatnonzero(base.argmax(axis=1) != late.argmax(axis=1))
    assert found.flipped == len(flipped) > 0
    assert found.agreement == pytest.approx(1 - len(flipped) / 24)
    assert {flip.sample for flip in found.flips} == set(flipped.tolist())
    first = found.flips[0]
    ordered = np.sort(base[first.sample])
    assert first.margin == pytest.approx(ordered[-1] - ordered[-2])
    assert (first.base, first.other) == (base[first.sample].argmax(), late[first.sample].argmax())
    assert [flip.margin for flip in found.flips] == sorted((flip.margin for flip in found.flips), reverse=True)


@pytest.fixture
def pair(parsed: Any) -> tuple[ir.Model, ir.Model]:
    """Two models of several outputs, one of which is the same."""
    base = parsed(
        """g (float[N,4] x) => (float[N,4] same, int64[N] top, float[N,4] gone, float[N,4] shape) {
          same = Relu(x) top = ArgMax<axis=1, keepdims=0>(x) gone = Neg(x) shape = Abs(x) }"""
    )
    other = parsed(
        """g (float[N,4] x) => (float[N,4] same, int64[N] top, float[N,2] shape, float[N,4] new) {
          same = Relu(x) s = Neg(x) top = ArgMax<axis=1, keepdims=0>(s) shape = Slice(x, a, b, c) new = Abs(x) }""",
        a=np.array([0]),
        b=np.array([2]),
        c=np.array([1]),
    )
    return base, other


def test_what_is_common_is_compared(pair: tuple[ir.Model, ir.Model]) -> None:
    x = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    found = compare_models(*pair, onnxcomp.open_feeds({"x": x}, pair[0]))
    same, top = found.outputs.outputs
    assert (same.name, same.sqnr, same.equal) == ("same", float("inf"), None)
    assert (top.name, top.sqnr, top.equal) == ("top", None, float(np.mean(x.argmax(1) == x.argmin(1))))
    assert found.outputs.missing == {
        "shape": "shape [32, 4] against [32, 2]",
        "gone": "the other model has no such output",
        "new": "the base has no such output",
    }
    assert {entry.tensor: entry.reason for entry in found.missing}[
        "shape"
    ] == "channels removed: 4 -> 2, and nothing tells which"


def test_nothing_in_common(parsed: Any) -> None:
    base = parsed("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    feeds = onnxcomp.open_feeds({"x": np.ones((2, 4), np.float32)}, base)
    x = "input 'x' is float32[N,4] against {}"
    for other, problem in (
        ("g (float[N,4] x) => (float[N,4] z) { z = Relu(x) }", "outputs y against z"),
        ("g (float[N,4] q) => (float[N,4] y) { y = Relu(q) }", "inputs x against q"),
        ("g (float[N,4] x, float[N,4] q) => (float[N,4] y) { y = Add(x, q) }", "inputs x against q, x"),
        (
            "g (int32[N,4] x) => (float[N,4] y) { y = Cast<to=1>(x) }",
            x.format("int32[N,4]"),
        ),
        ("g (float[N,5] x) => (float[N,5] y) { y = Relu(x) }", x.format("float32[N,5]")),
        (
            "g (float[N,4,1] x) => (float[N,4,1] y) { y = Relu(x) }",
            x.format("float32[N,4,1]"),
        ),
    ):
        with pytest.raises(InputError, match=f"^the models cannot be compared: {re.escape(problem)}$"):
            compare_models(base, parsed(other), feeds)


def test_another_precision_of_the_inputs_and_another_batch(parsed: Any) -> None:
    x = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
    base = parsed("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    half = parsed("g (float16[N,4] x) => (float16[N,4] y) { y = Relu(x) }")
    found = compare_models(base, half, onnxcomp.open_feeds({"x": x}, base))
    assert 60 < (found.outputs.outputs[0].sqnr or 0) < 90
    single = parsed("g (float[2,4] x) => (float[2,4] y) { y = Relu(x) }")
    assert check_inputs(base, single) is single
    found = compare_models(base, single, onnxcomp.open_feeds({"x": x}, single))
    assert (found.outputs.samples, found.outputs.outputs[0].sqnr) == (10, float("inf"))


def test_shapes_that_follow_from_the_data(parsed: Any) -> None:
    text = """g (float[N,4] x) => (int64[K,R] y) { a = Mul(x, w) b = Relu(a) y = NonZero(b) }"""
    x = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    base, other = (parsed(text, w=np.full(4, sign, np.float32)) for sign in (1, -1))
    assert (x > 0).sum() != (x < 0).sum()
    found = compare_models(base, other, onnxcomp.open_feeds({"x": x}, base))
    assert found.outputs.outputs == ()
    assert found.outputs.missing["y"].startswith("shape [2, ")
    assert found.fault is not None
    assert found.fault.tensor in ("a", "b")


def test_scores_that_are_nan_in_both_models_are_no_flips(parsed: Any) -> None:
    base = parsed("g (float[N,3] x) => (float[N,3] y) { y = Log(x) }")
    other = parsed(
        "g (float[N,3] x) => (float[N,3] y) { z = Add(x, c) y = Log(z) }", c=np.array([-1.5, 0, 0], np.float32)
    )
    x = np.array([[-1, 2, 3], [1, 2, 3], [2, 1, 3], [5, 2, 1]], np.float32)
    feeds = onnxcomp.open_feeds({"x": x}, base)
    same = compare_outputs(base, base, feeds)
    assert (same.agreement, same.flipped, same.outputs[0].unknown) == (1.0, 0, 1)
    found = compare_outputs(base, other, feeds)
    assert [(flip.sample, flip.base, flip.other) for flip in found.flips] == [(1, 2, -1)]
    late = compare_outputs(other, base, feeds)
    assert [(flip.sample, flip.base, flip.other, flip.margin) for flip in late.flips] == [(1, -1, 2, 0.0)]


def test_sequences_are_left_out(parsed: Any) -> None:
    model = parsed(
        """g (float[N,4] x) => (float[N,4] y, seq(float[N,1]) parts) {
          y = Relu(x) parts = SplitToSequence<axis=1>(y) }"""
    )
    feeds = onnxcomp.open_feeds({"x": np.ones((3, 4), np.float32)}, model)
    found = compare_models(model, model, feeds)
    assert found.outputs.missing == {"parts": "not a tensor"}
    assert [layer.tensor for layer in found.layers] == ["y"]


def test_how_batches_are_cut_changes_nothing(net: ir.Model, changed: Any, feeds: Feeds) -> None:
    other = changed(net, wh=-np.asarray(net.graph.initializers["wh"].const_value))
    whole, cut = (compare_outputs(net, other, feeds, rows=rows) for rows in (None, 5))
    assert (cut.samples, cut.agreement) == (whole.samples, whole.agreement)
    assert [(flip.sample, flip.base, flip.other) for flip in cut.flips] == [
        (flip.sample, flip.base, flip.other) for flip in whole.flips
    ]
    assert cut.outputs[0].sqnr == pytest.approx(whole.outputs[0].sqnr)
