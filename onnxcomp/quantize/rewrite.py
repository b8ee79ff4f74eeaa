"""The int8 rewrite from end to end: place, calibrate, emit, account."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.calibration.ranges import collect_histograms, collect_means
from onnxcomp.contract import Context, PassReport, Value
from onnxcomp.data import Feeds
from onnxcomp.errors import DataError, InputError
from onnxcomp.graph.edit import origin_of
from onnxcomp.numeric.histogram import Histogram
from onnxcomp.numeric.ranges import METHODS, Method, Range, choose_range
from onnxcomp.quantize.account import changes
from onnxcomp.quantize.emit import WeightCache, WeightRules, emit
from onnxcomp.quantize.parameters import Parameters, affine
from onnxcomp.quantize.placement import Plan, place
from onnxcomp.quantize.processor import saturates
from onnxcomp.quantize.trial import output_errors
from onnxcomp.quantize.watch import watched
from onnxcomp.quantize.weights import WeightScales
from onnxcomp.targets.target import Scheme

__all__ = ["Settings", "quantize", "rehearse"]

Switch = Literal["auto", "on", "off"]

# Means settle much sooner than ranges do.
_MEAN_SAMPLES = 64
_TRIAL_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of the int8 pass; see there."""

    calibration: Literal["auto"] | Method
    percentile: float
    weights: WeightScales
    bias_correction: Switch
    reduce_range: Switch
    samples: int | None


def quantize(model: ir.Model, context: Context, settings: Settings) -> PassReport:
    """Quantize the model in place.

    Raises:
        InputError: The target has no int8 scheme.
        DataError: There are no data, or they do not fit.
    """
    plan = _plan(model, context)
    if not plan.weighted:
        return PassReport(skips=plan.skips, notes=("nothing to quantize",))
    feeds = context.data if context.data is not None else context.stand_in
    if feeds is None:
        raise DataError("int8 needs calibration data; give --data")
    histograms = _histograms(model, plan, feeds, context, settings)
    means = _means(model, plan, feeds, context, settings)
    rules = _rules(context, settings)
    tried = [_ranges(plan, histograms, context, settings, method) for method in _methods(settings)]
    known: WeightCache = {}
    ranges = tried[0] if len(tried) == 1 else _best(model, context, feeds, tried, rules, means, known)
    parameters = _parameters(plan, ranges)
    report = PassReport(tuple(changes(plan, ranges, parameters, rules)), plan.skips, _notes(feeds, rules, means))
    emit(model, plan, parameters, rules, means, known=known)
    return report


def rehearse(model: ir.Model, context: Context, settings: Settings) -> ir.Model:
    """Return a quantized copy with made-up ranges: what the runtime would compute, at the wrong scales."""
    copy = model.clone()
    plan = _plan(copy, context)
    made_up = {name: affine(-1.0, 1.0, plan.tensors[name].limits) for name in plan.roots}
    emit(copy, plan, made_up, WeightRules(_rules(context, settings).bits, "minmax"))
    return copy


def _scheme(context: Context) -> Scheme:
    if context.target.scheme is None:
        raise InputError(context.target.no_int8)
    return context.target.scheme


def _plan(model: ir.Model, context: Context) -> Plan:
    def refuse(node: ir.Node) -> str | None:
        left_alone = "left alone by the recipe" if _override(node, context) is None else None
        return context.excluded(origin_of(node)) or left_alone

    return place(model, _scheme(context), refuse)


def _override(node: ir.Node, context: Context) -> dict[str, Value] | None:
    """Options of the recipe for one node; None: leave it alone. A name's glob beats an operator's type."""
    by_type = [o.options for o in context.overrides if o.match == node.op_type]
    by_name = [
        o.options for o in context.overrides if o.match != node.op_type and fnmatchcase(origin_of(node), o.match)
    ]
    found = (by_name or by_type)[-1:]
    if not found:
        return {}
    return None if found[0] is None else dict(found[0])


def _histograms(
    model: ir.Model, plan: Plan, feeds: Feeds, context: Context, settings: Settings
) -> dict[str, Histogram]:
    seen, names = watched(model, plan)
    found = collect_histograms(seen, list(names.values()), feeds, threads=context.threads, limit=settings.samples)
    return {root: found[name] for root, name in names.items()}


def _methods(settings: Settings) -> tuple[Method, ...]:
    return ("mse", "minmax") if settings.calibration == "auto" else (settings.calibration,)


def _ranges(
    plan: Plan, histograms: dict[str, Histogram], context: Context, settings: Settings, method: Method
) -> dict[str, Range]:
    """The range of every root by `method`, or as the recipe says for the node that makes the tensor."""
    makers = {value.name: node for node, values in plan.outputs.items() for value in values}
    ranges: dict[str, Range] = {}
    for name, histogram in histograms.items():
        own = (_override(makers[name], context) or {}) if name in makers else {}
        wanted = str(own.get("calibration", method))
        if wanted not in METHODS:
            raise InputError(f"int8: no calibration {wanted!r} for tensor {name!r}; use one of {', '.join(METHODS)}")
        ranges[name] = choose_range(
            histogram, cast(Method, wanted), percent=float(own.get("percentile", settings.percentile))
        )
    return ranges


def _parameters(plan: Plan, ranges: Mapping[str, Range]) -> dict[str, Parameters]:
    return {name: affine(r.low, r.high, plan.tensors[name].limits) for name, r in ranges.items()}


def _means(
    model: ir.Model, plan: Plan, feeds: Feeds, context: Context, settings: Settings
) -> dict[str, NDArray[np.float64]] | None:
    """Channel means of the inputs of weighted nodes; None where biases are not to be corrected.

    Made-up data say nothing about means, so that ``auto`` leaves biases alone there.
    """
    if settings.bias_correction == "off" or (settings.bias_correction == "auto" and feeds.synthetic):
        return None
    names = [
        w.node.inputs[0].name for w in plan.weighted if w.node.op_type != "MatMul" and w.node.inputs[0] is not None
    ]
    limit = min(settings.samples or _MEAN_SAMPLES, _MEAN_SAMPLES)
    wanted = [name for name in dict.fromkeys(names) if name]
    return collect_means(model, wanted, feeds, threads=context.threads, limit=limit) if wanted else {}


def _best(
    model: ir.Model,
    context: Context,
    feeds: Feeds,
    tried: Sequence[dict[str, Range]],
    rules: WeightRules,
    means: dict[str, NDArray[np.float64]] | None,
    known: WeightCache,
) -> dict[str, Range]:
    """The ranges with which the outputs come closest to the original's on a few samples, on real kernels."""
    models: list[ir.Model] = []
    for ranges in tried:
        copy = model.clone()
        plan = _plan(copy, context)
        emit(copy, plan, _parameters(plan, ranges), rules, means, known=known)
        models.append(copy)
    errors = output_errors(model, models, feeds, limit=_TRIAL_SAMPLES, threads=context.threads)
    return tried[int(np.argmin(errors))]


def _rules(context: Context, settings: Settings) -> WeightRules:
    on_this_machine = context.target.host and saturates()
    seven = settings.reduce_range == "on" or (settings.reduce_range == "auto" and on_this_machine)
    return WeightRules(7 if seven else 8, settings.weights)


def _notes(feeds: Feeds, rules: WeightRules, means: dict[str, NDArray[np.float64]] | None) -> tuple[str, ...]:
    notes: list[str] = []
    if means:
        count = min(len(feeds), _MEAN_SAMPLES)
        notes.append(f"biases make up for the weights' rounding, from channel means over {count} samples")
    if feeds.synthetic:
        notes.append("int8 was calibrated on made-up data: accuracy is unknown")
    if rules.bits == 7:
        notes.append("weights have 7 bits: the products of this processor's int8 instructions saturate (no VNNI)")
    return tuple(notes)
