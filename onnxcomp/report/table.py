"""A table of text, which every renderer lays out in its own way."""

from __future__ import annotations

from dataclasses import dataclass

from onnxcomp.report.figures import Figure

__all__ = ["Listing", "Table"]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text.

    Attributes:
        title: What it is about.
        columns: What stands above each column.
        rows: Text, as many cells in each row as there are columns.
        right: Columns that hold numbers.
        plot: A figure of the same, drawn where there can be figures.
        good: Cells, (row, column), that are better than what they are held against.
        bad: Cells that are worse, or that failed.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int] = frozenset()
    plot: Figure | None = None
    good: frozenset[tuple[int, int]] = frozenset()
    bad: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Listing:
    """Text to copy as it stands, such as a recipe or a command.

    Attributes:
        title: What it is.
        text: Its lines.
    """

    title: str
    text: str
