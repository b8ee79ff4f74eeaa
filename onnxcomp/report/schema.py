"""The document of a run; its terminal tables, Markdown and HTML are renderings of it.

``report/schemas/report-2.schema.json`` says what every key means. Numbers that JSON does not have are the texts
``inf``, ``-inf`` and ``nan``: an SQNR is ``inf`` where outputs are equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

from onnxcomp.recipe_yaml import replayable
from onnxcomp.report.text import decibels, percent

if TYPE_CHECKING:
    from onnxcomp.evaluate import Quality
    from onnxcomp.pipeline import PipelineReport, Snapshot, Step

__all__ = ["SCHEMA", "headline", "plain", "report_document"]

SCHEMA = "onnxcomp.report/2"
Document = dict[str, Any]


def report_document(report: PipelineReport) -> Document:
    """Return a report as plain data that ``json.dumps(..., allow_nan=False)`` accepts."""
    specs = [step.spec for step in report.steps]
    return {
        "schema": SCHEMA,
        "version": report.version,
        "headline": headline(report),
        "data": report.data,
        "synthetic": report.synthetic,
        "model": plain(report.model),
        "recipe": plain(replayable({**report.recipe, "passes": specs}, report.choices)),
        "before": _snapshot(report.before),
        "after": _snapshot(report.after),
        "speedup": plain(report.speedup),
        "folded": list(report.folded),
        "steps": [_step(step) for step in report.steps],
        "layers": plain(report.layers),
        "fates": plain(report.fates),
        "warnings": list(report.warnings),
        "failures": list(report.failures),
    }


def headline(report: PipelineReport) -> str:
    """Say in one line what happened to accuracy, or plainly that nobody knows."""
    before, after = report.before.quality, report.after.quality
    if before is not None and after is not None and before.top1 is not None and after.top1 is not None:
        change = 100 * (after.top1 - before.top1)
        line = f"top-1 accuracy {percent(before.top1)} -> {percent(after.top1)} ({change:+.2f} points)"
        made = "; no real data was used to calibrate" if report.synthetic else ""
        return f"{line} on {after.samples:,} samples{made}"
    drift = "" if after is None else _drift(after)
    if report.synthetic:
        return f"no real data was used to calibrate and accuracy is unknown{drift}; give --data and --eval"
    return f"accuracy was not measured{drift}; give --eval with labels"


def plain(value: Any) -> Any:
    """Return dataclasses, mappings and sequences as dicts and lists; non-finite numbers as text."""
    if isinstance(value, type):
        raise TypeError(f"{value!r} is no value")
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    number = float(value)  # NumPy scalars as well
    return number if isfinite(number) else str(number)


def _drift(quality: Quality) -> str:
    if not quality.sqnr:
        return ""
    if min(quality.sqnr.values()) == inf and all(share == 1 for share in quality.equal.values()):
        return f" (outputs are equal, {quality.samples:,} samples)"
    agreement = "" if quality.agreement is None else f", same top-1 class for {percent(quality.agreement)}"
    return f" (worst output SQNR {decibels(min(quality.sqnr.values()))}{agreement}, {quality.samples:,} samples)"


def _snapshot(snapshot: Snapshot) -> Document:
    return {
        "bytes": snapshot.bytes,
        "nodes": snapshot.nodes,
        "parameters": snapshot.cost.parameters,
        "macs": snapshot.cost.macs,
        "weight_bytes": snapshot.cost.bytes,
        "transfer": snapshot.transfer,
        "load_ms": plain(snapshot.load_ms),
        "operators": dict(snapshot.operators),
        "quality": plain(snapshot.quality),
    }


def _step(step: Step) -> Document:
    document: Document = plain(step)
    parts = document.pop("report")
    return {**document, **parts}
