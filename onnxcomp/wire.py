"""Serialise a model piece by piece, so that its weights never exist a second time in memory.

The bytes are those of `ModelProto.SerializeToString`: a length-delimited message is its fields in ascending order of
number, each ``tag, length, contents`` (Protocol Buffers encoding). The lengths follow from the tensors' sizes, so the
contents can be written straight from where they are.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import Message

from onnxcomp.errors import ModelError, OnnxcompError

__all__ = ["DECLARED", "Serialized", "first_cause", "paired", "serialize", "skeleton", "write_tensor"]

DECLARED = "onnxcomp.declared"  # in the meta of an initializer that the model file lists in value_info

_STREAMED = 1 << 16  # tensors of at least so many bytes are streamed
_GRAPH, _INITIALIZER, _RAW_DATA = (
    onnx.ModelProto.GRAPH_FIELD_NUMBER,
    onnx.GraphProto.INITIALIZER_FIELD_NUMBER,
    onnx.TensorProto.RAW_DATA_FIELD_NUMBER,
)


@dataclass(frozen=True, slots=True)
class Serialized:
    """A serialised model: ready bytes, and tensors that are yet to be written out.

    Attributes:
        size: Total bytes.
        pieces: In order.
    """

    size: int
    pieces: tuple[bytes | ir.TensorProtocol, ...]

    def write(self, out: BinaryIO) -> None:
        """Write all pieces to `out`, one tensor at a time."""
        start = out.tell()
        for piece in self.pieces:
            if isinstance(piece, bytes):
                out.write(piece)
            else:
                write_tensor(piece, out)
        if out.tell() - start != self.size:
            raise OnnxcompError(
                f"the model took {out.tell() - start} bytes instead of {self.size}; a tensor misstates its size"
            )


def write_tensor(tensor: ir.TensorProtocol, out: BinaryIO) -> None:
    """Write the raw bytes of one tensor."""
    if isinstance(tensor, (ir.Tensor, ir.PackedTensor, ir.LazyTensor)):
        tensor.tofile(out)
    else:
        out.write(tensor.tobytes())


def serialize(model: ir.Model) -> Serialized:
    """Lay out `model` as one self-contained ONNX file; nothing large is copied yet."""
    streamed = {
        value: value.const_value
        for value in model.graph.initializers.values()
        if value.const_value is not None
        and value.const_value.dtype != ir.DataType.STRING
        and value.const_value.nbytes >= _STREAMED
    }
    empty = ir.Tensor(np.empty(0, np.uint8))
    proto = skeleton(model, dict.fromkeys(streamed, empty))
    pieces: list[bytes | ir.TensorProtocol] = []
    for value, stored in zip(_written(model.graph), proto.graph.initializer, strict=True):
        if value in streamed:
            pieces += _framed(_INITIALIZER, _raw_tensor(value.name or "", streamed[value]))
        else:
            pieces += _framed(_INITIALIZER, [stored.SerializeToString()])
    proto.graph.ClearField("initializer")
    graph = [_fields(proto.graph, below=_INITIALIZER), *pieces, _fields(proto.graph, above=_INITIALIZER)]
    whole = [_fields(proto, below=_GRAPH), *_framed(_GRAPH, graph), _fields(proto, above=_GRAPH)]
    return Serialized(_size(whole), tuple(piece for piece in whole if not (isinstance(piece, bytes) and not piece)))


def skeleton(model: ir.Model, stand_ins: Mapping[ir.Value, ir.TensorProtocol]) -> onnx.ModelProto:
    """Serialise `model` with some constants replaced by others; the model itself is as before afterwards.

    Raises:
        ModelError: The model holds something that has no place in a protobuf, such as text that is not UTF-8.
    """
    with _replaced(stand_ins):
        try:
            proto = ir.to_proto(model)
        except ir.serde.SerdeError as error:
            raise ModelError(f"the model cannot be written: {first_cause(error)}") from error
    # onnx-ir declares the type of every initializer a second time, in value_info; keep what the user's model declared.
    for graph, stored in paired(model.graph, proto.graph):
        restated = {name for name, value in graph.initializers.items() if _is_bare(value)}
        kept = [info for info in stored.value_info if info.name not in restated]
        if len(kept) < len(stored.value_info):
            del stored.value_info[:]
            stored.value_info.extend(kept)
    return proto


def first_cause(error: BaseException) -> str:
    """What lies at the bottom of a chain of exceptions, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0] if str(error) else repr(error)


def paired(graph: ir.Graph, proto: onnx.GraphProto) -> Iterator[tuple[ir.Graph, onnx.GraphProto]]:
    """Yield a graph with its protobuf, then its subgraphs with theirs; the nodes must be in the same order."""
    yield graph, proto
    for node, stored in zip(graph, proto.node, strict=True):
        for attribute in stored.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH and not attribute.ref_attr_name:
                yield from paired(node.attributes[attribute.name].as_graph(), attribute.g)
            elif attribute.type == onnx.AttributeProto.GRAPHS and not attribute.ref_attr_name:
                for inner, inner_proto in zip(
                    node.attributes[attribute.name].as_graphs(), attribute.graphs, strict=True
                ):
                    yield from paired(inner, inner_proto)


def _is_bare(value: ir.Value) -> bool:
    return not (value.meta.get(DECLARED) or value.doc_string or value.metadata_props)


@contextmanager
def _replaced(stand_ins: Mapping[ir.Value, ir.TensorProtocol]) -> Generator[None]:
    kept = {value: value.const_value for value in stand_ins}
    try:
        for value, stand_in in stand_ins.items():
            value.const_value = stand_in
        yield
    finally:
        for value, tensor in kept.items():
            value.const_value = tensor


def _written(graph: ir.Graph) -> list[ir.Value]:
    return [value for value in graph.initializers.values() if value.const_value is not None]


def _raw_tensor(name: str, tensor: ir.TensorProtocol) -> list[bytes | ir.TensorProtocol]:
    """A TensorProto with raw_data, its payload left as the tensor itself."""
    head = onnx.TensorProto(dims=tensor.shape.numpy(), data_type=tensor.dtype.value, name=name)
    tail = onnx.TensorProto(doc_string=tensor.doc_string) if tensor.doc_string else onnx.TensorProto()
    for key in sorted(tensor.metadata_props):
        tail.metadata_props.add(key=key, value=tensor.metadata_props[key])
    return [head.SerializeToString(), *_framed(_RAW_DATA, [tensor]), tail.SerializeToString()]


def _framed(number: int, contents: list[bytes | ir.TensorProtocol]) -> list[bytes | ir.TensorProtocol]:
    """Put tag (number, wire type 2) and length before the contents of one field."""
    return [_varint(number << 3 | 2) + _varint(_size(contents)), *contents]


def _size(pieces: list[bytes | ir.TensorProtocol]) -> int:
    return sum(len(piece) if isinstance(piece, bytes) else piece.nbytes for piece in pieces)


def _varint(value: int) -> bytes:
    """Base-128, least significant group first, the high bit set on all but the last byte."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _fields(message: Message, *, below: int = 2**29, above: int = 0) -> bytes:
    """Serialise only the fields of `message` whose numbers lie strictly between."""
    part = type(message)()
    part.CopyFrom(message)
    for field, _ in message.ListFields():
        if not above < field.number < below:
            part.ClearField(field.name)
    return part.SerializeToString()
