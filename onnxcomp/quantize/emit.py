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

from onnxcomp.graph.edit import ORIGIN, PASS, add_initializer, drop_unused, names_of, origin_of, unique_name
from onnxcomp.graph.sites import geometry_of, static_shape
from onnxcomp.quantize.correction import conv_shift, product_shift
from onnxcomp.quantize.parameters import Parameters
from onnxcomp.quantize.placement import Plan, Quantized
from onnxcomp.quantize.weighted import Weighted
from onnxcomp.quantize.weights import QuantizedWeight, WeightScales, bias_floors, quantize_bias, quantize_weight

__all__ = ["RulesOf", "WeightCache", "WeightRules", "emit", "quantized_weight"]


@dataclass(frozen=True, slots=True)
class WeightRules:
    """How the weight and the bias of a node become integers.

    Attributes:
        bits: 8, or 7 where the processor's int8 products saturate.
        scales: How per-channel scales are chosen.
        corrected: Whether the bias makes up for what rounding the weight does to the mean, where means are given.
    """

    bits: int = 8
    scales: WeightScales = "mse"
    corrected: bool = True


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
    """
    writer = _Writer(model.graph, pass_name)
    biases = [_bias(w) for w in plan.weighted]
    scales = [parameters[plan.root_of(w.node.inputs[0])].scale for w in plan.weighted]
    floors = _floors(plan.weighted, biases, scales)
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
        writer.write_weight(w, rule, weight)
        corrected = bias if shift is None else shift + (0 if bias is None else bias)
        if corrected is not None:
            writer.write_bias(w, corrected, scale, weight)
    drop_unused(model.graph, [v for w in plan.weighted for v in (w.weight, w.bias) if v is not None])


def _bias(w: Weighted) -> NDArray[np.float32] | None:
    return None if w.bias is None or w.bias.const_value is None else w.bias.const_value.numpy().reshape(-1)


def quantized_weight(w: Weighted, rules: WeightRules, known: WeightCache) -> QuantizedWeight:
    """Return the weight of a node as integers, from `known` if it is there; `known` is updated."""
    assert w.weight.const_value is not None
    key = _key(w, rules)
    if key not in known:
        known[key] = quantize_weight(w.weight.const_value.numpy(), w.axis, bits=rules.bits, method=rules.scales)
    return known[key]


def _key(w: Weighted, rules: WeightRules) -> _WeightKey:
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
        or w.node.op_type == "MatMul"
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


class _Writer:
    """Makes nodes and initializers with fresh names, shared where they are equal."""

    def __init__(self, graph: ir.Graph, pass_name: str) -> None:
        self.graph = graph
        self.pass_name = pass_name
        self.taken = names_of(graph)
        self._constants: dict[tuple[str, int, int], ir.Value] = {}
        self._scales: dict[str, ir.Value] = {}
        self._dequantizers: list[ir.Node] = []
        self._weights: dict[_WeightKey, ir.Value] = {}

    def write_pair(self, tensor: Quantized, root: str, parameters: Parameters) -> None:
        """Insert Q and DQ behind a tensor and let its readers read the dequantized value."""
        value = tensor.value
        scale, zero = self._scale(root, parameters), self._zero_point(parameters)
        origin = self._origin(value)
        users = [(n, i) for n, i in value.uses() if tensor.closed or n in tensor.readers]
        anchor = value.producer()
        name = value.name or "tensor"
        made: list[ir.Node] = []
        if tensor.stored:
            self._store(anchor, zero if parameters.zero_point else None)
            stored = value
            stored.name = unique_name(self.graph, f"{name}.quantized", self.taken)
        else:
            made.append(
                self._node("QuantizeLinear", [value, scale, zero], f"{name}.quantize", f"{name}.quantized", origin)
            )
            stored = made[0].outputs[0]
        stored.type = ir.TensorType(ir.DataType.UINT8)
        made.append(
            self._node("DequantizeLinear", [stored, scale, zero], f"{name}.dequantize", f"{name}.dequantized", origin)
        )
        result = made[-1].outputs[0]
        result.type, result.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
        if anchor is None:
            self.graph.insert_before(self.graph[0], made)
        else:
            self.graph.insert_after(anchor, made)
        self._dequantizers.append(made[-1])
        for user, index in users:
            user.replace_input_with(index, result)
        if tensor.closed and value.is_graph_output():
            self._hand_over_output(value, result, name)

    def _hand_over_output(self, value: ir.Value, result: ir.Value, name: str) -> None:
        """Let `result` be the graph output under the name that `value` had."""
        if value.name == name:
            producer = value.producer()
            if producer is not None and not producer.name:  # it was called after this value, and still is
                producer.metadata_props.setdefault(ORIGIN, origin_of(producer))
            value.name = unique_name(self.graph, f"{name}.raw", self.taken)
        result.name = name
        result.doc_string = value.doc_string
        result.metadata_props.update(value.metadata_props)
        for i, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[i] = result

    def drop_unread(self) -> None:
        """Remove dequantizers that nobody reads: those of tensors that only a Pad reads, as integers."""
        unread = [n for n in self._dequantizers if not n.outputs[0].uses() and not n.outputs[0].is_graph_output()]
        self.graph.remove(unread, safe=True)

    @staticmethod
    def _store(node: ir.Node | None, fill: ir.Value | None) -> None:
        """Let a Pad node work on the integers behind its dequantized input; the fill value is then the zero point."""
        source = node.inputs[0].producer() if node is not None and node.inputs[0] is not None else None
        assert node is not None and source is not None
        node.replace_input_with(
            0, source.inputs[0]
        )  # drop_unread() removes the pair's second half if it was for this one alone
        if node.attributes.get_string("mode", "constant") == "constant":
            node.resize_inputs(max(3, len(node.inputs)))
            node.replace_input_with(2, fill)

    def write_weight(self, w: Weighted, rules: WeightRules, quantized: QuantizedWeight) -> None:
        """Replace a float weight by int8 and DequantizeLinear; a shared one is written once."""
        key = _key(w, rules)
        if key not in self._weights:
            name = w.weight.name or "weight"
            values = self._initializer(f"{name}.quantized", quantized.values)
            scales = self._initializer(f"{name}.scale", quantized.scales)
            inputs = [values, scales, self._zeros(np.int8, len(quantized.scales))]
            node = self._node(
                "DequantizeLinear", inputs, f"{name}.dequantize", f"{name}.dequantized", w.site, axis=w.axis
            )
            self.graph.insert_before(w.node, [node])
            self._weights[key] = node.outputs[0]
        w.node.replace_input_with(1, self._weights[key])

    def write_bias(self, w: Weighted, bias: NDArray[np.float32], input_scale: float, weight: QuantizedWeight) -> None:
        """Give a node its bias as int32 and DequantizeLinear."""
        quantized = quantize_bias(bias, input_scale, weight.scales)
        name = (w.bias.name if w.bias is not None else None) or f"{w.site}.bias"
        values = self._initializer(f"{name}.quantized", quantized.values)
        scales = self._initializer(f"{name}.scale", quantized.scales)
        inputs = [values, scales, self._zeros(np.int32, len(quantized.scales))]
        node = self._node("DequantizeLinear", inputs, f"{name}.dequantize", f"{name}.dequantized", w.site, axis=0)
        self.graph.insert_before(w.node, [node])
        if len(w.node.inputs) < 3:
            w.node.resize_inputs(3)
        w.node.replace_input_with(2, node.outputs[0])

    def _scale(self, root: str, parameters: Parameters) -> ir.Value:
        if root not in self._scales:
            self._scales[root] = self._initializer(f"{root}.scale", np.array(parameters.scale, np.float32))
        return self._scales[root]

    def _zero_point(self, parameters: Parameters) -> ir.Value:
        key = ("uint8", parameters.zero_point, 0)
        if key not in self._constants:
            self._constants[key] = self._initializer(
                f"zero_point.{parameters.zero_point}", np.array(parameters.zero_point, np.uint8)
            )
        return self._constants[key]

    def _zeros(self, dtype: type[np.int8] | type[np.int32], count: int) -> ir.Value:
        kind = np.dtype(dtype).name
        key = (kind, 0, count)
        if key not in self._constants:
            self._constants[key] = self._initializer(f"zeros.{kind}.{count}", np.zeros(count, dtype))
        return self._constants[key]

    def _initializer(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        return add_initializer(self.graph, unique_name(self.graph, name, self.taken), array)

    def _node(
        self, op_type: str, inputs: Sequence[ir.Value | None], name: str, output: str, origin: str, **attributes: int
    ) -> ir.Node:
        node = ir.node(op_type, inputs, attributes=attributes, name=unique_name(self.graph, name, self.taken))
        node.outputs[0].name = unique_name(self.graph, output, self.taken)
        node.metadata_props.update({ORIGIN: origin, PASS: self.pass_name})
        return node

    def _origin(self, value: ir.Value) -> str:
        producer = value.producer()
        return (value.name or "") if producer is None else origin_of(producer)
