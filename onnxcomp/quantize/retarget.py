"""One calibrated int8 model, written for another target.

Targets whose schemes differ in the type of activations alone (ONNX Runtime on x86 and on ARM) get the same file with
zero points moved by 128: the outputs are bit-identical before the runtime optimises. For other targets the pairs are
placed anew, by the target's own scheme, with the ranges that the model carries (:mod:`onnxcomp.quantize.carried`) or,
in a model of another tool, those of the pairs it has; weights keep their codes and scales.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxcomp import modelio
from onnxcomp.calibration.statsfile import Statistics, load_statistics
from onnxcomp.errors import InputError
from onnxcomp.graph.edit import origin_of
from onnxcomp.graph.fold.constants import lift_constants
from onnxcomp.intake import checked_model
from onnxcomp.quantize.carried import TARGET, CarriedRange, carried, carry, ranges_of_tensors
from onnxcomp.quantize.emit import WeightCache, WeightRules, emit
from onnxcomp.quantize.flip import flip
from onnxcomp.quantize.fusing import Placement
from onnxcomp.quantize.inputs import merge
from onnxcomp.quantize.integers import constant_of, is_pair, quantizers, stored_type
from onnxcomp.quantize.narrowing import narrow_weights
from onnxcomp.quantize.observe import observable
from onnxcomp.quantize.parameters import parameters_for
from onnxcomp.quantize.placement import place
from onnxcomp.quantize.plan import Plan
from onnxcomp.quantize.stored import write_out
from onnxcomp.quantize.strip import Stripped, strip
from onnxcomp.quantize.watch import watched
from onnxcomp.targets.target import Scheme, Target, load_target, target_names

__all__ = ["Retargeted", "retarget"]

# For weights that were float in the model given.
_FRESH = WeightRules(8, "mse", False)
_OPERATORS = ("QLinear", "QGemm", "QAttention", "ConvInteger", "MatMulInteger", "DynamicQuantize")


@dataclass(frozen=True)
class Retargeted:
    """What :func:`retarget` returns. Nothing is written until :meth:`save`.

    Attributes:
        model: The model.
        source: Name of the target whose scheme the model followed.
        target: Name of the target whose scheme it follows now.
        summary: What was done, in words.
        exact: Whether the outputs are bit-identical before the runtime optimises.
        notes: What the user should know.
    """

    model: ir.Model
    source: str
    target: str
    summary: str
    exact: bool
    notes: tuple[str, ...] = ()

    def save(self, path: str | Path) -> None:
        """Write the model, atomically (raises as `modelio.save`)."""
        modelio.save(self.model, path)


def retarget(
    model: str | Path | ir.Model | onnx.ModelProto, target: str, *, stats: str | Path | Statistics | None = None
) -> Retargeted:
    """Write an int8 model in QDQ form for another target; no data are needed.

    Args:
        model: A path, an onnx-ir model or a ModelProto, quantized by onnxcomp or in QDQ form by another tool; never
            modified.
        target: The target.
        stats: Statistics of the float model that it was made of (``onnxcomp calibrate``), or their file: where pairs
            are placed anew, ranges are chosen from them by least squared error, whatever the model carries.

    Raises:
        InputError: The target has no int8 form, the model has no quantized activations or is in QOperator form, or
            ranges are missing; the message says what to do.
        ModelError: The model cannot be read, or holds integers outside of pairs.
    """
    aim = load_target(target)
    loaded = checked_model(model)
    if aim.scheme is None:
        raise InputError(aim.no_int8)
    _check_form(loaded, target)
    copy = loaded.clone()
    lift_constants(copy)
    source = _source(copy)
    assert source.scheme is not None, "_source returns a target with a scheme"
    if _same_placement(source.scheme, aim.scheme):
        return _flipped(copy, source, aim, aim.scheme)
    statistics = load_statistics(stats) if isinstance(stats, str | Path) else stats
    return _placed_anew(copy, source, aim, statistics)


def _check_form(model: ir.Model, target: str) -> None:
    """Raise InputError where the model is not in QDQ form."""
    for node in model.graph.all_nodes():
        if node.op_type.startswith(_OPERATORS):
            raise InputError(
                f"{node.name or node.op_type!r} is a {node.op_type}: the model is in QOperator or dynamic form, which"
                f" cannot be retargeted;\nquantize the float model again: onnxcomp optimize -p int8 --target {target}"
            )
    if not quantizers(model):
        raise InputError(
            "the model has no quantized activations: there is nothing to retarget;"
            f" onnxcomp optimize -p int8 --target {target} quantizes it"
        )


def _source(model: ir.Model) -> Target:
    """The target that the model was written for; of another tool's model, the one whose form it has."""
    name = model.metadata_props.get(TARGET)
    if name in target_names() and load_target(name).scheme is not None:
        return load_target(name)
    pairs = quantizers(model)
    layers = [node for node in model.graph if node.op_type == "Conv" and _reads_integers(node)]
    if all(_is_symmetric(pair) for pair in pairs) and not all(_writes_integers(node) for node in layers):
        return load_target("tensorrt")
    unsigned = any(stored_type(node) == ir.DataType.UINT8 for node in pairs)
    return load_target("ort-x86" if unsigned else "ort-arm")


def _reads_integers(node: ir.Node) -> bool:
    return any(is_pair(v.producer(), "DequantizeLinear") for v in node.inputs[:1] if v is not None)


def _writes_integers(node: ir.Node) -> bool:
    return any(is_pair(user, "QuantizeLinear") for user, _ in node.outputs[0].uses())


def _is_symmetric(node: ir.Node) -> bool:
    zero = constant_of(node.inputs[2] if len(node.inputs) > 2 else None)
    return stored_type(node) == ir.DataType.INT8 and (zero is None or not zero.any())


def _same_placement(one: Scheme, other: Scheme) -> bool:
    return replace(one, activation=other.activation) == other


def _flipped(model: ir.Model, source: Target, aim: Target, scheme: Scheme) -> Retargeted:
    count = flip(model, scheme.activation)
    if TARGET in model.metadata_props:
        model.metadata_props[TARGET] = aim.name
    if not count:
        return Retargeted(model, source.name, aim.name, f"its activations were {scheme.activation} already", True)
    summary = f"{count} tensors of integers are {scheme.activation} now, on the same grids"
    return Retargeted(model, source.name, aim.name, summary, True)


def _placed_anew(model: ir.Model, source: Target, aim: Target, statistics: Statistics | None) -> Retargeted:
    scheme = aim.scheme
    assert source.scheme is not None and scheme is not None, "checked by retarget"
    write_out(model, scheme)
    stripped = strip(model, own=TARGET in model.metadata_props)
    found = stripped.model
    left_float = _left_float(stripped, source.scheme)

    def refuse(node: ir.Node) -> str | None:
        return "float in the model that was given" if origin_of(node) in left_float else None

    plan = Placement(found, scheme, refuse).of(found)
    if not plan.weighted:
        reason = f": {plan.skips[0].site!r}: {plan.skips[0].reason}" if plan.skips else ""
        raise InputError(f"{aim.name} would quantize nothing in this model{reason}")
    ranges = _ranges(model, stripped, plan, aim, statistics)
    parameters = {
        root: parameters_for(scheme, *_ends(ranges[root], scheme), plan.tensors[root].limits) for root in plan.roots
    }
    known, rules = _known(stripped, plan, packed=source.scheme.narrow_weights)
    emit(found, plan, parameters, lambda node: rules[node], known=known, pass_name="retarget")
    if scheme.narrow_weights:
        narrow_weights(found, [(node, rule.bits) for node, rule in rules.items()])
    if scheme.channel_inputs:
        merge(found, tuple(s for s in stripped.spreads if s.tensor in plan.tensors))
    carry(found, ranges if statistics is not None else carried(model) or ranges, aim.name)
    notes = [f"{len(left_float)} layers are float, as they were in the model given"] if left_float else []
    wider = sum(rule.bits <= 4 for rule in rules.values())
    if wider and not scheme.narrow_weights:
        notes.append(f"{wider} weights of few bits lie in 8: {aim.name} has no Cast of packed weights")
    fresh = sum(rule.scales == _FRESH.scales for rule in rules.values())
    if fresh:
        notes.append(f"{fresh} weights were rounded afresh: they were float or had zero points")
    summary = f"{len(plan.weighted)} layers with weights and {len(plan.others)} others placed by {aim.name}'s scheme"
    return Retargeted(found, source.name, aim.name, summary, False, tuple(notes))


def _left_float(stripped: Stripped, scheme: Scheme) -> set[str]:
    """Sites that the source's scheme would have quantized and that are float all the same: someone wanted that."""
    plan = place(stripped.model, scheme)
    return {w.site for w in plan.weighted if w.weight.name not in stripped.codes}


def _known(stripped: Stripped, plan: Plan, *, packed: bool) -> tuple[WeightCache, dict[ir.Node, WeightRules]]:
    """The codes of the plan's weights, and the rules under which `emit` finds them; without codes, how to round.

    What comes from a target without packed weights (not `packed`) has as many bits as its codes need, if the opset has
    the type.
    """
    narrowable = not packed and (stripped.model.opset_imports.get("") or 0) >= 21
    known: WeightCache = {}
    rules: dict[ir.Node, WeightRules] = {}
    for w in plan.weighted:
        codes = stripped.codes.get(w.weight.name or "")
        weight = codes.of(w) if codes is not None else None
        if codes is None or weight is None:
            rules[w.node] = _FRESH
        else:
            few = narrowable and codes.values.min(initial=0) >= -8 and codes.values.max(initial=0) <= 7
            bits = min(codes.bits, 4) if few else codes.bits
            rules[w.node] = WeightRules(bits, "minmax", False)
            known[(w.weight.name, w.axis, bits, "minmax")] = weight
    return known, rules


def _ranges(
    model: ir.Model, stripped: Stripped, plan: Plan, aim: Target, statistics: Statistics | None
) -> dict[str, CarriedRange]:
    """Every range that is known: by the statistics, else carried by the model, else that of the tensor's pair."""
    known: dict[str, CarriedRange] = {
        name: CarriedRange(low, high, max(-low, high)) for name, (low, high) in stripped.ranges.items()
    }
    known |= carried(model) or {}
    if statistics is not None:
        known |= _by_statistics(model, stripped, plan, statistics)
    missing = [root for root in plan.roots if root not in known]
    if missing:
        raise InputError(
            f"{aim.name} quantizes {len(missing)} tensors whose ranges the model does not carry, such as"
            f" {missing[0]!r}: it was not written by onnxcomp, or was changed since;\ngive --stats"
            " (onnxcomp calibrate, on the float model), or quantize that:"
            f" onnxcomp optimize -p int8 --target {aim.name}"
        )
    return known


def _by_statistics(model: ir.Model, stripped: Stripped, plan: Plan, statistics: Statistics) -> dict[str, CarriedRange]:
    names = list(dict.fromkeys([*observable(stripped.model), *plan.roots]))
    seen, watch = watched(stripped.model, names)
    found = statistics.alike(seen, watch)
    unknown = [root for root in plan.roots if root not in found]
    if unknown:
        advice = "leave out --stats: the model carries its ranges" if carried(model) else "calibrate that float model"
        raise InputError(
            f"the statistics are not of the float model that this one was made of: {len(unknown)} of {len(plan.roots)}"
            f" tensors, such as {unknown[0]!r}, are computed in another way there; {advice}"
        )
    histograms = {name: entry.histogram for name, entry in found.items()}
    return ranges_of_tensors(histograms, {}, symmetric=False, method="mse")


def _ends(entry: CarriedRange, scheme: Scheme) -> tuple[float, float]:
    return (-entry.peak, entry.peak) if scheme.symmetric else (entry.low, entry.high)
