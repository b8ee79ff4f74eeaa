"""The compiler as a function: load, canonicalise, run the passes, measure, report."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import onnx
import onnx_ir as ir

from onnxcomp import modelio
from onnxcomp.assessment import delivered, layers_of, not_slower, qualities, snapshot
from onnxcomp.backoff import within_budget
from onnxcomp.budget import Budget
from onnxcomp.calibration.statsfile import Statistics, load_statistics
from onnxcomp.contract import Context, Objective, Override, Pass, SitePass
from onnxcomp.cost import model_cost
from onnxcomp.data import Preprocess
from onnxcomp.errors import InputError
from onnxcomp.globs import idle_globs
from onnxcomp.graph.fold import Log, canonicalise
from onnxcomp.intake import DataOptions, Intake, take_in
from onnxcomp.legality.verdict import judge
from onnxcomp.pipeline import Choices, PipelineReport, Plan, Progress, in_vain
from onnxcomp.quantize.lean import lean
from onnxcomp.record import EARLIER, RECIPE, VERSION, recipe_of, stamp
from onnxcomp.registry import build_pipeline
from onnxcomp.runtime.fusion import fusion_proof
from onnxcomp.runtime.ortformat import save_as
from onnxcomp.runtime.timingcache import open_timings
from onnxcomp.storage.zeros import stored
from onnxcomp.subject import subject_of
from onnxcomp.targets.target import load_target

__all__ = ["EARLIER", "RECIPE", "VERSION", "Result", "optimize"]


@dataclass(frozen=True)
class Result:
    """What :func:`optimize` returns: the model and the report. Nothing is written until :meth:`save`."""

    model: ir.Model
    report: PipelineReport

    def save(self, path: str | Path, *, ort_style: str | None = None) -> None:
        """Write the model, atomically; external data go to ``path.data`` (raises as `modelio.save`).

        A path that ends in ``.ort`` gets ORT format, with ``.required_operators.config`` beside it.

        Args:
            path: Where to write.
            ort_style: How an ``.ort`` is optimised, ``runtime`` or ``fixed``; None: as the target has it.
        """
        save_as(self.model, path, load_target(str(self.report.recipe.get("target", "ort-x86"))), ort_style)


def optimize(
    model: str | Path | ir.Model | onnx.ModelProto,
    passes: str | Sequence[Pass | str],
    *,
    data: Any = None,
    eval: Any = None,  # noqa: A002 - the name of the contract
    stats: str | Path | Statistics | None = None,
    target: str = "ort-x86",
    objective: Objective = "latency",
    exclude: Sequence[str] = (),
    overrides: Sequence[Sequence[Override]] = (),
    seed: int = 0,
    threads: int = 1,
    max_drop: float | None = None,
    min_sqnr: float | None = None,
    preprocess: Preprocess | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    require_data: bool = False,
    replay: Sequence[Choices] | None = None,
    timing_cache: str | Path | None = None,
    layers: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Compress a model.

    Args:
        model: A path, an onnx-ir model or a ModelProto; never modified.
        passes: A pipeline such as ``"tucker2,int8"``, or passes and spec texts in the order to run.
        data: Calibration data: a path (.npz, .npy, folder of images, ``module:function``), arrays by input name, a
            callable or Feeds. None: synthetic samples stand in, and accuracy is unknown.
        eval: Evaluation data, likewise; with labels for accuracy.
        stats: Statistics of this model (``onnxcomp calibrate``), or their file: int8 takes its ranges from them.
        target: The runtime the model is for.
        objective: What a rewrite has to improve to be kept.
        exclude: Globs of node names that no pass may touch.
        overrides: Per pass, the per-layer options of a recipe.
        seed: Seed of every random choice.
        threads: Intra-op threads for timing.
        max_drop: Most that top-1 accuracy may drop, percentage points; needs labelled `eval`.
        min_sqnr: Least SQNR of the worst output, dB.
        preprocess: How a folder of images becomes the model's input.
        shapes: Concrete shapes for inputs with unknown dimensions, for timing and synthetic data.
        require_data: Refuse to run without real calibration data.
        replay: The choices of an earlier run, a mapping a pass; nothing is timed.
        timing_cache: A JSON file of the times of candidates, read before and added to after the run, even one that
            fails; made where there is none. None: what was timed is forgotten.
        layers: Whether the report says of every layer what it costs, takes and errs, which takes a few seconds.
        progress: Called with a line whenever a stage starts.

    Returns:
        The model and the report. A budget that does not hold, or a rule of the target that the model breaks, is in
        ``report.failures``.

    Raises:
        InputError: The call, the model or the data are wrong (exit code 2).
    """
    chosen = _passes(passes)
    if objective not in get_args(Objective):
        raise InputError(f"no objective {objective!r}; there are {', '.join(get_args(Objective))}")
    aim = load_target(target)
    budget = Budget(max_drop, min_sqnr)
    statistics = load_statistics(stats) if isinstance(stats, str | Path) else stats
    needed = require_data and statistics is None
    intake = take_in(model, DataOptions(data, eval, preprocess, shapes, needed, seed))
    if max_drop is not None and (intake.scored is None or intake.scored.labels is None):
        raise InputError("--max-drop needs labelled evaluation data; give --eval with labels, or use --min-sqnr")
    tell = progress or _silent
    tell("canonicalise")
    start = intake.model.clone()
    log = Log() if chosen[:1] and chosen[0].canonicalises else canonicalise(start)
    if statistics is not None:
        _check_statistics(statistics, start, str(stats) if isinstance(stats, str | Path) else "stats")
    recorded = None if replay is None else tuple(replay)
    plan = Plan(chosen, tuple(tuple(o) for o in overrides), recorded, progress=progress)
    with open_timings(timing_cache) as timings, tempfile.TemporaryDirectory(prefix="onnxcomp-") as folder:
        context = Context(
            aim,
            Path(folder),
            objective,
            intake.data,
            intake.stand_in,
            seed,
            threads,
            exclude=tuple(exclude),
            statistics=statistics,
            scored=intake.scored,
            timings=timings,
        )
        outcome = within_budget(intake, start, plan, context, budget)
        plan = replace(plan, passes=outcome.passes or plan.passes)
        outcome = replace(outcome, model=stored(outcome.model, aim))  # all that follows is told of the written file
        tell("measure")
        outcome, speedup = not_slower(intake.model, start, outcome, context, replay is not None, chosen)
    tell("evaluate")
    fates = fusion_proof(outcome.model) if aim.host else ()
    verdict = judge(intake.model, outcome.model, aim, fates if aim.host else None)
    before, after, warnings = qualities(intake, outcome.model)
    report = PipelineReport(
        version=version("onnxcomp"),
        recipe=recipe_of(
            plan,
            outcome.reliefs,
            target=target,
            objective=objective,
            seed=seed,
            threads=None if threads == 1 else threads,
            exclude=list(exclude),
            max_drop=max_drop,
            min_sqnr=min_sqnr,
            preprocess=None if preprocess is None else str(preprocess),
            shapes={name: "x".join(map(str, shape)) for name, shape in (shapes or {}).items()},
            require_data=require_data or None,
            data=str(data) if isinstance(data, str | Path) else None,
            eval=str(eval) if isinstance(eval, str | Path) else None,
            stats=str(stats) if isinstance(stats, str | Path) else None,
        ),
        data=_described(intake, statistics),
        synthetic=intake.data is None and statistics is None,
        folded=log.lines,
        steps=outcome.steps,
        before=replace(snapshot(intake.model, before), cost=model_cost(start)),
        after=snapshot(outcome.model, after),
        speedup=speedup,
        fates=fates,
        warnings=(
            *intake.warnings,
            *log.remarks,
            *_dataless(chosen, intake, statistics),
            *idle_globs(intake.model, exclude, overrides),
            *in_vain(outcome.steps),
            *warnings,
            *verdict.warnings,
        ),
        failures=(*outcome.failures, *verdict.failures),
        model=subject_of(intake.model, str(model) if isinstance(model, str | Path) else None),
    )
    stamp(outcome.model, report, plan)
    if layers:
        tell("layers")
        timed = aim.host and objective == "latency" and replay is None
        told, unknown = layers_of(intake, start, outcome.model, outcome.steps, threads, timed=timed)
        report = replace(report, layers=told, warnings=(*report.warnings, *unknown))
    lean(outcome.model)
    written = replace(report.after, bytes=modelio.serialized_bytes(outcome.model))
    report = replace(report, after=written)
    if any(p.saves == "bytes" and s.kept and s.report.changes for p, s in zip(chosen, outcome.steps, strict=True)):
        report = delivered(intake.model, outcome.model, report, threads, timed=aim.host and replay is None)
    return Result(outcome.model, report)


def _check_statistics(statistics: Statistics, start: ir.Model, source: str) -> None:
    canonical = start.clone()
    canonicalise(canonical)  # a pipeline that begins with fold does it later
    statistics.check(canonical, source)


def _described(intake: Intake, statistics: Statistics | None) -> str:
    """One line about what calibrated the run."""
    if statistics is None:
        return intake.describe()
    taken = f"statistics of {statistics.data}"
    return taken if intake.data is None else f"{taken}; {intake.describe()}"


def _dataless(passes: Sequence[Pass], intake: Intake, statistics: Statistics | None) -> list[str]:
    """What the user should know where there are statistics and a pass would have used the data themselves."""
    if statistics is None or intake.data is not None:
        return []
    blind = dict.fromkeys(item.name for item in passes if isinstance(item, SitePass))
    return [f"{name} saw the weights alone: statistics hold no samples; give --data as well" for name in blind]


def _silent(line: str) -> None:
    del line


def _passes(passes: str | Sequence[Pass | str]) -> tuple[Pass, ...]:
    items = [passes] if isinstance(passes, str) else passes
    return tuple(p for item in items for p in ((item,) if isinstance(item, Pass) else build_pipeline(item)))
