"""Fingerprints of tensors: equal ones hold equal values on every input, whatever the file or the names look like.

A tensor's fingerprint is the SHA-256 of how it is computed: the operator, its attributes and the fingerprints of what
it reads (a Merkle tree, as in R. C. Merkle, A Digital Signature Based on a Conventional Encryption Function, 1987).
Constants count by type, shape and content, graph inputs by name and type. Names of nodes and inner tensors, doc
strings, metadata, symbolic sizes, the order of nodes and the form in which weights are stored do not count, so that a
model that was only saved again keeps its fingerprints; a changed weight changes those of all that depends on it, and
of nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import onnx_ir as ir

__all__ = ["fingerprints", "model_fingerprint", "structures"]

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})


def fingerprints(model: ir.Model) -> dict[str, bytes]:
    """Return the fingerprint, 32 bytes, of every named tensor of the main graph that is no initializer.

    The operator set is not hashed: compare models in canonical form (:func:`onnxcomp.graph.fold.fold`), which all have
    the modern operators.
    """
    return _all(model, weights=True)


def structures(model: ir.Model) -> dict[str, bytes]:
    """Return the same without what floating-point constants hold, or whether a node has any.

    Two models of one architecture agree in them, and so do a model and what quantization made of its weights and
    biases; by itself, then, this tells no two layers of one shape apart.
    """
    return _all(model, weights=False)


def _all(model: ir.Model, *, weights: bool) -> dict[str, bytes]:
    known: dict[ir.Value, bytes] = {}
    functions = {f.identifier()[:2]: f for f in model.functions.values()}
    for value in model.graph.inputs:
        if not value.is_initializer():
            known[value] = _digest(b"input", (value.name or "").encode(), str(value.dtype).encode())
    for node in model.graph:
        whole = _node(node, known, functions, weights=weights)
        for i, value in enumerate(node.outputs):
            known[value] = _digest(whole, str(i).encode())
    return {value.name: digest for value, digest in known.items() if value.name and not value.is_initializer()}


def model_fingerprint(model: ir.Model) -> str:
    """Return the SHA-256 of a model's content as hex: its outputs' names and fingerprints, in order."""
    own = fingerprints(model)
    parts: list[bytes] = []
    for value in model.graph.outputs:
        name = value.name or ""
        parts += [name.encode(), own[name] if name in own else _constant(value)]
    return _digest(*parts).hex()


def _node(
    node: ir.Node, known: dict[ir.Value, bytes], functions: Mapping[tuple[str, str], ir.Function], *, weights: bool
) -> bytes:
    parts = [node.domain.encode(), node.op_type.encode(), node.overload.encode()]
    function = functions.get((node.domain, node.op_type))
    if function is not None:
        parts.append(ir.to_proto(function).SerializeToString(deterministic=True))
    for name in sorted(node.attributes):
        parts += [name.encode(), _attribute(node.attributes[name])]
    values = (*node.inputs, *_captured(node))
    if not weights:
        values = tuple(v for v in values if v is not None and not _is_weight(v))
    return _digest(*parts, *(b"" if value is None else _value(value, known) for value in values))


def _is_weight(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.dtype in _FLOATS


def _value(value: ir.Value, known: dict[ir.Value, bytes]) -> bytes:
    if value not in known:
        known[value] = _constant(value)
    return known[value]


def _constant(value: ir.Value) -> bytes:
    if value.const_value is None:
        return _digest(b"unknown", (value.name or "").encode())
    return _tensor(value.const_value)


def _tensor(tensor: ir.TensorProtocol) -> bytes:
    shape = ",".join(map(str, tensor.shape))
    if tensor.dtype == ir.DataType.STRING:
        return _digest(b"strings", shape.encode(), *(bytes(item) for item in tensor.numpy().reshape(-1)))
    return _digest(tensor.dtype.name.encode(), shape.encode(), tensor.tobytes())


def _attribute(attribute: ir.Attr) -> bytes:
    if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
        return _tensor(attribute.as_tensor())
    proto = ir.to_proto(attribute)
    proto.doc_string = ""
    return proto.SerializeToString(deterministic=True)


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    """The values of the outer graph that the bodies of an If, Loop or Scan read, in the order in which they do."""
    for name in sorted(node.attributes):
        attribute = node.attributes[name]
        bodies = (
            (attribute.as_graph(),)
            if attribute.type == ir.AttributeType.GRAPH
            else attribute.as_graphs()
            if attribute.type == ir.AttributeType.GRAPHS
            else ()
        )
        for body in bodies:
            for inner in body.all_nodes():
                yield from (v for v in inner.inputs if v is not None and v.graph is node.graph)
            yield from (v for v in body.outputs if v.graph is node.graph)


def _digest(*parts: bytes) -> bytes:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "little"))
        whole.update(part)
    return whole.digest()
