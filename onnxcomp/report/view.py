"""What a person wants to see of a report, as titles and tables of text; the renderers only lay it out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from onnxcomp.report.frontier import candidates_table, frontier_line, frontier_table
from onnxcomp.report.layers import layers_table
from onnxcomp.report.operators import operator_rows, operators_table
from onnxcomp.report.overview import facts, replay_listing, title
from onnxcomp.report.sensitivity import sensitivity_table
from onnxcomp.report.table import Listing, Table
from onnxcomp.report.text import count, decibels, percent, ratio, size

__all__ = ["Listing", "Table", "View", "view"]

Document = dict[str, Any]
_FEW = 3
# What is better where there is less of it: the row, and the key of the document.
_LESS = (
    ("file size", "bytes"),
    ("zipped", "transfer"),
    ("load time", "load_ms"),
    ("parameters", "parameters"),
    ("MACs", "macs"),
    ("nodes", "nodes"),
)


@dataclass(frozen=True, slots=True)
class View:
    """A result for people: the headline first, then what failed or was warned of, then tables, then small notes.

    Attributes:
        headline: The first thing to know, one line.
        failures: Limits that do not hold.
        warnings: What to know.
        tables: In the order to read them.
        notes: Lines of less weight.
        title: What the result is of, such as ``onnxcomp optimize: net.onnx``; the title of a page.
        facts: (name, value) of what the result is of.
        listings: Texts to copy.
    """

    headline: str
    failures: tuple[str, ...]
    warnings: tuple[str, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()
    title: str = "onnxcomp"
    facts: tuple[tuple[str, str], ...] = ()
    listings: tuple[Listing, ...] = ()


def view(document: Document, *, full: bool) -> View:
    """Lay out a report document.

    Args:
        document: What `onnxcomp.report.schema.report_document` returns.
        full: Whether every site and node is listed, as a file should; a terminal gets the few that matter.
    """
    steps = document["steps"]
    tables = [_comparison(document, full), _passes(steps)]
    tables += [layers_table(document)] if full else []
    for index, step in enumerate(steps):
        tables += [
            _changes(step, full, _company(steps[index + 1 :])),
            _skips(step, full),
            sensitivity_table(step, full),
        ]
        tables += [frontier_table(step), candidates_table(step)] if full else []
    tables.append(_fates(document["fates"], full))
    tables += [operators_table(document)] if full else []
    return View(
        document["headline"],
        tuple(document["failures"]),
        tuple(document["warnings"]),
        tuple(table for table in tables if table.rows),
        tuple(_notes(document, full)),
        title(document),
        facts(document) if full else (),
        (replay_listing(document),) if full else (),
    )


def _comparison(document: Document, full: bool) -> Table:
    before, after = document["before"], document["after"]
    operators = [] if full else operator_rows(document)  # a file has a table of them
    rows = [
        ("file size", size(before["bytes"]), size(after["bytes"]), ratio(before["bytes"], after["bytes"])),
        *_delivery(before, after),
        _counted("parameters", before["parameters"], after["parameters"]),
        _counted("MACs", before["macs"], after["macs"]),
        _latency(document["speedup"]),
        *_quality(before["quality"], after["quality"]),
        ("nodes", count(before["nodes"]), count(after["nodes"]), ""),  # more of them is no loss, fewer no gain
        *operators,
    ]
    fewer = {len(rows) - len(operators) + line for line, row in enumerate(operators) if int(row[2]) < int(row[1])}
    less = [(name, before[key], after[key]) for name, key in _LESS if before[key] and after[key]]
    smaller = {name for name, old, new in less if new < old} | _faster(document["speedup"])
    good = {line for line, row in enumerate(rows) if row[0] in smaller} | fewer
    columns, right = ("", "before", "after", "gain"), frozenset({1, 2, 3})
    return Table("Before and after", columns, tuple(rows), right, good=frozenset((line, 2) for line in good))


def _faster(speedup: Document | None) -> set[str]:
    return {"latency"} if speedup is not None and speedup["low"] > 1.0 else set()


def _delivery(before: Document, after: Document) -> list[tuple[str, ...]]:
    """What travels and how long it takes to load; no row where that was not looked at."""
    rows: list[tuple[str, ...]] = []
    if before["transfer"] is not None and after["transfer"] is not None:
        pair = before["transfer"], after["transfer"]
        rows.append(("zipped", size(pair[0]), size(pair[1]), ratio(*pair)))
    if before["load_ms"] is not None and after["load_ms"] is not None:
        times = before["load_ms"], after["load_ms"]
        rows.append(("load time", f"{times[0]:.3g} ms", f"{times[1]:.3g} ms", ratio(*times)))
    return rows


def _counted(name: str, before: int | None, after: int | None) -> tuple[str, ...]:
    return name, count(before), count(after), ratio(before, after)


def _latency(speedup: Document | None) -> tuple[str, ...]:
    if speedup is None:
        return "latency", "-", "-", "not timed"
    return "latency", f"{speedup['base_ms']:.3g} ms", f"{speedup['other_ms']:.3g} ms", _interval(speedup)


def _interval(speedup: Document | None) -> str:
    return "" if speedup is None else f"{speedup['ratio']:.2f}x ({speedup['low']:.2f} to {speedup['high']:.2f})"


def _quality(before: Document | None, after: Document | None) -> list[tuple[str, ...]]:
    if after is None:
        return [("accuracy", "-", "-", "not measured")]
    rows: list[tuple[str, ...]] = []
    for key, name in (("top1", "top-1 accuracy"), ("top5", "top-5 accuracy")):
        if before is not None and before[key] is not None and after[key] is not None:
            change = f"{100 * (after[key] - before[key]):+.2f} points"
            rows.append((name, percent(before[key]), percent(after[key]), change))
    if after["agreement"] is not None:
        rows.append(("same top-1 class", "", percent(after["agreement"]), ""))
    rows += [(f"equal elements of {output}", "", percent(float(share)), "") for output, share in after["equal"].items()]
    if not after["finite"]:
        rows.append(("outputs", "", "NaN or Inf where the original has none", ""))
    for output, value in after["sqnr"].items():
        cosine = after["cosine"].get(output)
        shown = "" if cosine is None else f"cosine {float(cosine):.6f}"
        rows.append((f"SQNR of {output}", "", decibels(float(value)), shown))
    return rows


def _passes(steps: list[Document]) -> Table:
    rows = [
        (
            step["spec"],
            _verdict(step),
            str(len(step["changes"])),
            str(len(step["skips"])),
            ratio(step["before"]["bytes"], step["after"]["bytes"]),
            ratio(step["before"]["macs"], step["after"]["macs"]),
            f"{_interval(step['speedup'])}{_company(steps[index + 1 :])}" if step["speedup"] else "not timed",
            f"{step['seconds']:.1f} s",
        )
        for index, step in enumerate(steps)
    ]
    columns = ("pass", "result", "changed", "skipped", "weights", "MACs", "speed", "took")
    return Table("Passes", columns, tuple(rows), frozenset({2, 3, 4, 5, 7}))


def _company(later: list[Document]) -> str:
    """How a pass was timed: its input and its result both as the passes after it leave them."""
    names = ", ".join(str(step["spec"]).split("(", 1)[0] for step in later)
    return f", with {names} after" if names else ""


def _verdict(step: Document) -> str:
    if not step["kept"]:
        return f"rolled back: {step['why']}"
    return "kept" if step["changes"] else "nothing to do"


def _changes(step: Document, full: bool, company: str) -> Table:
    title = f"{step['spec']}: " + ("changed" if step["kept"] else "tried, then rolled back")
    if not full and all(entry["error"] is None and entry["speedup"] is None for entry in step["changes"]):
        return _grouped_changes(step, title)
    columns = ["site", "became", "parameters", "MACs", "predicted error", f"speed{company}"]
    entries = step["changes"]
    labels = _labels([entry["site"] for entry in entries])
    with_facts = full and any(entry["facts"] for entry in entries)
    rows: list[tuple[str, ...]] = []
    for label, entry in zip(labels, entries, strict=True):
        row = [
            label,
            entry["summary"],
            ratio(entry["before"]["parameters"], entry["after"]["parameters"]),
            ratio(entry["before"]["macs"], entry["after"]["macs"]),
            "" if entry["error"] is None else f"{float(entry['error']):.3g}",
            "" if entry["speedup"] is None else f"{float(entry['speedup']):.2f}x",
        ]
        facts = ", ".join(f"{key}={_figure(value)}" for key, value in entry["facts"].items())
        rows.append((*row, facts) if with_facts else tuple(row))
    columns += ["facts"] if with_facts else []
    filled = [i for i in range(len(columns)) if i < 2 or any(row[i] for row in rows)]
    limit = len(rows) if full else 40
    shown = [tuple(row[i] for i in filled) for row in rows[:limit]]
    if len(rows) > limit:
        shown.append((f"... and {len(rows) - limit} more", *("" for _ in filled[1:])))
    numbers = frozenset(k for k, i in enumerate(filled) if 2 <= i <= 5)
    return Table(title, tuple(columns[i] for i in filled), tuple(shown), numbers)


def _grouped_changes(step: Document, title: str) -> Table:
    """One row for all sites that became the same, where there is nothing to say about each of them."""
    by_summary: dict[str, list[str]] = {}
    for entry in step["changes"]:
        by_summary.setdefault(entry["summary"], []).append(entry["site"])
    rows = [(summary, str(len(sites)), _some(sites, full=False)) for summary, sites in by_summary.items()]
    return Table(title, ("became", "sites", "which"), tuple(rows), frozenset({1}))


def _skips(step: Document, full: bool) -> Table:
    """Sites by reason; a terminal groups by what stands before the colon, the report file has the particulars."""
    by_reason: dict[str, list[tuple[str, str]]] = {}
    for skip in step["skips"]:
        key = skip["reason"] if full else skip["reason"].split(": ", 1)[0]
        by_reason.setdefault(key, []).append((skip["site"], skip["reason"]))
    rows = [
        (reason if len(skips) > 1 else skips[0][1], str(len(skips)), _some([site for site, _ in skips], full))
        for reason, skips in by_reason.items()
    ]
    return Table(f"{step['spec']}: skipped", ("reason", "sites", "which"), tuple(rows), frozenset({1}))


def _fates(fates: list[Document], full: bool) -> Table:
    """The fusion proof: grouped by what the runtime does, or node by node."""
    if full:
        rows = [
            (f["node"], f["op_type"], f["kernel"], "integer" if f["integer"] else "float", f["reason"]) for f in fates
        ]
        return Table("In the runtime", ("node", "operator", "kernel", "arithmetic", "reason"), tuple(rows))
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for fate in fates:
        key = (fate["op_type"], fate["kernel"], _arithmetic(fate), fate["reason"])
        groups.setdefault(key, []).append(fate["node"])
    grouped = [(*key[:3], str(len(nodes)), key[3], _some(nodes, full)) for key, nodes in groups.items()]
    columns = ("operator", "kernel", "arithmetic", "nodes", "reason", "which")
    return Table("In the runtime", columns, tuple(grouped), frozenset({3}))


def _arithmetic(fate: Document) -> str:
    return "integer" if fate["integer"] else "float"


def _some(names: list[str], full: bool) -> str:
    """Names, each once; one that several nodes stand for, as after a decomposition, with their number."""
    counts = Counter(names)
    shown = [name if number == 1 else f"{name} (x{number})" for name, number in counts.items()]
    if full or len(shown) <= _FEW:
        return ", ".join(shown)
    return f"{', '.join(shown[:_FEW])} and {len(shown) - _FEW} more"


def _labels(sites: list[str]) -> list[str]:
    """Tell the nodes apart that stand for one node of the user's model."""
    counts, seen = Counter(sites), Counter[str]()
    labels: list[str] = []
    for site in sites:
        seen[site] += 1
        labels.append(site if counts[site] == 1 else f"{site} ({seen[site]} of {counts[site]})")
    return labels


def _figure(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _notes(document: Document, full: bool) -> Iterable[str]:
    yield f"calibrated on: {document['data']}"
    for step in document["steps"]:
        notes = step["notes"] if step["kept"] else ()
        yield from (f"{step['spec']}: {note}" for note in (*notes, frontier_line(step)) if note)
    folded = document["folded"]
    shown = folded if full else folded[:_FEW]
    yield from (f"canonicalised: {line}" for line in shown)
    if len(folded) > len(shown):
        yield f"canonicalised: ... and {len(folded) - len(shown)} more (listed in the report file)"
