"""Files that appear complete or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from onnxcomp.errors import InputError, OutputError

__all__ = ["Staging", "staging"]


class Staging:
    """New files under temporary names in the folders of their destinations; `staging` puts them in place together."""

    def __init__(self) -> None:
        self._files: list[tuple[BinaryIO, Path, Path]] = []

    def open(self, destination: Path) -> BinaryIO:
        """Open a temporary file that will become `destination`; those opened first are put in place first."""
        temporary = _beside(destination)
        # Opened with the ordinary mode so that the umask applies, as it would to any file the user writes.
        descriptor = os.open(
            temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0), _mode(destination)
        )
        file = os.fdopen(descriptor, "w+b")
        self._files.append((file, temporary, destination))
        return file

    def seal(self) -> None:
        """Flush everything to the disk, so that what comes into place is whole even after a power cut."""
        for file, _, _ in self._files:
            file.flush()
            os.fsync(file.fileno())
            file.close()

    def place(self) -> None:
        """Rename all files into place; when one fails, those already placed are put back."""
        undo: list[tuple[Path, Path]] = []
        placed: list[Path] = []
        try:
            for position, (_, temporary, destination) in enumerate(self._files):
                last = position == len(self._files) - 1
                if not last and os.path.lexists(destination):
                    backup = _beside(destination)
                    os.replace(destination, backup)
                    undo.append((backup, destination))
                os.replace(temporary, destination)
                placed.append(destination)
        except BaseException:
            for destination in placed:
                destination.unlink(missing_ok=True)
            for backup, destination in undo:
                os.replace(backup, destination)
            raise
        for backup, _ in undo:
            backup.unlink(missing_ok=True)
        for folder in {destination.parent for _, _, destination in self._files}:
            _sync_folder(folder)

    def discard(self) -> None:
        """Remove every temporary file that is still there."""
        for file, temporary, _ in self._files:
            with suppress(OSError):  # closing flushes what is buffered, which fails again on a full disk
                file.close()
            temporary.unlink(missing_ok=True)


@contextmanager
def staging() -> Generator[Staging]:
    """Write files that replace their destinations together at the end of the block, or not at all.

    On any exception, Ctrl-C included, the temporary files are removed and the destinations are as they were. A
    destination that is a symbolic link is itself replaced; what it points to is left alone.

    Raises:
        InputError: A destination's folder does not exist, or the destination is not a regular file.
        OutputError: The files cannot be written (disk full, no permission).
    """
    files = Staging()
    try:
        yield files
        files.seal()
        with _interrupts_held():
            files.place()
    except OSError as error:
        raise _explain(error) from error
    finally:
        files.discard()


def _beside(destination: Path) -> Path:
    return destination.parent / f".onnxcomp-{secrets.token_hex(6)}.tmp"


def _mode(destination: Path) -> int:
    folder = destination.parent
    if not folder.is_dir():
        raise InputError(f"cannot write {destination}: the folder {folder} does not exist; create it first")
    if destination.is_file():
        return destination.stat().st_mode & 0o777
    if destination.exists():
        kind = "a folder" if destination.is_dir() else "not a regular file"
        raise InputError(f"cannot write {destination}: it is {kind}; give the name of a file")
    return 0o666


def _explain(error: OSError) -> OutputError:
    place = error.filename2 or error.filename or "the output"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            "cannot write the result: the disk is full. What was there before is untouched; free some space"
        )
    return OutputError(f"cannot write {place}: {error.strerror or error}. What was there before is untouched")


@contextmanager
def _interrupts_held() -> Generator[None]:
    """Let Ctrl-C wait for the few renames, so that it never falls between a model and its data."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    caught: list[FrameType | None] = []
    previous = signal.signal(signal.SIGINT, lambda _, frame: caught.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if caught and callable(previous):
            previous(signal.SIGINT, caught[0])


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
