"""Hold an error budget for a whole pipeline: when it is overshot, give back the sites that cost most until it holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from glob import escape

import onnx_ir as ir

from onnxcomp.budget import Budget
from onnxcomp.contract import Context
from onnxcomp.data import Feeds
from onnxcomp.errors import InputError
from onnxcomp.evaluate import evaluate
from onnxcomp.pipeline import Plan, Step, run_passes

__all__ = ["Outcome", "within_budget"]


@dataclass(frozen=True)
class Outcome:
    """What a run under a budget came to.

    Attributes:
        model: The model.
        steps: One entry a pass.
        failures: The limits that do not hold however much is given back.
        given_back: Globs of the sites that were left out so that the limits hold.
    """

    model: ir.Model
    steps: tuple[Step, ...]
    failures: tuple[str, ...] = ()
    given_back: tuple[str, ...] = ()


def within_budget(
    original: ir.Model, start: ir.Model, plan: Plan, context: Context, budget: Budget, feeds: Feeds | None
) -> Outcome:
    """Run the plan; while the budget does not hold, leave out 1, 2, 4 ... sites, the largest predicted error first.

    Args:
        original: The model that the outputs are compared with.
        start: The canonicalised model that the passes run on.
        plan: What to run.
        context: The run's context.
        budget: The limits; an empty one always holds.
        feeds: What is measured on.

    Raises:
        InputError: There is a budget and nothing to measure it on.
    """
    model, steps = run_passes(start, plan, context)
    if not budget:
        return Outcome(model, steps)
    if feeds is None:
        raise InputError("an accuracy budget needs data to measure on; give --eval or --data")
    before = evaluate(original, feeds)
    failures = budget.failures(before, evaluate(model, feeds, original))
    ranked = _ranked(steps)
    given_back: tuple[str, ...] = ()
    while failures and len(given_back) < len(ranked):
        given_back = tuple(escape(site) for site in ranked[: max(1, 2 * len(given_back))])
        model, steps = run_passes(start, plan, replace(context, exclude=(*context.exclude, *given_back)))
        failures = budget.failures(before, evaluate(model, feeds, original))
    return Outcome(model, steps, failures, given_back)


def _ranked(steps: tuple[Step, ...]) -> list[str]:
    """Names of the rewritten sites, largest predicted error first; those without a prediction last."""
    worst: dict[str, float] = {}
    for step in steps:
        for change in step.report.changes:
            worst[change.site] = max(worst.get(change.site, -1.0), -1.0 if change.error is None else change.error)
    return sorted(worst, key=lambda site: (-worst[site], site))
