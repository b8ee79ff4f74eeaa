"""A report as tables in the terminal."""

from __future__ import annotations

from textwrap import wrap
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from onnxcomp.report.text import one_line, printable
from onnxcomp.report.view import Table, View, view

__all__ = ["print_report", "print_table", "print_view"]

_PIPE_WIDTH = 160
# Letters up to which a text is not folded.
_SHORT = 14


def print_report(document: dict[str, Any], console: Console | None = None) -> None:
    """Print a report of a run on stdout."""
    print_view(view(document, full=False), console)


def print_view(shown: View, console: Console | None = None) -> None:
    """Print a result on stdout: the headline in the first line, then what failed, then tables, then notes.

    Warnings are not among it: a command says them on stderr.
    """
    out = console or make_console()
    out.print(Text(one_line(shown.headline), style="bold"))
    for failure in shown.failures:
        out.print(Text(f"failed: {one_line(failure)}", style="bold red"))
    for name, value in shown.facts:
        out.print(Text.assemble((f"{one_line(name)}: ", "dim"), one_line(value)))
    for table in shown.tables:
        out.print()
        print_table(table, out)
    for listing in shown.listings:
        out.print()
        out.print(Text(one_line(listing.title), style="bold"))
        out.print(Text(printable(listing.text)))
    if shown.notes:
        out.print()
    for note in shown.notes:
        out.print(Text(one_line(note), style="dim"))


def print_table(table: Table, console: Console | None = None) -> None:
    """Print one table; cells are text, never markup.

    Short cells are never folded; where that leaves too little room for the columns, rows are printed one under the
    other, so that nothing is cut off.
    """
    out = console or make_console()
    widths = [_width(table, index) for index in range(len(table.columns))]
    if sum(min(width, _SHORT) for width in widths) + 2 * (len(widths) - 1) > out.width:
        _print_rows(table, out)
        return
    rich = RichTable(
        title=Text(one_line(table.title), style="bold"),
        title_justify="left",
        box=None,
        pad_edge=False,
        show_header=any(table.columns),
    )
    roomy = sum(map(max, widths, map(cell_len, table.columns))) + 2 * (len(widths) - 1) <= out.width
    for index, (column, width) in enumerate(zip(table.columns, widths, strict=True)):
        rich.add_column(
            Text(column if roomy else "\n".join(wrap(column, max(width, _SHORT))), style="dim"),
            justify="right" if index in table.right else "left",
            overflow="fold",
            no_wrap=width <= _SHORT,
            min_width=min(width, _SHORT),
        )
    for line, row in enumerate(table.rows):
        rich.add_row(*(Text(one_line(cell), _style(table, (line, column))) for column, cell in enumerate(row)))
    out.print(rich)


def _print_rows(table: Table, out: Console) -> None:
    """Each row under its first cell, a line for each of the others that says something."""
    out.print(Text(one_line(table.title), style="bold"))
    for line, row in enumerate(table.rows):
        out.print(Text(one_line(row[0]), _style(table, (line, 0))))
        for index, cell in enumerate(row[1:], 1):
            if cell:
                name = Text(f"  {table.columns[index]}: " if table.columns[index] else "  ", style="dim")
                out.print(name + Text(one_line(cell), _style(table, (line, index))))


def _width(table: Table, index: int) -> int:
    """Letters of the longest cell of a column, and of the longest word above it."""
    words = table.columns[index].split()
    cells = (one_line(row[index]) for row in table.rows)
    return max((cell_len(text) for text in (*words, *cells)), default=0)


def _style(table: Table, cell: tuple[int, int]) -> str:
    if cell in table.bad:
        return "red"
    return "green" if cell in table.good else ""


def make_console() -> Console:
    """A console on stdout: as wide as the terminal, and wide enough for tables where it is a pipe or a file."""
    console = _Console(highlight=False, soft_wrap=False)
    return console if console.is_terminal else _Console(highlight=False, width=_PIPE_WIDTH)


class _Console(Console):
    """Where the reader leaves, as `head` does, the caller hears of it; rich would end the process with code 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError
