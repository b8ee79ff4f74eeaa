from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxcomp.graph.edit import ORIGIN
from onnxcomp.graph.fold import Log, raise_opset

Build = Callable[..., ir.Model]
Check = Callable[..., Log]


def header(opset: int, ir_version: int = 6) -> str:
    return f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n'


@pytest.mark.parametrize(
    ("opset", "text"),
    [
        (7, "g (float[N,3] x) => (float[N,3] y) { y = Dropout<ratio=0.5>(x) }"),
        (9, "g (float[N,3,4,4] x) => (float[N,3,8,8] y) { y = Upsample(x, scales) }"),
        (9, "g (float[N,3,4,4] x) => (float[N,3,2,2] y) { y = Slice<axes=[2,3], starts=[1,1], ends=[3,3]>(x) }"),
        (10, "g (float[N,3] x) => (float[N,3] y) { y = Clip<min=0.0, max=1.0>(x) }"),
        (10, "g (float[N,3,4,4] x) => (float[N,3,6,6] y) { y = Pad<pads=[0,0,1,1,0,0,1,1]>(x) }"),
        (12, "g (float[N,3,4] x) => (float[N,3,4] y) { y = Softmax(x) }"),
        (12, "g (float[N,3,4] x) => (float[N,3,4] y) { y = Softmax<axis=2>(x) }"),
        (12, "g (float[N,3,4] x) => (float[N,4] y) { y = ReduceSum<axes=[1], keepdims=0>(x) }"),
        (
            12,
            "g (float[N,4] x) => (float[N,2] y) { y, b = Split<axis=1>(x) }",
        ),
        (
            12,
            "g (float[N,4] x) => (float[N,4] y) { a = Unsqueeze<axes=[0]>(x) y = Squeeze<axes=[0]>(a) }",
        ),
        (9, "g (float[N,4] x) => (float[N,2] y) { y, i = TopK<k=2>(x) }"),
    ],
)
def test_old_operators_mean_the_same_at_opset_17(build: Build, check: Check, opset: int, text: str) -> None:
    arrays = {"scales": np.array([1, 1, 2, 2], np.float32), "two": np.array([2], np.int64)}
    model = build(header(opset) + text, **{name: array for name, array in arrays.items() if f", {name})" in text})
    log = check(model)
    assert log.lines[:2] == (f"opset raised from {opset} to 17", "IR version raised from 6 to 8")
    assert model.opset_imports[""] == 17


def test_a_softmax_over_the_last_axis_stays_one_node(build: Build, check: Check) -> None:
    """The converter needs the rank, which inference does not find behind a Reshape to a computed shape."""
    model = build(
        header(12)
        + """g (float[N,4,6] x, int64[4] s) => (float[A,B,C,D] y) { r = Reshape(x, s) t = Transpose<perm=[0,2,1,3]>(r)
          m = Mul(t, half) y = Softmax<axis=3>(m) }""",
        half=np.array([0.5], np.float32),
    )
    assert raise_opset(model) is None
    assert [n.op_type for n in model.graph] == ["Reshape", "Transpose", "Mul", "Softmax"]


def test_names_metadata_docs_and_branches_survive(build: Build, check: Check) -> None:
    model = build(
        header(11)
        + """g (float[N,3] x, bool t) => (float[N,3] o) {
          [act] r = Relu(x) [sum] q = ReduceSum<axes=[0]>(r) [branch] o = If(t) <
          then_branch = a () => (float[N,3] y) { [inner] u = Unsqueeze<axes=[0]>(r) y = Squeeze<axes=[0]>(u) },
          else_branch = b () => (float[N,3] z) { z = Add(r, q) }> }"""
    )
    nodes = {n.name: n for n in model.graph.all_nodes() if n.name}
    for name in ("act", "sum", "branch", "inner"):
        nodes[name].metadata_props["mine"] = name
        nodes[name].doc_string = f"doc of {name}"
    model.graph.doc_string, model.doc_string = "the graph", "the model"
    model.metadata_props["author"] = "me"
    model.graph.metadata_props["place"] = "here"
    model.graph.inputs[0].doc_string = "the input"
    nodes["act"].outputs[0].metadata_props["tensor"] = "r"
    check(model, free=(2, 3, 4, 5))
    after = {n.name: n for n in model.graph.all_nodes() if n.name}
    for name in ("act", "sum", "branch", "inner"):
        assert (after[name].metadata_props["mine"], after[name].doc_string) == (name, f"doc of {name}")
    assert (model.graph.doc_string, model.doc_string, model.graph.inputs[0].doc_string) == (
        "the graph",
        "the model",
        "the input",
    )
    assert (model.metadata_props["author"], model.graph.metadata_props["place"]) == ("me", "here")
    assert after["act"].outputs[0].metadata_props["tensor"] == "r"


def test_nodes_that_the_converter_adds_say_where_they_come_from(build: Build) -> None:
    model = build(header(12) + "g (float[N,3,4] x) => (float[N,3,4] y) { [soft] y = Softmax<axis=1>(x) }")
    assert raise_opset(model) is None
    added = [n for n in model.graph if n.name != "soft"]
    assert {n.op_type for n in added} == {"Flatten", "Reshape", "Shape"}
    assert {n.metadata_props[ORIGIN] for n in added} == {"soft"}
    assert len({n.name for n in model.graph}) == len(model.graph)


def test_weights_are_neither_copied_nor_lost(build: Build) -> None:
    weight = np.zeros((400, 3), np.float32)
    model = build(
        header(11) + "g (float[N,3] x) => (float[N,400] y) { y = Gemm<transB=1>(x, w, b) }",
        w=weight,
        b=np.ones(400, np.float32),
    )
    tensors = {name: v.const_value for name, v in model.graph.initializers.items()}
    assert raise_opset(model) is None
    assert {name: v.const_value for name, v in model.graph.initializers.items()} == tensors
    assert [v.name for v in model.graph.inputs] == ["x"]


def test_initializers_listed_as_inputs(build: Build, check: Check) -> None:
    """Below IR 4 every initializer had to be listed and none could be set; from 4 on the listed ones can be set."""
    text = "g (float[N,3] x, float[4,3] w) => (float[N,4] y) { y = Gemm<transB=1>(x, w, b) }"
    for version, left in ((3, ["x"]), (4, ["x", "w"])):
        model = build(header(8, version) + text, w=np.ones((4, 3), np.float32), b=np.ones(4, np.float32))
        if version == 3:
            model.graph.inputs.append(model.graph.initializers["b"])
        log = check(model)
        assert [v.name for v in model.graph.inputs] == left
        assert ("2 initializers are no longer listed as inputs" in " ".join(log.lines)) == (version == 3)


def test_what_cannot_be_converted_stays_whole_and_says_why(build: Build, check: Check) -> None:
    model = build(
        """<ir_version: 8, opset_import: ["" : 13, "f" : 1]>
        g (float[N,3] x) => (float[N,3] y) { c = Constant<value_float=2.0>() m = Mul(x, c) y = f.twice(m) }
        <domain: "f", opset_import: ["" : 13]> twice (a) => (b) { b = Add(a, a) }"""
    )
    log = check(model)
    assert log.remarks == ["opset stays 13: functions cannot be converted"]
    assert log.lines == ("1 Constant node became initializers",) and model.opset_imports[""] == 13


def test_an_operator_without_an_adapter(build: Build) -> None:
    model = build(header(8) + "g (float[2,3] x) => (float[2,3] y) { y = Nonsense(x) }")
    reason = raise_opset(model)
    assert reason is not None and "Nonsense" in reason
    assert model.opset_imports[""] == 8 and len(model.graph) == 1


def test_newer_opsets_are_left_alone(build: Build) -> None:
    model = build(header(21, 10) + "g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }")
    graph = model.graph
    assert raise_opset(model) is None and model.graph is graph and model.opset_imports[""] == 21


def test_a_scan_with_a_batch_axis_stays(build: Build, check: Check) -> None:
    model = build(
        header(8)
        + """g (float[1,2] start, float[1,3,2] x) => (float[1,2] last, float[1,3,2] y) {
          last, y = Scan<num_scan_inputs=1, body = b (float[2] s, float[2] v) => (float[2] t, float[2] o) {
          t = Add(s, v) o = Identity(t) }>(, start, x) }"""
    )
    log = check(model)
    assert model.opset_imports[""] == 8 and "Scan" in log.remarks[0]
