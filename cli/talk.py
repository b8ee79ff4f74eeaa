"""What all commands share: common flags, early checks of paths, progress, warnings and errors on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxcomp import progress
from onnxcomp.cli import logbook
from onnxcomp.errors import InputError
from onnxcomp.report.text import one_line, printable

if TYPE_CHECKING:
    from onnxcomp.report.view import View

__all__ = [
    "DEBUG",
    "check_folder",
    "check_model",
    "common",
    "data_options",
    "fail",
    "parse_shapes",
    "print_json",
    "printable",
    "progress_bar",
    "show",
    "warn",
]

DEBUG = "--debug"
_Command = TypeVar("_Command", bound=Callable[..., Any])
_RED, _PLAIN = "\x1b[1;31m", "\x1b[0m"


def common(command: _Command) -> _Command:
    """Add the flags that every command has, and hear what is logged while it runs."""

    @wraps(command)
    def talking(*arguments: Any, verbose: bool, log_file: str | None, **values: Any) -> Any:
        others = tuple(text for value in values.values() for text in _texts(value))
        called = click.get_current_context().find_root().obj or ()
        with logbook.logged(quiet=values["quiet"], verbose=verbose, log_file=log_file, others=others, called=called):
            return command(*arguments, **values)

    flags = (
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, for machines."),
        click.option("--quiet", is_flag=True, help="Nothing on stderr but errors."),
        click.option("--verbose", is_flag=True, help="On stderr: stages with times, and why layers were left alone."),
        click.option("--log-file", metavar="FILE", help="Write everything that happens to FILE, over what it holds."),
        click.option(DEBUG, is_flag=True, expose_value=False, help="Show the traceback of an error."),
    )
    for flag in reversed(flags):
        talking = flag(talking)
    return talking  # type: ignore[return-value]  # a decorated command is called by click alone


def _texts(value: object) -> tuple[str, ...]:
    """The texts of a flag that may be repeated."""
    if isinstance(value, str):
        return (value,)
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, tuple) else ()


def data_options(command: _Command) -> _Command:
    """Add the flags of every command that reads or makes up data."""
    flags = (
        click.option("--preprocess", metavar="K=V,...", help="How images become inputs, or a YAML file that says it."),
        click.option(
            "--shapes", metavar="NAME:1x3x224x224", multiple=True, help="Shape of an input with symbolic sizes."
        ),
        click.option("--threads", type=click.IntRange(1, 1024), help="Threads of the runtime.  [default: 1]"),
        click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Seed of every random choice.  [default: 0]"),
    )
    for flag in reversed(flags):
        command = flag(command)
    return command


def parse_shapes(texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Read ``NAME:1x3x224x224`` items; an input's name may hold colons itself."""
    from onnxcomp.recipe import parse_shape

    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, colon, sizes = text.rpartition(":")
        if not colon or not name:
            raise InputError(f"--shapes {text!r} is not NAME:SIZES, such as input:1x3x224x224")
        try:
            shapes[name] = parse_shape(sizes)
        except ValueError as error:
            raise InputError(f"--shapes {text!r}: {error}") from None
    return shapes


def check_model(path: str) -> None:
    """Raise InputError where a model's path leads to no file, before anything slow begins."""
    if not Path(path).exists():
        raise InputError(f"there is no file {path!r}")
    if not Path(path).is_file():
        raise InputError(f"{path!r} is a folder, not an ONNX file")


def check_folder(path: str, flag: str) -> None:
    """Raise InputError where a file could not be created at the path."""
    if Path(path).is_dir():
        raise InputError(f"{flag} {path!r} is a folder; give a file name")
    if not Path(path).parent.is_dir():
        raise InputError(f"{flag} {path!r}: the folder {str(Path(path).parent)!r} does not exist; create it first")


def warn(message: str, quiet: bool) -> None:
    """Say something on stderr; while a bar is up, after it."""
    logbook.SAID.info("%s", message)
    if not quiet:
        logbook.voice().say(one_line(message))


def fail(message: str) -> None:
    """Say on stderr what went wrong; the word stands out where that is a terminal with colours."""
    mark = f"{_RED}error:{_PLAIN} " if _coloured() else "error: "
    logbook.write(message, mark)


def _coloured() -> bool:
    """Whether stderr shows colours (no-color.org; FORCE_COLOR as rich reads it)."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return _live_terminal()


def _live_terminal() -> bool:
    """Whether stderr is a terminal whose cursor can be moved."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def print_json(document: object) -> None:
    """Print a JSON document on stdout."""
    import json

    print(json.dumps(document, indent=2, allow_nan=False))


def show(
    document: dict[str, Any], view: Callable[[bool], View], reports: Sequence[str], as_json: bool, quiet: bool
) -> None:
    """Give the warnings of a document, write its reports and print it.

    Args:
        document: The result, with its ``warnings``.
        view: Lays it out: with True in full, as for a file, else as for a terminal.
        reports: Paths of .json, .md and .html files.
        as_json: Whether the document itself is printed.
        quiet: Whether warnings are left out.
    """
    from onnxcomp.report.terminal import print_view
    from onnxcomp.report.writing import write_view

    for warning in document["warnings"]:
        warn(f"warning: {warning}", quiet)
    for path in reports:
        write_view(document, view(True), path)
    if as_json:
        print_json(document)
    else:
        print_view(view(False))


@contextmanager
def progress_bar(stages: int, quiet: bool) -> Generator[Callable[[str], None]]:
    """Show stages and, beneath, tasks of the library with the time left; on stderr, only where that is a terminal.

    Args:
        stages: How many stages are planned; a run may take more.
        quiet: Whether nothing is shown.

    Yields:
        A function to call with a line whenever a stage starts.
    """
    if quiet or not _live_terminal():
        yield _log_stage
        return
    from onnxcomp.cli.bar import Bar

    bar = Bar(stages)
    with logbook.voice().beneath(bar.above), bar, progress.listening(bar):

        def tell(line: str) -> None:
            _log_stage(line)
            bar.enter(line)

        yield tell


def _log_stage(line: str) -> None:
    logbook.STAGES.info("%s", line)
