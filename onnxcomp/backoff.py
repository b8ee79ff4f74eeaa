"""Hold an error budget for a whole pipeline: passes that can be turned are, up or down; then the sites that cost most
get milder options, and then are given back, until it holds; no more of them than it takes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from glob import escape

import onnx_ir as ir

from onnxcomp.budget import Budget
from onnxcomp.contract import Change, Context, Override, Pass, Value
from onnxcomp.data import Feeds
from onnxcomp.dial import Reading, turn
from onnxcomp.errors import InputError, ModelError
from onnxcomp.evaluate import Quality, evaluate
from onnxcomp.intake import Intake
from onnxcomp.memo import Memo
from onnxcomp.pipeline import Plan, Step, run_passes
from onnxcomp.prefix import least_prefix

__all__ = ["Outcome", "Relief", "within_budget"]

_log = logging.getLogger(__name__)

# Enough to tell garbage from a good model.
_PROBED = 128
# A dial that starts at its default is turned up by no more than this.
_MOST = 32.0


@dataclass(frozen=True)
class Relief:
    """What is done about a site so that the budget holds.

    Attributes:
        position: Of the pass.
        site: The name of the node in the user's own model.
        options: All of its own options from now on; None: the pass leaves it alone.
        share: What is expected to be gained, as :attr:`onnxcomp.contract.Change.error`.
    """

    position: int
    site: str
    options: Mapping[str, Value] | None = None
    share: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Outcome:
    """What a plan under a budget came to.

    Attributes:
        model: The model.
        steps: One entry a pass.
        failures: The limits that do not hold however much is given back.
        reliefs: What was done so that the limits hold, in that order; of two for one site the later one counts.
        passes: The passes as they were turned; None: as they were given.
    """

    model: ir.Model
    steps: tuple[Step, ...]
    failures: tuple[str, ...] = ()
    reliefs: tuple[Relief, ...] = ()
    passes: tuple[Pass, ...] | None = None


def within_budget(intake: Intake, start: ir.Model, plan: Plan, context: Context, budget: Budget) -> Outcome:
    """Run the plan; where the budget does not hold, relieve as few sites as it takes, the largest error first.

    Passes with a dial are turned first, up where there is room. Then the sites that have milder options get them, then
    sites are left alone. Without a budget, and with nothing in the plan that the user asked for by amount, the outputs
    must still resemble the original's on the calibration data, made up or not: defaults never write garbage.

    Args:
        intake: The original model, that the outputs are compared with, and what is measured on.
        start: The canonicalised model that the passes run on.
        plan: What to run.
        context: The run's context.
        budget: The limits; may be empty.

    Raises:
        InputError: There is a budget and nothing to measure it on.
    """
    context = replace(context, budgeted=bool(budget))
    outcome = Outcome(*run_passes(start, plan, context))
    if not budget and not any(step.kept and step.report.changes for step in outcome.steps):
        return outcome
    judge = _Judge.of(intake, plan, budget, context.statistics is not None)
    if judge is None:
        return outcome
    quality = judge.quality(outcome.model)
    if budget:
        plan, outcome, quality = _turned(start, plan, context, judge, (outcome, quality))
    failures = judge.failures(quality)
    done: tuple[Relief, ...] = ()
    for reliefs in (_milder, _returned):
        if not failures:
            break
        trials = _Trials(start, plan, context, judge, done, reliefs(outcome.steps))
        outcome, failures, quality, done = trials.search(outcome, quality)
        context = trials.context
    told = _told(outcome.steps, done)
    return replace(outcome, steps=told, failures=failures if budget else (), reliefs=done, passes=plan.passes)


def _turned(
    start: ir.Model, plan: Plan, context: Context, judge: _Judge, first: tuple[Outcome, Quality]
) -> tuple[Plan, Outcome, Quality]:
    """Turn those passes that can be turned, all by the same amount, until the budget just holds."""
    if plan.replay is not None or not any(item.eased(0.5) for item in plan.passes):
        return plan, *first

    def read(outcome: Outcome, quality: Quality) -> Reading[tuple[Outcome, Quality]]:
        return Reading((outcome, quality), judge.slack(quality), not judge.failures(quality))

    def run(amount: float) -> Reading[tuple[Outcome, Quality]]:
        outcome = Outcome(*run_passes(start, _eased(plan, amount), context))
        return read(outcome, judge.quality(outcome.model))

    free = not any(item.explicit() for item in plan.passes if item.eased(0.5))
    amount, reading = turn(read(*first), run, most=_MOST if free else 1.0)
    return _eased(plan, amount), *reading.result


def _eased(plan: Plan, amount: float) -> Plan:
    if amount == 1.0:
        return plan
    return replace(plan, passes=tuple(item.eased(amount) or item for item in plan.passes))


class _Trials:
    """Runs of the plan with the first few reliefs of a list, on top of those that are settled."""

    def __init__(
        self,
        start: ir.Model,
        plan: Plan,
        context: Context,
        judge: _Judge,
        settled: tuple[Relief, ...],
        reliefs: Sequence[Relief],
    ) -> None:
        self.context = context
        self._start, self._plan, self._judge = start, plan, judge
        self._settled, self._reliefs = settled, tuple(reliefs)
        self._seen: dict[int, tuple[Outcome, Quality]] = {}

    def search(
        self, outcome: Outcome, quality: Quality
    ) -> tuple[Outcome, tuple[str, ...], Quality, tuple[Relief, ...]]:
        """The outcome with as few reliefs as it takes, or with all of them; what still fails; and what was done."""
        allowed = self._judge.allowed(quality)
        shares = [max(0.0, relief.share) for relief in self._reliefs]
        number = least_prefix(shares, _noise(quality), allowed, self._try)
        if number is None:
            number = len(self._reliefs)
        if number:
            outcome, quality = self._seen[number]
        return outcome, self._judge.failures(quality), quality, self._settled + self._reliefs[:number]

    def _try(self, number: int) -> tuple[float, bool]:
        if number == len(self._reliefs) and any(relief.options is not None for relief in self._reliefs):
            # All sites are others than those that were measured, and may have to be ranked again.
            self.context = replace(self.context, memo=Memo())
        plan = _relieved(self._plan, self._settled + self._reliefs[:number])
        outcome = Outcome(*run_passes(self._start, plan, self.context))
        quality = self._judge.quality(outcome.model)
        failures = self._judge.failures(quality)
        held = f"fails: {'; '.join(failures)}" if failures else "holds"
        _log.info("the budget with %d of %d layers relieved: %s", number, len(self._reliefs), held)
        # Of those that hold only the least is wanted, of the others only what to go on from.
        self._seen = {n: seen for n, seen in self._seen.items() if n < number or failures}
        if not failures or number == len(self._reliefs):
            self._seen[number] = outcome, quality
        return _noise(quality), not failures


class _Judge:
    """Measures a model against the original and says which limits do not hold."""

    def __init__(self, intake: Intake, feeds: Feeds | None, budget: Budget, limit: int | None) -> None:
        if feeds is None:
            raise InputError("an accuracy budget needs data to measure on; give --eval or --data")
        self._budget, self._original, self._feeds, self._limit = budget, intake.model, feeds, limit
        # Only a drop of accuracy is counted from the original's own; else one sample tells whether it runs.
        self._before = evaluate(intake.model, feeds, limit=1 if budget.max_drop is None else limit)

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

    def quality(self, model: ir.Model) -> Quality:
        return evaluate(model, self._feeds, self._original, limit=self._limit)

    def failures(self, quality: Quality) -> tuple[str, ...]:
        return self._budget.failures(self._before, quality)

    def slack(self, quality: Quality) -> float:
        """By what factor the noise may be expected to grow before a limit breaks."""
        return self._budget.slack(self._before, quality, _noise(quality))

    def allowed(self, quality: Quality) -> float:
        """The noise power, relative to the signal, with which the limits may be expected to hold."""
        return self._budget.allowed_noise(self._before, quality, _noise(quality))


def _noise(quality: Quality) -> float:
    """Relative squared error of the worst output."""
    return float(10 ** (-min(quality.sqnr.values(), default=float("inf")) / 10))


def _relieved(plan: Plan, reliefs: Sequence[Relief]) -> Plan:
    overrides = [list(own) for own in plan.overrides or [()] * len(plan.passes)]
    given_back: set[tuple[int, str]] = set()
    for relief in reliefs:
        if relief.options is None:
            given_back.add((relief.position, relief.site))
        else:
            overrides[relief.position].append(Override(escape(relief.site), relief.options))
    return replace(plan, overrides=tuple(tuple(own) for own in overrides), given_back=frozenset(given_back))


def _milder(steps: tuple[Step, ...]) -> list[Relief]:
    """The sites that have milder options, largest error first."""
    return [
        Relief(relief.position, relief.site, change.milder, relief.share)
        for relief, change in _ranked(steps)
        if change.milder
    ]


def _returned(steps: tuple[Step, ...]) -> list[Relief]:
    """All sites, largest error first; those without a prediction last."""
    return [relief for relief, _ in _ranked(steps)]


def _ranked(steps: tuple[Step, ...]) -> list[tuple[Relief, Change]]:
    worst: dict[tuple[int, str], tuple[Relief, Change]] = {}
    for index, step in enumerate(steps):
        for change in step.report.changes if step.kept else ():  # several of a site that an earlier pass has split
            error = -1.0 if change.error is None else change.error
            known = worst.get((index, change.site))
            if known is None or error > known[0].share:
                worst[index, change.site] = Relief(index, change.site, share=error), change
    return sorted(worst.values(), key=lambda entry: (-entry[0].share, entry[0].position, entry[0].site))


def _told(steps: tuple[Step, ...], reliefs: Sequence[Relief]) -> tuple[Step, ...]:
    """The steps, with the changes that have milder options saying why; what they do to the outputs was not measured."""
    milder = {(r.position, r.site): r.options for r in reliefs if r.options is not None}

    def told(index: int, change: Change) -> Change:
        options = milder.get((index, change.site))
        if options is None:
            return change
        kept = ", ".join(f"{name}={value}" for name, value in options.items())
        return replace(change, error=None, facts={**change.facts, "budget": f"{kept}, to hold the accuracy budget"})

    return tuple(
        replace(step, report=replace(step.report, changes=tuple(told(index, c) for c in step.report.changes)))
        for index, step in enumerate(steps)
    )
