"""Hold an error budget for a whole pipeline: when it is overshot, give back the sites that cost most until it holds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxcomp.budget import Budget
from onnxcomp.contract import Context
from onnxcomp.data import Feeds
from onnxcomp.errors import InputError, ModelError
from onnxcomp.evaluate import evaluate
from onnxcomp.intake import Intake
from onnxcomp.pipeline import Plan, Step, run_passes

__all__ = ["Outcome", "within_budget"]

Given = tuple[int, str]
# Enough to tell garbage from a good model.
_PROBED = 128


@dataclass(frozen=True)
class Outcome:
    """What a plan under a budget came to.

    Attributes:
        model: The model.
        steps: One entry a pass.
        failures: The limits that do not hold however much is given back.
        given_back: (position of the pass, name of the site) of what was left out so that the limits hold.
    """

    model: ir.Model
    steps: tuple[Step, ...]
    failures: tuple[str, ...] = ()
    given_back: tuple[Given, ...] = ()


def within_budget(intake: Intake, start: ir.Model, plan: Plan, context: Context, budget: Budget) -> Outcome:
    """Run the plan; while the budget does not hold, leave out 1, 2, 4 ... sites, the largest predicted error first.

    Without a budget, and with nothing in the plan that the user asked for by amount, the outputs must still resemble
    the original's on the calibration data, made up or not: defaults never write garbage.

    Args:
        intake: The original model, that the outputs are compared with, and what is measured on.
        start: The canonicalised model that the passes run on.
        plan: What to run.
        context: The run's context.
        budget: The limits; may be empty.

    Raises:
        InputError: There is a budget and nothing to measure it on.
    """
    outcome = Outcome(*run_passes(start, plan, replace(context, budgeted=bool(budget))))
    judge = _Judge.of(intake, plan, budget, context.statistics is not None)
    if judge is None:
        return outcome
    failures = judge.failures(outcome.model)
    ranked = _ranked(outcome.steps)
    given_back: tuple[Given, ...] = ()
    while failures and len(given_back) < len(ranked):
        given_back = tuple(ranked[: max(1, 2 * len(given_back))])
        outcome = Outcome(*run_passes(start, replace(plan, given_back=frozenset(given_back)), context))
        failures = judge.failures(outcome.model)
    return replace(outcome, failures=failures if budget else (), given_back=given_back)


class _Judge:
    """Measures a model against the original and says which limits do not hold."""

    def __init__(self, intake: Intake, feeds: Feeds | None, budget: Budget, limit: int | None) -> None:
        if feeds is None:
            raise InputError("an accuracy budget needs data to measure on; give --eval or --data")
        self._budget, self._original, self._feeds, self._limit = budget, intake.model, feeds, limit
        self._before = evaluate(intake.model, feeds, limit=limit)

    @classmethod
    def of(cls, intake: Intake, plan: Plan, budget: Budget, statistics: bool) -> _Judge | None:
        """The judge of the user's budget, of the implied one, or None where nothing is to be held."""
        # Ranges of real data do not suit made-up samples: what these say then is no verdict.
        feeds = intake.data if statistics else intake.feeds
        if budget:
            return cls(intake, intake.scored or feeds, budget, None)
        if feeds is None or plan.replay is not None or any(item.explicit() for item in plan.passes):
            return None
        try:
            return cls(intake, intake.scored or feeds, Budget(min_sqnr=Budget.GARBAGE_DB), _PROBED)
        except ModelError:  # outputs that cannot be compared hold no implied limit; the report says so
            return None

    def failures(self, model: ir.Model) -> tuple[str, ...]:
        after = evaluate(model, self._feeds, self._original, limit=self._limit)
        return self._budget.failures(self._before, after)


def _ranked(steps: tuple[Step, ...]) -> list[Given]:
    """Rewrites as (position of the pass, site), largest predicted error first; those without a prediction last."""
    errors: dict[Given, float] = {}
    for index, step in enumerate(steps):
        for change in step.report.changes if step.kept else ():  # several of a site that an earlier pass has split
            error = -1.0 if change.error is None else change.error
            errors[index, change.site] = max(error, errors.get((index, change.site), -1.0))
    return sorted(errors, key=lambda given: (-errors[given], given))
