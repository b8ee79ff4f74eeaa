"""A report as one HTML file that needs nothing else: no scripts, no fonts, no links."""

from __future__ import annotations

from html import escape

from onnxcomp.report.figures import Curve
from onnxcomp.report.plot import to_svg
from onnxcomp.report.text import printable
from onnxcomp.report.view import Table, View

__all__ = ["to_html"]

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin-top: 2rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; }
th, td { text-align: left; vertical-align: top; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #8884; }
td { overflow-wrap: anywhere; } .n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.failed { color: #c22; font-weight: 600; } .warning { color: #a60; } .notes { opacity: .8; }
"""


def to_html(shown: View, version: str) -> str:
    """Render a report as HTML; everything that comes from the model is escaped."""
    body = [f"<h1>{_text(shown.headline)}</h1>"]
    body += [f'<p class="failed">failed: {_text(line)}</p>' for line in shown.failures]
    body += [f'<p class="warning">warning: {_text(line)}</p>' for line in shown.warnings]
    body += [_table(table) for table in shown.tables]
    body.append(f'<ul class="notes">{"".join(f"<li>{_text(note)}</li>" for note in shown.notes)}</ul>')
    body.append(f"<footer>onnxcomp {_text(version)}</footer>")
    head = f'<meta charset="utf-8"><title>onnxcomp report</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def _table(table: Table) -> str:
    header = "".join(f"<th{_class(i, table)}>{_text(column)}</th>" for i, column in enumerate(table.columns))
    rows = "\n".join(
        "<tr>" + "".join(f"<td{_class(i, table)}>{_text(cell)}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in table.rows
    )
    title = f"<h2>{_text(table.title)}</h2>"
    picture = to_svg(table.plot) if isinstance(table.plot, Curve) else ""
    return f"{title}\n{picture}\n<table><thead><tr>{header}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>"


def _class(column: int, table: Table) -> str:
    return ' class="n"' if column in table.right else ""


def _text(text: str) -> str:
    return escape(printable(text))
