"""The compiler as a function: load, canonicalise, run the passes, measure, report."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import onnx
import onnx_ir as ir

from onnxcomp import modelio
from onnxcomp.backoff import within_budget
from onnxcomp.budget import Budget
from onnxcomp.contract import Context, Objective, Override, Pass
from onnxcomp.cost import model_cost
from onnxcomp.data import Feeds, Preprocess, open_feeds, overlap, synthetic_feeds
from onnxcomp.errors import DataError, InputError
from onnxcomp.evaluate import Quality, evaluate
from onnxcomp.globs import idle_globs
from onnxcomp.graph.fold import canonicalise
from onnxcomp.options import spec_of
from onnxcomp.pipeline import Choices, PipelineReport, Plan, Progress, Snapshot, time_models
from onnxcomp.registry import build_pipeline
from onnxcomp.runtime.fusion import fusion_proof
from onnxcomp.targets.target import load_target

__all__ = ["RECIPE", "VERSION", "Result", "optimize"]

RECIPE = "onnxcomp.recipe"
VERSION = "onnxcomp.version"

_FEW = 64
# Without evaluation data the outputs are compared on this many calibration samples.
_COMPARED = 256


@dataclass(frozen=True)
class Result:
    """What :func:`optimize` returns: the model and the report. Nothing is written until :meth:`save`."""

    model: ir.Model
    report: PipelineReport

    def save(self, path: str | Path) -> None:
        """Write the model, atomically; external data go to ``path.data`` (raises as `modelio.save`)."""
        modelio.save(self.model, path)


def optimize(
    model: str | Path | ir.Model | onnx.ModelProto,
    passes: str | Sequence[Pass | str],
    *,
    data: Any = None,
    eval: Any = None,  # noqa: A002 - the name of the contract
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
    progress: Progress | None = None,
) -> Result:
    """Compress a model.

    Args:
        model: A path, an onnx-ir model or a ModelProto; never modified.
        passes: A pipeline such as ``"tucker2,int8"``, or passes and spec texts in the order to run.
        data: Calibration data: a path (.npz, .npy, folder of images, ``module:function``), arrays by input name, or
            Feeds.
        eval: Evaluation data, likewise; with labels for accuracy.
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
        progress: Called with a line whenever a stage starts.

    Returns:
        The model and the report. A budget that does not hold is in ``report.failures``.

    Raises:
        InputError: The call, the model or the data are wrong (exit code 2).
    """
    tell = progress or _silent
    original = _loaded(model)
    chosen = _passes(passes)
    if objective not in get_args(Objective):
        raise InputError(f"no objective {objective!r}; there are {', '.join(get_args(Objective))}")
    aim = load_target(target)
    feeds, stand_in, warnings = _calibration(original, data, preprocess, shapes, require_data, seed)
    scored = None if eval is None else open_feeds(eval, original, preprocess=preprocess, shapes=shapes)
    warnings += _overlap_warning(feeds, scored)
    budget = Budget(max_drop, min_sqnr)
    if max_drop is not None and (scored is None or scored.labels is None):
        raise InputError("--max-drop needs labelled evaluation data; give --eval with labels, or use --min-sqnr")
    tell("canonicalise")
    start = original.clone()
    log = canonicalise(start)
    warnings += log.remarks
    warnings += idle_globs(original, exclude, overrides)
    with tempfile.TemporaryDirectory(prefix="onnxcomp-") as folder:
        context = Context(
            aim,
            Path(folder),
            objective=objective,
            data=feeds,
            stand_in=stand_in,
            seed=seed,
            threads=threads,
            exclude=tuple(exclude),
        )
        plan = Plan(chosen, tuple(tuple(o) for o in overrides), None if replay is None else tuple(replay), progress)
        measured = scored or feeds or stand_in
        outcome = within_budget(original, start, plan, context, budget, measured)
        final = outcome.model
        tell("measure")
        speedup = time_models(original, final, context) if replay is None else None
    recipe = _recipe(
        chosen,
        overrides,
        target=target,
        objective=objective,
        seed=seed,
        threads=None if threads == 1 else threads,
        exclude=[*exclude, *outcome.given_back],
        max_drop=max_drop,
        min_sqnr=min_sqnr,
        shapes={name: "x".join(map(str, shape)) for name, shape in (shapes or {}).items()},
    )
    before, after = _qualities(original, final, scored, feeds)
    report = PipelineReport(
        version=version("onnxcomp"),
        recipe=recipe,
        data=_described(feeds, stand_in),
        synthetic=feeds is None,
        folded=log.lines,
        steps=outcome.steps,
        before=replace(_snapshot(original, before), cost=model_cost(start)),
        after=_snapshot(final, after),
        speedup=speedup,
        fates=fusion_proof(final) if aim.host else (),
        warnings=tuple(warnings),
        failures=outcome.failures,
    )
    _stamp(final, report)
    return Result(final, replace(report, after=_snapshot(final, after)))


def _silent(line: str) -> None:
    del line


def _loaded(model: str | Path | ir.Model | onnx.ModelProto) -> ir.Model:
    if isinstance(model, ir.Model):
        return model
    return modelio.from_proto(model) if isinstance(model, onnx.ModelProto) else modelio.load(model)


def _passes(passes: str | Sequence[Pass | str]) -> tuple[Pass, ...]:
    items = [passes] if isinstance(passes, str) else passes
    return tuple(p for item in items for p in ((item,) if isinstance(item, Pass) else build_pipeline(item)))


def _calibration(
    model: ir.Model,
    data: Any,
    preprocess: Preprocess | None,
    shapes: Mapping[str, tuple[int, ...]] | None,
    required: bool,
    seed: int,
) -> tuple[Feeds | None, Feeds | None, list[str]]:
    """Real feeds, or synthetic ones and the words that say so; both None where no shape is known to make any."""
    if data is not None:
        feeds = open_feeds(data, model, preprocess=preprocess, shapes=shapes).unlabelled()
        few = f"only {len(feeds)} calibration samples; {_FEW} or more are advised"
        return feeds, None, [few] if len(feeds) < _FEW else []
    if required:
        raise DataError("no calibration data: --require-data was given without --data")
    try:
        return None, synthetic_feeds(model, seed, shapes=shapes), []
    except DataError as error:
        if shapes:  # what the user wrote is wrong, and is not passed over
            raise
        return None, None, [f"no synthetic data could be made, nothing is timed: {error}"]


def _overlap_warning(feeds: Feeds | None, scored: Feeds | None) -> list[str]:
    if feeds is None or scored is None:
        return []
    shared = overlap(feeds, scored)
    return (
        [f"{shared} samples are in both the calibration and the evaluation data; the accuracy is too good"]
        if shared
        else []
    )


def _qualities(
    original: ir.Model, final: ir.Model, scored: Feeds | None, feeds: Feeds | None
) -> tuple[Quality | None, Quality | None]:
    if scored is not None:
        return evaluate(original, scored), evaluate(final, scored, original)
    return None, None if feeds is None else evaluate(final, feeds, original, limit=_COMPARED)


def _described(feeds: Feeds | None, stand_in: Feeds | None) -> str:
    if feeds is not None:
        return feeds.describe()
    return "none" if stand_in is None else stand_in.describe()


def _snapshot(model: ir.Model, quality: Quality | None) -> Snapshot:
    return Snapshot(model_cost(model), modelio.serialized_bytes(model), model.graph.num_nodes(), quality)


def _recipe(passes: tuple[Pass, ...], overrides: Sequence[Sequence[Override]], **fields: object) -> dict[str, object]:
    """The recipe as plain data, without what is not set; ``layers`` holds the overrides, a mapping a pass."""
    recipe = {key: value for key, value in fields.items() if value not in (None, [], {})}
    layers = [{o.match: None if o.options is None else dict(o.options) for o in own} for own in overrides]
    if any(layers):
        recipe["layers"] = layers
    return {"passes": [spec_of(p) for p in passes], **recipe}


def _stamp(model: ir.Model, report: PipelineReport) -> None:
    """Write the recipe with its resolved choices into the model's metadata, so that the file says how it was made."""
    model.metadata_props[VERSION] = report.version
    model.metadata_props[RECIPE] = json.dumps({**report.recipe, "choices": report.choices}, sort_keys=True)
