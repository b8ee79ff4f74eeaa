"""What all commands share: common flags, early checks of paths, progress and warnings on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from onnxcomp.errors import InputError
from onnxcomp.report.text import printable

__all__ = [
    "DEBUG",
    "check_folder",
    "check_model",
    "common",
    "data_options",
    "parse_shapes",
    "print_json",
    "printable",
    "progress_bar",
    "warn",
]

DEBUG = "--debug"
_Command = TypeVar("_Command", bound=Callable[..., Any])


def common(command: _Command) -> _Command:
    """Add the flags that every command has."""
    flags = (
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, for machines."),
        click.option("--quiet", is_flag=True, help="Nothing on stderr but errors."),
        click.option(DEBUG, is_flag=True, expose_value=False, help="Show the traceback of an error."),
    )
    for flag in reversed(flags):
        command = flag(command)
    return command


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
    """Say something on stderr."""
    if not quiet:
        print(f"onnxcomp: {printable(message)}", file=sys.stderr)


def print_json(document: object) -> None:
    """Print a JSON document on stdout."""
    import json

    print(json.dumps(document, indent=2, allow_nan=False))


@contextmanager
def progress_bar(stages: int, quiet: bool) -> Generator[Callable[[str], None]]:
    """Show a bar on stderr, only where that is a terminal.

    Yields:
        A function to call with a line whenever a stage starts; a run may take more stages than planned.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda line: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("load", total=stages)
        started = 0

        def tell(line: str) -> None:
            nonlocal started
            total = max(stages, started + 1)
            progress.update(task, description=escape(printable(line)), completed=started, total=total, refresh=True)
            started += 1

        yield tell
