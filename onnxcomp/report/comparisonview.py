"""What a person reads of a comparison of two models."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from onnxcomp.comparison.sums import ratio_to_decibels
from onnxcomp.report.comparison import share_of
from onnxcomp.report.figures import Bars
from onnxcomp.report.table import Table
from onnxcomp.report.text import decibels, percent
from onnxcomp.report.view import View

__all__ = ["comparison_view"]

Document = dict[str, Any]
# Rows that a terminal shows of what is not compared; share of the noise below 0 that is worth a word.
_FEW = 10
_SOME = 0.005


def comparison_view(document: Document, top: int | None) -> View:
    """Lay out a document.

    Args:
        document: What `onnxcomp.report.comparison.comparison_document` returns.
        top: How many layers are listed at most; None: everything is, as a file should.
    """
    tables = (
        _outputs(document),
        _classes(document, top),
        _ranked(document, top),
        *(() if top is not None else (_all(document),)),
        _missing(document, top),
    )
    return View(
        document["headline"],
        (),
        tuple(document["warnings"]),
        tuple(table for table in tables if table.rows),
        tuple(_notes(document, top)),
        title=f"onnxcomp compare: {document['base']} and {document['other']}",
        facts=() if top is not None else tuple((what, document[what]) for what in ("base", "other")),
    )


def _outputs(document: Document) -> Table:
    rows = [
        (
            output["name"],
            *_errors(output),
            "" if output["bias"] is None else f"{float(output['bias']):.2g}",
            "" if output["equal"] is None else percent(float(output["equal"])),
        )
        for output in document["outputs"]
    ]
    columns = ("output", "SQNR", "cosine", "max error", "of range", "mean error", "equal")
    return Table("Outputs", *_filled(columns, rows))


def _errors(entry: Document) -> tuple[str, str, str, str]:
    if entry["sqnr"] is None:
        return "", "", "", ""
    value = float(entry["sqnr"])
    shown = "NaN or Inf" if value == -inf else decibels(value)
    cosine = float(entry["cosine"])
    relative = percent(float(entry["relative"]))
    return shown, "" if cosine != cosine else f"{cosine:.6f}", f"{float(entry['max_error']):.3g}", relative


def _filled(
    columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...], frozenset[int]]:
    """The columns in which something is, with the first; all others hold numbers."""
    kept = [i for i in range(len(columns)) if i == 0 or any(row[i] for row in rows)]
    shown = tuple(tuple(row[i] for i in kept) for row in rows)
    return tuple(columns[i] for i in kept), shown, frozenset(range(1, len(kept)))


def _classes(document: Document, top: int | None) -> Table:
    """Samples whose class changed."""
    rows: list[tuple[str, ...]] = [
        (
            f"{flip['sample']:,}",
            *("NaN" if flip[model] < 0 else str(flip[model]) for model in ("base", "other")),
            f"{float(flip['margin']):.3g}",
        )
        for flip in document["flips"][: len(document["flips"]) if top is None else 5]
    ]
    columns = ("sample", "class in the base", "now", "margin in the base")
    return Table("Samples of another class, the surest first", columns, tuple(rows), frozenset({0, 1, 2, 3}))


def _ranked(document: Document, top: int | None) -> Table:
    by_tensor = {layer["tensor"]: layer for layer in document["layers"]}
    layers = [by_tensor[tensor] for tensor in document["ranked"]][:top]
    rows = [
        (
            layer["layer"],
            layer["op_type"],
            share_of(layer),
            _added(layer),
            *_errors(layer),
            ", then ".join(layer["rewrites"]),
            _remarks(layer, top),
        )
        for layer in layers
    ]
    more = len(document["ranked"]) - len(rows)
    title = "Layers by the error they add" + (f" ({len(rows)} of {len(document['ranked'])})" if more else "")
    columns = (
        "layer",
        "operator",
        "share",
        "adds",
        "SQNR after",
        "cosine",
        "max error",
        "of range",
        "rewritten by",
        "",
    )
    shares = tuple(100 * float(layer["share"]) for layer in layers)
    figure = Bars(tuple(layer["layer"] for layer in layers), (("share of the noise at the outputs", shares),), "%")
    return Table(title, columns, tuple(rows), frozenset(range(2, 8)), figure if rows else None)


def _added(layer: Document) -> str:
    """The signal over the noise that a layer adds."""
    added = float(layer["added"])
    if added == inf:
        return "NaN or Inf"
    return decibels(ratio_to_decibels(added))


def _remarks(layer: Document, top: int | None) -> str:
    parts: list[str] = []
    if layer["other"] not in (layer["layer"], *layer["nodes"]):
        parts.append(f"computed by {layer['other']}")
    if layer["channels"] is not None:
        parts.append(f"{layer['channels'][0]} of {layer['channels'][1]} channels")
    if layer["match"] != "name":
        parts.append(f"matched by {layer['match']}")
    if top is None and len(layer["nodes"]) > 1:
        parts.append(f"with {', '.join(node for node in layer['nodes'] if node != layer['layer'])}")
    return "; ".join(parts)


def _all(document: Document) -> Table:
    layers = document["layers"]
    rows = tuple(
        (layer["tensor"], layer["layer"], layer["counterpart"], layer["match"], *_errors(layer)) for layer in layers
    )
    columns = ("tensor", "layer", "compared with", "matched by", "SQNR", "cosine", "max error", "of range")
    values = tuple(_drawn(float(layer["sqnr"])) for layer in layers)
    figure = Bars(tuple(layer["tensor"] for layer in layers), (("SQNR", values),), "dB")
    return Table("All compared tensors", columns, rows, frozenset({4, 5, 6, 7}), figure if rows else None)


def _drawn(value: float) -> float | None:
    return None if value in (inf, -inf) or value != value else value


def _missing(document: Document, top: int | None) -> Table:
    """What is not compared: in a terminal by reason, with the first layers of each."""
    entries = document["missing"]
    if top is None:
        rows = tuple((entry["layer"], entry["op_type"], entry["tensor"], entry["reason"]) for entry in entries)
        return Table("Not compared", ("layer", "operator", "tensor", "why"), rows)
    by_reason: dict[str, list[str]] = {}
    for entry in entries:
        by_reason.setdefault(entry["reason"], []).append(entry["layer"])
    shown = [(reason, f"{len(layers)}", _some(layers)) for reason, layers in by_reason.items()][:_FEW]
    if len(by_reason) > len(shown):
        shown.append((f"... and for {len(by_reason) - len(shown)} more reasons", "", ""))
    return Table("Not compared", ("why", "tensors", "of"), tuple(shown), frozenset({1}))


def _some(layers: list[str]) -> str:
    return ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")


def _notes(document: Document, top: int | None) -> list[str]:
    notes = [f"compared on {document['data']}"]
    if document["layer_samples"] < document["samples"]:
        notes.append(f"layers on {document['layer_samples']:,} samples of them (--samples)")
    if document["ranked"] and document["share_samples"]:
        notes.append(
            f"shares of the noise at the outputs measured on {document['share_samples']:,} samples (--attribute)"
        )
    elif document["ranked"]:
        notes.append(
            "shares of the noise at the outputs estimated from the noise on the way (--attribute N measures them)"
        )
    if document["agreement"] is not None:
        share, flipped = percent(float(document["agreement"])), document["flipped"]
        notes.append(f"same top-1 class: {share} of {document['samples']:,} samples ({flipped:,} differ)")
    accuracy = document["accuracy"]
    if accuracy is not None:
        low, high = float(accuracy["low"]), float(accuracy["high"])
        notes.append(
            f"top-1 accuracy {percent(float(accuracy['base']))} -> {percent(float(accuracy['other']))}, a drop of "
            f"{float(accuracy['drop_points']):.2f} points ({low:.2f} to {high:.2f} with 95 %) on "
            f"{accuracy['samples']:,} samples"
        )
    if any(float(layer["share"]) < -_SOME for layer in document["layers"]):
        notes.append("shares below 0: layers that make up for errors before them")
    rescaled = sum(layer["rescaled"] for layer in document["layers"])
    if rescaled:
        notes.append(
            f"{rescaled} tensors were brought back to the scale of the base, channel by channel (equalization)"
        )
    if top is not None and len(document["ranked"]) > top:
        notes.append("all layers: --top N, --json or --report FILE.html")
    return notes
