"""How many nodes of each operator there are before and after."""

from __future__ import annotations

from typing import Any

from onnxcomp.report.table import Table

__all__ = ["operator_rows", "operators_table"]

Document = dict[str, Any]
_MOST = 12


def operator_rows(document: Document) -> list[tuple[str, ...]]:
    """Rows below the number of nodes: the operators whose number changed, largest change first, and the rest in one."""
    counts = _counts(document)
    changed = [entry for entry in counts if entry[1] != entry[2]]
    shown = sorted(changed, key=lambda entry: (-abs(entry[2] - entry[1]), entry[0]))[:_MOST]
    others = [entry for entry in counts if entry not in shown]
    if shown and others:
        name = f"{len(others)} other operators" if len(others) > 1 else others[0][0]
        shown.append((name, sum(before for _, before, _ in others), sum(after for _, _, after in others)))
    return [(f"  {name}", str(before), str(after), "") for name, before, after in shown]


def operators_table(document: Document) -> Table:
    """All operators, by name."""
    counts = _counts(document)
    good = frozenset((line, 2) for line, (_, before, after) in enumerate(counts) if after < before)
    columns = ("operator", "before", "after", "change")
    return Table("Operators", columns, tuple(_row(*entry) for entry in counts), frozenset({1, 2, 3}), good=good)


def _row(name: str, before: int, after: int) -> tuple[str, ...]:
    return name, str(before), str(after), f"{after - before:+d}" if after != before else ""


def _counts(document: Document) -> list[tuple[str, int, int]]:
    before, after = document["before"]["operators"], document["after"]["operators"]
    return [(name, before.get(name, 0), after.get(name, 0)) for name in sorted({**before, **after})]
