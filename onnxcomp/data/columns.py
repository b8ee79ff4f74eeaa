"""Columns: arrays read front to back in slices of their first axis, from memory, a .npy file or a member of a .npz."""

from __future__ import annotations

import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from onnxcomp.errors import DataError

__all__ = ["Column", "MemoryColumn", "npy_column", "npz_columns"]

_Opener = Callable[[], IO[bytes]]


class Column(ABC):
    """An array that is only ever read in order.

    Attributes:
        where: What to call it in messages.
        shape: Shape of the whole array.
        dtype: Its dtype as stored.
    """

    def __init__(self, where: str, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
        self.where = where
        self.shape = shape
        self.dtype = dtype

    @abstractmethod
    def chunks(self, rows: int) -> Iterator[NDArray[np.generic]]:
        """Yield the array in slices of `rows` entries of its first axis; the last one may be shorter."""

    def whole(self) -> NDArray[np.generic]:
        """Return the array at once, for what is small (labels); not for scalars."""
        return next(self.chunks(max(1, self.shape[0])), np.empty(self.shape, self.dtype))


class MemoryColumn(Column):
    """An array that the caller already holds."""

    def __init__(self, where: str, array: NDArray[np.generic]) -> None:
        super().__init__(where, array.shape, array.dtype)
        self._array = array

    def chunks(self, rows: int) -> Iterator[NDArray[np.generic]]:
        """Yield views of the array."""
        for start in range(0, self.shape[0], rows):
            yield self._array[start : start + rows]


class _NpyColumn(Column):
    """The .npy stream that `opener` returns, read sequentially so that it never sits in memory as a whole."""

    def __init__(self, where: str, opener: _Opener, size: int) -> None:
        self._opener = opener
        with _reading(where), opener() as stream:
            shape, self._fortran, dtype = _read_header(stream)
            start = stream.tell()
        super().__init__(where, shape, dtype)
        wanted = start + prod(shape) * dtype.itemsize
        if not dtype.hasobject and size != wanted:
            raise DataError(f"{where}: is damaged: {size:,} bytes where shape and dtype ask for {wanted:,}")

    def chunks(self, rows: int) -> Iterator[NDArray[np.generic]]:
        """Yield freshly read slices; a Fortran-ordered array is loaded whole, since its samples are interleaved."""
        with _reading(self.where), self._opener() as stream:
            if self._fortran:
                array = npy.read_array(stream, allow_pickle=False)
                yield from MemoryColumn(self.where, array).chunks(rows)
                return
            _read_header(stream)
            for start in range(0, self.shape[0], rows):
                out = np.empty((min(rows, self.shape[0] - start), *self.shape[1:]), self.dtype)
                _fill(stream, out)
                yield out


def npy_column(path: Path) -> Column:
    """Return the array of a .npy file.

    Raises:
        DataError: The file is no .npy file or damaged.
    """
    return _NpyColumn(str(path), lambda: path.open("rb"), path.stat().st_size)


def npz_columns(path: Path) -> dict[str, Column]:
    """Return the arrays of a .npz file by name; only their headers are read.

    Raises:
        DataError: The file is no zip archive, is damaged or encrypted.
    """
    with _reading(str(path)), zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
    return {m.filename.removesuffix(".npy"): _member(path, m) for m in members}


def _member(path: Path, member: zipfile.ZipInfo) -> Column:
    name = member.filename.removesuffix(".npy")
    where = f"{path}: array {name!r}"
    if member.flag_bits & 1:
        raise DataError(f"{where}: is encrypted; write it without a password")

    def opener() -> IO[bytes]:
        with zipfile.ZipFile(path) as archive:  # the member keeps the file open after the archive is closed
            return archive.open(member.filename)

    return _NpyColumn(where, opener, member.file_size)


@contextmanager
def _reading(where: str) -> Generator[None]:
    """Turn what a damaged file raises into DataError."""
    try:
        yield
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError, TokenError) as error:
        raise DataError(f"{where}: cannot be read: {error or type(error).__name__}; is the file damaged?") from error


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    version = npy.read_magic(stream)
    if version == (1, 0):
        return npy.read_array_header_1_0(stream)
    if version == (2, 0):
        return npy.read_array_header_2_0(stream)
    raise ValueError(f"format version {version[0]}.{version[1]} holds records, not a plain array")


def _fill(stream: IO[bytes], out: NDArray[np.generic]) -> None:
    """Read exactly `out.nbytes` bytes into a contiguous array."""
    buffer = out.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(buffer):
        piece = stream.read(min(len(buffer) - done, 1 << 20))
        if not piece:
            raise EOFError("the array ends early")
        buffer[done : done + len(piece)] = piece
        done += len(piece)
