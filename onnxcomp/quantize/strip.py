"""From a model in QDQ form back to the float model, with the integers of its weights kept aside.

Weights and biases become the numbers that the runtime computes with, exactly. The codes and scales of the weights are
kept, so that writing the model again does not round them a second time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.errors import ModelError
from onnxcomp.graph.edit import add_initializer, names_of, unique_name
from onnxcomp.graph.fold import fold
from onnxcomp.graph.fold.constants import lift_constants
from onnxcomp.graph.fold.dead import drop_dead
from onnxcomp.graph.sites import is_default_domain, static_shape
from onnxcomp.quantize.inputs import Spread
from onnxcomp.quantize.integers import Pair, constant_of, dequantizers, integer_values, is_pair, quantizers, stored_type
from onnxcomp.quantize.stored import write_out
from onnxcomp.quantize.weighted import WEIGHTED, Weighted
from onnxcomp.quantize.weights import QuantizedWeight

__all__ = ["Codes", "Stripped", "strip"]

# What writing a tensor or a weight as integers appends to its name.
_SUFFIXES = (".quantized", ".q", ".cast", ".mul")
_BITS = {"int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "int8": 8, "uint8": 8, "int32": 8}
# What quantizers remove a Relu behind, where the range makes it redundant.
_SIGNED = frozenset({"Add", "BatchNormalization", *WEIGHTED})


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """A weight as it was stored: codes of zero point 0 in 8, 4 or 2 bits, float32 scales [] or [channels] on `axis`."""

    values: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int
    restored: NDArray[np.float32]
    bits: int

    def of(self, w: Weighted) -> QuantizedWeight | None:
        """The codes for a node; None where they do not fit it, or its weight has changed since."""
        content = constant_of(w.weight)
        per_channel = self.scales.ndim == 1 and self.scales.size > 1
        if content is None or not np.array_equal(content, self.restored) or (per_channel and self.axis != w.axis):
            return None
        count = self.values.shape[w.axis]
        return QuantizedWeight(self.values, np.array(np.broadcast_to(self.scales.reshape(-1), count)), w.axis)


@dataclass(frozen=True, slots=True, eq=False)
class Stripped:
    """A float model and what its integers were.

    Attributes:
        model: The float model, in canonical form.
        codes: Weights as they were stored, by the name of the float initializer.
        ranges: What the pairs of activations could represent, (low, high), by tensor name.
        spreads: Inputs with a grid for each channel, now Mul and Add (:mod:`onnxcomp.quantize.inputs`).
    """

    model: ir.Model
    codes: Mapping[str, Codes]
    ranges: Mapping[str, tuple[float, float]]
    spreads: tuple[Spread, ...]


def strip(model: ir.Model, *, own: bool) -> Stripped:
    """Return the float model behind a model in QDQ form, which is not modified.

    Weights without a quantized activation beside them keep their form. Other tools remove a Relu where the zero point
    behind it does its work; it is put back behind every weighted node and Add whose range has no negative part.

    Args:
        model: The model.
        own: Whether onnxcomp wrote it, which leaves every Relu where it is.

    Raises:
        ModelError: An operator computes on integers outside of a pair, they are an input or an output of the model,
            or a scale or zero point is not constant.
    """
    copy = model.clone()
    lift_constants(copy)
    write_out(copy)
    constants = [node for node in dequantizers(copy) if _constant_codes(node) is not None and _beside_integers(node)]
    codes: dict[str, Codes] = {}
    taken = names_of(copy.graph)
    for node in constants:
        _restore(copy.graph, node, codes, taken)
    ranges, spreads = _strip_activations(copy, taken, own=own)
    drop_dead(copy)
    fold(copy)
    return Stripped(copy, codes, ranges, spreads)


def _strip_activations(
    model: ir.Model, taken: set[str], *, own: bool
) -> tuple[dict[str, tuple[float, float]], tuple[Spread, ...]]:
    put_back: dict[ir.Value, ir.Value] | None = None if own else {}
    starts = quantizers(model)
    values = integer_values(node.outputs[0] for node in starts)
    inside = set(values)
    pads = dict.fromkeys(
        user for value in values for user, index in value.uses() if user.op_type == "Pad" and not index
    )
    fills = {pad: _fill(pad) for pad in pads}
    ends = [node for node in dequantizers(model) if node.inputs[0] in inside]
    ranges: dict[str, tuple[float, float]] = {}
    spreads: list[Spread] = []
    for node in starts:
        source = _as_clipped(model.graph, node, put_back, taken)
        grid = _grid_behind(node)
        if grid is not None:
            source = _spread(model.graph, node, source, grid, taken)
            spreads.append(Spread(node.inputs[0].name or "" if node.inputs[0] else "", source.name or "", 0.0, False))
        found = _range(node, grid or Pair.of(node))
        if found is not None and source.name:
            ranges[source.name] = found
        _reroute(node.outputs[0], source)
    for value in values:
        value.type = ir.TensorType(ir.DataType.FLOAT)
        name = value.name or ""
        if not is_pair(value.producer(), "QuantizeLinear") and _base(name) != name:
            value.name = unique_name(model.graph, _base(name), taken)
    for pad, fill in fills.items():
        _refill(model.graph, pad, fill, taken)
    for node in ends:
        _bypass(model.graph, node, taken)
    return ranges, tuple(spreads)


def _as_clipped(graph: ir.Graph, node: ir.Node, put_back: dict[ir.Value, ir.Value] | None, taken: set[str]) -> ir.Value:
    """What a QuantizeLinear reads, behind the Relu that it stands for."""
    source = node.inputs[0]
    assert source is not None, "a QuantizeLinear reads something"
    producer, found = source.producer(), _range(node, Pair.of(node))
    if put_back is None or source.is_graph_output() or found is None or found[0] < 0:
        return source
    if producer is None or producer.op_type not in _SIGNED:
        return source
    if source not in put_back:
        relu = ir.node("Relu", [source])
        result = relu.outputs[0]
        # What the pair is called after is what the Relu wrote.
        result.name = source.name
        source.name = unique_name(graph, f"{source.name}.raw", taken)
        result.type, result.shape = ir.TensorType(ir.DataType.FLOAT), source.shape
        relu.name = unique_name(graph, f"{producer.name or source.name}.relu", taken)
        graph.insert_before(node, [relu])
        put_back[source] = result
    return put_back[source]


def _grid_behind(node: ir.Node) -> Pair | None:
    """The grid by which a QuantizeLinear is read, where that is another one than its own; else None."""
    ends = (user for value in integer_values([node.outputs[0]]) for user, _ in value.uses())
    end = next((user for user in ends if is_pair(user, "DequantizeLinear")), None)
    if end is None:
        return None
    own, behind = Pair.of(node), Pair.of(end)
    same = own.scale.size == behind.scale.size and np.array_equal(own.scale, behind.scale)
    return None if same and np.array_equal(own.zero_point, behind.zero_point) else behind


def _spread(graph: ir.Graph, node: ir.Node, source: ir.Value, grid: Pair, taken: set[str]) -> ir.Value:
    """In floating point what a QuantizeLinear does by a grid for each channel, read by one for all."""
    rank = len(static_shape(source)) or 4
    scale, zero = Pair.of(node).along(rank)
    step, origin = grid.along(rank)
    # The names that they had, by which the model carries their ranges.
    whole = (source.name or "input").removesuffix(".pad.out")
    value = source
    for op_type, array in (
        ("Mul", step.astype(np.float64) / scale),
        ("Add", (zero - origin) * step.astype(np.float64)),
    ):
        base = f"{whole}.{op_type.lower()}"
        constant = add_initializer(graph, unique_name(graph, f"{base}.by", taken), array.astype(np.float32))
        made = ir.node(op_type, [value, constant], name=unique_name(graph, base, taken))
        made.outputs[0].name = unique_name(graph, f"{base}.out", taken)
        made.outputs[0].type, made.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), source.shape
        graph.insert_before(node, [made])
        value = made.outputs[0]
    return value


def _range(node: ir.Node, pair: Pair) -> tuple[float, float] | None:
    """What an activation's pair can represent, 255 levels where it is symmetric; None of several scales, or 16 bits."""
    dtype = stored_type(node)
    if pair.scale.size != 1 or dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
        return None
    scale, zero = float(pair.scale.reshape(())), int(pair.zero_point.reshape(()))
    bottom = 0 if dtype == ir.DataType.UINT8 else -128
    low = -127 if zero == 0 and bottom else bottom - zero
    return low * scale, (bottom + 255 - zero) * scale


def _fill(pad: ir.Node) -> float:
    """The value that a Pad on integers puts around them, dequantized."""
    fill = constant_of(pad.inputs[2] if len(pad.inputs) > 2 else None)
    source = pad.inputs[0]
    while source is not None and not is_pair(source.producer(), "QuantizeLinear"):
        producer = source.producer()
        source = producer.inputs[0] if producer is not None else None
    producer = source.producer() if source is not None else None
    if producer is None:
        raise ModelError(f"{pad.name or 'Pad'!r} pads integers that are not written by a QuantizeLinear")
    pair = Pair.of(producer)
    code = 0 if fill is None else int(fill.reshape(()))
    return (code - int(pair.zero_point.reshape(()))) * float(pair.scale.reshape(()))


def _refill(graph: ir.Graph, pad: ir.Node, fill: float, taken: set[str]) -> None:
    if len(pad.inputs) < 3 and not fill:
        return
    pad.resize_inputs(max(3, len(pad.inputs)))
    constant = None
    if fill:
        name = unique_name(graph, f"{pad.name or 'pad'}.fill", taken)
        constant = add_initializer(graph, name, np.array(fill, np.float32))
    pad.replace_input_with(2, constant)


def _reroute(old: ir.Value, new: ir.Value) -> None:
    """Let the readers of one value read another."""
    for user, index in list(old.uses()):
        user.replace_input_with(index, new)


def _bypass(graph: ir.Graph, node: ir.Node, taken: set[str]) -> None:
    """Let the readers of a DequantizeLinear read what was quantized; an output of the graph keeps its name."""
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None, "a DequantizeLinear reads something"
    name, output = result.name or "", result.is_graph_output()
    _reroute(result, source)
    if not output:
        return
    result.name = unique_name(graph, f"{name}.dequantized", taken)
    if source.is_graph_input() or source.is_graph_output() or source.is_initializer():
        identity = ir.node("Identity", [source])
        graph.insert_after(node, [identity])
        identity.outputs[0].type, identity.outputs[0].shape = result.type, result.shape
        source = identity.outputs[0]
    source.name = name
    source.type, source.shape = result.type, result.shape
    source.doc_string = result.doc_string
    source.metadata_props.update(result.metadata_props)
    for index, value in enumerate(graph.outputs):
        if value is result:
            graph.outputs[index] = source


def _constant_codes(node: ir.Node) -> NDArray[np.int64] | None:
    """The integers that a DequantizeLinear reads; None where they are not constant, or have scales by the block."""
    if node.attributes.get_int("block_size", 0) or node.inputs[0] is None:
        return None
    producer = node.inputs[0].producer()
    if producer is not None and is_pair(producer, "QuantizeLinear"):
        return _rounded(producer)
    return _decoded(node.inputs[0])


def _decoded(value: ir.Value | None) -> NDArray[np.int64] | None:
    """Whole numbers as an initializer, or one that is cast and turned (:mod:`onnxcomp.quantize.narrowing`)."""
    array, producer = constant_of(value), value.producer() if value is not None else None
    if array is not None:
        return array.astype(np.int64) if array.dtype.name in _BITS else None
    if producer is None or not is_default_domain(producer, "Cast", "Mul"):
        return None
    parts = [_decoded(part) for part in producer.inputs]
    known = [part for part in parts if part is not None]
    return prod(known[1:], start=known[0]) if known and len(known) == len(parts) else None


def _bits(value: ir.Value | None) -> int:
    """Bits in which whole numbers are stored."""
    array, producer = constant_of(value), value.producer() if value is not None else None
    if array is not None:
        return _BITS.get(array.dtype.name, 8)
    return 8 if producer is None or not producer.inputs else _bits(producer.inputs[0])


def _base(name: str) -> str:
    """The name of what was written as integers."""
    suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), "")
    return name.removesuffix(suffix)


def _rounded(node: ir.Node) -> NDArray[np.int64] | None:
    """What a QuantizeLinear makes of a constant when the model is loaded."""
    array = constant_of(node.inputs[0])
    dtype = stored_type(node)
    if array is None or dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
        return None
    scale, zero = Pair.of(node).along(array.ndim)
    limits = np.iinfo(dtype.numpy())
    codes: NDArray[np.int64] = np.clip(np.rint(array.astype(np.float32) / scale) + zero, limits.min, limits.max).astype(
        np.int64
    )
    return codes


def _beside_integers(node: ir.Node) -> bool:
    """Whether every reader of a dequantized constant reads a dequantized activation too."""
    uses = [user for user, _ in node.outputs[0].uses()]
    return bool(uses) and all(_reads_activation(user.inputs) for user in uses)


def _reads_activation(values: Iterable[ir.Value | None]) -> bool:
    producers = (value.producer() for value in values if value is not None)
    return any(p is not None and is_pair(p, "DequantizeLinear") and _constant_codes(p) is None for p in producers)


def _restore(graph: ir.Graph, node: ir.Node, codes: dict[str, Codes], taken: set[str]) -> None:
    """Replace a dequantized constant by an initializer."""
    array, pair = _constant_codes(node), Pair.of(node)
    assert array is not None, "asked before"
    scale, zero = pair.along(array.ndim)
    restored: NDArray[np.float32] = ((array - zero).astype(np.float32) * scale).astype(np.float32)
    owner = node.graph if isinstance(node.graph, ir.Graph) else graph
    base = (node.inputs[0].name if node.inputs[0] is not None else None) or "constant"
    name = unique_name(owner, _base(base), taken)
    is_weight = any(user.op_type in WEIGHTED and index == 1 for user, index in node.outputs[0].uses())
    value = add_initializer(owner, name, restored)
    _reroute(node.outputs[0], value)
    if is_weight and not pair.zero_point.any() and -128 <= array.min(initial=0) <= array.max(initial=0) <= 127:
        codes[name] = Codes(array.astype(np.int8), pair.scale, pair.axis, restored, _bits(node.inputs[0]))
