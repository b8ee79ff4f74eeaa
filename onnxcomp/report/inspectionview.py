"""``onnxcomp inspect``: one document of a model, and what a person reads of it in the terminal and in files.

The document, ``onnxcomp.inspection/3``, is described by its JSON Schema (:mod:`onnxcomp.report.schemas`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import PurePath
from typing import Any, Literal

from onnxcomp.inspection import Inspection
from onnxcomp.report.figures import Bars, Panels
from onnxcomp.report.inspectionpasses import basis_line, left_alone, may_try, proposals_table, totals_table
from onnxcomp.report.schema import plain
from onnxcomp.report.table import Listing, Table
from onnxcomp.report.text import count, size
from onnxcomp.report.view import View

__all__ = ["Order", "inspection_document", "inspection_view"]

Document = dict[str, Any]
Order = Literal["macs", "bytes", "name", "order"]
Row = tuple[str, ...]

_FEW_OPERATORS = 8
_FEW_SHARED = 12
# Bars that can be told apart.
_DRAWN = 100
_COLUMNS = "layer", "operator", "input", "output", "weights", "parameters", "size", "MACs", "share of {what}", "may try"
_NUMBERS = frozenset(_COLUMNS[5:9])
_ALL, _MOST, _FEW = tuple(range(10)), tuple(range(9)), (0, 1, 3, 5, 7, 8)
_TITLES = {"macs": "Layers by MACs", "bytes": "Layers by size", "name": "Layers by name", "order": "Layers"}
_QUANTIZED = {
    "no": "no",
    "qdq": "yes: QuantizeLinear and DequantizeLinear around float operators",
    "qoperator": "yes: operators on integers",
    "dynamic": "yes: ranges are found at run time",
    "weights": "weights only",
}


def inspection_document(inspection: Inspection, file: str, file_bytes: int) -> Document:
    """Return an inspection as plain data.

    Args:
        inspection: What was found.
        file: Path of the model, as it was given.
        file_bytes: What it takes on disk, external data included.
    """
    found: Document = plain(inspection)
    layers = [{k: v for k, v in layer.items() if k != "answers"} | layer["answers"] for layer in found.pop("layers")]
    head = {"schema": "onnxcomp.inspection/3", "version": version("onnxcomp"), "file": file, "bytes": file_bytes}
    return {**head, **found, "layers": layers}


def inspection_view(
    document: Document, *, full: bool, order: Order = "macs", top: int | None = None, narrow: bool = False
) -> View:
    """Lay out an inspection.

    Args:
        document: What `inspection_document` returns.
        full: Whether figures, all operators and what may be tried on each layer are there, as in a file.
        order: How layers are sorted: by MACs or bytes, the largest first, by name, or as in the model.
        top: Number of layers that are listed; None: all.
        narrow: Whether there is little room: then layers are listed without their inputs, types and sizes.
    """
    if order == "macs" and any(layer["macs"] is None for layer in document["layers"]):
        order = "bytes"  # what is not known may be the most
    facts = tuple(_facts(document, full))
    layers = _sorted(document["layers"], order)
    shown = layers if top is None else layers[:top]
    tables = [] if full else [Table("Model", ("", ""), facts)]
    if full or not document["proposed"]:
        kept = _FEW if narrow and not full else _MOST if document["proposed"] or not full else _ALL
        table = _layers_table(layers, len(shown), order, kept)
        tables.append(replace(table, plot=_figure(document["layers"])) if full else table)
    if document["proposed"]:
        tables += [proposals_table(document, shown, len(layers) - len(shown)), totals_table(document)]
    elif full:
        tables.append(left_alone(document))
    else:
        tables.append(may_try(document))
    tables += [_operators(document), _stored(document), _shared(document)] if full else []
    return View(
        _headline(document),
        (),
        (),
        tuple(table for table in tables if table.rows),
        tuple(_notes(document, full)),
        f"onnxcomp inspect: {PurePath(document['file']).name}",
        facts if full else (),
        tuple(_listings(document)) if full else (),
    )


def _headline(document: Document) -> str:
    cost, stored = document["cost"], document["structure"]["stored"]
    types = f", mostly {stored[0]['dtype']}" if len(stored) > 1 else f", {stored[0]['dtype']}" if stored else ""
    name = PurePath(document["file"]).name
    return (
        f"{name}: {count(cost['parameters'])} parameters, {count(cost['macs'])} MACs, {size(document['bytes'])}{types}"
    )


def _facts(document: Document, full: bool) -> Iterator[tuple[str, str]]:
    cost, structure = document["cost"], document["structure"]
    opsets = ", ".join(f"{domain} {number}" for domain, number in document["opsets"].items())
    yield "file size", size(document["bytes"])
    yield "parameters", count(cost["parameters"])
    yield "MACs", f"{count(cost['macs'])} at batch 1" if cost["macs"] is not None else "? (a shape is not known)"
    yield "nodes", _counted(document) if not full else f"{document['nodes']:,}"
    yield "depth", f"{structure['depth']:,} nodes, {structure['branches']:,} values that several nodes read"
    if structure["stored"]:
        yield "constants", ", ".join(f"{own['dtype']} {size(own['bytes'])}" for own in structure["stored"])
    if structure["shared"]:
        saved = sum(own["bytes"] * (own["readers"] - 1) for own in structure["shared"])
        yield (
            "shared",
            f"{len(structure['shared'])} constants that several nodes read; apart they take {size(saved)} more",
        )
    yield "quantized", _QUANTIZED[structure["quantized"]]
    yield "opset", f"{opsets}; IR {document['ir_version']}"
    if document["producer"]:
        yield "written by", document["producer"]
    if structure["made"] is not None:
        made = f"onnxcomp {structure['made']['version']}".rstrip()
        yield "compressed by", f"{made}: {', '.join(structure['made']['passes'])}"
    yield from ((f"input {name}", text) for name, text in document["inputs"].items())
    yield from ((f"output {name}", text) for name, text in document["outputs"].items())
    yield from ((f"{spec} cannot run", reason) for spec, reason in document["refusals"].items())
    if document["whole"]:
        works = "works" if len(document["whole"]) == 1 else "work"
        names = ", ".join(document["whole"])
        yield "other passes", f"{names} {works} on the whole model; only a run tells more"


def _counted(document: Document) -> str:
    """The number of nodes, with the most frequent operators."""
    operators = list(document["operators"].items())
    listed = [f"{number} {name}" for name, number in operators[:_FEW_OPERATORS]]
    rest = operators[_FEW_OPERATORS:]
    if rest:
        listed.append(f"{sum(number for _, number in rest)} of {len(rest)} other operators")
    return f"{document['nodes']:,} ({', '.join(listed)})"


def _sorted(layers: Sequence[Document], order: Order) -> list[Document]:
    """The layers in another order; equal ones stay in that of the model."""
    if order == "order":
        return list(layers)
    if order == "name":
        return sorted(layers, key=lambda layer: str(layer["name"]))
    if order == "bytes":
        return sorted(layers, key=lambda layer: -int(layer["bytes"]))
    return sorted(layers, key=lambda layer: (-(layer["macs"] or 0), -int(layer["bytes"])))


def _layers_table(layers: Sequence[Document], shown: int, order: Order, kept: Sequence[int]) -> Table:
    what = _measure(layers, order)
    whole = sum(layer[what] or 0 for layer in layers)
    rows = [
        (
            layer["name"],
            layer["op_type"],
            layer["input_shape"],
            layer["output_shape"],
            layer["dtype"],
            *_amounts([layer], what, whole),
            ", ".join(layer["open"]),
        )
        for layer in layers[:shown]
    ]
    if rest := layers[shown:]:
        rows.append((f"... and {len(rest):,} more", "", "", "", "", *_amounts(rest, what, whole), ""))
    return Table(
        _TITLES[order],
        tuple(_COLUMNS[i].format(what="MACs" if what == "macs" else what) for i in kept),
        tuple(tuple(row[i] for i in kept) for row in rows),
        frozenset(place for place, i in enumerate(kept) if _COLUMNS[i] in _NUMBERS),
    )


def _measure(layers: Sequence[Document], order: Order = "macs") -> str:
    """What shares are of: MACs, or bytes where these are asked for or MACs are not all known."""
    macs = [layer["macs"] for layer in layers]
    return "macs" if order != "bytes" and None not in macs and any(macs) else "bytes"


def _amounts(layers: Sequence[Document], what: str, whole: int) -> Row:
    macs = [layer["macs"] for layer in layers]
    return (
        count(sum(layer["parameters"] for layer in layers)),
        size(sum(layer["bytes"] for layer in layers)),
        count(None if None in macs else sum(macs)),
        f"{100 * sum(layer[what] or 0 for layer in layers) / whole:.1f} %" if whole else "",
    )


def _figure(layers: Sequence[Document]) -> Panels:
    """Bars of the layers that cost most, in the order of the model."""
    what = _measure(layers)
    most = sorted(range(len(layers)), key=lambda index: -(layers[index][what] or 0))[:_DRAWN]
    drawn = [layers[index] for index in sorted(most)]
    labels = tuple(layer["name"] for layer in drawn)

    def bars(key: str, unit: str) -> Bars:
        return Bars(labels, ((unit, tuple(layer[key] for layer in drawn)),), unit)

    return Panels(
        (("MACs", bars("macs", "MACs")), ("size", bars("bytes", "bytes")), ("parameters", bars("parameters", "")))
    )


def _operators(document: Document) -> Table:
    weighted = Counter(layer["op_type"].rpartition(".")[2] for layer in document["layers"])
    rows = [
        (name, f"{number:,}", f"{weighted[name]:,}" if weighted[name] else "")
        for name, number in document["operators"].items()
    ]
    return Table("Operators", ("operator", "nodes", "with weights"), tuple(rows), frozenset({1, 2}))


def _stored(document: Document) -> Table:
    rows = [
        (own["dtype"], f"{own['tensors']:,}", count(own["elements"]), size(own["bytes"]))
        for own in document["structure"]["stored"]
    ]
    return Table("Constants", ("type", "tensors", "elements", "size"), tuple(rows), frozenset({1, 2, 3}))


def _shared(document: Document) -> Table:
    shared = document["structure"]["shared"]
    rows = [(own["tensor"], f"{own['readers']:,}", size(own["bytes"])) for own in shared[:_FEW_SHARED]]
    if len(shared) > _FEW_SHARED:
        rows.append(
            (f"... and {len(shared) - _FEW_SHARED:,} more", "", size(sum(o["bytes"] for o in shared[_FEW_SHARED:])))
        )
    return Table("Constants that several nodes read", ("constant", "read by", "size"), tuple(rows), frozenset({1, 2}))


def _notes(document: Document, full: bool) -> Iterator[str]:
    if not document["layers"]:
        yield "The model has no layer with weights."
    elif document["proposed"]:
        yield basis_line(document)
    if full and len(document["layers"]) > _DRAWN:
        yield f"the figure shows the {_DRAWN} layers that cost most; the table has all {len(document['layers']):,}"
    folded = len(document["folded"])
    if folded:
        yield f"fold, which every run begins with, changes {folded} thing{'' if folded == 1 else 's'} first"


def _listings(document: Document) -> Iterator[Listing]:
    import json

    if document["structure"]["made"] is not None:
        yield Listing("Recipe in the file", json.dumps(document["structure"]["made"]["recipe"], indent=2))
    if document["folded"]:
        yield Listing("What fold changes first", "\n".join(document["folded"]))
