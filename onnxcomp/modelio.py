"""Load and save models: external data, over 2 GB, guards against what would be lost, writes that are all or nothing.

What is loaded is what is saved: names, metadata_props, doc strings, functions, opsets, symbolic dimensions, If and
Loop bodies. Saving the same model twice gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from onnxcomp import guards
from onnxcomp.atomic import staging
from onnxcomp.errors import InputError, ModelError
from onnxcomp.external import DataFile, MappedTensor, locate, open_data
from onnxcomp.wire import DECLARED, first_cause, paired, serialize, skeleton, write_tensor

__all__ = ["data_files", "file_bytes", "from_proto", "load", "save", "serialized_bytes", "sidecar", "to_bytes"]

PROTOBUF_LIMIT = 2**31 - 1  # no protobuf message may be longer
_EXTERNAL_FROM = 1024  # bytes; smaller tensors stay in the model file, where shape inference reads them
_ALIGN_FROM, _ALIGNMENT = 2**20, 4096  # large tensors start on a page, so that every runtime can map them
_SOURCE = "onnxcomp.source"  # in graph.meta (clones keep it, files do not): the file of a model with external data


def load(path: str | Path) -> ir.Model:
    """Read a model; external data stay in their file until they are used.

    Sparse initializers become dense, IR version 14 becomes 13 where that is safe, and nodes are sorted where they are
    not in topological order; see :func:`onnxcomp.guards.admit`.

    Raises:
        ModelError: The file is missing, unreadable, empty, truncated or not ONNX; it needs a newer runtime; it holds
            something the compiler cannot carry; or its external data are missing, too short, or outside its folder.
    """
    path = Path(path)
    try:
        return _to_ir(_parse(path), path)
    except ModelError as error:
        raise error if str(path) in str(error) else ModelError(f"{path}: {error}") from error


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """Convert a protobuf with the guards of :func:`load`; `proto` is copied, never changed.

    Raises:
        ModelError: As for :func:`load`; also where `proto` refers to external data, for it has no folder.
    """
    own = onnx.ModelProto()
    own.CopyFrom(proto)
    return _to_ir(own, None)


def to_bytes(model: ir.Model) -> bytes:
    """Serialise a model, external data included.

    Raises:
        ModelError: It takes over 2 GB, more than a protobuf can hold; use :func:`save`.
    """
    _settle(model)
    whole = serialize(model)
    if whole.size > PROTOBUF_LIMIT:
        raise ModelError(
            f"the model takes {whole.size} bytes, over the 2 GB that a protobuf can hold; save it to a file"
        )
    out = BytesIO()
    whole.write(out)
    return out.getvalue()


def serialized_bytes(model: ir.Model) -> int:
    """Bytes that the model takes as one file, weights included; nothing is written."""
    _settle(model)
    return serialize(model).size


def file_bytes(path: str | Path) -> int:
    """Bytes of a model file and of all files that its external data lie in.

    Raises:
        ModelError: As for :func:`load`.
    """
    path = Path(path)
    files = data_files(path)
    try:
        return path.stat().st_size + sum(file.stat().st_size for file in files)
    except OSError as error:
        raise ModelError(f"{path}: the data file {error.filename} cannot be read: {error.strerror}") from error


def data_files(path: str | Path) -> set[Path]:
    """The files that the external data of a model file lie in (raises as :func:`load`)."""
    return _data_files(_parse(Path(path)), Path(path))


def sidecar(path: str | Path) -> Path:
    """The file that the external data of a model saved at `path` go to."""
    return Path(f"{path}.data")


def save(model: ir.Model, path: str | Path) -> None:
    """Write a model, and its external data to ``PATH.data`` where it came with such or exceeds 2 GB; all or nothing.

    Tensors are streamed one at a time. `path` may be the file that the model was loaded from. A data file ``PATH.data``
    that belonged to the model replaced, and that the new one has no use for, is removed; no other file is touched.

    Raises:
        InputError: The folder does not exist, `path` is not a file, or the weights of the loaded model would be
            overwritten while the model file itself stays.
        OutputError: Disk full, no permission; what was there before is untouched.
        ModelError: The graph alone, without its weights, exceeds 2 GB.
    """
    path = Path(path)
    data = sidecar(path)
    owned = _owns(path, data)
    _settle(model)
    with staging() as files:
        whole = None if model.graph.meta.get(_SOURCE) else serialize(model)
        _spare_sources(model, path, path)
        if whole is not None and whole.size <= PROTOBUF_LIMIT:
            whole.write(files.open(path))
        else:
            _spare_sources(model, path, data)
            proto = skeleton(model, _write_data(model, files.open(data), data.name))
            if proto.ByteSize() > PROTOBUF_LIMIT:
                raise ModelError("the graph alone, without its weights, exceeds the 2 GB that a protobuf can hold")
            files.open(path).write(proto.SerializeToString())
            owned = False
    if owned:
        data.unlink(missing_ok=True)


def _parse(path: Path) -> onnx.ModelProto:
    try:
        if path.is_dir():
            raise ModelError(f"{path} is a folder; give the .onnx file in it")
        if path.exists() and not path.is_file():
            raise ModelError(f"{path} is not a regular file")
        if path.is_file() and path.stat().st_size > PROTOBUF_LIMIT:
            raise ModelError(
                f"{path} is over 2 GB, which an ONNX file cannot be; large models keep their weights in external data"
            )
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist; check the path") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error.strerror if isinstance(error, OSError) else error}") from error
    if not content:
        raise ModelError(f"{path} is empty; export or copy the model again")
    if content.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path} is a Git LFS pointer, not the model itself; fetch it with 'git lfs pull'")
    if content[4:8] == b"ORTM":
        raise ModelError(
            f"{path} is in ORT format, which cannot be compiled further; give the .onnx that it was made of"
        )
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        if content[:1] == b"\x08":  # field 1, ir_version, which every exporter writes first
            raise ModelError(
                f"{path} begins like an ONNX model but does not parse ({len(content)} bytes): "
                "truncated or damaged; copy it again"
            ) from error
        raise ModelError(f"{path} is not an ONNX model (no protobuf); give an .onnx file") from error
    if not proto.HasField("graph"):
        kind = (
            "is truncated: it has a header but no graph"
            if proto.ir_version
            else "is not an ONNX model (it holds no graph)"
        )
        raise ModelError(f"{path} {kind}; export or copy it again")
    return proto


def _to_ir(proto: onnx.ModelProto, path: Path | None) -> ir.Model:
    ordered = guards.admit(proto)
    try:
        model = ir.from_proto(proto)
    except ir.serde.SerdeError as error:
        raise ModelError(f"the model is damaged or not supported: {first_cause(error)}") from error

    def origin(tensor: ir.ExternalTensor) -> Path:
        if path is None:
            raise ModelError(
                f"tensor {tensor.name!r} is in external data, but a model in memory has no folder; load its file"
            )
        return path

    _bind_external(model, origin)
    for graph, stored in paired(model.graph, proto.graph):
        for info in stored.value_info:
            if info.name in graph.initializers:
                graph.initializers[info.name].meta[DECLARED] = True
    if not ordered:
        try:
            model.graph.sort()
            for function in model.functions.values():
                function.sort()
        except ValueError as error:
            raise ModelError("the graph has a cycle: some nodes read, directly or not, what they write") from error
    return model


def _bind_external(model: ir.Model, path_of: Callable[[ir.ExternalTensor], Path]) -> None:
    """Replace every reference to external data by a tensor that is bound to the open file."""
    files: dict[Path, DataFile] = {}

    def bound(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if not isinstance(tensor, ir.ExternalTensor):
            return tensor
        source = model.graph.meta[_SOURCE] = path_of(tensor)
        return open_data(tensor, source, files)

    for graph in _graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = bound(value.const_value)
        for node in graph:
            for attribute in list(node.attributes.values()):
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                    node.attributes.add(
                        ir.AttrTensor(attribute.name, bound(attribute.value), doc_string=attribute.doc_string)
                    )
                elif attribute.type == ir.AttributeType.TENSORS:
                    _refuse_external(node, attribute)


def _refuse_external(node: ir.Node, attribute: ir.Attr) -> None:
    if any(isinstance(tensor, ir.ExternalTensor) for tensor in attribute.as_tensors()):
        raise ModelError(
            f"the list attribute {attribute.name!r} of node {node.name or node.op_type!r} has its tensors in external "
            "data, which is not supported; store them in the model"
        )


def _settle(model: ir.Model) -> None:
    """Bring a model that did not come through :func:`load` to the state that :func:`load` leaves it in."""
    _bind_external(model, lambda tensor: Path(tensor.base_dir) / "model")
    # onnx-ir writes the metadata of a tensor read from a file twice, as read and as known; keep the latter.
    for tensor in _tensors(model):
        if isinstance(tensor, ir.serde.TensorProtoTensor) and tensor.raw.metadata_props:
            tensor.raw.ClearField("metadata_props")


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph, the functions' graphs, and all their subgraphs."""
    yield from model.graphs()
    for function in model.functions.values():
        yield function.graph
        yield from function.subgraphs()


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every constant of a model, initializer or attribute."""
    for graph in _graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    yield attribute.as_tensor()
                elif attribute.type == ir.AttributeType.TENSORS and not attribute.is_ref():
                    yield from attribute.as_tensors()


def _data_files(proto: onnx.ModelProto, path: Path) -> set[Path]:
    """The files that the external data of the model at `path` lie in."""
    return {
        locate(
            next((entry.value for entry in tensor.external_data if entry.key == "location"), ""),
            path,
            f"{path}: tensor {tensor.name!r}",
        )
        for tensor in guards.tensors(proto)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }


def _owns(path: Path, data: Path) -> bool:
    """Whether the file at `path`, about to be replaced, is a model whose external data lie in `data`."""
    if not (path.is_file() and data.is_file()):
        return False
    try:
        return data.absolute() in _data_files(_parse(path), path)
    except ModelError:
        return False


def _spare_sources(model: ir.Model, path: Path, *written: Path) -> None:
    """Refuse to write over a data file that `model` was loaded from, unless its own model file is replaced as well."""
    source = model.graph.meta.get(_SOURCE)
    if source is None or (source.exists() and path.exists() and source.samefile(path) and path not in written):
        return
    sources = {tensor.raw.file.path for tensor in _tensors(model) if isinstance(tensor, MappedTensor)}
    for target in written:
        if target.exists() and any(file.exists() and file.samefile(target) for file in sources):
            raise InputError(f"cannot write {target}: the weights of the loaded model lie in it; choose another name")


def _write_data(model: ir.Model, out: BinaryIO, location: str) -> dict[ir.Value, ir.TensorProtocol]:
    """Stream every large initializer to `out`; return the references that stand for them in the model file."""
    references: dict[ir.Value, ir.TensorProtocol] = {}
    offsets: dict[int, int] = {}  # by identity: a tensor that several initializers share is written once
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes < _EXTERNAL_FROM:
                continue
            if id(tensor) not in offsets:
                out.write(b"\0" * (-out.tell() % (_ALIGNMENT if tensor.nbytes >= _ALIGN_FROM else 1)))
                offsets[id(tensor)] = out.tell()
                write_tensor(tensor, out)
            references[value] = ir.ExternalTensor(
                location,
                offsets[id(tensor)],
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
                doc_string=tensor.doc_string,
                metadata_props=dict(tensor.metadata_props),
            )
    return references
