"""What overrides say about the tensors of a plan: scales, zero points, ranges and weights that are given, not found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.errors import InputError
from onnxcomp.numeric.ranges import Range
from onnxcomp.quantize.emit import RulesOf, WeightCache
from onnxcomp.quantize.layers import Layers
from onnxcomp.quantize.overrides import Entry, TensorOverride, read_overrides
from onnxcomp.quantize.parameters import Limits, Parameters, parameters_for
from onnxcomp.quantize.placement import Plan
from onnxcomp.quantize.weighted import Weighted
from onnxcomp.quantize.weights import QuantizedWeight, bias_floors
from onnxcomp.targets.target import Scheme

__all__ = ["Given", "given_by", "given_inputs", "overrides_of"]

_TOP = 127
_TOP_REDUCED = 63
_LEVELS = 255
_HALF = 128
_LISTED = 5


@dataclass(frozen=True)
class Given:
    """What was given for a plan.

    Attributes:
        weights: Weights as integers at given scales, under the keys by which `emit` knows them.
        notes: What the user should know.
    """

    weights: WeightCache = field(default_factory=WeightCache)
    notes: tuple[str, ...] = ()
    _entries: Mapping[str, tuple[str, Entry]] = field(default_factory=dict[str, tuple[str, Entry]])

    @property
    def weight_names(self) -> frozenset[str | None]:
        """Names of the weights in `weights`."""
        return frozenset(key[0] for key in self.weights)

    def parameters(self, plan: Plan, ranges: Mapping[str, Range]) -> dict[str, Parameters]:
        """The parameters of the roots that have an override.

        Args:
            plan: The plan, or that of a clone of the model.
            ranges: The ranges that were found, by root; what an override leaves open is theirs.

        Raises:
            InputError: The target's form cannot hold what is asked for.
        """
        made: dict[str, Parameters] = {}
        for root, (tensor, entry) in self._entries.items():
            made[root] = _parameters(tensor, entry, plan.scheme, plan.tensors[root].limits, ranges[root])
        return made

    def ranges(self, plan: Plan, ranges: Mapping[str, Range]) -> dict[str, Range]:
        """All ranges, those with an override as it has them; raises as `parameters`."""
        own = self.parameters(plan, ranges)
        return dict(ranges) | {
            root: Range(p.low, p.high, ranges[root].method, {**ranges[root].facts, "given": 1.0})
            for root, p in own.items()
        }

    def check_biases(self, plan: Plan, parameters: Mapping[str, Parameters]) -> None:
        """Raise InputError where a bias does not fit int32 at a given weight scale."""
        for w in plan.weighted if plan.scheme.bias == "int32" else ():
            if w.weight.name not in self.weight_names or w.bias is None or w.bias.const_value is None:
                continue
            floors = bias_floors(
                w.bias.const_value.numpy().reshape(-1), parameters[plan.root_of(w.node.inputs[0])].scale
            )
            own = next(weight for key, weight in self.weights.items() if key[:2] == (w.weight.name, w.axis))
            if (own.scales < floors).any():
                raise InputError(
                    f"overrides of {w.weight.name!r}: with 'scale' {own.scales.min():g} the bias of {w.site!r} does not"
                    f" fit int32; it takes {floors.max():g} or more"
                )


def overrides_of(layers: Layers) -> Mapping[str, TensorOverride]:
    """The overrides that the user gave; raises as `read_overrides`."""
    return read_overrides(layers.whole.overrides) if layers.whole.overrides else {}


def given_inputs(model: ir.Model, layers: Layers) -> bool:
    """Whether an input of the model has an override."""
    return bool({value.name for value in model.graph.inputs} & set(overrides_of(layers)))


def given_by(overrides: Mapping[str, TensorOverride], plan: Plan, rules_of: RulesOf) -> Given:
    """Sort overrides into those of tensors and those of weights.

    Raises:
        InputError: Two tensors that share a scale have different overrides, an axis or a number of channels does not
            fit, or the form cannot hold what is asked for.
    """
    weights: WeightCache = {}
    entries: dict[str, tuple[str, Entry]] = {}
    idle: list[str] = []
    by_weight: dict[str | None, list[Weighted]] = {}
    for w in plan.weighted:
        by_weight.setdefault(w.weight.name, []).append(w)
    biases = {w.bias.name for w in plan.weighted if w.bias is not None}
    for name, override in overrides.items():
        if name in by_weight:
            weights.update(_weights(override, by_weight[name], rules_of))
        elif name in biases:
            raise InputError(f"overrides of {name!r}: the scale of a bias is that of the input times the weight's")
        elif name in plan.tensors:
            _add_entry(entries, plan.root_of(plan.tensors[name].value), name, _of_activation(override))
        else:
            idle.append(name)
    return Given(weights, tuple(_idle_note(idle)), entries)


def _idle_note(idle: list[str]) -> Iterator[str]:
    if idle:
        more = f" and {len(idle) - _LISTED} more" if len(idle) > _LISTED else ""
        yield f"overrides without effect, as these tensors are not quantized: {', '.join(idle[:_LISTED])}{more}"


def _add_entry(entries: dict[str, tuple[str, Entry]], root: str, tensor: str, entry: Entry) -> None:
    other = entries.setdefault(root, (tensor, entry))
    if other[1] != entry:
        raise InputError(f"overrides of {tensor!r}: it shares one scale with {other[0]!r}, whose override differs")


def _of_activation(override: TensorOverride) -> Entry:
    if override.axis is not None:
        raise InputError(f"overrides of {override.tensor!r}: 'axis' is for weights; activations have one scale")
    entry = override.entries[0]
    if entry.reduce_range:
        raise InputError(f"overrides of {override.tensor!r}: 'reduce_range' is for weights, not for activations")
    return entry


def _parameters(tensor: str, entry: Entry, scheme: Scheme, limits: Limits, found: Range) -> Parameters:
    if entry.scale is not None and entry.zero_point is not None:
        return _as_given(tensor, entry, scheme, limits)
    low = found.low if entry.rmin is None else min(entry.rmin, 0.0)
    high = found.high if entry.rmax is None else max(entry.rmax, 0.0)
    if entry.symmetric is False and scheme.symmetric:
        raise InputError(f"overrides of {tensor!r}: 'symmetric' is false, and the target takes zero point 0 only")
    if not entry.symmetric or scheme.symmetric:
        return parameters_for(scheme, low, high, limits)
    peak = max(-low, high)
    scale = np.float32(2 * peak / _LEVELS if peak > 0 else 1 / _LEVELS)
    return _checked(tensor, "symmetric", Parameters(float(scale), _HALF), scheme, limits)


def _as_given(tensor: str, entry: Entry, scheme: Scheme, limits: Limits) -> Parameters:
    assert entry.scale is not None and entry.zero_point is not None
    own = entry.quant_type or ("QInt8" if scheme.activation == "int8" else "QUInt8")
    dtype, bottom = ("int8", -_HALF) if own == "QInt8" else ("uint8", 0)
    if not bottom <= entry.zero_point <= bottom + _LEVELS:
        raise InputError(f"overrides of {tensor!r}: 'zero_point' {entry.zero_point} is not of {own}")
    given = Parameters(float(np.float32(entry.scale)), entry.zero_point, "int8" if dtype == "int8" else "uint8")
    return _checked(tensor, "zero_point", given, scheme, limits)


def _checked(tensor: str, key: str, given: Parameters, scheme: Scheme, limits: Limits) -> Parameters:
    """The same grid in the target's type, where an activation that vanishes into it still does."""
    stored = given.signed() if scheme.activation == "int8" else given.unsigned()
    if scheme.symmetric and stored.zero_point != 0:
        raise InputError(
            f"overrides of {tensor!r}: {key!r} gives {stored.zero_point}; the target takes zero point 0 only"
        )
    if scheme.symmetric:
        return stored
    below, above = (limits.low if limits.low == -inf else limits.low - stored.low), limits.high - stored.high
    half = stored.scale / 2
    if (below != -inf and below > half) or (above != inf and above < -half):
        raise InputError(
            f"overrides of {tensor!r}: {key!r} makes the range [{stored.low:g}, {stored.high:g}], but an activation"
            f" before it keeps to [{limits.low:g}, {limits.high:g}]; the operator before it would not fuse"
        )
    return stored


def _weights(override: TensorOverride, readers: list[Weighted], rules_of: RulesOf) -> WeightCache:
    made: WeightCache = {}
    for w in readers:
        rules = rules_of(w.node)
        assert w.weight.const_value is not None
        array = w.weight.const_value.numpy()
        scales, top = _weight_scales(override, array, w.axis, rules.bits)
        shape = [-1 if i == w.axis else 1 for i in range(array.ndim)]
        levels = np.clip(np.round(array / scales.reshape(shape)), -top - (top == _TOP), top)  # as onnxruntime does
        made[(w.weight.name, w.axis, rules.bits, rules.scales)] = QuantizedWeight(
            levels.astype(np.int8), scales, w.axis
        )
    return made


def _weight_scales(
    override: TensorOverride, array: NDArray[np.float32], axis: int, bits: int
) -> tuple[NDArray[np.float32], int]:
    """One float32 scale a channel, and the largest level."""
    name, channels = override.tensor, array.shape[axis]
    if override.axis is not None and override.axis % array.ndim != axis:
        raise InputError(f"overrides of {name!r}: 'axis' {override.axis}; the kernel has its scales along axis {axis}")
    if len(override.entries) not in (1, channels):
        raise InputError(f"overrides of {name!r}: {len(override.entries)} entries for {channels} channels")
    rows = np.abs(np.moveaxis(array, axis, 0).reshape(channels, -1)).max(axis=1, initial=0.0)
    if override.axis is None:
        rows = np.full(channels, rows.max(initial=0.0))
    entries = override.entries * (channels if len(override.entries) == 1 else 1)
    reduced = any(e.reduce_range for e in entries) or (bits == 7 and not any(e.reduce_range is False for e in entries))
    top = _TOP_REDUCED if reduced else _TOP
    scales = [_weight_scale(name, entry, float(peak), top) for entry, peak in zip(entries, rows, strict=True)]
    return np.array(scales, np.float32), _TOP if entries[0].scale is not None else top


def _weight_scale(name: str, entry: Entry, peak: float, top: int) -> float:
    if entry.symmetric is False:
        raise InputError(f"overrides of {name!r}: 'symmetric' is false; integer kernels take symmetric weights")
    if entry.scale is not None:
        middle = _HALF if entry.quant_type == "QUInt8" else 0
        if entry.zero_point != middle:
            raise InputError(f"overrides of {name!r}: 'zero_point' {entry.zero_point}; weights take {middle} only")
        return entry.scale
    if entry.quant_type == "QUInt8":
        raise InputError(f"overrides of {name!r}: 'quant_type' QUInt8; weights are stored as int8")
    if entry.rmin is not None and entry.rmax is not None:
        peak = max(-entry.rmin, entry.rmax)
    return max(peak / top if peak > 0 else 1.0 / top, float(np.finfo(np.float32).tiny))
