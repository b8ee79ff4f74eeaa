"""Every model that ships with onnx goes through the IR and back with no field lost, and stays valid."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import Message
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases

from onnxcomp import guards, modelio
from onnxcomp.errors import ModelError

# Repeated fields whose order means nothing: entries are matched by these fields of theirs.
_KEYS = {
    "AttributeProto": ("name",),
    "FunctionProto": ("domain", "name", "overload"),
    "OperatorSetIdProto": ("domain",),
    "StringStringEntryProto": ("key",),
    "TensorAnnotation": ("tensor_name",),
}
_KEYED_BY_NAME = ("initializer", "value_info")


def differences(before: Message, after: Message, path: str = "") -> Iterator[str]:
    """Yield one line for each field that differs, with its path."""
    if isinstance(before, TensorProto) and isinstance(after, TensorProto):
        yield from _tensor(before, after, path)
        return
    fields = {field.number: field for message in (before, after) for field, _ in message.ListFields()}
    for field in fields.values():
        here = f"{path}.{field.name}" if path else field.name
        one, two = getattr(before, field.name), getattr(after, field.name)
        if field.is_repeated:
            yield from _repeated(field.name, list(one), list(two), here)
        elif before.HasField(field.name) != after.HasField(field.name):
            # proto2 keeps an explicit default apart from an absent field; the meaning is the same.
            if one != two or isinstance(one, Message):
                yield f"{here}: {'lost' if before.HasField(field.name) else 'added'}"
        elif isinstance(one, Message):
            yield from differences(one, two, here)
        elif one != two and not (one != one and two != two):
            yield f"{here}: {one!r} became {two!r}"


def _repeated(name: str, one: Sequence[Any], two: Sequence[Any], path: str) -> Iterator[str]:
    kind = next((type(entry).__name__ for entry in (*one, *two) if isinstance(entry, Message)), None)
    keys = _KEYS.get(kind or "") or (("name",) if name in _KEYED_BY_NAME else None)
    if keys is not None:
        yield from _matched(_by(keys, one), _by(keys, two), path)
        if len(one) != len(two) and len(_by(keys, one)) == len(_by(keys, two)):
            yield f"{path}: {len(one)} entries became {len(two)}"
        return
    if len(one) != len(two):
        yield f"{path}: {len(one)} entries became {len(two)}"
    for index, (before, after) in enumerate(zip(one, two, strict=False)):
        if isinstance(before, Message):
            yield from differences(before, after, f"{path}[{index}]")
        elif before != after and not (before != before and after != after):
            yield f"{path}[{index}]: {before!r} became {after!r}"


def _by(keys: tuple[str, ...], entries: Sequence[Any]) -> dict[tuple[str, ...], Any]:
    return {tuple(getattr(entry, key) for key in keys): entry for entry in entries}


def _matched(one: dict[tuple[str, ...], Any], two: dict[tuple[str, ...], Any], path: str) -> Iterator[str]:
    for key in one.keys() | two.keys():
        here = f"{path}[{':'.join(key)}]"
        if key not in one or key not in two:
            yield f"{here}: {'added' if key not in one else 'lost'}"
        else:
            yield from differences(one[key], two[key], here)


def _tensor(before: TensorProto, after: TensorProto, path: str) -> Iterator[str]:
    for field in ("name", "doc_string", "data_type", "data_location"):
        if getattr(before, field) != getattr(after, field):
            yield f"{path}.{field}: {getattr(before, field)!r} became {getattr(after, field)!r}"
    for field in ("metadata_props", "external_data"):
        yield from _repeated(field, getattr(before, field), getattr(after, field), f"{path}.{field}")
    if list(before.dims) != list(after.dims):
        yield f"{path}.dims: {list(before.dims)} became {list(after.dims)}"
    elif before.data_location != TensorProto.EXTERNAL and before.data_type == after.data_type:
        one, two = numpy_helper.to_array(before), numpy_helper.to_array(after)
        same = one.tolist() == two.tolist() if one.dtype == np.object_ else one.tobytes() == two.tobytes()
        if not same:
            yield f"{path}: other values"


def round_trip(proto: ModelProto) -> ModelProto:
    return onnx.load_model_from_string(modelio.to_bytes(modelio.from_proto(proto)))


@pytest.fixture(scope="module")
def shipped() -> list[tuple[str, ModelProto]]:
    """Every node test case and every model file of the onnx package."""
    with warnings.catch_warnings(action="ignore"):  # onnx's own generators divide by zero on purpose
        cases = collect_testcases(None)
    models = [(case.name, case.model) for case in cases if case.model is not None]
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data"
    return models + [(str(file.relative_to(folder)), onnx.load(file)) for file in sorted(folder.rglob("*.onnx"))]


def test_all_shipped_models_survive(shipped: list[tuple[str, ModelProto]], monkeypatch: pytest.MonkeyPatch) -> None:
    # onnx ships opsets that no runtime loads yet; whether the IR carries them is a question of its own.
    monkeypatch.setattr(guards, "MAX_OPSET", 99)
    monkeypatch.setattr(guards, "MAX_IR_VERSION", 99)
    assert len(shipped) > 1500
    faults: list[str] = []
    for name, before in shipped:
        onnx.checker.check_model(before)
        after = round_trip(before)
        faults += [f"{name}: {line}" for line in differences(before, after)]
        try:
            onnx.checker.check_model(after)
        except onnx.checker.ValidationError as error:
            faults.append(f"{name}: invalid now: {error}")
    assert faults == []


def test_shipped_models_the_runtime_does_not_load_are_refused(shipped: list[tuple[str, ModelProto]]) -> None:
    refused = 0
    for name, before in shipped:
        opset = max((entry.version for entry in before.opset_import if entry.domain in ("", "ai.onnx")), default=0)
        try:
            modelio.from_proto(before)
        except ModelError as error:
            refused += 1
            assert f"opset {opset}" in str(error) and opset > guards.MAX_OPSET, name
        else:
            assert opset <= guards.MAX_OPSET, name
    assert 0 < refused < 0.2 * len(shipped)


FEATURES: dict[str, Callable[[], ModelProto]] = {}


def feature(build: Callable[[], ModelProto]) -> Callable[[], ModelProto]:
    FEATURES[build.__name__] = build
    return build


def info(name: str, kind: int = TensorProto.FLOAT, shape: Sequence[int | str | None] | None = (1, 4)) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    *nodes: NodeProto,
    inputs: Sequence[ValueInfoProto] = (),
    outputs: Sequence[ValueInfoProto] = (),
    weights: Sequence[TensorProto] = (),
    infos: Sequence[ValueInfoProto] = (),
    **rest: Any,
) -> ModelProto:
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("Relu", ["x"], ["y"], name="relu")],
        "g",
        list(inputs) or [info("x")],
        list(outputs) or [info("y")],
        initializer=weights,
        value_info=infos,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.acme", 1), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, ir_version=10, **{"opset_imports": opsets, **rest})


def weight(name: str = "w") -> TensorProto:
    return numpy_helper.from_array(np.ones((1, 4), np.float32), name)


def note(message: Any, **entries: str) -> None:
    helper.set_model_props(message, entries)


@feature
def identity_of_the_model() -> ModelProto:
    proto = model(producer_name="torch", producer_version="2.9", domain="com.acme", model_version=7, doc_string="a doc")
    note(proto, author="me", calibration="abc")
    return proto


@feature
def graph_annotations() -> ModelProto:
    proto = model()
    proto.graph.doc_string = "graph doc"
    note(proto.graph, key="value")
    return proto


@feature
def node_annotations() -> ModelProto:
    proto = model()
    proto.graph.node[0].doc_string = "node doc"
    note(proto.graph.node[0], namespace="layer1.0")
    return proto


@feature
def same_and_empty_node_names() -> ModelProto:
    names = ("n", "n", "")
    values = "xabyz"
    return model(*(helper.make_node("Relu", [values[i]], [values[i + 1]], name=names[i]) for i in range(3)))


@feature
def value_annotations() -> ModelProto:
    infos = [info("t")]
    infos[0].doc_string = "value doc"
    note(infos[0], key="value")
    proto = model(helper.make_node("Relu", ["x"], ["t"]), helper.make_node("Relu", ["t"], ["y"]), infos=infos)
    proto.graph.input[0].type.denotation = "IMAGE"
    proto.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    return proto


@feature
def symbolic_and_unknown_dimensions() -> ModelProto:
    return model(inputs=[info("x", shape=("N", None))], outputs=[info("y", shape=("N", None))])


@feature
def overridable_initializer() -> ModelProto:
    return model(helper.make_node("Add", ["x", "w"], ["y"]), inputs=[info("x"), info("w")], weights=[weight()])


@feature
def initializer_as_output() -> ModelProto:
    return model(outputs=[info("y"), info("w")], weights=[weight()])


@feature
def input_as_output() -> ModelProto:
    return model(outputs=[info("y"), info("x")])


@feature
def unused_values() -> ModelProto:
    return model(inputs=[info("x"), info("z")], weights=[weight("unused")])


@feature
def initializer_annotations() -> ModelProto:
    tensor = weight()
    tensor.doc_string = "weight doc"
    note(tensor, key="value")
    return model(helper.make_node("Add", ["x", "w"], ["y"]), weights=[tensor], infos=[info("w")])


@feature
def quantization_annotation() -> ModelProto:
    scale = numpy_helper.from_array(np.array(0.1, np.float32), "w_scale")
    proto = model(helper.make_node("Add", ["x", "w"], ["y"]), weights=[weight(), scale])
    proto.graph.quantization_annotation.add(tensor_name="w").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="w_scale"
    )
    return proto


@feature
def functions_with_overloads() -> ModelProto:
    calls = [
        helper.make_node("F", [a], [b], domain="local", overload=o) for a, b, o in (("x", "t", "v1"), ("t", "y", "v2"))
    ]
    proto = model(*calls)
    for overload, kind in (("v1", "Relu"), ("v2", "Neg")):
        body = [helper.make_node(kind, ["a"], ["b"], name="inner")]
        function = helper.make_function(
            "local", "F", ["a"], ["b"], body, [helper.make_opsetid("", 21)], overload=overload
        )
        function.value_info.append(info("b"))
        function.doc_string = "function doc"
        note(function, key="value")
        proto.functions.append(function)
    return proto


@feature
def function_attribute_reference_and_default() -> ModelProto:
    node = helper.make_node("LeakyRelu", ["a"], ["b"])
    node.attribute.add(name="alpha", ref_attr_name="alpha", type=AttributeProto.FLOAT)
    proto = model(helper.make_node("L", ["x"], ["y"], domain="local", alpha=0.5))
    default = [helper.make_attribute("alpha", 0.25)]
    opsets = [helper.make_opsetid("", 21)]
    proto.functions.append(helper.make_function("local", "L", ["a"], ["b"], [node], opsets, attribute_protos=default))
    return proto


@feature
def branches_reading_outer_values() -> ModelProto:
    then = helper.make_graph(
        [helper.make_node("Add", ["x", "outer"], ["q"], name="a"), helper.make_node("Add", ["q", "own"], ["o1"])],
        "then", [], [info("o1")], initializer=[weight("own")], value_info=[info("q")], doc_string="branch doc",
    )  # fmt: skip
    note(then, key="value")
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["o2"])], "else", [], [info("o2")])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    return model(branch, inputs=[info("x"), info("c", TensorProto.BOOL, ())], weights=[weight("outer")])


@feature
def loop_body() -> ModelProto:
    nodes = [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Relu", ["v"], ["w"])]
    given = [info("i", TensorProto.INT64, ()), info("go", TensorProto.BOOL, ()), info("v")]
    body = helper.make_graph(nodes, "body", given, [info("on", TensorProto.BOOL, ()), info("w")])
    trips = numpy_helper.from_array(np.array(3, np.int64), "trips")
    return model(helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body), weights=[trips])


@feature
def sequence_and_optional_types() -> ModelProto:
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [1, 4])
    nodes = [
        helper.make_node("SequenceConstruct", ["x", "x"], ["s"]),
        helper.make_node("Optional", ["x"], ["o"]),
        helper.make_node("Optional", [], ["none"], type=tensor),
        helper.make_node("OptionalGetElement", ["o"], ["y"]),
    ]
    infos = [
        helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, (1, 4)),
        helper.make_value_info("o", helper.make_optional_type_proto(tensor)),
    ]
    return model(*nodes, infos=infos)


@feature
def odd_attributes() -> ModelProto:
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["o"])], "inner", [], [info("o")])
    node = helper.make_node(
        "Custom", ["x"], ["y"], domain="com.acme", a=float("inf"), b=1.0, c=[1.0, 2.0], d=["s"], e=3, f=[1, 2]
    )
    node.attribute.add(name="none", type=AttributeProto.INTS)
    node.attribute.add(name="bytes", type=AttributeProto.STRING, s=b"\xff\xfe\x00engine")
    node.attribute.add(name="tensors", type=AttributeProto.TENSORS).tensors.append(weight("t0"))
    node.attribute.add(name="graphs", type=AttributeProto.GRAPHS).graphs.append(inner)
    node.attribute[0].doc_string = "attribute doc"
    return model(node)


@feature
def device_configuration() -> ModelProto:
    proto = model()
    proto.ir_version = 11
    proto.configuration.add(name="cfg", num_devices=2)
    proto.graph.node[0].device_configurations.add(configuration_id="cfg")
    return proto


@feature
def omitted_optional_input() -> ModelProto:
    high = numpy_helper.from_array(np.array(3.0, np.float32), "high")
    return model(helper.make_node("Clip", ["x", "", "high"], ["y"]), weights=[high])


@feature
def string_tensor() -> ModelProto:
    words = numpy_helper.from_array(np.array(["a", "ä"], np.object_), "w")
    return model(
        helper.make_node("Identity", ["w"], ["y"]), weights=[words], outputs=[info("y", TensorProto.STRING, (2,))]
    )


@feature
def large_typed_and_raw_tensors() -> ModelProto:
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [200, 200], np.arange(40_000).tolist())
    typed.doc_string = "streamed"
    note(typed, b="2", a="1")
    raw = numpy_helper.from_array(np.arange(40_000, dtype=np.float16).reshape(200, 200), "raw")
    node = helper.make_node("Identity", ["typed"], ["y"])
    return model(node, weights=[typed, raw], outputs=[info("y", shape=(200, 200))])


DTYPES = """FLOAT16 BFLOAT16 DOUBLE FLOAT8E4M3FN FLOAT8E4M3FNUZ FLOAT8E5M2 FLOAT8E5M2FNUZ FLOAT8E8M0 FLOAT4E2M1
UINT4 INT4 UINT2 INT2 BOOL COMPLEX64 UINT64"""


def dtype_model(kind: str) -> ModelProto:
    code = getattr(TensorProto, kind)
    array = np.array([0, 1, 1], np.float32).astype(helper.tensor_dtype_to_np_dtype(code))
    node, weights = helper.make_node("Identity", ["w"], ["y"]), [numpy_helper.from_array(array, "w")]
    proto = model(node, weights=weights, outputs=[info("y", code, (3,))], opset_imports=[helper.make_opsetid("", 25)])
    proto.ir_version = 13
    return proto


@pytest.mark.parametrize("name", FEATURES)
def test_feature_survives_two_trips(name: str) -> None:
    before = FEATURES[name]()
    onnx.checker.check_model(before)
    after = round_trip(before)
    onnx.checker.check_model(after)
    assert list(differences(before, after)) == []
    assert list(differences(before, round_trip(after))) == []


@pytest.mark.parametrize("kind", DTYPES.split())
def test_element_type_survives(kind: str) -> None:
    before = dtype_model(kind)
    assert list(differences(before, round_trip(before))) == []


def test_domain_alias_stays_valid() -> None:
    before = model(
        helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx"), opset_imports=[helper.make_opsetid("ai.onnx", 21)]
    )
    after = round_trip(before)
    onnx.checker.check_model(after)
    assert [(entry.domain, entry.version) for entry in after.opset_import] == [("", 21)]
    assert before.opset_import[0].domain == "ai.onnx"  # the caller's protobuf is not touched


def test_unsorted_nodes_come_out_sorted() -> None:
    before = model(helper.make_node("Relu", ["t"], ["y"]), helper.make_node("Neg", ["x"], ["t"]))
    after = round_trip(before)
    onnx.checker.check_model(after)
    assert [node.op_type for node in after.graph.node] == ["Neg", "Relu"]


DAMAGES: list[Callable[[ModelProto], object]] = [
    lambda proto: proto.ClearField("doc_string"),
    lambda proto: proto.metadata_props.add(key="author", value="me"),
    lambda proto: setattr(proto, "model_version", 8),
    lambda proto: proto.graph.node[0].ClearField("name"),
    lambda proto: proto.graph.node[0].input.append("z"),
    lambda proto: proto.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_value"),
    lambda proto: proto.graph.value_info.add(name="more"),
    lambda proto: proto.opset_import[0].ClearField("version"),
    lambda proto: setattr(proto.graph.initializer[0], "raw_data", b"\0" * 16),
    lambda proto: proto.graph.initializer[0].metadata_props.add(key="k", value="v"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_differ_sees_damage(damage: Callable[[ModelProto], object]) -> None:
    before = identity_of_the_model()
    before.graph.initializer.append(weight())
    after = ModelProto()
    after.CopyFrom(before)
    assert list(differences(before, after)) == []
    damage(after)
    assert len(list(differences(before, after))) == 1
