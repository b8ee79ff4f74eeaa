"""What a run measures of its input and its result, once the passes are done."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from onnxcomp import modelio
from onnxcomp.backoff import Outcome
from onnxcomp.budget import Budget
from onnxcomp.compare import compare_models
from onnxcomp.comparison.reading import check_inputs
from onnxcomp.contract import Context, Pass, PassReport
from onnxcomp.cost import model_cost
from onnxcomp.data import Feeds, open_feeds
from onnxcomp.delivery import deliveries
from onnxcomp.errors import InputError, ModelError
from onnxcomp.evaluate import Quality, evaluate
from onnxcomp.graph.edit import origin_of
from onnxcomp.intake import Intake
from onnxcomp.layerwise import Layer, layer_costs
from onnxcomp.pipeline import PipelineReport, Snapshot, Step, lowest_speed, time_models
from onnxcomp.runtime.measuring import Effort
from onnxcomp.runtime.pairprofile import profile_layers
from onnxcomp.runtime.settings import SessionSettings
from onnxcomp.runtime.timing import Speedup
from onnxcomp.subject import operator_counts

__all__ = ["delivered", "layers_of", "not_slower", "qualities", "snapshot"]

# Without evaluation data the outputs are compared on this many calibration samples.
_COMPARED = 256
# Errors of layers are measured on this many samples.
_LAYER_SAMPLES = 32
# Their times are for a figure, where no verdict hangs on them.
_LAYER_EFFORT = Effort(runs=200, budget_s=2.0)

Times = tuple[float | None, float | None]


def not_slower(
    original: ir.Model, start: ir.Model, outcome: Outcome, context: Context, replayed: bool, passes: Sequence[Pass]
) -> tuple[Outcome, Speedup | None]:
    """Time the result against the input; where it is slower after all, give back everything."""
    if replayed or not any(step.kept and step.report.changes for step in outcome.steps):
        return outcome, None
    floor = lowest_speed(passes, [step.report if step.kept else PassReport() for step in outcome.steps])
    speedup = time_models(original, outcome.model, context)
    if speedup is None or speedup.high >= floor:
        return outcome, speedup
    why = f"slower: the result runs at {speedup.ratio:.2f}x of the input's speed"
    steps = tuple(replace(step, kept=False, why=why) if step.kept else step for step in outcome.steps)
    return replace(outcome, model=start.clone(), steps=steps), None


def qualities(intake: Intake, final: ir.Model) -> tuple[Quality | None, Quality | None, list[str]]:
    """Measure the input and the result on the evaluation data, or compare their outputs on calibration data."""
    if intake.scored is None and intake.data is None:
        return None, None, []
    before = None
    try:
        if intake.scored is None:
            assert intake.data is not None
            after = evaluate(final, intake.data, intake.model, limit=_COMPARED)
        else:
            before = evaluate(intake.model, intake.scored)
            after = evaluate(final, intake.scored, intake.model)
    except ModelError as error:
        return before, None, [f"the outputs could not be compared: {error}"]
    return before, after, _alarms(after)


def _alarms(quality: Quality) -> list[str]:
    worst = min(quality.sqnr.values(), default=float("inf"))
    if worst >= Budget.GARBAGE_DB:
        return []
    return [
        f"the outputs are far from the original's (SQNR {worst:.1f} dB); what was asked for costs this model too much"
    ]


def snapshot(model: ir.Model, quality: Quality | None) -> Snapshot:
    """What a model is, and what it was measured to be worth."""
    return Snapshot(
        model_cost(model),
        modelio.serialized_bytes(model),
        model.graph.num_nodes(),
        quality,
        operators=operator_counts(model),
    )


def layers_of(
    intake: Intake, start: ir.Model, result: ir.Model, steps: Sequence[Step], threads: int, *, timed: bool
) -> tuple[tuple[Layer, ...], list[str]]:
    """What became of every layer, and what could not be measured of it.

    Args:
        intake: The input, and the samples to measure errors and times on.
        start: The input after canonicalisation.
        result: What the passes made of it, with its recipe in the metadata.
        steps: What the passes did.
        threads: Intra-op threads.
        timed: Whether times are taken.
    """
    kept = [step for step in steps if step.kept]
    rewrites = [(step.spec.split("(", 1)[0], [change.site for change in step.report.changes]) for step in kept]
    layers = layer_costs(start, result, rewrites)
    if not any(sites for _, sites in rewrites):
        return layers, []
    scored = intake.scored or intake.data
    noises: dict[str, float] = {}
    times: dict[str, Times] = {}
    remarks: list[str] = []
    try:
        noises = {} if scored is None else _noises(start, result, scored, threads)
    except (InputError, ModelError) as error:
        remarks.append(f"the layers could not be compared: {error}")
    try:
        times = {} if intake.feeds is None or not timed else _times(intake.model, result, intake.feeds, threads)
    except (InputError, ModelError) as error:
        remarks.append(f"the layers could not be timed: {error}")
    return tuple(_measured(layer, noises, times) for layer in layers), remarks


def _measured(layer: Layer, noises: Mapping[str, float], times: Mapping[str, Times]) -> Layer:
    before, after = times.get(layer.name, (None, None))
    return replace(layer, before_ms=before, after_ms=after, sqnr=noises.get(layer.name))


def _times(before: ir.Model, after: ir.Model, feeds: Feeds, threads: int) -> dict[str, Times]:
    """Milliseconds a run by layer, before and after; None where the runtime has no kernel for it."""
    settings = SessionSettings(threads=threads)
    pairs = profile_layers(before, after, feeds.first(1), settings=settings, effort=_LAYER_EFFORT)
    return {
        pair.layer: (pair.base_ms if pair.base_kernels else None, pair.other_ms if pair.other_kernels else None)
        for pair in pairs
    }


def _noises(start: ir.Model, result: ir.Model, feeds: Feeds, threads: int) -> dict[str, float]:
    """SQNR by layer, dB: of its output, behind the activation where one follows, which the runtime fuses."""
    few = open_feeds(lambda: feeds.batches(_LAYER_SAMPLES), check_inputs(start, result))
    compared = compare_models(start, result, few, attribute=0, threads=threads).layers
    counting = [noise for noise in compared if noise.added is not None]
    makers = {value.name: origin_of(node) for node in start.graph for value in node.outputs}
    return {noise.layer: noise.sqnr for noise in reversed(counting)} | {
        makers[noise.tensor]: noise.sqnr for noise in counting
    }


def delivered(
    before: ir.Model, after: ir.Model, report: PipelineReport, threads: int, *, timed: bool
) -> PipelineReport:
    """The report with what both models take to deliver."""
    with tempfile.TemporaryDirectory(prefix="onnxcomp-", ignore_cleanup_errors=True) as folder:
        old, new = deliveries((before, after), Path(folder), threads=threads, timed=timed)
    return replace(
        report,
        before=replace(report.before, transfer=old.transfer, load_ms=old.load_ms),
        after=replace(report.after, transfer=new.transfer, load_ms=new.load_ms),
    )
