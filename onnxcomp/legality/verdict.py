"""What a compilation says about the rules of its target: failures, and a few lines of warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxcomp.legality.checker import check_model
from onnxcomp.legality.finding import Finding
from onnxcomp.runtime.fusion import NodeFate
from onnxcomp.targets.target import Target

__all__ = ["Verdict", "judge"]

_LINES = 5


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to tell the user about the rules of a target.

    Attributes:
        failures: Why the model must not be shipped there: one line, or none.
        warnings: What costs it speed there, a line a rule.
    """

    failures: tuple[str, ...]
    warnings: tuple[str, ...]


def judge(given: ir.Model, result: ir.Model, target: Target, fates: Sequence[NodeFate] | None = None) -> Verdict:
    """Check a result against the rules of its target.

    Args:
        given: The model that came in: a rule that it breaks itself is no pass's fault, and the failure says so.
        result: The model to be written.
        target: What it is for.
        fates: As for :func:`check_model`, of the result.
    """
    findings = check_model(result, target, fates=fates)
    errors = [finding for finding in findings if finding.severity == "error"]
    failures: tuple[str, ...] = ()
    if errors:
        inherited = {finding.rule for finding in check_model(given, target) if finding.severity == "error"}
        failures = (_failure(errors, inherited, target),)
    return Verdict(failures, _summary([finding for finding in findings if finding.severity == "warning"], target))


def _failure(errors: Sequence[Finding], inherited: set[str], target: Target) -> str:
    """The first violation, what to do, and how many more there are; those that a pass made come first."""
    made = [finding for finding in errors if finding.rule not in inherited]
    first = (made or errors)[0]
    who = "the result breaks" if made else "the input itself breaks"
    more = f" ({len(errors) - 1} more; 'onnxcomp check' lists them)" if len(errors) > 1 else ""
    return f"{who} rule {first.rule} of {target.name}: {_place(first)}{first.message}; {first.remedy}{more}"


def _summary(warnings: Sequence[Finding], target: Target) -> tuple[str, ...]:
    """A line a rule with its first place and the number of others, and a count of what there is no line for."""
    rules: dict[str, list[Finding]] = {}
    for finding in warnings:
        rules.setdefault(finding.rule, []).append(finding)
    lines = [f"{target.name}: {_place(found[0])}{found[0].message}{_others(found)}" for found in rules.values()]
    if len(lines) <= _LINES:
        return tuple(lines)
    left = len(lines) - (_LINES - 1)
    advice = f"{target.name}: {left} more rules are not kept; 'onnxcomp check --target {target.name}' lists them"
    return (*lines[: _LINES - 1], advice)


def _place(finding: Finding) -> str:
    return f"{finding.node}: " if finding.node else ""


def _others(found: Sequence[Finding]) -> str:
    more = len(found) - 1
    return "" if not more else f" (and at {more} more place{'' if more == 1 else 's'})"
