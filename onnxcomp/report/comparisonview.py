"""What ``onnxcomp compare`` tells: the document ``onnxcomp.comparison/2``, and what a person reads of it.

The keys of the document are those of `onnxcomp.compare.Comparison` and its parts; `schemas/comparison-2.schema.json`
describes them. Layers are in the order of the base; `ranked` names those that add noise, most first.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Any

from onnxcomp.report.figures import Bars
from onnxcomp.report.schema import plain
from onnxcomp.report.table import Table
from onnxcomp.report.text import decibels, percent
from onnxcomp.report.view import View

if TYPE_CHECKING:
    from onnxcomp.compare import Comparison
    from onnxcomp.evaluate import Quality

__all__ = ["SCHEMA", "comparison_document", "comparison_view"]

SCHEMA = "onnxcomp.comparison/2"
Document = dict[str, Any]
# What the interval of `Quality` takes on one side (95 %), and what an interval with 95 % in it takes on both.
_ONE_SIDED, _TWO_SIDED = 1.645, 1.96
_FEW = 10
_SOME = 0.005


def comparison_document(
    comparison: Comparison,
    *,
    base: str,
    other: str,
    data: str,
    synthetic: bool,
    quality: Quality | None = None,
    version: str,
) -> Document:
    """Return a comparison as plain data that ``json.dumps(..., allow_nan=False)`` accepts.

    Args:
        comparison: What was found.
        base: What the base is called.
        other: What the other model is called.
        data: Where the samples are from, in words.
        synthetic: Whether they are made up.
        quality: Of the other model against the base on labelled data, if there were any.
        version: Of onnxcomp.
    """
    outputs = comparison.outputs
    document: Document = {
        "schema": SCHEMA,
        "version": version,
        "headline": "",
        "base": base,
        "other": other,
        "data": data,
        "synthetic": synthetic,
        "samples": outputs.samples,
        "layer_samples": comparison.samples,
        "share_samples": comparison.attributed,
        "related": comparison.related,
        "outputs": plain(outputs.outputs),
        "outputs_missing": [{"name": name, "reason": reason} for name, reason in outputs.missing.items()],
        "agreement": outputs.agreement,
        "flipped": outputs.flipped,
        "flips": plain(outputs.flips),
        "accuracy": _accuracy(quality),
        "fault": plain(comparison.fault),
        "ranked": [layer.tensor for layer in comparison.ranked],
        "layers": plain(comparison.layers),
        "missing": plain(comparison.missing),
        "warnings": [],
    }
    document["warnings"] = _warnings(document)
    document["headline"] = _headline(document)
    return document


def _accuracy(quality: Quality | None) -> Document | None:
    if quality is None or quality.top1 is None or quality.drop_points is None or quality.drop_low is None:
        return None
    drop = quality.drop_points
    half = (drop - quality.drop_low) / _ONE_SIDED * _TWO_SIDED
    return {
        "samples": quality.samples,
        "base": quality.top1 + drop / 100,
        "other": quality.top1,
        "drop_points": drop,
        "low": drop - half,
        "high": drop + half,
    }


def _warnings(document: Document) -> list[str]:
    found: list[str] = []
    if not document["related"]:
        shared, total = len(document["layers"]), len(document["layers"]) + len(document["missing"])
        found.append(
            f"only {shared} of {total} tensors of the base are in the other model; they may not be one model, and the "
            "layer at fault means little"
        )
    for output in document["outputs"]:
        if output["unknown"]:
            found.append(f"output {output['name']!r} of the base holds {output['unknown']:,} NaN or Inf; left out")
        if output["lost"]:
            found.append(f"output {output['name']!r} has {output['lost']:,} NaN or Inf where the base has numbers")
    found += [f"output {one['name']!r} is not compared: {one['reason']}" for one in document["outputs_missing"]]
    return found


def _headline(document: Document) -> str:
    """The verdict on the outputs, and who is to blame."""
    fault, verdict = document["fault"], _verdict(document["outputs"])
    if fault is None:
        blame = "no layer differs beyond rounding" if document["layers"] else "no layer could be compared"
    elif fault["added"] == "inf":
        blame = f"{_named(fault)} makes NaN or Inf of finite values"
    elif float(fault["share"]) > 0:
        more = "" if float(fault["share"]) < 1 + _SOME else ", some of which others make up for"
        blame = f"{_named(fault)} adds most, {_share(fault)} of the noise{more}"
    else:
        blame = f"{_named(fault)} adds noise, none of which arrives at an output"
    line = f"{verdict}; {blame}"
    return f"no real data was used: {line}; give --data" if document["synthetic"] else line


def _verdict(outputs: Sequence[Document]) -> str:
    floats = [output for output in outputs if output["sqnr"] is not None]
    discrete = [output for output in outputs if output["equal"] is not None]
    parts: list[str] = []
    if floats:
        worst = min(floats, key=lambda output: float(output["sqnr"]))
        value = float(worst["sqnr"])
        if value == inf:
            parts.append("outputs are equal")
        elif value == -inf:
            parts.append(f"output {worst['name']!r} is lost")
        else:
            which = f" ({worst['name']!r} least)" if len(floats) > 1 else ""
            parts.append(f"outputs agree to {decibels(value)}{which}")
    if discrete:
        parts.append(f"{percent(min(float(output['equal']) for output in discrete))} of discrete elements are equal")
    return ", ".join(parts) if parts else "no output could be compared"


def _named(layer: Document) -> str:
    rewrites = ", then ".join(layer["rewrites"])
    return f"{layer['layer']} ({rewrites})" if rewrites else str(layer["layer"])


def comparison_view(document: Document, top: int | None) -> View:
    """Lay out a document.

    Args:
        document: What `comparison_document` returns.
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
            str(flip["base"]),
            "NaN" if flip["other"] < 0 else str(flip["other"]),
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
            _share(layer),
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
    from onnxcomp.comparison.sums import ratio_to_decibels

    return decibels(ratio_to_decibels(added))


def _share(layer: Document) -> str:
    return f"{round(100 * float(layer['share']), 1) + 0.0:.1f} %"


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
