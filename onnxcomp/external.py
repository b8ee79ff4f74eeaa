"""Tensors that stay in their file: mapped when read, streamed when written, alive even after the file is replaced."""

from __future__ import annotations

import mmap
import os
import weakref
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.errors import ModelError

__all__ = ["DataFile", "Extent", "MappedTensor", "locate", "open_data"]

_CHUNK = 4 * 2**20


class DataFile:
    """An external data file, held open from the moment the model is loaded.

    The open descriptor keeps the contents reachable when a save replaces the file of that name: the old tensors stay
    valid, and the space is given back once nothing refers to them.

    Attributes:
        path: The file as found when the model was loaded.
        size: Its length in bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._descriptor)
        self.size = os.fstat(self._descriptor).st_size

    @cached_property
    def mapping(self) -> mmap.mmap:
        """The whole file, mapped read-only; no page is read until it is touched."""
        return mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)

    def copy(self, offset: int, length: int, out: BinaryIO) -> None:
        """Write `length` bytes from `offset` on to `out`, a few MB at a time, through no mapping."""
        os.lseek(self._descriptor, offset, os.SEEK_SET)
        while length:
            chunk = os.read(self._descriptor, min(_CHUNK, length))
            if not chunk:
                raise ModelError(f"{self.path}: the data file has become shorter since the model was loaded")
            out.write(chunk)
            length -= len(chunk)


@dataclass(frozen=True, slots=True)
class Extent:
    """A stretch of a data file that reads as an array.

    Attributes:
        file: The file.
        offset: Where the stretch begins, in bytes.
        dtype: Element type.
        shape: Shape of the array.
    """

    file: DataFile
    offset: int
    dtype: ir.DataType
    shape: tuple[int, ...]

    def __array__(self, dtype: object = None, copy: bool | None = None) -> NDArray[np.generic]:
        del dtype, copy  # the protocol's; ir.Tensor asks for neither
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype.numpy())
        count = prod(self.shape)
        if self.dtype.bitwidth >= 8:
            native = np.dtype(self.dtype.numpy()).newbyteorder("<")
            return np.frombuffer(self.file.mapping, native, count, self.offset).reshape(self.shape)
        packed = np.frombuffer(self.file.mapping, np.uint8, -(-count * self.dtype.bitwidth // 8), self.offset)
        return ir.PackedTensor(packed, self.dtype, shape=ir.Shape(self.shape)).numpy()


class MappedTensor(ir.Tensor[Extent]):
    """A tensor whose bytes lie in a :class:`DataFile`; `numpy()` maps them read-only, and nothing is cached.

    Unlike `ir.ExternalTensor` it serialises as its contents, not as a reference, so that no step can write a model
    that points at a file which is elsewhere, gone, or replaced.
    """

    def tobytes(self) -> bytes:
        """The bytes as ONNX stores them (little endian, packed)."""
        start = self.raw.offset
        return self.raw.file.mapping[start : start + self.nbytes] if self.nbytes else b""

    def tofile(self, file: BinaryIO) -> None:
        """Stream the bytes to `file` without mapping them."""
        self.raw.file.copy(self.raw.offset, self.nbytes, file)


def open_data(tensor: ir.ExternalTensor, model_path: Path, files: dict[Path, DataFile]) -> MappedTensor:
    """Open the file that `tensor` refers to and return the tensor bound to it.

    Args:
        tensor: A reference as it stands in the model file.
        model_path: The model file; locations are relative to its folder.
        files: Files already open; a new one is added.

    Raises:
        ModelError: The location is absolute or leads out of the model's folder (symbolic links resolved), or the file
            is missing, unreadable, or too short for the tensor.
    """
    where = f"{model_path}: tensor {tensor.name!r}"
    path = locate(str(tensor.location), model_path, where)
    if path.exists() and not path.is_file():
        raise ModelError(f"{where} refers to {path}, which is not a file; the model is damaged")
    if path not in files:
        try:
            files[path] = DataFile(path)
        except FileNotFoundError as error:
            raise ModelError(
                f"{where} is in the data file {path}, which does not exist; copy it next to the model"
            ) from error
        except OSError as error:
            raise ModelError(f"{where} is in the data file {path}, which cannot be read: {error.strerror}") from error
    offset, length = tensor.offset or 0, tensor.nbytes if tensor.length is None else tensor.length
    if offset < 0 or length != tensor.nbytes:
        raise ModelError(
            f"{where} of shape {list(tensor.shape)} takes {tensor.nbytes} bytes; the model says {length} at {offset}"
        )
    if offset + length > files[path].size:
        raise ModelError(
            f"{where} needs bytes {offset} to {offset + length} of {path}, which has only {files[path].size}; "
            "the data file is truncated or belongs to another model"
        )
    extent = Extent(files[path], offset, tensor.dtype, tuple(tensor.shape.numpy()))
    return MappedTensor(
        extent, tensor.dtype, shape=tensor.shape, name=tensor.name, doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )  # fmt: skip


def locate(location: str, model_path: Path, where: str) -> Path:
    """Return the absolute path of a data file, given its location as the model states it.

    Raises:
        ModelError: The location leads out of the model's folder; `where` begins the message.
    """
    folder = model_path.absolute().parent
    path = folder / location
    if not location or "\0" in location or Path(location).is_absolute() or ".." in Path(location).parts:
        raise ModelError(
            f"{where} refers to the data file {location!r}, which leaves the model's folder; refused for safety"
        )
    # A download cache keeps model and data as links into one folder of blobs; both lie together there.
    homes = {folder.resolve(), model_path.resolve().parent}
    if not any(path.resolve().is_relative_to(home) for home in homes):
        raise ModelError(
            f"{where} refers to {path}, a link that leaves the model's folder; copy the data next to the model"
        )
    return path
