"""What a command says while it runs: on stderr, and in the file of ``--log-file``.

Library code logs under the logger ``onnxcomp`` and never prints. Warnings are said on stderr, after the bar where one
is up; what is told at level INFO (stages, verdicts, why a layer was declined) is for ``--verbose``; the file has
everything, with times and levels.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path

from onnxcomp.errors import InputError, OnnxcompError
from onnxcomp.report.text import printable

__all__ = ["SAID", "STAGES", "Voice", "logged", "voice", "write"]

STAGES = logging.getLogger("onnxcomp.cli.stages")
"""Where stages of a command are logged."""

SAID = logging.getLogger("onnxcomp.cli.said")
"""Where a command logs what it says on stderr itself; for the file alone."""

_LOGGER = logging.getLogger("onnxcomp")
_PYTHON = logging.getLogger("py.warnings")
_FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s"


class Voice:
    """Stderr for the time of one command.

    Args:
        quiet: Nothing is said but errors.
        verbose: Stages are told as well.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet, self.verbose = quiet, verbose
        self._started = time.perf_counter()
        self._held: list[str] = []
        self._above: Callable[[str], None] | None = None

    def say(self, line: str) -> None:
        """Say something that the user should know; while a bar is up it waits until that has gone."""
        if self.quiet:
            return
        if self._above is not None:
            self._held.append(line)
        else:
            write(line)

    def tell(self, line: str) -> None:
        """Tell what happens, with the time since the command began."""
        timed = f"{time.perf_counter() - self._started:7.1f} s  {line}"
        if self._above is not None:
            self._above(printable(timed))
        else:
            write(timed)

    @contextmanager
    def beneath(self, above: Callable[[str], None]) -> Generator[None]:
        """Keep off the lines of a bar: `above` prints a line over it, warnings wait."""
        self._above = above
        try:
            yield
        finally:
            self._above = None
            held, self._held = self._held, []
            for line in held:
                write(line)


_VOICE: ContextVar[Voice | None] = ContextVar("onnxcomp_voice", default=None)


def voice() -> Voice:
    """The voice of the command that runs."""
    return _VOICE.get() or Voice()


def write(line: str, mark: str = "") -> None:
    """Write a line on stderr; where that is closed or broken, nobody listens, and it is let go.

    Args:
        line: What to say.
        mark: What stands before it, such as ``error: ``; it may hold escape codes, the line may not.
    """
    try:
        print(f"onnxcomp: {mark}{printable(line)}", file=sys.stderr, flush=True)
    except OSError:  # the reader has left, or the disk is full; what is buffered would fail again at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    except ValueError:  # closed by whoever called
        return


@contextmanager
def logged(
    *, quiet: bool, verbose: bool, log_file: str | None, others: Sequence[str] = (), called: Sequence[str] = ()
) -> Generator[None]:
    """Hear what is logged for the time of one command.

    Args:
        quiet: Nothing on stderr but errors.
        verbose: Stages on stderr.
        log_file: File for everything; what it holds is overwritten.
        others: Values of the command's other flags: none of them may name the same file.
        called: The command line, for the log.

    Raises:
        InputError: The flags contradict each other, or the log cannot be written there.
    """
    if quiet and verbose:
        raise InputError("--quiet and --verbose contradict each other; give one of them")
    own = Voice(quiet=quiet, verbose=verbose)
    handlers: list[logging.Handler] = [_Spoken(own)]
    if log_file is not None:
        handlers.append(_opened(log_file, others, own))
    level = logging.DEBUG if log_file is not None else logging.INFO if verbose else logging.WARNING
    with ExitStack() as stack:
        stack.callback(_VOICE.reset, _VOICE.set(own))
        stack.enter_context(_attached(handlers, level))
        stack.enter_context(_told(called))
        yield


def _opened(path: str, others: Sequence[str], own: Voice) -> logging.Handler:
    """Open the log, before anything slow begins."""
    place = Path(path)
    if not path:
        raise InputError("--log-file '' is no file name")
    for other in others:
        if os.path.realpath(other) == os.path.realpath(path):  # a pass or a target is no path, but may look like one
            raise InputError(f"--log-file {path!r} is a file that the command works with; the log would overwrite it")
    if place.is_dir():
        raise InputError(f"--log-file {path!r} is a folder; give a file name")
    try:
        return _LogFile(path, own)
    except FileNotFoundError:
        raise InputError(f"--log-file {path!r}: the folder {str(place.parent)!r} does not exist; create it") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"--log-file {path!r} cannot be written: {reason}") from None


@contextmanager
def _attached(handlers: list[logging.Handler], level: int) -> Generator[None]:
    """Attach handlers to onnxcomp and to Python's own warnings, which only the log and the curious should see."""
    before = _LOGGER.level
    _LOGGER.setLevel(level)
    logging.captureWarnings(True)
    for handler in handlers:
        _LOGGER.addHandler(handler)
        _PYTHON.addHandler(handler)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        _LOGGER.setLevel(before)
        for handler in handlers:
            _LOGGER.removeHandler(handler)
            _PYTHON.removeHandler(handler)
            handler.close()


@contextmanager
def _told(called: Sequence[str]) -> Generator[None]:
    """Log how the command was called and how it ended."""
    from importlib.metadata import version

    started, log = time.perf_counter(), logging.getLogger("onnxcomp.cli")
    if log.isEnabledFor(logging.DEBUG):
        log.debug("onnxcomp %s, Python %s, %s", version("onnxcomp"), platform.python_version(), platform.platform())
        log.debug("called with %r", list(called))
    try:
        yield
    except BaseException as error:
        what = str(error) if isinstance(error, OnnxcompError) else repr(error)
        log.error("%s", what)  # main says it on stderr
        log.debug("where it was raised", exc_info=True)
        raise
    log.debug("done in %.1f s", time.perf_counter() - started)


class _Spoken(logging.Handler):
    """Says what is logged."""

    def __init__(self, own: Voice) -> None:
        super().__init__(logging.INFO if own.verbose else logging.WARNING)
        self._voice = own

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == SAID.name or record.levelno >= logging.ERROR:
            return
        message = record.getMessage().replace("\n", "; ")
        if record.levelno >= logging.WARNING and record.name != _PYTHON.name:
            self._voice.say(f"warning: {message}")
        elif self._voice.verbose:
            self._voice.tell(message)


class _LogFile(logging.FileHandler):
    """The file; where the disk is full it says so once and the command goes on."""

    def __init__(self, path: str, own: Voice) -> None:
        super().__init__(path, mode="w", encoding="utf-8", errors="backslashreplace")
        self.setFormatter(_Lines(_FORMAT, "%Y-%m-%d %H:%M:%S"))
        self._voice = own
        self._broken = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._broken:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            raise
        self._broken = True
        self._voice.say(f"warning: the log cannot be written any longer: {error.strerror}")

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:
            if not self._broken:
                self._voice.say(f"warning: the log is not whole: {error.strerror}")


class _Lines(logging.Formatter):
    """Names come from models: they may neither steer a terminal nor pass for an entry of their own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message).replace("\n", "\n    ")
        return super().formatMessage(record)
