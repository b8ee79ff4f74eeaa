"""Writes Q/DQ pairs, weights and biases into a graph: nodes and initializers with fresh names, shared where equal."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.graph.edit import ORIGIN, PASS, add_initializer, names_of, origin_of, unique_name
from onnxcomp.quantize.parameters import Parameters
from onnxcomp.quantize.placement import Quantized
from onnxcomp.quantize.weighted import Weighted
from onnxcomp.quantize.weights import QuantizedWeight, quantize_bias

__all__ = ["Writer"]


class Writer:
    """Makes nodes and initializers with fresh names, shared where they are equal."""

    def __init__(self, graph: ir.Graph, pass_name: str) -> None:
        self.graph = graph
        self.pass_name = pass_name
        self.taken = names_of(graph)
        self._constants: dict[tuple[str, int, int], ir.Value] = {}
        self._scales: dict[str, ir.Value] = {}
        self._dequantizers: list[ir.Node] = []
        self._weights: dict[Hashable, ir.Value] = {}

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
            stored.name = unique_name(self.graph, f"{name}.q", self.taken)
        else:
            made.append(self._node("QuantizeLinear", [value, scale, zero], f"{name}.Q", f"{name}.q", origin))
            stored = made[0].outputs[0]
        stored.type = ir.TensorType(ir.DataType.UINT8 if parameters.dtype == "uint8" else ir.DataType.INT8)
        made.append(self._node("DequantizeLinear", [stored, scale, zero], f"{name}.DQ", f"{name}.dq", origin))
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

    def write_weight(self, w: Weighted, key: Hashable, quantized: QuantizedWeight) -> None:
        """Replace a float weight by int8 and DequantizeLinear; of several with the same key one is written."""
        if key not in self._weights:
            name = w.weight.name or "weight"
            values = self._initializer(f"{name}.quantized", quantized.values)
            scales = self._initializer(f"{name}.scale", quantized.scales)
            inputs = [values, scales, self._zeros(np.int8, len(quantized.scales))]
            node = self._node("DequantizeLinear", inputs, f"{name}.DQ", f"{name}.dq", w.site, axis=w.axis)
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
        node = self._node("DequantizeLinear", inputs, f"{name}.DQ", f"{name}.dq", w.site, axis=0)
        self.graph.insert_before(w.node, [node])
        if len(w.node.inputs) < 3:
            w.node.resize_inputs(3)
        w.node.replace_input_with(2, node.outputs[0])

    def write_float_bias(self, w: Weighted, bias: NDArray[np.float32]) -> None:
        """Give a node a bias in floating point."""
        name = (w.bias.name if w.bias is not None else None) or f"{w.site}.bias"
        if len(w.node.inputs) < 3:
            w.node.resize_inputs(3)
        w.node.replace_input_with(2, self._initializer(name, bias))

    def _scale(self, root: str, parameters: Parameters) -> ir.Value:
        if root not in self._scales:
            self._scales[root] = self._initializer(f"{root}.scale", np.array(parameters.scale, np.float32))
        return self._scales[root]

    def _zero_point(self, parameters: Parameters) -> ir.Value:
        key = (parameters.dtype, parameters.zero_point, 0)
        if key not in self._constants:
            self._constants[key] = self._initializer("zero_point", np.array(parameters.zero_point, parameters.dtype))
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
