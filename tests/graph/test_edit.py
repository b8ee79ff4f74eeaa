from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.graph.edit import ORIGIN, PASS, Link, add_initializer, names_of, origin_of, replace_by_chain, unique_name

Parsed = Callable[..., ir.Model]
OutputsOf = Callable[[ir.Model, Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]
X = {"x": np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)}
EYE = np.eye(4, dtype=np.float32)[:, :, None, None]


def _weight(seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((4, 4, 3, 3)).astype(np.float32)


def _pair(weight: NDArray[np.float32], *bias: NDArray[np.float32]) -> list[Link]:
    """The convolution behind a 1x1 that does nothing."""
    return [Link("first", "Conv", (EYE,)), Link("core", "Conv", (weight, *bias), {"pads": (1, 1, 1, 1)})]


def _net(parsed: Parsed, outputs: str = "float[N,4,6,6] y") -> ir.Model:
    text = f"g (float[N,4,6,6] x) => ({outputs}) {{ [conv] h = Conv<pads=[1,1,1,1]>(x, w, b) [act] y = Relu(h) }}"
    return parsed(text, w=_weight(), b=np.ones(4, np.float32))


def test_the_chain_stands_where_the_node_stood(parsed: Parsed, outputs_of: OutputsOf) -> None:
    model = _net(parsed)
    before = outputs_of(model, X)["y"]
    nodes = replace_by_chain(model.graph[0], _pair(_weight(), np.ones(4, np.float32)), "test")
    assert list(model.graph)[:2] == nodes and [n.name for n in model.graph] == ["conv.first", "conv.core", "act"]
    assert [n.outputs[0].name for n in model.graph] == ["h.first", "h", "y"]
    np.testing.assert_allclose(outputs_of(model, X)["y"], before, rtol=1e-5, atol=1e-6)


def test_provenance(parsed: Parsed) -> None:
    model = _net(parsed)
    model.graph[0].metadata_props["theirs"] = "kept"
    first, core = replace_by_chain(model.graph[0], _pair(_weight()), "one")
    assert core.metadata_props == {"theirs": "kept", ORIGIN: "conv", PASS: "one"} == first.metadata_props
    (again,) = replace_by_chain(core, _pair(_weight())[1:], "two")
    assert again.metadata_props == {"theirs": "kept", ORIGIN: "conv", PASS: "two"}
    assert origin_of(again) == "conv" and again.name == "conv.core.core"


def test_origin_of_a_node_without_name() -> None:
    value = ir.Value(name="out")
    assert origin_of(ir.node("Relu", [ir.Value(name="x")], outputs=[value])) == "out"


def test_unused_weights_go_and_shared_ones_stay(parsed: Parsed) -> None:
    text = """g (float[N,4,6,6] x) => (float[N,4,4,4] y, float[4] c) {
      h = Conv(x, w, b) [twin] i = Conv(x, w, c) y = Add(h, i) }"""
    model = parsed(text, w=_weight(), b=np.ones(4, np.float32), c=np.ones(4, np.float32))
    replace_by_chain(model.graph[0], _pair(_weight()), "test")
    assert set(model.graph.initializers) == {"w", "c", "h.first.weight", "h.core.weight"}
    twin = next(n for n in model.graph if n.name == "twin")
    replace_by_chain(twin, _pair(_weight()), "test")  # c is an output of the graph as well
    assert not {"w", "b"} & set(model.graph.initializers) and "c" in model.graph.initializers


def test_output_names_of_the_graph_stay(parsed: Parsed, outputs_of: OutputsOf) -> None:
    model = _net(parsed, "float[N,4,6,6] h, float[N,4,6,6] y")
    before = outputs_of(model, X)
    replace_by_chain(model.graph[0], _pair(_weight(), np.ones(4, np.float32)), "test")
    after = outputs_of(model, X)
    assert [v.name for v in model.graph.outputs] == ["h", "y"] == list(after)
    for name in before:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-5, atol=1e-6)


def test_a_body_that_reads_the_output_still_does(parsed: Parsed, outputs_of: OutputsOf) -> None:
    text = """g (float[N,4,6,6] x, bool c) => (float[N,4,6,6] y) {
      [conv] h = Conv<pads=[1,1,1,1]>(x, w)
      y = If(c) <then_branch = t () => (float[N,4,6,6] p) { p = Neg(h) },
                 else_branch = e () => (float[N,4,6,6] q) { q = Abs(h) }> }"""
    model = parsed(text, w=_weight())
    feed = {**X, "c": np.array(True)}
    before = outputs_of(model, feed)["y"]
    replace_by_chain(model.graph[0], _pair(_weight()), "test")
    np.testing.assert_allclose(outputs_of(model, feed)["y"], before, rtol=1e-5, atol=1e-6)


def test_links_may_branch(parsed: Parsed, outputs_of: OutputsOf) -> None:
    model = _net(parsed)
    before = outputs_of(model, X)["y"]
    left, right = _weight(), _weight()
    left[:, :, 1], right[:, :, (0, 2)] = 0, 0
    chain = [
        Link("left", "Conv", (left, np.ones(4, np.float32)), {"pads": (1, 1, 1, 1)}, ("",)),
        Link("right", "Conv", (right,), {"pads": (1, 1, 1, 1)}, ("",)),
        Link("sum", "Add", (), {}, ("left", "right")),
    ]
    replace_by_chain(model.graph[0], chain, "test")
    np.testing.assert_allclose(outputs_of(model, X)["y"], before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kept", [False, True])
def test_names_are_unique(parsed: Parsed, outputs_of: OutputsOf, kept: bool) -> None:
    """The names that the chain would like are all taken: by values, nodes, an input, and a value in a body."""
    text = """g (float[N,4,6,6] x, bool h_first) => (float[N,4,6,6] y) {
      [conv] h = Conv<pads=[1,1,1,1]>(x, w) [conv_first] k_first = Relu(h) [conv] k = Conv<pads=[1,1,1,1]>(k_first, v)
      y = If(h_first) <then_branch = t () => (float[N,4,6,6] p) { [conv_core] conv_first_weight = Neg(k)
                                                                  p = Relu(conv_first_weight) },
                       else_branch = e () => (float[N,4,6,6] q) { conv_core_weight = Abs(k)
                                                                  q = Relu(conv_core_weight) }> }"""
    model = parsed(text, w=_weight(), v=_weight(1))
    for value in [*model.graph.inputs, *(v for n in model.graph.all_nodes() for v in n.outputs)]:
        value.name = (value.name or "").replace("_", ".")  # the text form knows no dots
    for node in model.graph.all_nodes():
        node.name = (node.name or "").replace("_", ".")
    taken = names_of(model.graph) if kept else None
    for node in [n for n in model.graph if n.op_type == "Conv"]:
        replace_by_chain(node, _pair(_weight()), "test", taken)
    named = [v.name for n in model.graph.all_nodes() for v in n.outputs] + list(model.graph.initializers)
    nodes = [n.name for n in model.graph.all_nodes() if n.name]
    assert len(named) == len(set(named)) == 14 and len(nodes) == len(set(nodes)) == 6
    assert taken is None or taken >= {n for n in [*named, *nodes] if n}
    outputs_of(model, {**X, "h.first": np.array(True)})


def test_unique_name_counts_up(parsed: Parsed) -> None:
    model = _net(parsed)
    taken = {"a", "a_1"}
    assert [unique_name(model.graph, "a", taken) for _ in range(2)] == ["a_2", "a_3"]
    assert unique_name(model.graph, "conv") == "conv_1" and unique_name(model.graph, "new") == "new"


def test_an_initializer_keeps_its_numbers(parsed: Parsed) -> None:
    model = _net(parsed)
    array = np.arange(12, dtype=np.int8).reshape(3, 4).T
    value = add_initializer(model.graph, "table", array)
    assert value.const_value is not None and value.const_value.dtype == ir.DataType.INT8
    np.testing.assert_array_equal(value.const_value.numpy(), array)
    assert tuple(value.shape or ()) == (4, 3) and model.graph.initializers["table"] is value
