"""The int8 rewrite from end to end: place, calibrate, emit, account."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import onnx_ir as ir

from onnxcomp.calibration.ranges import collect_histograms
from onnxcomp.contract import Context, PassReport, Value
from onnxcomp.data import Feeds
from onnxcomp.errors import DataError, InputError
from onnxcomp.graph.edit import origin_of
from onnxcomp.numeric.histogram import Histogram
from onnxcomp.numeric.ranges import Method, Range, choose_range
from onnxcomp.quantize.account import changes
from onnxcomp.quantize.emit import WeightRules, emit
from onnxcomp.quantize.parameters import Parameters, affine
from onnxcomp.quantize.placement import Plan, place
from onnxcomp.quantize.processor import saturates
from onnxcomp.quantize.weights import WeightScales
from onnxcomp.targets.target import Scheme

__all__ = ["Settings", "quantize", "rehearse"]

Switch = Literal["auto", "on", "off"]


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
    histograms = collect_histograms(model, plan.roots, feeds, threads=context.threads, limit=settings.samples)
    ranges = _ranges(plan, histograms, context, settings)
    parameters = {name: affine(r.low, r.high, plan.tensors[name].limits) for name, r in ranges.items()}
    rules = _rules(context, settings)
    report = PassReport(tuple(changes(plan, ranges, parameters, rules)), plan.skips, _notes(feeds, rules))
    emit(model, plan, parameters, rules)
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
        name = origin_of(node)
        if any(fnmatchcase(name, glob) for glob in context.exclude):
            return "excluded by the user"
        return "left alone by the recipe" if _override(node, context) is None else None

    return place(model, _scheme(context), refuse)


def _override(node: ir.Node, context: Context) -> dict[str, Value] | None:
    """Options of the recipe for one node; None: leave it alone. A name's glob beats an operator's type."""
    by_type = [o.options for o in context.overrides if o.match == node.op_type]
    by_name = [o.options for o in context.overrides if o.match != node.op_type and fnmatchcase(origin_of(node), o.match)]
    found = (by_name or by_type)[-1:]
    if not found:
        return {}
    return None if found[0] is None else dict(found[0])


def _ranges(plan: Plan, histograms: dict[str, Histogram], context: Context, settings: Settings) -> dict[str, Range]:
    makers = {value.name: node for node, values in plan.outputs.items() for value in values}
    ranges: dict[str, Range] = {}
    for name, histogram in histograms.items():
        maker = makers.get(name)
        own = (_override(maker, context) or {}) if maker is not None else {}
        method = str(own.get("calibration", settings.calibration))
        percent = float(own.get("percentile", settings.percentile))
        ranges[name] = _choose(histogram, method, percent)
    return ranges


def _choose(histogram: Histogram, method: str, percent: float) -> Range:
    if method == "auto":
        return choose_range(histogram, "mse")
    if method not in ("minmax", "percentile", "entropy", "mse"):
        raise InputError(f"int8: no calibration {method!r}; use auto, minmax, percentile, entropy or mse")
    return choose_range(histogram, method, percent=percent)


def _rules(context: Context, settings: Settings) -> WeightRules:
    on_this_machine = context.target.host and saturates()
    seven = settings.reduce_range == "on" or (settings.reduce_range == "auto" and on_this_machine)
    return WeightRules(7 if seven else 8, settings.weights)


def _notes(feeds: Feeds, rules: WeightRules) -> tuple[str, ...]:
    notes: list[str] = []
    if feeds.synthetic:
        notes.append("int8 was calibrated on made-up data: accuracy is unknown")
    if rules.bits == 7:
        notes.append("weights have 7 bits: the products of this processor's int8 instructions saturate (no VNNI)")
    return tuple(notes)
