"""The int8 rewrite from end to end: place, calibrate, emit, account."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.contract import Context, PassReport, Sensitivity
from onnxcomp.cost import model_cost
from onnxcomp.data import Feeds
from onnxcomp.errors import InputError
from onnxcomp.graph.fingerprint import model_fingerprint
from onnxcomp.numeric.histogram import Histogram
from onnxcomp.numeric.ranges import Method, Range, choose_range
from onnxcomp.quantize.account import changes, measured
from onnxcomp.quantize.accuracy import prepare, refined, spread_ranges, twins_of
from onnxcomp.quantize.carried import CarriedRange, carry, ranges_of_tensors
from onnxcomp.quantize.choosing import choose_ranges
from onnxcomp.quantize.constants import read_weight
from onnxcomp.quantize.emit import WeightCache, WeightRules, emit, quantized_weight, weight_key
from onnxcomp.quantize.flip import flip
from onnxcomp.quantize.fusing import Placement, emit_made_up
from onnxcomp.quantize.given import Given, given_by, overrides_of
from onnxcomp.quantize.inputs import merge
from onnxcomp.quantize.layers import Layers
from onnxcomp.quantize.narrowing import narrow_weights
from onnxcomp.quantize.observe import MEAN_SAMPLES, Observed, observe
from onnxcomp.quantize.parameters import Parameters, as_run_here, parameters_for
from onnxcomp.quantize.placement import Plan, place
from onnxcomp.quantize.predict import predicted_errors
from onnxcomp.quantize.sensitivity import sensitivities
from onnxcomp.quantize.stored import quantize_stored, restore, stand_in
from onnxcomp.quantize.trial import output_errors
from onnxcomp.quantize.weighted import already_quantized
from onnxcomp.quantize.weights import QuantizedWeight
from onnxcomp.targets.target import Scheme

__all__ = ["quantize", "rehearse"]

Means = Mapping[str, NDArray[np.float64]]

# On 64 samples whatever was fitted to them wins; on 256 the order is that on images not seen (five real models).
_TRIAL_SAMPLES = 256
_FEWEST_TRIAL_SAMPLES = 64
# Multiply-accumulates of all runs together: half a minute or so on one core.
_TRIAL_MACS = 10**12
# What ``auto`` tries for all its tensors alike, beside what is best for each.
_TRIED: tuple[Method, ...] = ("mse", "minmax")


def quantize(model: ir.Model, context: Context, layers: Layers) -> PassReport:
    """Quantize the model in place.

    Raises:
        InputError: The target has no int8 scheme.
        DataError: There are no data, or they do not fit.
    """
    identity = model_fingerprint(model)
    scheme = _scheme(context)
    stored = {} if already_quantized(model) else stand_in(model, scheme, layers.refusal)
    layers = replace(layers, stored=frozenset(stored))
    placement = Placement(model, scheme, layers.refusal)
    plan = placement.of(model)
    skips = (*plan.skips, *placement.undone(plan))
    if not plan.weighted:
        restore(model, stored, (), "int8")
        return PassReport(skips=skips, notes=("nothing to quantize",))
    ready = prepare(model, plan, context, layers)
    plan = placement.of(model)
    minmax = all(layers.settings(node).calibration == "minmax" for node in model.graph)
    observed = observe(model, plan, context, samples=layers.whole.samples, extremes=minmax)
    layers = replace(layers, synthetic=observed.synthetic)
    histograms = {root: observed.histograms[root] for root in plan.roots}
    means = _means(plan, observed, layers)
    given = given_by(overrides_of(layers), plan, layers.rules)
    spread = spread_ranges(ready.spreads)
    tried = [given.ranges(plan, ranges) | spread for ranges in _tried(model, plan, observed, layers, spread)]
    known: WeightCache = _stored_weights(plan, layers) | given.weights
    ranges = tried[0]
    if len(tried) > 1 and observed.feeds is not None:
        ranges = tried[_closest(model, placement, observed.feeds, tried, layers, means, known, given)]
    parameters = _parameters(plan, ranges, given)
    given.check_biases(plan, parameters)
    errors = predicted_errors(
        plan,
        histograms,
        parameters,
        lambda w: quantized_weight(w, layers.rules(w.node), known),
        lambda node: means if layers.rules(node).corrected else {},
    )
    original = model.clone() if layers.measured else None
    packed = ready.wide is None
    held = {name: one.bytes for name, one in stored.items()}
    changed = tuple(changes(plan, ranges, parameters, layers.rules, errors, layers.milder, packed=packed, held=held))
    pair = None if observed.feeds is None else twins_of(model, plan, layers, given)
    told = _notes(plan, observed, layers, means if pair is None else {}, undecided=len(tried) > 1)
    notes = (*observed.notes, *ready.notes, *given.notes, *told)
    rules = [layers.rules(w.node) for w in plan.weighted]  # while the nodes read their weights
    emit(model, plan, as_run_here(plan.scheme, parameters), layers.rules, means, known=known, biased=pair is not None)
    if observed.feeds is not None:
        refined(pair, observed.feeds, context, layers)
    sensitivity: tuple[Sensitivity, ...] = ()
    if original is not None and observed.feeds is not None:
        sensitivity = _sensitivity(
            original, placement, plan, parameters, layers, rules, means, observed.feeds, identity
        )
        changed = measured(changed, sensitivity, plan)
    merge(model, ready.spreads)
    if plan.scheme.activation == "int8":
        flip(model, "int8")  # weights were rounded on what this machine computes with uint8: the same numbers
    if packed:
        narrow_weights(model, [(w.node, rule.bits) for w, rule in zip(plan.weighted, rules, strict=True)])
    restore(model, stored, plan.weighted, "int8")
    carry(model, _carried(plan, observed, ranges, layers), context.target.name)
    return PassReport(changed, skips, notes, sensitivity)


def _sensitivity(
    original: ir.Model,
    placement: Placement,
    plan: Plan,
    parameters: Mapping[str, Parameters],
    layers: Layers,
    rules: Sequence[WeightRules],
    means: Means,
    feeds: Feeds,
    identity: str,
) -> tuple[Sensitivity, ...]:
    """What each site of the placement does to the outputs, with the weights that the rewritten model has.

    It is measured in the first run over a model; runs that only leave out sites take the same numbers.
    """
    context = layers.context
    known: WeightCache = {}
    for w, rule in zip(plan.weighted, rules, strict=True):
        own = read_weight(w.node)
        known[weight_key(w, rule)] = QuantizedWeight(own.values, own.scales, w.axis)

    def measure() -> tuple[Sensitivity, ...]:
        return sensitivities(
            original,
            placement,
            as_run_here(plan.scheme, parameters),
            lambda copy, part, own: emit(copy, part, own, layers.rules, means, known=known),
            feeds,
            context,
        )

    return context.memo.once(("sensitivity", identity), measure)


def _stored_weights(plan: Plan, layers: Layers) -> WeightCache:
    """The integers of the weights that stay in another form."""
    found: WeightCache = {}
    for w in plan.weighted:
        rules, content = layers.rules(w.node), w.weight.const_value
        if rules.stored and content is not None:
            found[weight_key(w, rules)] = quantize_stored(content.numpy(), w.axis, rules.bits)
    return found


def _carried(plan: Plan, observed: Observed, ranges: Mapping[str, Range], layers: Layers) -> dict[str, CarriedRange]:
    """What other targets need to know; tensors that only they quantize get the rule that most of the others have."""
    usual = Counter(chosen.method for chosen in ranges.values()).most_common(1)[0][0]
    percentile = layers.whole.percentile
    symmetric = plan.scheme.symmetric
    return ranges_of_tensors(observed.histograms, ranges, symmetric=symmetric, method=usual, percentile=percentile)


def rehearse(model: ir.Model, context: Context, layers: Layers) -> ir.Model:
    """Return a quantized copy with made-up ranges; of a model that is quantized already, the model itself."""
    if already_quantized(model):
        return model
    copy, scheme = model.clone(), _scheme(context)
    stand_in(copy, scheme, layers.refusal)

    def quick(node: ir.Node) -> WeightRules:
        # The best scale takes a search, and no kernel is faster for other integers.
        return replace(layers.rules(node), scales="minmax")

    emit_made_up(copy, place(copy, scheme, layers.refusal), quick)
    return copy


def _scheme(context: Context) -> Scheme:
    if context.target.scheme is None:
        raise InputError(context.target.no_int8)
    return context.target.scheme


def _tried(
    model: ir.Model, plan: Plan, observed: Observed, layers: Layers, known: Mapping[str, Range]
) -> list[dict[str, Range]]:
    """What ``auto`` compares: with real data, first of all the range for each tensor that suits its readers best."""
    histograms = {root: observed.histograms[root] for root in plan.roots}
    alike = _ranges(plan, histograms, layers)
    if len(alike) < 2 or observed.feeds is None or observed.synthetic:
        return alike
    undecided = {n: histograms[n] for n, r in alike[0].items() if r.method != alike[1][n].method and n not in known}
    context, feeds = layers.context, observed.feeds
    sites = tuple(w.site for w in plan.weighted)
    key = ("ranges", model_fingerprint(model), sites, tuple(undecided), layers.whole.samples)
    own = context.memo.once(key, lambda: choose_ranges(model, plan, undecided, feeds, threads=context.threads))
    return [alike[0] | own, *alike]


def _ranges(plan: Plan, histograms: Mapping[str, Histogram], layers: Layers) -> list[dict[str, Range]]:
    """The range of every root; one version for each rule that ``auto`` chooses from, if it has a say anywhere.

    The node that makes a tensor decides on its rule, or the first one that reads it where none of the plan makes it.
    """
    makers = {value.name: node for node, values in plan.outputs.items() for value in values}
    settled: dict[str, Range] = {}
    for name, histogram in histograms.items():
        own = layers.settings(makers.get(name) or plan.tensors[name].readers[0])
        if own.calibration != "auto":
            settled[name] = _range(plan, histogram, own.calibration, own.percentile)
    free = [name for name in histograms if name not in settled]
    if not free:
        return [settled]
    return [settled | {name: _range(plan, histograms[name], method) for name in free} for method in _TRIED]


def _range(plan: Plan, histogram: Histogram, method: Method, percent: float = 99.99) -> Range:
    scheme = plan.scheme
    return choose_range(histogram, method, percent=percent, levels=scheme.levels, symmetric=scheme.symmetric)


def _parameters(plan: Plan, ranges: Mapping[str, Range], given: Given) -> dict[str, Parameters]:
    scheme, tensors = plan.scheme, plan.tensors
    own = given.parameters(plan, ranges)
    return {n: own.get(n) or parameters_for(scheme, r.low, r.high, tensors[n].limits) for n, r in ranges.items()}


def _means(plan: Plan, observed: Observed, layers: Layers) -> Means:
    """Channel means of the inputs of the nodes whose biases are to be corrected."""
    corrected = [w.node.inputs[0] for w in plan.weighted if layers.rules(w.node).corrected]
    wanted = {v.name for v in corrected if v is not None}
    return {name: means for name, means in observed.means.items() if name in wanted}


def _closest(
    model: ir.Model,
    placement: Placement,
    feeds: Feeds,
    tried: Sequence[Mapping[str, Range]],
    layers: Layers,
    means: Means,
    known: WeightCache,
    given: Given,
) -> int:
    """Which ranges bring the outputs closest to the original's on a few samples, on real kernels."""
    models: list[ir.Model] = []
    for ranges in tried:
        copy = model.clone()
        plan = placement.of(copy)
        emit(copy, plan, as_run_here(plan.scheme, _parameters(plan, ranges, given)), layers.rules, means, known=known)
        models.append(copy)
    macs = (model_cost(model).macs or 1) * (len(models) + 1)
    limit = min(_TRIAL_SAMPLES, max(_FEWEST_TRIAL_SAMPLES, _TRIAL_MACS // macs))
    errors = output_errors(model, models, feeds, limit=limit, threads=layers.context.threads)
    return int(np.argmin(errors))


def _notes(plan: Plan, observed: Observed, layers: Layers, means: Means, *, undecided: bool) -> tuple[str, ...]:
    notes: list[str] = []
    if undecided and observed.feeds is None:
        notes.append(f"calibration=auto took {_TRIED[0]}: to compare rules takes data; give --data as well")
    if means:
        count = min(observed.samples, MEAN_SAMPLES)
        notes.append(f"biases make up for the weights' rounding, from channel means over {count} samples")
    by_gram = [w for w in plan.weighted if layers.rounds_by_gram(w.node)]
    if by_gram and observed.feeds is None and any(layers.settings(w.node).rounding == "gram" for w in by_gram):
        notes.append("rounding=gram takes data: weights were rounded to nearest; give --data as well")
    elif by_gram and observed.feeds is not None:
        notes.append(f"{len(by_gram)} of {len(plan.weighted)} layers with weights are rounded by what they read")
    if observed.synthetic:
        notes.append("int8 was calibrated on made-up data: accuracy is unknown")
    seven = [w for w in plan.weighted if layers.rules(w.node).bits == 7]
    if any(layers.settings(w.node).reduce_range == "auto" for w in seven):
        notes.append("weights have 7 bits: the products of this processor's int8 instructions saturate (no VNNI)")
    elif seven:
        notes.append(f"by reduce_range=on, {len(seven)} of {len(plan.weighted)} weights have 7 bits")
    return tuple(notes)
