"""The rules of the runtime that a model is for, as one line."""

from __future__ import annotations

from collections.abc import Sequence

from onnxcomp.gate.line import Line, listed
from onnxcomp.legality.finding import Finding

__all__ = ["legality_line"]


def legality_line(target: str, findings: Sequence[Finding]) -> Line:
    """Judge what the rules of the target found: errors fail, warnings are counted."""
    errors = [finding for finding in findings if finding.severity == "error"]
    warnings = len(findings) - len(errors)
    value = f"{_count(len(errors), 'error')}, {_count(warnings, 'warning')}"
    figures = {"value": float(len(errors))}
    if not errors:
        return Line("target", f"legal for {target}", value, "pass", "", (), figures)
    first = errors[0]
    place = f"{first.node}: " if first.node else ""
    rules = listed([finding.rule for finding in errors])
    why = f"{rules}: {place}{first.message}"
    where = tuple(dict.fromkeys(finding.node for finding in errors if finding.node))
    return Line("target", f"legal for {target}", value, "fail", why, where, figures)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
