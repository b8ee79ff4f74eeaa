"""A report as Markdown."""

from __future__ import annotations

import re

from onnxcomp.report.text import printable
from onnxcomp.report.view import Listing, Table, View

__all__ = ["to_markdown"]

# Mentions, bare links and emoji have no escape but their number; a colon before a blank or between digits makes none.
# Parentheses are links only after a bracket, and > without < is a quotation only where a line begins.
_SPECIAL = re.compile(r"[\\`*_{}\[\]#!|~$@]|(?<!\d):(?!\s|$)|:(?![\s\d]|$)|^\s*>")


def to_markdown(shown: View, version: str) -> str:
    """Render a report as Markdown; names are escaped, so that they can neither format nor link nor embed."""
    parts = [f"**{_escape(shown.headline)}**"]
    parts += [f"- **failed:** {_escape(line)}" for line in shown.failures]
    parts += [f"- warning: {_escape(line)}" for line in shown.warnings]
    parts.append("\n".join(f"- {_escape(name)}: {_escape(value)}" for name, value in shown.facts))
    parts += [_table(table) for table in shown.tables]
    parts += [_listing(listing) for listing in shown.listings]
    parts.append("\n".join(f"- {_escape(note)}" for note in shown.notes))
    parts.append(f"Written by onnxcomp {_escape(version)}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(table: Table) -> str:
    rule = ["---:" if index in table.right else "---" for index in range(len(table.columns))]
    rows = [[_escape(cell) for cell in row] for row in (table.columns, *table.rows)]
    lines = [rows[0], rule, *rows[1:]]
    return f"## {_escape(table.title)}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _listing(listing: Listing) -> str:
    """As an indented block, which no text can end; folded, for it is long."""
    lines = "\n".join(f"    {line}" for line in printable(listing.text).splitlines())
    return f"<details><summary>{_escape(listing.title)}</summary>\n\n{lines}\n\n</details>"


def _escape(text: str) -> str:
    """Escape every character that Markdown or the HTML inside it gives a meaning."""
    line = printable(text).replace("\n", " ").replace("&", "&amp;").replace("<", "&lt;")
    return _SPECIAL.sub(_harmless, line)


def _harmless(match: re.Match[str]) -> str:
    character = match.group().lstrip()
    return f"&#{ord(character)};" if character in "@:" else "\\" + character
