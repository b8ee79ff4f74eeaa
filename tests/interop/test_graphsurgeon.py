"""Passes written for onnx-graphsurgeon run, lose nothing, and are refused where they would."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases

from onnxcomp import guards, modelio
from onnxcomp.contract import Context
from onnxcomp.errors import ModelError
from onnxcomp.interop.graphsurgeon import GraphSurgeonPass, from_graphsurgeon, hazards, to_graphsurgeon

CONTEXT = cast(Context, None)  # the adapter reads nothing of it


def build() -> ModelProto:
    """Two layers with everything that graphsurgeon drops and that can be put back."""
    proto = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 21], domain: "com.acme", model_version: 7, doc_string: "a doc",
         producer_name: "torch", metadata_props: ["author": "me"]>
        g (float[N, 4] x, float[4] b) => (float[N, 4] y)
        <float[4] b = {1, 1, 1, 1}, float[4] unused = {0, 0, 0, 0}, float[N, 4] t>
        {
            s = Add(x, b)
            t = Mul(s, w)
            u = Identity(t)
            y = LeakyRelu <alpha = 0.25> (u)
        }
        """
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.arange(4, dtype=np.float32), "w"))
    proto.graph.initializer[-1].doc_string = "a weight"
    for index, node in enumerate(proto.graph.node):
        node.name, node.doc_string = f"n{index}", "node doc"
        node.metadata_props.add(key="onnxcomp.origin", value=f"layer{index}")
    proto.graph.node[3].attribute[0].doc_string = "attribute doc"
    proto.graph.metadata_props.add(key="k", value="v")
    proto.graph.input[0].type.denotation = "IMAGE"
    proto.graph.value_info[0].doc_string = "value doc"
    return proto


def remove_identities(graph: gs.Graph) -> None:
    for node in [node for node in graph.nodes if node.op == "Identity"]:
        node.o().inputs[0] = node.inputs[0]
        node.outputs.clear()
    graph.cleanup().toposort()


def double_weights(graph: gs.Graph) -> gs.Graph:
    weight = graph.tensors()["w"]
    weight.values = weight.values * 2
    return graph


def run(model: ir.Model) -> np.ndarray:
    session = ort.InferenceSession(modelio.to_bytes(model), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)})[0])


def test_nothing_is_lost_on_the_way() -> None:
    model = modelio.from_proto(build())
    back = from_graphsurgeon(to_graphsurgeon(model), like=model)
    assert modelio.to_bytes(back) == modelio.to_bytes(model)
    assert all(
        back.graph.initializers[name].const_value is value.const_value
        for name, value in model.graph.initializers.items()
    )


def test_shipped_models_come_back_byte_for_byte_or_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "MAX_OPSET", 99)
    monkeypatch.setattr(guards, "MAX_IR_VERSION", 99)
    with warnings.catch_warnings(action="ignore"):  # onnx's own generators divide by zero on purpose
        cases = [(case.name, case.model) for case in collect_testcases(None) if case.model is not None]
    kept = refused = 0
    for name, proto in cases[::7]:
        model = modelio.from_proto(proto)
        if hazards(model):
            refused += 1
            continue
        kept += 1
        back = from_graphsurgeon(to_graphsurgeon(model), like=model)
        assert modelio.to_bytes(back) == modelio.to_bytes(model), name
    assert kept > 200 and 0 < refused < 20


def test_a_pass_runs_and_accounts_for_its_changes() -> None:
    model = modelio.from_proto(build())
    expected = run(model)
    weight = model.graph.initializers["w"].const_value
    report = GraphSurgeonPass(remove_identities).run(model, CONTEXT)
    assert [(change.site, change.summary) for change in report.changes] == [
        ("layer2", "Identity removed"),
        ("layer3", "rewritten"),
    ]
    np.testing.assert_array_equal(run(model), expected)
    onnx.checker.check_model(modelio.to_bytes(model), full_check=True)
    assert [node.metadata_props["onnxcomp.origin"] for node in model.graph] == ["layer0", "layer1", "layer3"]
    assert model.metadata_props == {"author": "me"} and model.model_version == 7
    assert [value.name for value in model.graph.inputs] == ["x", "b"]
    assert model.graph.initializers["w"].const_value is weight


def test_a_pass_may_change_weights_and_return_another_graph() -> None:
    model = modelio.from_proto(build())
    expected = run(model)
    report = GraphSurgeonPass(double_weights).run(model, CONTEXT)
    (change,) = report.changes
    assert (change.site, change.summary) == ("layer1", "rewritten")
    assert (change.before.parameters, change.before.bytes) == (4, 16)
    assert not np.allclose(run(model), expected)


def test_new_nodes_carry_where_they_came_from() -> None:
    def relu(graph: gs.Graph) -> None:
        node = next(node for node in graph.nodes if node.op == "LeakyRelu")
        output = gs.Variable("between", np.float32, ["N", 4])
        outputs = list(node.outputs)
        node.outputs.clear()
        node.outputs.append(output)
        cast("list[gs.Node]", graph.nodes).append(gs.Node("Relu", "fresh", inputs=[output], outputs=outputs))

    model = modelio.from_proto(build())
    report = GraphSurgeonPass(relu).run(model, CONTEXT)
    assert {change.summary for change in report.changes} == {"LeakyRelu became Relu", "LeakyRelu added"}
    (fresh,) = [node for node in model.graph if node.name == "fresh"]
    assert fresh.metadata_props == {"onnxcomp.pass": "graphsurgeon", "onnxcomp.origin": "layer3"}


def test_a_pass_that_does_nothing_leaves_the_very_graph() -> None:
    model = modelio.from_proto(build())
    graph = model.graph
    report = GraphSurgeonPass(lambda graph: None).run(model, CONTEXT)
    assert model.graph is graph and report.changes == () and report.notes == ("the function changed nothing",)


def test_a_graph_that_does_not_export_is_refused() -> None:
    def spoil(graph: gs.Graph) -> None:
        graph.nodes[0].attrs["bad"] = object()

    model = modelio.from_proto(build())
    with pytest.raises(ModelError, match="the graph that the graphsurgeon function left does not export"):
        GraphSurgeonPass(spoil).run(model, CONTEXT)


def test_external_data_stay_in_their_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(build(), path, save_as_external_data=True, location="d", size_threshold=0)
    model = modelio.load(path)
    GraphSurgeonPass(remove_identities).run(model, CONTEXT)
    modelio.save(model, tmp_path / "out.onnx")
    np.testing.assert_array_equal(run(modelio.load(tmp_path / "out.onnx")), run(modelio.load(path)))


def test_ir_version_3_stays_valid() -> None:
    proto = build()
    proto.ir_version = 3
    proto.graph.input.extend([helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("unused", "w")])
    proto.opset_import[0].version = 8
    model = modelio.from_proto(proto)
    back = from_graphsurgeon(to_graphsurgeon(model), like=model)
    onnx.checker.check_model(modelio.to_bytes(back))
    assert [value.name for value in back.graph.inputs] == ["x", "b", "unused", "w"] and back.ir_version == 3
    graph = to_graphsurgeon(model)
    graph.nodes[0].inputs[1] = gs.Constant("new", np.ones(4, np.float32))
    assert from_graphsurgeon(graph, like=model).ir_version == 4


# What is refused, one by one


def attribute(**fields: Any) -> ModelProto:
    proto = build()
    node = helper.make_node("Custom", ["y"], ["z"], name="odd", domain="com.acme")
    node.attribute.append(AttributeProto(name="a", **fields))
    proto.graph.node.append(node)
    proto.opset_import.add(domain="com.acme", version=1)
    return proto


def initializer(kind: int) -> ModelProto:
    proto = build()
    values = np.array([0, 1, 1], np.float32).astype(helper.tensor_dtype_to_np_dtype(kind))
    proto.graph.initializer.append(numpy_helper.from_array(values, "odd"))
    proto.graph.node.append(helper.make_node("Identity", ["odd"], ["z"]))
    return proto


def words() -> ModelProto:
    proto = build()
    proto.graph.initializer.append(numpy_helper.from_array(np.array(["a"], np.object_), "odd"))
    return proto


def constant() -> ModelProto:
    proto = build()
    value = helper.make_tensor("t", TensorProto.INT4, [2], [1, 2])
    proto.graph.node.append(helper.make_node("Constant", [], ["z"], name="odd", value=value))
    return proto


def value_type(kind: onnx.TypeProto) -> ModelProto:
    proto = build()
    proto.graph.value_info.append(helper.make_value_info("u", kind))
    return proto


def branch() -> ModelProto:
    proto = build()
    bodies = [
        helper.make_graph(
            [helper.make_node("Add", ["y", "w"], [f"o{k}"])], "b", [], [helper.make_empty_tensor_value_info(f"o{k}")]
        )
        for k in range(2)
    ]
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    proto.graph.node.append(helper.make_node("If", ["flag"], ["z"], then_branch=bodies[0], else_branch=bodies[1]))
    return proto


def overload() -> ModelProto:
    proto = build()
    proto.opset_import.add(domain="local", version=1)
    body = [helper.make_node("Relu", ["a"], ["b"])]
    opsets = [helper.make_opsetid("", 21)]
    proto.functions.append(helper.make_function("local", "F", ["a"], ["b"], body, opsets, overload="v1"))
    proto.graph.node.append(helper.make_node("F", ["y"], ["z"], name="odd", domain="local", overload="v1"))
    return proto


def device() -> ModelProto:
    proto = build()
    proto.configuration.add(name="cfg", num_devices=2)
    return proto


FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, [4])
SPARSE = helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [4])
TENSOR = numpy_helper.from_array(np.ones(1, np.float32), "t")


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (device(), "device configurations would be lost (the model)"),
        (overload(), "overloads of a function would fall together (function 'F', node 'odd')"),
        (branch(), "weights read inside If, Loop or Scan bodies would be copied into each ('w')"),
        (
            attribute(type=AttributeProto.TENSORS, tensors=[TENSOR]),
            "that is a list of tensors would be lost",
        ),
        (attribute(type=AttributeProto.GRAPHS, graphs=[]), "an attribute that is a list of graphs would be lost"),
        (attribute(type=AttributeProto.TYPE_PROTO, tp=FLOATS), "an attribute that is a type would be lost"),
        (
            attribute(type=AttributeProto.TYPE_PROTOS, type_protos=[FLOATS]),
            "that is a list of types would be lost",
        ),
        (attribute(type=AttributeProto.INTS), "cannot write an empty list attribute (node 'odd', attribute 'a')"),
        (attribute(type=AttributeProto.STRING, s=b"\xff"), "cannot read a string attribute that is not UTF-8"),
        (value_type(helper.make_optional_type_proto(FLOATS)), "sequence types would be lost (value 'u')"),
        (value_type(helper.make_sequence_type_proto(FLOATS)), "sequence types would be lost (value 'u')"),
        (
            value_type(helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [4])),
            "sequence types would be lost (value 'u')",
        ),
        (initializer(TensorProto.INT4), "tensors of type int4 would be corrupted (initializer 'odd')"),
        (initializer(TensorProto.FLOAT4E2M1), "tensors of type float4e2m1 would be corrupted (initializer 'odd')"),
        (initializer(TensorProto.FLOAT8E4M3FNUZ), "tensors of type float8e4m3fnuz would be corrupted"),
        (words(), "tensors of type string would be corrupted (initializer 'odd')"),
        (constant(), "tensors of type int4 would be corrupted (node 'odd', attribute 'value')"),
    ],
)
def test_hazards_are_refused_with_the_place(proto: ModelProto, reason: str) -> None:
    model = modelio.from_proto(proto)
    (found,) = hazards(model)
    assert reason in found
    before = modelio.to_bytes(model)
    actions: list[Callable[[], object]] = [
        lambda: to_graphsurgeon(model),
        lambda: GraphSurgeonPass(remove_identities).requires(model, CONTEXT),
        lambda: GraphSurgeonPass(remove_identities).run(model, CONTEXT),
    ]
    for action in actions:
        with pytest.raises(ModelError) as caught:
            action()
        assert reason in str(caught.value) and caught.value.exit_code == 2
    assert modelio.to_bytes(model) == before


def test_models_over_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelio, "PROTOBUF_LIMIT", 100)
    assert hazards(modelio.from_proto(build())) == ("graphsurgeon cannot hold a model over 2 GB (the model)",)
