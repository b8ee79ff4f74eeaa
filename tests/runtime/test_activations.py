from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.data import Feeds, open_feeds
from onnxcomp.errors import ModelError
from onnxcomp.runtime.activations import Tap, expose, stream

TEXT = """
<ir_version: 8, opset_import: ["": 17]>
g (float[N, 3] x, float[N, 3] other) => (float[N, 3] y)
<float[3] b = {1, 2, 3}, float[3] c = {2, 2, 2}> {
    a = Add(x, b)
    r = Relu(a)
    m = Mul(r, c)
    y = Sub(m, other)
}
"""
B = np.array([1, 2, 3], np.float32)
X = np.arange(-6, 9, dtype=np.float32).reshape(5, 3)


def model() -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(TEXT))


def feeds() -> Feeds:
    return open_feeds({"x": X, "other": np.ones_like(X)}, model())


def gather(names: list[str], limit: int | None = None) -> dict[str, NDArray[np.generic]]:
    parts = list(stream(model(), names, feeds(), limit=limit))
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def test_inner_tensors_inputs_and_outputs() -> None:
    values = gather(["r", "x", "y", "a"])
    np.testing.assert_array_equal(values["a"], X + B)
    np.testing.assert_array_equal(values["r"], np.maximum(X + B, 0))
    np.testing.assert_array_equal(values["x"], X)
    np.testing.assert_array_equal(values["y"], np.maximum(X + B, 0) * 2 - 1)


def test_the_limit_counts_samples() -> None:
    assert len(gather(["r"], limit=2)["r"]) == 2


def test_initializers_are_given_as_they_are() -> None:
    values = next(stream(model(), ["b"], feeds()))
    np.testing.assert_array_equal(values["b"], [1, 2, 3])


def test_names_asked_for_twice_are_read_once() -> None:
    assert set(next(stream(model(), ["r", "r"], feeds()))) == {"r"}


def test_only_what_is_needed_is_kept_and_the_model_stays_as_it_was() -> None:
    whole = model()
    before = ir.to_proto(whole).SerializeToString()
    part = expose(whole, ["r"])
    assert [node.op_type for node in part.graph] == ["Add", "Relu"]
    assert list(part.graph.initializers) == ["b"]
    assert [value.name for value in part.graph.inputs] == ["x"]
    assert ir.to_proto(whole).SerializeToString() == before
    # The late input is not needed for an early tensor.
    np.testing.assert_array_equal(Tap(whole, ["a"]).read({"x": X})["a"], X + B)


def test_an_unknown_tensor_is_named() -> None:
    with pytest.raises(ModelError, match="no tensor 'nothing'"):
        next(stream(model(), ["nothing"], feeds()))


def test_batches_stream_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    source = feeds()
    started: list[int] = []

    def batches(limit: int | None = None) -> Iterator[dict[str, NDArray[np.generic]]]:
        for k in range(3):
            started.append(k)
            yield {"x": X[k : k + 1], "other": X[k : k + 1]}

    monkeypatch.setattr(source, "batches", batches)
    read = stream(model(), ["r"], source)
    next(read)
    assert started == [0]
    next(read)
    assert started == [0, 1]


IF_TEXT = """
<ir_version: 8, opset_import: ["": 17]>
g (float[N, 3] x, bool flag) => (float[N, 3] y, float[N, 3] z)
<float[3] b = {1, 2, 3}, float[3] c = {5, 5, 5}> {
    a = Add(x, b)
    d = Mul(x, c)
    y = If(flag) <
        then_branch = yes () => (float[N, 3] t) { t = Relu(a) },
        else_branch = no () => (float[N, 3] e) { e = Neg(a) }
    >
    z = If(flag) <
        then_branch = yes2 () => (float[N, 3] t2) { t2 = Relu(d) },
        else_branch = no2 () => (float[N, 3] e2) { e2 = Neg(d) }
    >
}
"""


def test_values_that_only_a_body_reads_are_kept() -> None:
    whole = ir.from_proto(onnx.parser.parse_model(IF_TEXT))
    part = expose(whole, ["y"])
    assert [node.op_type for node in part.graph] == ["Add", "If"]
    assert list(part.graph.initializers) == ["b"]
    feed = {"x": X, "flag": np.array(False)}
    np.testing.assert_array_equal(Tap(whole, ["y"]).read(feed)["y"], -(X + B))


def test_tensors_inside_a_body_are_refused() -> None:
    with pytest.raises(ModelError, match="main graph has no tensor 't'"):
        Tap(ir.from_proto(onnx.parser.parse_model(IF_TEXT)), ["t"])


def test_an_initializer_that_is_also_an_input_needs_no_data() -> None:
    text = TEXT.replace("float[N, 3] other)", "float[N, 3] other, float[3] b)")
    legacy = ir.from_proto(onnx.parser.parse_model(text.replace("ir_version: 8", "ir_version: 3")))
    values = Tap(legacy, ["b", "a"]).read({"x": X})
    np.testing.assert_array_equal(values["b"], [1, 2, 3])
    np.testing.assert_array_equal(values["a"], X + B)
