"""The ranking of layers by what each of them alone does to the outputs."""

from __future__ import annotations

from typing import Any

from onnxcomp.report.table import Table
from onnxcomp.report.text import decibels

__all__ = ["sensitivity_table"]

Document = dict[str, Any]
_MOST = 10


def sensitivity_table(step: Document, full: bool) -> Table:
    """Lay out the sensitivities of a step, worst first: the first ten in a terminal, all of them in a file."""
    entries = step.get("sensitivity", [])
    became = {change["site"]: _became(change) for change in step["changes"]} if step["kept"] else {}
    rows = [
        (
            str(rank),
            entry["site"],
            decibels(float(entry["sqnr"])),
            "" if entry["kl"] is None else f"{float(entry['kl']):.2g}",
            "" if entry["drop_points"] is None else f"{float(entry['drop_points']):+.2f} points",
            became.get(entry["site"], "left alone"),
        )
        for rank, entry in enumerate(entries, 1)
    ]
    columns = ("rank", "site", "SQNR of the outputs", "KL, nats", "top-1 drop", "in the file")
    filled = [i for i in range(len(columns)) if i not in (3, 4) or any(row[i] for row in rows)]
    shown = [tuple(row[i] for i in filled) for row in rows[: len(rows) if full else _MOST]]
    if len(rows) > len(shown):
        shown.append(("", f"... and {len(rows) - len(shown)} more", *("" for _ in filled[2:])))
    title = f"{step['spec']}: sensitivity, each layer alone"
    numbers = frozenset(k for k, i in enumerate(filled) if i in (0, 2, 3, 4))
    return Table(title, tuple(columns[i] for i in filled), tuple(shown), numbers)


def _became(change: Document) -> str:
    bits = change["facts"].get("weight.bits")
    return change["summary"] if bits is None else f"{bits}-bit weights"
