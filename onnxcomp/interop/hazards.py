"""What onnx-graphsurgeon would lose or damage beyond repair."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import onnx_ir as ir

from onnxcomp import modelio

__all__ = ["hazards"]

# The exporter writes these unpacked, as another type, or not at all once a pass has read their values.
_DAMAGED_TYPES = {
    ir.DataType.INT4,
    ir.DataType.UINT4,
    ir.DataType.INT2,
    ir.DataType.UINT2,
    ir.DataType.FLOAT4E2M1,
    ir.DataType.FLOAT6E2M3,
    ir.DataType.FLOAT6E3M2,
    ir.DataType.FLOAT8E4M3FNUZ,
    ir.DataType.STRING,
}
_DROPPED_ATTRIBUTES = {
    ir.AttributeType.TENSORS: "a list of tensors",
    ir.AttributeType.GRAPHS: "a list of graphs",
    ir.AttributeType.TYPE_PROTO: "a type",
    ir.AttributeType.TYPE_PROTOS: "a list of types",
}
_LISTS = (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS)

Finding = tuple[str, str]


def hazards(model: ir.Model) -> tuple[str, ...]:
    """Say what a trip through graphsurgeon would damage and where, a line for each reason; empty where nothing.

    Metadata, doc strings, denotations and all else that `from_graphsurgeon` restores are no hazard.
    """
    places: dict[str, list[str]] = defaultdict(list)
    for reason, place in _findings(model):
        if place not in places[reason]:
            places[reason].append(place)
    return tuple(
        f"{reason} ({', '.join(where[:2])}{f' and {len(where) - 2} more' if len(where) > 2 else ''})"
        for reason, where in places.items()
    )


def _findings(model: ir.Model) -> Iterator[Finding]:
    if modelio.serialized_bytes(model) > modelio.PROTOBUF_LIMIT:
        yield "graphsurgeon cannot hold a model over 2 GB", "the model"
    if model.device_configurations:
        yield "device configurations would be lost", "the model"
    for function in model.functions.values():
        if function.overload:
            yield "overloads of a function would fall together", f"function {function.name!r}"
        yield from _of_graph(function.graph, set())
    yield from _of_graph(model.graph, set())


def _of_graph(graph: ir.Graph, outer: set[ir.Value]) -> Iterator[Finding]:
    for value in _values(graph):
        yield from _of_value(value)
    constants = set(graph.initializers.values())
    for value in constants:
        if value.const_value is not None and value.const_value.dtype in _DAMAGED_TYPES:
            kind = value.const_value.dtype.name.lower()
            yield f"tensors of type {kind} would be corrupted", f"initializer {value.name!r}"
    for node in graph:
        yield from _of_node(node, outer | constants)


def _of_value(value: ir.Value) -> Iterator[Finding]:
    # A sequence of tensors without shapes is what graphsurgeon can say; everything else beyond tensors it cannot.
    shaped = isinstance(value.type, ir.SequenceType) and value.shape is not None
    nested = isinstance(value.type, ir.SequenceType) and not isinstance(value.type.elem_type, ir.TensorType)
    if shaped or nested or isinstance(value.type, (ir.OptionalType, ir.SparseTensorType)):
        yield "optional, sparse and shaped sequence types would be lost", f"value {value.name!r}"


def _of_node(node: ir.Node, outer: set[ir.Value]) -> Iterator[Finding]:
    place = f"node {node.name or node.op_type!r}"
    if node.overload:
        yield "overloads of a function would fall together", place
    if node.device_configurations:
        yield "device configurations would be lost", place
    for attribute in node.attributes.values():
        here = f"{place}, attribute {attribute.name!r}"
        if attribute.type in _DROPPED_ATTRIBUTES:
            yield f"an attribute that is {_DROPPED_ATTRIBUTES[attribute.type]} would be lost", here
        elif attribute.is_ref():
            continue
        elif attribute.type in _LISTS and not len(attribute.value):
            yield "graphsurgeon cannot write an empty list attribute", here
        elif attribute.type == ir.AttributeType.STRING and not isinstance(attribute.value, str):
            yield "graphsurgeon cannot read a string attribute that is not UTF-8", here
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _DAMAGED_TYPES:
            yield f"tensors of type {attribute.as_tensor().dtype.name.lower()} would be corrupted", here
        elif attribute.type == ir.AttributeType.GRAPH:
            body = attribute.as_graph()
            for used in {value for inner in body.all_nodes() for value in inner.inputs if value is not None} & outer:
                yield "weights read inside If, Loop or Scan bodies would be copied into each", f"{used.name!r}"
            yield from _of_graph(body, outer)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs
