"""Write a plan into a model: Q/DQ pairs, int8 weights, int32 biases.

Forms that onnxruntime fuses (checked by tests against the installed one): scalar scales, an explicit zero point of the
same type, weights stored as int8 followed by a per-channel DequantizeLinear, biases as int32 at the scale input x
weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.graph.edit import drop_unused
from onnxcomp.graph.sites import geometry_of, static_shape
from onnxcomp.quantize.correction import conv_shift, product_shift
from onnxcomp.quantize.parameters import Parameters
from onnxcomp.quantize.placement import Plan
from onnxcomp.quantize.weighted import Weighted
from onnxcomp.quantize.weights import QuantizedWeight, WeightScales, bias_floors, quantize_weight
from onnxcomp.quantize.writer import Writer

__all__ = ["RulesOf", "WeightCache", "WeightRules", "emit", "keeps_float_bias", "quantized_weight", "weight_key"]


@dataclass(frozen=True, slots=True)
class WeightRules:
    """How the weight and the bias of a node become integers.

    Attributes:
        bits: 8, or 7 where the processor's int8 products saturate.
        scales: How per-channel scales are chosen.
        corrected: Whether the bias makes up for what rounding the weight does to the mean, where means are given.
        stored: Whether the file holds the weight in another form (:mod:`onnxcomp.quantize.stored`).
    """

    bits: int = 8
    scales: WeightScales = "mse"
    corrected: bool = True
    stored: bool = False

    @property
    def narrow(self) -> bool:
        """Whether the weight is stored in fewer than 8 bits, or may be, so that every byte beside it counts."""
        return self.stored or self.bits <= 4


RulesOf = Callable[[ir.Node], WeightRules]
# Name of the weight, axis of its output channels, bits, rule of the scales.
_WeightKey = tuple[str | None, int, int, WeightScales]
WeightCache = dict[_WeightKey, QuantizedWeight]


def emit(
    model: ir.Model,
    plan: Plan,
    parameters: Mapping[str, Parameters],
    rules_of: RulesOf,
    means: Mapping[str, NDArray[np.float64]] | None = None,
    *,
    known: WeightCache | None = None,
    pass_name: str = "int8",
    biased: bool = False,
) -> None:
    """Quantize the model in place.

    Args:
        model: The model that `plan` was made for.
        plan: Where to quantize.
        parameters: Scale and zero point of every root of the plan.
        rules_of: How the weight of a node becomes int8.
        means: Channel means of the inputs of the nodes whose biases are corrected, by tensor name; None: of none.
        known: Weights that were quantized before; updated. For callers that emit several times.
        pass_name: Name of the pass, for provenance.
        biased: Give every Conv and Gemm a bias, so that one can be fitted later.
    """
    writer = Writer(model.graph, pass_name)
    biases = [_bias(w) for w in plan.weighted]
    scales = [parameters[plan.root_of(w.node.inputs[0])].scale for w in plan.weighted]
    floors = _floors(plan.weighted, biases if plan.scheme.bias == "int32" else [None] * len(biases), scales)
    cache: WeightCache = {} if known is None else known
    rules = [rules_of(w.node) for w in plan.weighted]
    weights = [
        _floored(w, rule, floors[(w.weight.name, w.axis)], cache) for w, rule in zip(plan.weighted, rules, strict=True)
    ]
    shifts = [
        _shift(w, weight, means) if means and rule.corrected else None
        for w, weight, rule in zip(plan.weighted, weights, rules, strict=True)
    ]
    roots = {
        name: plan.root_of(tensor.value) for name, tensor in plan.tensors.items()
    }  # names, before any is handed over
    for name, tensor in plan.tensors.items():
        writer.write_pair(tensor, roots[name], parameters[roots[name]])
    writer.drop_unread()
    for w, rule, bias, shift, scale, weight in zip(plan.weighted, rules, biases, shifts, scales, weights, strict=True):
        writer.write_weight(w, weight_key(w, rule), weight)
        corrected = bias if shift is None else shift + (0 if bias is None else bias)
        if corrected is None and biased and w.node.op_type in ("Conv", "Gemm"):
            corrected = np.zeros(len(weight.scales), np.float32)
        if keeps_float_bias(plan, w.node, rule):
            if corrected is not None and (biased or shift is not None):  # one's own: the old one may be shared
                writer.write_float_bias(w, corrected)
        elif corrected is not None:
            writer.write_bias(w, corrected, scale, weight)
    drop_unused(model.graph, [v for w in plan.weighted for v in (w.weight, w.bias) if v is not None])


def keeps_float_bias(plan: Plan, node: ir.Node, rules: WeightRules) -> bool:
    """Whether the bias of a node stays in float: by the scheme, or because the runtime makes integers of it at load.

    It does so only where the output is rounded too (onnxruntime, weight_bias_quantization.cc).
    """
    return plan.scheme.bias == "float32" or (rules.narrow and plan.scheme.folds_bias and node in plan.outputs)


def _bias(w: Weighted) -> NDArray[np.float32] | None:
    return None if w.bias is None or w.bias.const_value is None else w.bias.const_value.numpy().reshape(-1)


def quantized_weight(w: Weighted, rules: WeightRules, known: WeightCache) -> QuantizedWeight:
    """Return the weight of a node as integers, from `known` if it is there; `known` is updated."""
    assert w.weight.const_value is not None
    key = weight_key(w, rules)
    if key not in known:
        known[key] = quantize_weight(w.weight.const_value.numpy(), w.axis, bits=rules.bits, method=rules.scales)
    return known[key]


def weight_key(w: Weighted, rules: WeightRules) -> _WeightKey:
    """Under what the weight of a node is found in a :data:`WeightCache`."""
    return (w.weight.name, w.axis, rules.bits, rules.scales)


def _floored(
    w: Weighted, rules: WeightRules, floors: NDArray[np.float64] | None, known: WeightCache
) -> QuantizedWeight:
    """The weight as integers whose scales are no smaller than `floors`."""
    assert w.weight.const_value is not None
    free = quantized_weight(w, rules, known)
    if floors is None or (free.scales >= floors).all():
        return free
    return quantize_weight(w.weight.const_value.numpy(), w.axis, bits=rules.bits, method=rules.scales, floors=floors)


def _shift(
    w: Weighted, weight: QuantizedWeight, means: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.float32] | None:
    """The bias correction of one node; None where there is none, or no bias to put it into."""
    source = w.node.inputs[0]
    if (
        source is None
        or source.name is None
        or source.name not in means
        or w.node.op_type in ("MatMul", "ConvTranspose")
        or w.weight.const_value is None
    ):
        return None
    original = w.weight.const_value.numpy()
    error = original - weight.restored()
    if w.node.op_type == "Gemm":
        return product_shift(error, means[source.name], w.axis)
    shape = static_shape(source)
    return conv_shift(error, means[source.name], geometry_of(w.node, original.shape, shape), shape[2:])


def _floors(
    weighted: Sequence[Weighted], biases: Sequence[NDArray[np.float32] | None], scales: Sequence[float]
) -> dict[tuple[str | None, int], NDArray[np.float64] | None]:
    """Smallest weight scales with which every bias that meets a (possibly shared) weight fits int32."""
    floors: dict[tuple[str | None, int], NDArray[np.float64] | None] = {}
    for w, bias, scale in zip(weighted, biases, scales, strict=True):
        key = (w.weight.name, w.axis)
        known = floors.setdefault(key, None)
        if bias is not None:
            own = bias_floors(bias, scale)
            floors[key] = own if known is None else np.maximum(known, own)
    return floors
