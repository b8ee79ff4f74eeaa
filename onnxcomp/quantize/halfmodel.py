"""A whole model in half precision, its inputs and outputs still float.

Every operator whose schema takes float16 computes in it; the others, and those whose values would overflow, stay float
between two Casts. Which inputs of an operator may be half is read off the operator's schema: the scales of a Resize are
float whatever its data are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx.defs
import onnx_ir as ir

from onnxcomp.contract import Change, Context, PassReport, Skip
from onnxcomp.cost import Cost, node_macs
from onnxcomp.graph.edit import ORIGIN, PASS, add_initializer, names_of, origin_of, unique_name
from onnxcomp.quantize.half import LARGEST, QUANTIZED, halved_tensor, unfit
from onnxcomp.quantize.halfpairs import admit_half_scales, coarse_scale, half_scales, is_scale, torn
from onnxcomp.runtime.activations import stream

__all__ = ["halve_model"]

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
# Samples on which activations are watched, and the share of the largest half that they may reach there.
_WATCHED = 32
_ROOM = 0.5


@dataclass(frozen=True)
class _Ports:
    """Which inputs and outputs of a node are half when the node computes in half."""

    inputs: frozenset[int]
    outputs: frozenset[int]


def halve_model(model: ir.Model, context: Context) -> PassReport:
    """Compute in float16 wherever operators can, in place.

    Refused as a whole: functions, and quantized models but for pairs where the target takes precision from the graph.
    """
    why = _refused(model, context)
    if why is not None:
        return PassReport(skips=tuple(Skip(origin_of(n), why) for n in model.graph if n.inputs))
    peaks = _peaks(model, context)
    ports: dict[ir.Node, _Ports] = {}
    skips: list[Skip] = []
    for node in model.graph:
        found = _ports(node, model.opset_imports.get(node.domain, 0))
        reason = found if isinstance(found, str) else coarse_scale(node) or _unfit_node(node, found, peaks, context)
        if reason:
            skips.append(Skip(origin_of(node), reason))
        elif not isinstance(found, str) and (found.inputs or found.outputs):
            ports[node] = found
    for node, reason in torn(model, ports):
        del ports[node]
        skips.append(Skip(origin_of(node), reason))
    changes = tuple(_change(node, p) for node, p in ports.items() if _constants(node, p))
    if ports:
        _Writer(model.graph, ports).write()
    return PassReport(changes, tuple(skips))


def _refused(model: ir.Model, context: Context) -> str | None:
    """Why no operator becomes half."""
    if model.functions:
        return "the model has functions"
    found = {n.op_type for n in model.graph.all_nodes()} & QUANTIZED
    if not found:
        return None
    # A runtime that fuses whole groups knows their pairs in float alone.
    scheme = context.target.scheme
    if found - {"QuantizeLinear", "DequantizeLinear"} or scheme is None or scheme.pairs != "inputs":
        return "already quantized"
    return admit_half_scales(model)


def _peaks(model: ir.Model, context: Context) -> Mapping[str, float]:
    """The largest magnitude of every float tensor on some samples; empty without any."""
    feeds = context.data or context.stand_in
    names = [v.name for node in model.graph for v in node.outputs if v.name and v.dtype == _FLOAT]
    peaks: dict[str, float] = {}
    if feeds is None:
        return peaks
    for batch in stream(model, names, feeds, limit=_WATCHED):
        for name, array in batch.items():
            peaks[name] = max(peaks.get(name, 0.0), float(np.abs(array).max(initial=0.0)))
    return peaks


def _ports(node: ir.Node, version: int) -> _Ports | str:
    """The half ports of a node, or why it stays float."""
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return f"{node.op_type} has a body, which stays float"
    if node.domain not in ("", "ai.onnx"):
        return f"{node.domain}.{node.op_type} is not an operator of ONNX"
    schema = onnx.defs.get_schema(node.op_type, version)
    allowed = {c.type_param_str: "tensor(float16)" in c.allowed_type_strs for c in schema.type_constraints}
    inputs = {
        i: schema.inputs[min(i, len(schema.inputs) - 1)].type_str
        for i, v in enumerate(node.inputs)
        if v is not None and v.dtype == _FLOAT
    }
    outputs = {
        i: schema.outputs[min(i, len(schema.outputs) - 1)].type_str
        for i, v in enumerate(node.outputs)
        if v.dtype == _FLOAT
    }
    if any(v is not None and v.name and v.dtype is None for v in (*node.inputs, *node.outputs)):
        return "the type of one of its values is not known"
    half_in = frozenset(i for i, t in inputs.items() if allowed.get(t, False))
    if node.op_type == "Cast":
        return _Ports(half_in, frozenset(outputs))
    bound = {inputs[i] for i in half_in}
    if any(t in allowed and not allowed[t] for t in (*inputs.values(), *outputs.values())):
        return f"{node.op_type} has no float16 form"
    if any(t in allowed and t not in bound for t in outputs.values()):
        return f"{node.op_type} makes float32 from an attribute"
    return _Ports(half_in, frozenset(i for i, t in outputs.items() if t in bound))


def _unfit_node(node: ir.Node, ports: _Ports, peaks: Mapping[str, float], context: Context) -> str | None:
    excluded = context.excluded(origin_of(node))
    if excluded:
        return excluded
    for index in ports.inputs:
        value = node.inputs[index]
        assert value is not None
        if value.const_value is not None:
            reason = unfit(value.const_value.numpy())
            # Min and max of a Clip are often infinite, which a half is as well.
            if reason and not (node.op_type in ("Clip", "Pad", "Max", "Min", "Where") and "Inf" in reason):
                return f"{value.name!r} {reason}"
        elif value.is_initializer():
            return f"{value.name!r} can be set by the caller"
    for value in (*(node.inputs[i] for i in ports.inputs), *(node.outputs[i] for i in ports.outputs)):
        peak = peaks.get(value.name or "", 0.0) if value is not None else 0.0
        if value is not None and not peak <= _ROOM * LARGEST:
            return f"{value.name!r} reaches {peak:.3g} on the data; halves end at {LARGEST:g}"
    return None


def _constants(node: ir.Node, ports: _Ports) -> int:
    values = [node.inputs[i] for i in ports.inputs]
    return sum(v.const_value.size for v in values if v is not None and v.const_value is not None)


def _change(node: ir.Node, ports: _Ports) -> Change:
    size = _constants(node, ports)
    macs = node_macs(node)
    return Change(origin_of(node), f"{node.op_type} in float16", Cost(size, macs, 4 * size), Cost(size, macs, 2 * size))


class _Writer:
    """Turns values into halves, with Casts where half and float meet."""

    def __init__(self, graph: ir.Graph, ports: Mapping[ir.Node, _Ports]) -> None:
        self._graph, self._ports, self._names = graph, ports, names_of(graph)

    def write(self) -> None:
        """Rewrite every float value of the main graph."""
        graph = self._graph
        nodes = list(graph)
        for value in list(graph.initializers.values()):
            if value.dtype == _FLOAT:
                self._constant(value)
        for value in graph.inputs:
            if value.dtype == _FLOAT and not value.is_initializer():
                self._float_value(value, None)
        for node in nodes:
            own = self._ports.get(node)
            for index, value in enumerate(node.outputs):
                if value.dtype != _FLOAT:
                    continue
                if own is not None and index in own.outputs:
                    self._half_value(value, node)
                else:
                    self._float_value(value, node)
            if own is not None and node.op_type == "Cast" and own.outputs:
                node.attributes["to"] = ir.AttrInt64("to", int(_HALF))

    def _wants_half(self, user: ir.Node, index: int) -> bool:
        own = self._ports.get(user)
        return own is not None and index in own.inputs

    def _constant(self, value: ir.Value) -> None:
        uses = [use for use in value.uses() if self._wants_half(use.node, use.idx)]
        if not uses or value.const_value is None:
            return
        array = value.const_value.numpy()
        name = unique_name(self._graph, f"{value.name}.half", self._names)
        halves = half_scales(array) if is_scale(value) else halved_tensor(array)
        small = add_initializer(self._graph, name, halves)
        for use in uses:
            use.node.replace_input_with(use.idx, small)
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del self._graph.initializers[value.name or ""]

    def _float_value(self, value: ir.Value, producer: ir.Node | None) -> None:
        """A value that stays float: halves of it for those who want them."""
        uses = [use for use in value.uses() if self._wants_half(use.node, use.idx)]
        if uses:
            half = self._cast(value, _HALF, producer, f"{value.name}.half")
            for use in uses:
                use.node.replace_input_with(use.idx, half)

    def _half_value(self, value: ir.Value, producer: ir.Node) -> None:
        """A value that becomes half: floats of it for those who want them, under the old name where it is an output."""
        uses = [use for use in value.uses() if not self._wants_half(use.node, use.idx)]
        outputs = [i for i, output in enumerate(self._graph.outputs) if output is value]
        name, shape, metadata = value.name or "", value.shape, dict(value.metadata_props)
        value.type = ir.TensorType(_HALF)
        if not uses and not outputs:
            return
        if outputs:
            value.name = unique_name(self._graph, f"{name}.half", self._names)
        whole = self._cast(value, _FLOAT, producer, name if outputs else f"{name}.float", taken=bool(outputs))
        whole.shape = shape
        for use in uses:
            use.node.replace_input_with(use.idx, whole)
        for index in outputs:
            self._graph.outputs[index] = whole
            whole.metadata_props.update(metadata)

    def _cast(
        self, value: ir.Value, to: ir.DataType, producer: ir.Node | None, name: str, *, taken: bool = False
    ) -> ir.Value:
        node = ir.node("Cast", [value], {"to": int(to)}, name=unique_name(self._graph, f"{name}.cast", self._names))
        output = node.outputs[0]
        output.name = name if taken else unique_name(self._graph, name, self._names)
        output.type, output.shape = ir.TensorType(to), value.shape
        node.metadata_props[PASS] = "fp16"
        if producer is None:
            self._graph.insert_before(next(iter(self._graph)), node)
        else:
            node.metadata_props[ORIGIN] = origin_of(producer)
            self._graph.insert_after(producer, node)
        return output
