"""A table of text, which every renderer lays out in its own way."""

from __future__ import annotations

from dataclasses import dataclass

from onnxcomp.report.figures import Figure

__all__ = ["Table"]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text; the columns in `right` hold numbers, and where there can be figures `plot` goes with it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int] = frozenset()
    plot: Figure | None = None
