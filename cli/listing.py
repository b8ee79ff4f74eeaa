"""``onnxcomp passes``: what is installed, and the options of one pass."""

from __future__ import annotations

from inspect import cleandoc
from typing import TYPE_CHECKING, Any

import click

from onnxcomp.cli import talk

if TYPE_CHECKING:
    from onnxcomp.contract import Pass

__all__ = ["passes"]


@click.command(short_help="List the passes, or describe one.")
@click.argument("name", required=False)
@talk.common
def passes(name: str | None, as_json: bool, quiet: bool) -> None:
    """List every installed pass with one line, or describe the pass NAME: method, references, options and defaults."""
    if name is None:
        _list(as_json, quiet)
    else:
        _describe(name, as_json)


def _list(as_json: bool, quiet: bool) -> None:
    from onnxcomp.errors import PassError
    from onnxcomp.options import summary_of
    from onnxcomp.registry import available, load_pass, provider

    rows: list[dict[str, str]] = []
    for name, entry in available().items():
        try:
            loaded = load_pass(name)
        except PassError as error:  # one broken package must not hide the others
            talk.warn(f"warning: {error}", quiet)
            continue
        rows.append({"name": name, "summary": summary_of(loaded), "saves": loaded.saves, "package": provider(entry)})
    if as_json:
        talk.print_json(rows)
        return
    from onnxcomp.report.terminal import print_table
    from onnxcomp.report.view import Table

    columns = ("name", "summary", "saves", "package")
    print_table(Table("Passes", columns, tuple(tuple(row[key] for key in columns) for row in rows)))


def _describe(name: str, as_json: bool) -> None:
    from onnxcomp.options import describe
    from onnxcomp.registry import load_pass

    loaded = load_pass(name)
    options = [{"name": o.name, "type": o.type, "default": o.default, "help": o.help} for o in describe(loaded)]
    if as_json:
        talk.print_json({"name": name, "saves": loaded.saves, "description": _prose(loaded), "options": options})
        return
    from onnxcomp.report.terminal import print_table
    from onnxcomp.report.view import Table

    print(f"{name}: {talk.printable(_prose(loaded))}\n")
    if not options:
        print("It has no options.")
        return
    rows = tuple((o["name"] or "", o["type"] or "", _default(o), o["help"] or "") for o in options)
    print_table(Table("Options", ("option", "type", "default", "meaning"), rows))


def _default(option: dict[str, Any]) -> str:
    return "required" if option["default"] is None else str(option["default"])


def _prose(loaded: type[Pass]) -> str:
    """The docstring without its list of attributes, which the table of options repeats."""
    return cleandoc(loaded.__doc__ or "").split("\nAttributes:", 1)[0].strip()
