"""What the IR or the runtime cannot carry: made good before the IR sees it, or refused with the place.

onnx-ir 1.1 keeps everything in a model but this: sparse initializers, training information and initializers without a
name are dropped; map, opaque and sparse-attribute payloads end in an error from deep inside; the alias ``ai.onnx`` is
normalised on nodes but not in the opset imports; tensor metadata are doubled (handled in `modelio`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import cast

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, numpy_helper

from onnxcomp.errors import ModelError

__all__ = ["MAX_IR_VERSION", "MAX_OPSET", "admit", "tensors"]

MAX_OPSET = 26  # the newest ai.onnx opset and IR version that ONNX Runtime 1.31 loads
MAX_IR_VERSION = 13

_ONE_BEYOND = 14  # adds the 6-bit floats and nothing else that a model without opaque types can hold
_FLOAT6 = (TensorProto.FLOAT6E2M3, TensorProto.FLOAT6E3M2)
_ELEMENT_TYPES = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
_SPARSE = (AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS)
_MAX_DENSE_BYTES = 2**31 - 1


def admit(proto: ModelProto) -> bool:
    """Make `proto` carriable in place, or refuse it.

    Sparse initializers become dense ones; the domain alias ``ai.onnx`` becomes the empty domain; IR version 14 becomes
    13 in a model that uses none of what 14 adds (ONNX Runtime loads no more than 13). All else is left as it is.

    Returns:
        Whether the nodes of every graph and function are in topological order.

    Raises:
        ModelError: An opset or IR version that the runtime does not load, training information, a map or opaque type,
            a sparse attribute, or a graph that is not single-assignment and closed (a value written twice or never).
    """
    _check_text(proto)
    _unalias(proto)
    _check_versions(proto)
    if proto.training_info:
        raise ModelError(
            "the model carries training information (training_info), which would be lost; "
            "export it for inference, or clear the field"
        )
    for graph in _graphs(proto):
        for info in (*graph.input, *graph.output, *graph.value_info):
            _check_type(info.type, f"value {info.name!r}")
        _densify(graph)
    for function in proto.functions:
        for info in function.value_info:
            _check_type(info.type, f"value {info.name!r} of function {function.name!r}")
    for node in _nodes(proto):
        for attribute in node.attribute:
            _check_attribute(node, attribute)
    for tensor in tensors(proto):
        if tensor.data_type not in _ELEMENT_TYPES:
            raise ModelError(
                f"tensor {tensor.name!r} has no known element type ({tensor.data_type}); the file is damaged"
            )
    ordered = _check_graph(proto.graph, frozenset())
    for function in proto.functions:
        ordered &= _check_scope(list(function.node), set(function.input), frozenset(), f"function {function.name!r}")
    return ordered


def tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Every dense tensor of a model: initializers and attributes, subgraphs and functions included."""
    for graph in _graphs(proto):
        yield from graph.initializer
    for node in _nodes(proto):
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == AttributeProto.TENSORS:
                yield from attribute.tensors


def _nodes(proto: ModelProto) -> Iterator[NodeProto]:
    """Every node, subgraphs and functions included."""
    stack = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    while stack:
        node = stack.pop()
        yield node
        for attribute in node.attribute:
            for graph in _subgraphs(attribute):
                stack.extend(graph.node)


def _graphs(proto: ModelProto) -> Iterator[GraphProto]:
    """The main graph and every subgraph."""
    yield proto.graph
    for node in _nodes(proto):
        for attribute in node.attribute:
            yield from _subgraphs(attribute)


def _subgraphs(attribute: AttributeProto) -> Iterator[GraphProto]:
    if attribute.type == AttributeProto.GRAPH:
        yield attribute.g
    elif attribute.type == AttributeProto.GRAPHS:
        yield from attribute.graphs


def _importers(proto: ModelProto) -> list[ModelProto | FunctionProto]:
    return [proto, *proto.functions]


def _unalias(proto: ModelProto) -> None:
    for owner in _importers(proto):
        versions: dict[str, int] = {}
        for entry in owner.opset_import:
            domain = "" if entry.domain == "ai.onnx" else entry.domain
            if versions.setdefault(domain, entry.version) != entry.version:
                both = f"{versions[domain]} and {entry.version}"
                raise ModelError(f"opsets {both} of domain {domain or 'ai.onnx'!r} are imported at once; keep one")
        if len(versions) < len(owner.opset_import) or any(entry.domain == "ai.onnx" for entry in owner.opset_import):
            del owner.opset_import[:]
            owner.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in versions.items())
    for node in _nodes(proto):
        if node.domain == "ai.onnx":
            node.domain = ""


def _check_versions(proto: ModelProto) -> None:
    if proto.ir_version == 0:
        raise ModelError("the model states no IR version; it is damaged, or not an ONNX model")
    versions = [entry.version for owner in _importers(proto) for entry in owner.opset_import if not entry.domain]
    opset = max(versions, default=0)
    if opset > MAX_OPSET:
        raise ModelError(
            f"the model uses opset {opset}; ONNX Runtime loads up to {MAX_OPSET}. "
            "Export it with a lower opset, or convert it with onnx.version_converter"
        )
    if not versions and any(not node.domain for node in proto.graph.node):
        raise ModelError(
            "the model does not say which opset its operators are from (no opset_import); it may be truncated"
        )
    if proto.ir_version == _ONE_BEYOND > MAX_IR_VERSION and not _uses_float6(proto):
        proto.ir_version = MAX_IR_VERSION
    if proto.ir_version > MAX_IR_VERSION:
        raise ModelError(
            f"the model has IR version {proto.ir_version}; ONNX Runtime loads up to {MAX_IR_VERSION}. "
            "Export it with an older onnx, or lower model.ir_version if it uses nothing newer"
        )


def _uses_float6(proto: ModelProto) -> bool:
    def of(kind: TypeProto) -> int:
        which = kind.WhichOneof("value")
        if which in ("tensor_type", "sparse_tensor_type"):
            return cast(int, getattr(kind, which).elem_type)
        return of(getattr(kind, which).elem_type) if which in ("sequence_type", "optional_type") else 0

    types = [of(v.type) for graph in _graphs(proto) for v in (*graph.input, *graph.output, *graph.value_info)]
    return any(kind in _FLOAT6 for kind in types) or any(tensor.data_type in _FLOAT6 for tensor in tensors(proto))


def _check_text(proto: ModelProto) -> None:
    """Refuse text that is not UTF-8, which Python reads as bytes and nothing can write back."""
    messages: list[Message] = [proto, *proto.metadata_props, *proto.opset_import, *proto.functions]
    for graph in _graphs(proto):
        messages += [graph, *graph.metadata_props, *graph.input, *graph.output, *graph.value_info]
    for node in _nodes(proto):
        messages += [node, *node.metadata_props]
    for message in messages:
        for field, value in message.ListFields():
            if field.type == FieldDescriptor.TYPE_STRING:
                _check_utf8(value, f"field {field.name!r} of a {type(message).__name__}")
    for tensor in tensors(proto):  # not through ListFields, which would copy the payload
        for text in (tensor.name, tensor.doc_string):
            _check_utf8(text, "the name or doc string of a tensor")
    for node in _nodes(proto):
        for attribute in node.attribute:
            for text in (attribute.name, attribute.ref_attr_name, attribute.doc_string):
                _check_utf8(text, f"an attribute of node {node.name!r}")


def _check_utf8(value: object, where: str) -> None:
    entries = value if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else (value,)
    for entry in entries:
        if isinstance(entry, bytes):
            raise ModelError(f"{where} is not UTF-8 text ({entry[:20]!r}); the model file is damaged")


def _check_type(kind: TypeProto, where: str) -> None:
    which = kind.WhichOneof("value")
    if which in ("map_type", "opaque_type"):
        raise ModelError(
            f"{where} is of {which.split('_')[0]} type, which the compiler cannot carry; "
            "remove the operator that makes it (with scikit-learn models: export with zipmap=False)"
        )
    if which in ("sequence_type", "optional_type"):
        _check_type(getattr(kind, which).elem_type, where)


def _check_attribute(node: NodeProto, attribute: AttributeProto) -> None:
    where = f"attribute {attribute.name!r} of node {node.name or node.op_type!r}"
    if attribute.type == AttributeProto.UNDEFINED:
        raise ModelError(f"{where} has no type; the model is from before ONNX 1.0, or damaged. Export it again")
    if attribute.type in _SPARSE:
        raise ModelError(
            f"{where} ({node.op_type}) is a sparse tensor, which the compiler cannot carry; store it dense"
        )
    for kind in (attribute.tp, *attribute.type_protos):
        _check_type(kind, where)


def _densify(graph: GraphProto) -> None:
    for sparse in graph.sparse_initializer:
        name, dims = sparse.values.name, tuple(sparse.dims)
        where = f"sparse initializer {name!r}"
        if TensorProto.EXTERNAL in (sparse.values.data_location, sparse.indices.data_location):
            raise ModelError(
                f"{where} keeps its values in an external file, which is not supported; store it inside the model"
            )
        try:
            values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        except (ValueError, TypeError) as error:
            raise ModelError(f"{where} cannot be read: {error}") from error
        if prod(dims) * max(values.itemsize, 1) > _MAX_DENSE_BYTES:
            raise ModelError(f"{where} of shape {list(dims)} takes over 2 GB when dense, which is not supported")
        # One linear index an entry, or one row of coordinates (SparseTensorProto.indices).
        rows = indices.reshape(-1, 1) if indices.ndim == 1 else indices
        shape = (prod(dims),) if indices.ndim == 1 else dims
        if len(rows) != values.size or rows.shape[1:] != (len(shape),) or (rows < 0).any() or (rows >= shape).any():
            raise ModelError(f"{where} of shape {list(dims)} has indices that do not fit its shape or its values")
        dense = np.zeros(shape, values.dtype)
        dense[tuple(rows.T)] = values.reshape(-1)
        tensor = numpy_helper.from_array(dense.reshape(dims), name)
        tensor.doc_string = sparse.values.doc_string
        tensor.metadata_props.extend(sparse.values.metadata_props)
        graph.initializer.append(tensor)
    del graph.sparse_initializer[:]


def _check_graph(graph: GraphProto, outer: frozenset[str]) -> bool:
    where = f"graph {graph.name!r}"
    own: set[str] = {info.name for info in graph.input}
    if len(own) < len(graph.input):
        raise ModelError(f"two inputs of {where} have the same name")
    initializers: set[str] = set()
    for tensor in graph.initializer:
        if not tensor.name:
            raise ModelError(f"an initializer of {where} has no name; nothing can read it")
        if tensor.name in initializers:
            raise ModelError(f"two initializers of {where} are called {tensor.name!r}; rename or remove one")
        initializers.add(tensor.name)
    return _check_scope(list(graph.node), own | initializers, outer, where, [info.name for info in graph.output])


def _check_scope(
    nodes: list[NodeProto], given: set[str], outer: frozenset[str], where: str, results: list[str] | None = None
) -> bool:
    """Check single assignment and that every name read is written; return whether the order is topological."""
    every = set(given)
    for node in nodes:
        for name in filter(None, node.output):
            if name in every:
                raise ModelError(
                    f"the value {name!r} of {where} is written twice (again by {node.op_type} {node.name!r})"
                )
            every.add(name)
    visible = frozenset(outer | every)
    ordered, seen = True, set(given)
    for node in nodes:
        for name in filter(None, node.input):
            if name not in visible:
                raise ModelError(f"{node.op_type} {node.name!r} of {where} reads {name!r}, which nothing writes")
            ordered &= name in seen or name in outer
        for attribute in node.attribute:
            for graph in _subgraphs(attribute):
                ordered &= _check_graph(graph, visible)
        seen.update(node.output)
    for name in results or ():
        if name not in visible:
            raise ModelError(f"the output {name!r} of {where} is written by no node")
    return ordered
