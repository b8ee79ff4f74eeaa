"""A page of the site, and what its makers share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path

__all__ = ["ROOT", "Page", "read", "section", "split_docstring", "table", "title_of"]

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Page:
    """A page of the site that is not a file in docs.

    Attributes:
        path: Where it lies on the site, below ``docs``.
        text: Markdown.
        origin: File of the repository that the text is from, to which its links are relative; empty where the code
            is all that it is made of.
    """

    path: str
    text: str
    origin: str = ""


def read(name: str) -> str:
    """The text of a file of the repository."""
    return (ROOT / name).read_text("utf-8")


def title_of(text: str) -> str:
    """The first heading of a page."""
    return next(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))


def section(text: str, heading: str) -> str:
    """What stands under a heading of the second level; ValueError where there is none."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    if not found:
        raise ValueError(f"there is no section '## {heading}'")
    return found.group(1)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def split_docstring(docstring: str | None) -> tuple[str, str, str]:
    """Return the first line of a docstring, the text without its list of attributes, and the sources that it names."""
    summary, _, rest = cleandoc(docstring or "").partition("\n")
    prose = re.sub(r"^(?:Attributes|Args):\n(?:(?:[ ].*)?\n?)*", "", rest.strip() + "\n", flags=re.M)
    prose, _, sources = prose.partition("\nSources: ")
    return summary, prose.strip(), sources.strip()
