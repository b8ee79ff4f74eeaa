"""Run passes over a model: requires, clone, run, verify, keep or roll back - and the report that says what happened."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from onnxcomp.contract import Change, Context, Override, Pass, PassReport, Value
from onnxcomp.cost import Cost, model_cost
from onnxcomp.errors import InputError, PassError
from onnxcomp.evaluate import Quality
from onnxcomp.graph.earlier import earlier_maker
from onnxcomp.layerwise import Layer
from onnxcomp.modelio import serialized_bytes
from onnxcomp.options import spec_of
from onnxcomp.runtime.fusion import NodeFate
from onnxcomp.runtime.timing import Speedup, paired
from onnxcomp.storage.zeros import stored
from onnxcomp.subject import Subject
from onnxcomp.verify import check_outputs, check_structure

__all__ = [
    "Choices",
    "PipelineReport",
    "Plan",
    "Progress",
    "Snapshot",
    "Step",
    "in_vain",
    "lowest_speed",
    "run_passes",
    "time_models",
]

_log = logging.getLogger(__name__)

Progress = Callable[[str], None]
Choices = Mapping[str, Mapping[str, Value]]

# A pass that saves bytes may cost this much time under ``latency`` (design, "What a pass saves").
_BYTES_MAY_COST = 0.98
# Width of the interval of a whole model's speed, where it leaves no doubt which one is faster.
_DECIDED = 0.03
# Layers that are named in a line of the log.
_NAMED = 3


@dataclass(frozen=True)
class Step:
    """One pass of a run.

    Attributes:
        spec: The pass as text, only the options that differ from their defaults.
        report: Its changes, skips and notes, one entry a site.
        kept: Whether its result was kept; False: rolled back.
        why: Why it was rolled back; empty where kept.
        before: Cost of the model before the pass.
        after: Cost of the model after it (of the result that was rolled back, if it was).
        speedup: Measured time before / after, as the later passes would leave both; None where nothing was timed.
        seconds: Wall time of the pass, seconds.
    """

    spec: str
    report: PassReport
    kept: bool
    why: str
    before: Cost
    after: Cost
    speedup: Speedup | None
    seconds: float


@dataclass(frozen=True)
class Snapshot:
    """The model before or after.

    Attributes:
        cost: Its static cost.
        bytes: Of the file with its external data.
        nodes: Their number.
        quality: Its accuracy; None where nothing was measured.
        transfer: Bytes of the file, deflated; None where no pass that saves bytes was kept.
        load_ms: Time to load it, milliseconds; None where that was not timed.
        operators: How many nodes of the main graph each operator has.
    """

    cost: Cost
    bytes: int
    nodes: int
    quality: Quality | None = None
    transfer: int | None = None
    load_ms: float | None = None
    operators: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class PipelineReport:
    """All that a run did and measured.

    Attributes:
        version: Version of onnxcomp.
        recipe: The resolved recipe: passes, target, objective, seed ...; with the steps' choices it replays the run.
        data: One line about the calibration data.
        synthetic: Whether no real calibration data were given.
        folded: What canonicalisation changed.
        steps: One entry a pass.
        before: The input.
        after: The result.
        speedup: Time of the input / time of the result, measured on whole models; None where nothing was timed.
        fates: What the runtime does with each node of the result.
        warnings: What the user should know.
        failures: Limits that do not hold; empty where all hold.
        model: What came in.
        layers: What became of every layer; empty where nobody asked.
    """

    version: str
    recipe: Mapping[str, object]
    data: str
    synthetic: bool
    folded: tuple[str, ...]
    steps: tuple[Step, ...]
    before: Snapshot
    after: Snapshot
    speedup: Speedup | None = None
    fates: tuple[NodeFate, ...] = ()
    warnings: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    model: Subject = field(default_factory=Subject)
    layers: tuple[Layer, ...] = ()

    @property
    def choices(self) -> tuple[Choices, ...]:
        """For each step, the resolved options of every site it rewrote; with the recipe they replay the run."""
        return tuple(_choices(step.report.changes if step.kept else ()) for step in self.steps)


def in_vain(steps: Sequence[Step]) -> Iterator[str]:
    """Say of each pass that found nothing to do because of an earlier one where it should stand."""
    for index, step in enumerate(steps):
        earlier = {_name(other) for other in steps[:index] if other.kept and other.report.changes} - {_name(step)}
        makers = [earlier_maker(skip.reason) for skip in step.report.skips]
        counts = Counter(maker for maker in makers if maker in earlier)
        if step.report.changes or not counts:
            continue
        maker, number = counts.most_common(1)[0]
        yield (
            f"{_name(step)} found nothing to do: {maker} before it has stored or quantized {number} of the"
            f" {len(makers)} layers it looks at; write {_name(step)} before {maker}"
        )


def _name(step: Step) -> str:
    return step.spec.split("(", 1)[0]


def _choices(changes: Sequence[Change]) -> Choices:
    """The choices by site; where an earlier pass has made several nodes of a site, those of all of them together."""
    found: dict[str, dict[str, Value]] = {}
    for change in changes:
        found.setdefault(change.site, {}).update(change.choice)
    return found


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        passes: The passes, in order.
        overrides: Per pass, the per-layer options of a recipe; empty for none.
        replay: Per pass, the choices of an earlier run; None: choose.
        given_back: (position of a pass, site) pairs that are left alone to hold the accuracy budget.
        progress: Called with the spec of each pass as it starts.
    """

    passes: tuple[Pass, ...]
    overrides: tuple[tuple[Override, ...], ...] = ()
    replay: tuple[Choices, ...] | None = None
    given_back: frozenset[tuple[int, str]] = frozenset()
    progress: Progress | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for what, given in (("overrides", self.overrides or None), ("replay", self.replay)):
            if given is not None and len(given) != len(self.passes):
                raise InputError(f"{what}: {len(given)} entries for {len(self.passes)} passes; give one for each pass")


def run_passes(model: ir.Model, plan: Plan, context: Context) -> tuple[ir.Model, tuple[Step, ...]]:
    """Run the passes in order; each one works on a clone that replaces the model only if it holds up.

    Raises:
        InputError: A pass cannot run on this model or target at all.
    """
    steps: list[Step] = []
    for index, item in enumerate(plan.passes):
        if plan.progress:
            plan.progress(spec_of(item))
        own = replace(
            context,
            followers=plan.passes[index + 1 :],
            overrides=plan.overrides[index] if plan.overrides else (),
            replay=plan.replay[index] if plan.replay is not None else None,
            given_back=frozenset(site for position, site in plan.given_back if position == index),
            memo=context.memo.part(index),
        )
        item.requires(model, own)
        model, step = _run_one(item, model, own)
        steps.append(step)
    return model, tuple(steps)


def _run_one(item: Pass, model: ir.Model, context: Context) -> tuple[ir.Model, Step]:
    started = time.perf_counter()
    trial = model.clone()
    report = item.run(trial, context)
    before, after = model_cost(model), model_cost(trial)
    speedup: Speedup | None = None
    why = ""
    if report.changes and context.replay == {}:  # only a pass that does not choose by site changes anything then
        why = "not kept in the replayed run"
    elif report.changes:
        try:
            _verify(trial, model, context)
        except PassError as error:
            why = str(error)
        else:
            speedup, why = _judge(item, report, trial, model, context)
    kept = not why
    step = Step(spec_of(item), report, kept, why, before, after, speedup, time.perf_counter() - started)
    _tell(step)
    return (trial if kept else model), step


def _tell(step: Step) -> None:
    """Log what came of a pass, and why it left layers alone."""
    verdict = "kept" if step.kept else f"rolled back ({step.why})"
    counts = f"{len(step.report.changes)} changed, {len(step.report.skips)} left alone"
    _log.info("%s: %s, %s, in %.1f s", step.spec, verdict, counts, step.seconds)
    by_reason: dict[str, list[str]] = {}
    for skip in step.report.skips:
        by_reason.setdefault(skip.reason, []).append(skip.site)
    for reason, sites in by_reason.items():
        more = f" and {len(sites) - _NAMED} more" if len(sites) > _NAMED else ""
        _log.info("%s leaves alone %s%s: %s", step.spec, ", ".join(sites[:_NAMED]), more, reason)


def _verify(trial: ir.Model, model: ir.Model, context: Context) -> None:
    check_structure(trial, model)
    feeds = context.data or context.stand_in
    if feeds is not None:
        check_outputs(trial, model, feeds.first(1))


def _judge(
    item: Pass, report: PassReport, trial: ir.Model, model: ir.Model, context: Context
) -> tuple[Speedup | None, str]:
    """Time the result against its predecessor, both as the later passes would leave them; say why it must go."""
    if item.saves == "nothing" or context.replay is not None:
        return None, ""
    if context.objective == "size" and item.as_asked and item.explicit():
        return None, ""
    if context.objective == "size":
        before, after = (serialized_bytes(stored(m, context.target)) for m in (model, trial))
        return None, "" if after < before else f"no smaller: {before:,} -> {after:,} bytes"
    others = tuple(f for f in context.followers if not (item.idempotent and f.name == item.name))
    context = replace(context, followers=others)
    speedup = time_models(context.rehearsed(model), context.rehearsed(trial), context)
    if speedup is None:
        return None, ""
    floor = lowest_speed([item], [report])
    if speedup.ratio < floor:
        return (
            speedup,
            f"slower: {speedup.ratio:.2f}x of the speed before (95 % interval {speedup.low:.2f} to {speedup.high:.2f})",
        )
    return speedup, ""


def lowest_speed(passes: Sequence[Pass], reports: Sequence[PassReport]) -> float:
    """The speed, relative to the model before these passes, under which their result is given back.

    It is 1, and a little less where a pass that saves bytes has changed something.
    """
    spent = any(p.saves == "bytes" and r.changes for p, r in zip(passes, reports, strict=True))
    return _BYTES_MAY_COST if spent else 1.0


def time_models(base: ir.Model, other: ir.Model, context: Context) -> Speedup | None:
    """Time two models interleaved at batch 1; None where the run times nothing.

    An interval that holds 1 is measured a second time and longer, then its median decides.
    """
    feeds = context.data or context.stand_in
    if context.objective != "latency" or not context.target.host or feeds is None:
        return None
    feed = feeds.first(1)
    speedup = paired(base, other, feed, threads=context.threads, decided=_DECIDED)
    if speedup.low < 1.0 < speedup.high:
        speedup = paired(base, other, feed, threads=context.threads, rounds=600, budget_s=15.0)
    return speedup
