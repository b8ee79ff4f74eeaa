"""The int8 rewrite from end to end: place, calibrate, emit, account."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.calibration.ranges import collect_histograms, collect_means
from onnxcomp.contract import Context, PassReport
from onnxcomp.data import Feeds
from onnxcomp.data.inputs import model_inputs
from onnxcomp.errors import DataError, InputError
from onnxcomp.numeric.histogram import Histogram
from onnxcomp.numeric.ranges import Method, Range, choose_range
from onnxcomp.quantize.account import changes
from onnxcomp.quantize.emit import WeightCache, emit, quantized_weight
from onnxcomp.quantize.fusing import Placement, emit_made_up
from onnxcomp.quantize.layers import Layers
from onnxcomp.quantize.measure import measured_errors
from onnxcomp.quantize.parameters import Parameters, affine
from onnxcomp.quantize.placement import Plan, place
from onnxcomp.quantize.predict import predicted_errors
from onnxcomp.quantize.trial import output_errors
from onnxcomp.quantize.watch import watched
from onnxcomp.quantize.weighted import already_quantized
from onnxcomp.targets.target import Scheme

__all__ = ["quantize", "rehearse"]

Means = Mapping[str, NDArray[np.float64]]

# Means settle much sooner than ranges do.
_MEAN_SAMPLES = 64
_TRIAL_SAMPLES = 64
# What ``auto`` chooses from, for all its tensors alike.
_TRIED: tuple[Method, ...] = ("mse", "minmax")


def quantize(model: ir.Model, context: Context, layers: Layers) -> PassReport:
    """Quantize the model in place.

    Raises:
        InputError: The target has no int8 scheme.
        DataError: There are no data, or they do not fit.
    """
    placement = Placement(model, _scheme(context), layers.refusal)
    plan = placement.of(model)
    skips = (*plan.skips, *placement.undone(plan))
    if not plan.weighted:
        return PassReport(skips=skips, notes=("nothing to quantize",))
    feeds = _feeds(model, context)
    layers = replace(layers, synthetic=feeds.synthetic)
    histograms = _histograms(model, plan, feeds, layers)
    means = _means(model, plan, feeds, layers)
    tried = _ranges(plan, histograms, layers)
    known: WeightCache = {}
    ranges = tried[0]
    if len(tried) > 1:
        ranges = tried[_closest(model, placement, feeds, tried, layers, means, known)]
    parameters = _parameters(plan, ranges)
    errors = predicted_errors(
        plan,
        histograms,
        parameters,
        lambda w: quantized_weight(w, layers.rules(w.node), known),
        lambda node: means if layers.rules(node).corrected else {},
    )
    if context.budgeted:
        alone = measured_errors(
            model,
            placement,
            parameters,
            lambda copy, part, own: emit(copy, part, own, layers.rules, means, known=known),
            feeds,
            threads=context.threads,
        )
        errors = {other.node: 0.0 for other in plan.others} | {w.node: alone[w.site] for w in plan.weighted}
    changed = tuple(changes(plan, ranges, parameters, layers.rules, errors))
    notes = _notes(plan, feeds, layers, means)
    emit(model, plan, parameters, layers.rules, means, known=known)
    return PassReport(changed, skips, notes)


def rehearse(model: ir.Model, context: Context, layers: Layers) -> ir.Model:
    """Return a quantized copy with made-up ranges; of a model that is quantized already, the model itself."""
    if already_quantized(model):
        return model
    copy = model.clone()
    emit_made_up(copy, place(copy, _scheme(context), layers.refusal), layers.rules)
    return copy


def _scheme(context: Context) -> Scheme:
    if context.target.scheme is None:
        raise InputError(context.target.no_int8)
    return context.target.scheme


def _feeds(model: ir.Model, context: Context) -> Feeds:
    feeds = context.data if context.data is not None else context.stand_in
    if feeds is None:
        flags = " ".join(wanted.shapes_flag() for wanted in model_inputs(model) if wanted.free)
        made_up = f", or {flags} so that data can be made up" if flags else ""
        raise DataError(f"int8 needs calibration data: give --data{made_up}")
    return feeds


def _histograms(model: ir.Model, plan: Plan, feeds: Feeds, layers: Layers) -> dict[str, Histogram]:
    seen, names = watched(model, plan)
    found = collect_histograms(
        seen, list(names.values()), feeds, threads=layers.context.threads, limit=layers.whole.samples
    )
    return {root: found[name] for root, name in names.items()}


def _ranges(plan: Plan, histograms: Mapping[str, Histogram], layers: Layers) -> list[dict[str, Range]]:
    """The range of every root; one version for each rule that ``auto`` chooses from, if it has a say anywhere.

    The node that makes a tensor decides on its rule, or the first one that reads it where none of the plan makes it.
    """
    makers = {value.name: node for node, values in plan.outputs.items() for value in values}
    settled: dict[str, Range] = {}
    for name, histogram in histograms.items():
        own = layers.settings(makers.get(name) or plan.tensors[name].readers[0])
        if own.calibration != "auto":
            settled[name] = choose_range(histogram, own.calibration, percent=own.percentile)
    free = [name for name in histograms if name not in settled]
    if not free:
        return [settled]
    return [settled | {name: choose_range(histograms[name], method) for name in free} for method in _TRIED]


def _parameters(plan: Plan, ranges: Mapping[str, Range]) -> dict[str, Parameters]:
    return {name: affine(r.low, r.high, plan.tensors[name].limits) for name, r in ranges.items()}


def _means(model: ir.Model, plan: Plan, feeds: Feeds, layers: Layers) -> Means:
    """Channel means of the inputs of the nodes whose biases are to be corrected."""
    names = [
        w.node.inputs[0].name
        for w in plan.weighted
        if w.node.op_type != "MatMul" and w.node.inputs[0] is not None and layers.rules(w.node).corrected
    ]
    limit = min(layers.whole.samples or _MEAN_SAMPLES, _MEAN_SAMPLES)
    wanted = [name for name in dict.fromkeys(names) if name]
    return collect_means(model, wanted, feeds, threads=layers.context.threads, limit=limit) if wanted else {}


def _closest(
    model: ir.Model,
    placement: Placement,
    feeds: Feeds,
    tried: Sequence[Mapping[str, Range]],
    layers: Layers,
    means: Means,
    known: WeightCache,
) -> int:
    """Which ranges bring the outputs closest to the original's on a few samples, on real kernels."""
    models: list[ir.Model] = []
    for ranges in tried:
        copy = model.clone()
        plan = placement.of(copy)
        emit(copy, plan, _parameters(plan, ranges), layers.rules, means, known=known)
        models.append(copy)
    errors = output_errors(model, models, feeds, limit=_TRIAL_SAMPLES, threads=layers.context.threads)
    return int(np.argmin(errors))


def _notes(plan: Plan, feeds: Feeds, layers: Layers, means: Means) -> tuple[str, ...]:
    notes: list[str] = []
    if means:
        count = min(len(feeds), layers.whole.samples or _MEAN_SAMPLES, _MEAN_SAMPLES)
        notes.append(f"biases make up for the weights' rounding, from channel means over {count} samples")
    if feeds.synthetic:
        notes.append("int8 was calibrated on made-up data: accuracy is unknown")
    seven = [w for w in plan.weighted if layers.rules(w.node).bits == 7]
    if any(layers.settings(w.node).reduce_range == "auto" for w in seven):
        notes.append("weights have 7 bits: the products of this processor's int8 instructions saturate (no VNNI)")
    elif seven:
        notes.append(f"by reduce_range=on, {len(seven)} of {len(plan.weighted)} weights have 7 bits")
    return tuple(notes)
