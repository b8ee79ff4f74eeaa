"""A report as tables in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from onnxcomp.report.text import printable
from onnxcomp.report.view import Table, View, view

__all__ = ["print_report", "print_table", "print_view"]

_PIPE_WIDTH = 160


def print_report(document: dict[str, Any], console: Console | None = None) -> None:
    """Print a report of a run on stdout."""
    print_view(view(document, full=False), console)


def print_view(shown: View, console: Console | None = None) -> None:
    """Print a result on stdout: the headline in the first line, then what failed, then tables, then notes.

    Warnings are not among it: a command says them on stderr.
    """
    out = console or make_console()
    out.print(Text(printable(shown.headline), style="bold"))
    for failure in shown.failures:
        out.print(Text(f"failed: {printable(failure)}", style="bold red"))
    for name, value in shown.facts:
        out.print(Text.assemble((f"{printable(name)}: ", "dim"), printable(value)))
    for table in shown.tables:
        out.print()
        print_table(table, out)
    for listing in shown.listings:
        out.print()
        out.print(Text(printable(listing.title), style="bold"))
        out.print(Text(printable(listing.text)))
    if shown.notes:
        out.print()
    for note in shown.notes:
        out.print(Text(printable(note), style="dim"))


def print_table(table: Table, console: Console | None = None) -> None:
    """Print one table; cells are text, never markup."""
    out = console or make_console()
    rich = RichTable(title=Text(printable(table.title), style="bold"), title_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(table.columns):
        rich.add_column(Text(column, style="dim"), justify="right" if index in table.right else "left", overflow="fold")
    for line, row in enumerate(table.rows):
        rich.add_row(*(Text(printable(cell), _style(table, (line, column))) for column, cell in enumerate(row)))
    out.print(rich)


def _style(table: Table, cell: tuple[int, int]) -> str:
    if cell in table.bad:
        return "red"
    return "green" if cell in table.good else ""


def make_console() -> Console:
    """A console on stdout: as wide as the terminal, and wide enough for tables where it is a pipe or a file."""
    console = Console(highlight=False, soft_wrap=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)
