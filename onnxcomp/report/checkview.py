"""The verdict of ``onnxcomp check``: its document (``onnxcomp.check/2``) and what a person sees of it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxcomp.report.schema import plain
from onnxcomp.report.table import Table
from onnxcomp.report.view import View

if TYPE_CHECKING:
    from onnxcomp.gate.checking import GateReport

__all__ = ["SCHEMA", "check_document", "check_view"]

SCHEMA = "onnxcomp.check/2"
Document = dict[str, Any]


def check_document(report: GateReport, written: Sequence[Path] = ()) -> Document:
    """Return the verdict as plain data; `written` are the files that the model was written to."""
    return {
        "schema": SCHEMA,
        "version": version("onnxcomp"),
        "headline": report.headline,
        "passed": report.passed,
        "model": report.model,
        "against": report.against,
        "target": report.target,
        "legal": not any(finding.severity == "error" for finding in report.findings),
        "data": report.data,
        "threads": report.threads,
        "lines": plain(report.lines),
        "findings": plain(report.findings),
        "warnings": list(report.warnings),
        "written": [str(path) for path in written],
    }


def check_view(document: Document) -> View:
    """Lay out a verdict: what failed first."""
    lines, findings = document["lines"], document["findings"]
    rows = [(line["name"], line["limit"], line["value"], line["verdict"], line["why"]) for line in lines]
    tables = [Table("Limits", ("limit", "asked", "measured", "verdict", "why"), tuple(rows))]
    if findings:
        told = [(f["severity"], f["node"] or "(the model)", f["rule"], f["message"], f["remedy"]) for f in findings]
        tables.append(Table("Findings", ("", "node", "rule", "what", "remedy"), tuple(told)))
    notes = [f"run on: {document['data']}"] if document["data"] else []
    notes += [f"wrote {path}" for path in document["written"]]
    facts = [("model", document["model"] or "(from memory)"), ("target", document["target"])]
    if document["against"] is not None:
        facts.insert(1, ("against", document["against"] or "(from memory)"))
    title = f"onnxcomp check: {document['model']}" if document["model"] else "onnxcomp check"
    return View(
        document["headline"],
        (),
        tuple(document["warnings"]),
        tuple(tables),
        tuple(notes),
        title=title,
        facts=tuple(facts),
    )
