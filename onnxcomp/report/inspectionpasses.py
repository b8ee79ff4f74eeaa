"""What passes would make of the layers of a model, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from onnxcomp.report.table import Table
from onnxcomp.report.text import count, size

__all__ = ["basis_line", "left_alone", "may_try", "proposals_table", "totals_table"]

Document = dict[str, Any]
Row = tuple[str, ...]
_FEW = 3


def may_try(document: Document) -> Table:
    """The layers by the passes that may be tried on them."""
    groups: dict[str, list[str]] = {}
    for layer in document["layers"]:
        groups.setdefault(", ".join(layer["open"]) or _refused(layer), []).append(layer["name"])
    rows = [(passes, f"{len(names):,}", _some(names)) for passes, names in groups.items()]
    return Table("What may be tried", ("passes", "layers", "which"), tuple(rows), frozenset({1}))


def left_alone(document: Document) -> Table:
    """Why passes would leave layers alone: the passes by reason, with the layers."""
    groups: dict[str, dict[str, list[str]]] = {}
    for layer in document["layers"]:
        by_reason: dict[str, list[str]] = {}
        for spec, reason in layer["refusals"].items():
            by_reason.setdefault(reason, []).append(spec)
        for reason, specs in by_reason.items():
            groups.setdefault(reason, {}).setdefault(", ".join(specs), []).append(layer["name"])
    rows = [
        (reason, specs, f"{len(names):,}", _some(names))
        for reason, by_specs in groups.items()
        for specs, names in by_specs.items()
    ]
    return Table("Left alone", ("reason", "by", "layers", "which"), tuple(rows), frozenset({2}))


def _refused(layer: Document) -> str:
    """Why nothing may be tried, where all passes say the same."""
    reasons = set(layer["refusals"].values())
    return f"none: {reasons.pop()}" if len(reasons) == 1 else "none"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _FEW:,} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more


def basis_line(document: Document) -> str:
    """What predicted errors are measured on."""
    if document["data"] is None:
        return "error: share of the energy of the layer's weights that is lost; with --data, of the layer's output"
    words = f"error: share of the variance of the layer's output that is lost, on {document['data']}"
    others = (p["error_of"] == "weight" for layer in document["layers"] for p in layer["proposals"])
    return f"{words}; w: of the energy of its weights" if any(others) else words


def proposals_table(document: Document, shown: Sequence[Document], more: int) -> Table:
    """For each layer a row that says what it is, and one for each pass.

    Args:
        document: The inspection.
        shown: The layers to list.
        more: How many there are beside these.
    """
    rows: list[Row] = []
    for layer in shown:
        what = f"{layer['op_type']} {layer['input_shape']} > {layer['output_shape']}"
        weights = next((p["before"]["weights"] for p in layer["proposals"]), layer["parameters"])
        rows.append((layer["name"], what, count(layer["macs"]), "", count(weights), "", "", ""))
        rows.extend(_proposal(proposal, document) for proposal in layer["proposals"])
        rows.extend(_grouped(layer))
    if more and shown:
        rows.append((f"... and {more:,} more", *[""] * 7))
    columns = ("layer, pass", "becomes", "MACs", "kept", "weights", "kept", "saves", "error")
    return Table("What each pass would make of each layer", columns, tuple(rows), frozenset(range(2, 8)))


def _proposal(proposal: Document, document: Document) -> Row:
    other = " w" if document["data"] is not None and proposal["error_of"] == "weight" else ""
    return (
        f"  {proposal['spec']}",
        proposal["summary"],
        count(proposal["after"]["macs"]),
        _share(proposal["macs_kept"]),
        count(proposal["after"]["weights"]),
        _share(proposal["weights_kept"]),
        _signed(proposal["bytes_saved"]),
        "" if proposal["error"] is None else f"{_lost(float(proposal['error']))}{other}",
    )


def _grouped(layer: Document) -> Iterator[Row]:
    """One row for all passes that leave a layer alone for the same reason."""
    by_reason: dict[str, list[str]] = {}
    for spec, reason in layer["refusals"].items():
        by_reason.setdefault(reason, []).append(spec)
    for reason, specs in by_reason.items():
        yield "  no", f"{', '.join(specs)}: {reason}", "", "", "", "", "", ""


def totals_table(document: Document) -> Table:
    """What each pass alone would leave of the model, all layers together."""
    by_spec: dict[str, list[Document]] = {spec: [] for spec in document["asked"]}
    for layer in document["layers"]:
        for proposal in layer["proposals"]:
            by_spec[proposal["spec"]].append(proposal)
    rows = [
        (spec, f"{len(taken)} of {len(document['layers'])}", *_left(taken, document), _worst(taken))
        for spec, taken in by_spec.items()
        if taken
    ]
    columns = ("pass", "layers", "MACs", "kept", "saves", "worst error")
    return Table("Each pass alone, on all layers that it takes", columns, tuple(rows), frozenset(range(1, 6)))


def _left(taken: Sequence[Document], document: Document) -> tuple[str, str, str]:
    pairs = [(p["before"]["macs"], p["after"]["macs"]) for p in taken]
    whole, left = document["cost"]["macs"], None
    if whole is not None and not any(None in pair for pair in pairs):
        left = whole - sum(before - after for before, after in pairs)
    kept = left / whole if left is not None and whole else None
    return count(left), _share(kept), _signed(sum(p["bytes_saved"] for p in taken))


def _worst(taken: Sequence[Document]) -> str:
    errors = [float(p["error"]) for p in taken if p["error"] is not None]
    return _lost(max(errors)) if errors else ""


def _share(value: float | None) -> str:
    return "?" if value is None else f"{100 * value:.3g} %" if value < 9.995 else f"{100 * value:.0f} %"


def _signed(value: int) -> str:
    return size(value) if value >= 0 else f"-{size(-value)}"


def _lost(error: float) -> str:
    """A relative squared error as a percentage."""
    share = 100 * error
    return (
        "0 %" if share <= 0 else "<0.001 %" if share < 0.001 else f"{share:.2g} %" if share < 99.5 else f"{share:.0f} %"
    )
