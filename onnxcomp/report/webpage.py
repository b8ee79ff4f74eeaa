"""A result as one HTML file that needs nothing else: no network, no fonts, no other files.

The scripts are plotly.js, where there is a figure to draw, and a short one of our own; the page allows those two by
their hashes and nothing else, so that not even a mistake in the escaping would let a name from a model run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from math import isfinite
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from onnxcomp.report.figures import Bars, Curve, Figure, Panels
from onnxcomp.report.text import printable
from onnxcomp.report.view import Table, View

__all__ = ["to_html"]

_LONG = 12  # rows above which a table can be filtered, and is no taller than a window
_WIDE = 24  # letters of a cell that is not squeezed
_NUMBER = 12  # letters of a cell of numbers that is never broken, however narrow the page
_FOLDED = 240  # letters of a cell of which only the beginning is seen, until it is opened
_CONTENTS = 4  # sections above which a page lists them at its top


@dataclass(frozen=True, slots=True)
class _Section:
    """A table with what the template needs to know of it."""

    key: str
    table: Table
    figure: Any
    long: bool

    def mark(self, row: int, column: int) -> str:
        """The classes of a cell."""
        names = ["n"] if column in self.table.right else []
        cell = self.table.rows[row][column]
        if len(cell) > (_NUMBER if names else _WIDE):
            names.append("w" if names else "t")
        if max(map(len, cell.split()), default=0) > _WIDE:
            names.append("u")
        names += ["good"] if (row, column) in self.table.good else []
        names += ["bad"] if (row, column) in self.table.bad else []
        return " ".join(names)

    def folded(self, cell: str) -> bool:
        """Whether only the beginning of a cell is seen, until it is opened."""
        return len(cell) > _FOLDED


def to_html(shown: View, version: str) -> str:
    """Render a result as HTML; everything that comes from the model is escaped."""
    sections = [
        _Section(f"s{index}", table, _figure(table.plot), len(table.rows) > _LONG)
        for index, table in enumerate(shown.tables, 1)
    ]
    drawn = any(section.figure is not None for section in sections)
    scripts = [Markup(get_plotlyjs())] if drawn else []
    scripts.append(_part("report.js"))
    return (
        _environment()
        .get_template("report.html")
        .render(
            shown=shown,
            version=version,
            sections=sections,
            contents=len(sections) > _CONTENTS,
            drawn=drawn,
            style=_part("report.css"),
            scripts=scripts,
            policy=_policy(scripts),
        )
    )


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy: the scripts by their hashes, styles and pictures of the page itself, no network."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_part),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _part(name: str) -> Markup:
    return Markup((files("onnxcomp.report") / "templates" / name).read_text("utf-8"))


def _printable(value: object) -> object:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _figure(figure: Figure | None) -> Any:
    """What the script draws, as plain data; None where there is nothing to draw."""
    if figure is None or not figure.drawable:
        return None
    if isinstance(figure, Panels):
        panels = [(name, bars) for name, bars in figure.figures if bars.drawable]
        return {"kind": "panels", "figures": [{"name": name, **_bars(bars)} for name, bars in panels]}
    return _bars(figure) if isinstance(figure, Bars) else _curve(figure)


def _bars(bars: Bars) -> dict[str, Any]:
    series = [
        {"name": printable(name), "values": [None if v is None or not isfinite(v) else v for v in values]}
        for name, values in bars.series
    ]
    return {**asdict(bars), "kind": "bars", "labels": [printable(label) for label in bars.labels], "series": series}


def _curve(curve: Curve) -> dict[str, Any]:
    notes = [printable(note) for note in curve.notes or [""] * len(curve.points)]
    points = [
        {"x": x, "y": y, "note": note, "marked": index == curve.marked}
        for index, ((x, y), note) in enumerate(zip(curve.points, notes, strict=True))
        if isfinite(x) and isfinite(y) and y > 0.0
    ]
    return {"kind": "curve", "points": points, "across": printable(curve.across), "up": printable(curve.up)}
