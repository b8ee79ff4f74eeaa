"""Channel slots through operators with constants of their channels: layers, normalizations, quantization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.graph.decoding import is_decoded
from onnxcomp.graph.flow import Blocked
from onnxcomp.graph.fold.values import constant
from onnxcomp.graph.labels import Labels
from onnxcomp.graph.slots import Fixed, Known, Rule, Slots, Trace, named

__all__ = ["LAYERS", "WEIGHTED"]


def _convolution(trace: Trace, node: ir.Node) -> Sequence[Known]:
    shape, transposed = trace.require(node, 1, "weight"), node.op_type == "ConvTranspose"
    bias = _has(node, 2) and trace.require(node, 2, "bias")
    group = node.attributes.get_int("group", 1)
    count_in, count_out = (shape[0], shape[1] * group) if transposed else (shape[1] * group, shape[0])
    if len(shape) < 2 or count_out % group or count_in % group or (bias and bias != (count_out,)):
        raise Blocked(f"the constants of {named(node)} do not fit")
    labels = trace.labels_along(node.inputs[0], 1, count_in)
    if group > 1 and group == count_in:
        writes = _depthwise(trace, node, labels, count_out // group, transposed=transposed)
    else:
        writes = trace.classes.fresh(count_out)
        _alike(trace, labels, group)
        _alike(trace, writes, group)
        trace.slice(node, 1, int(not transposed), labels if transposed else labels[: count_in // group])
        trace.slice(node, 1, int(transposed), writes[: count_out // group] if transposed else writes)
        trace.reads[node], trace.writes[node] = labels, writes
    if bias:
        trace.slice(node, 2, 0, writes)
    return [Slots(1, writes)]


def _depthwise(trace: Trace, node: ir.Node, labels: Labels, multiplier: int, *, transposed: bool) -> Labels:
    """Each input channel has `multiplier` output channels of its own, which go with it."""
    writes = np.repeat(labels, multiplier)
    trace.slice(node, 1, 0, labels if transposed else writes)
    trace.rewrite(node, "group", labels, _count)
    trace.channelwise[node] = writes
    return writes


def _alike(trace: Trace, labels: Labels, group: int) -> None:
    """Every group of a grouped convolution loses the same channels, so that all keep one size."""
    if group > 1:
        blocks = labels.reshape(group, -1)
        trace.classes.unite(np.broadcast_to(blocks[:1], blocks.shape), blocks)


def _product(trace: Trace, node: ir.Node) -> Sequence[Known]:
    if node.op_type == "MatMul":
        _check_product(node)
    shape = trace.require(node, 1, "weight")
    if len(shape) != 2:
        raise Blocked(f"the weight of {named(node)} has {len(shape)} axes, not 2")
    if node.attributes.get_int("transA", 0):
        raise Blocked(f"{named(node)} reads its input transposed")
    read, write = (1, 0) if node.attributes.get_int("transB", 0) else (0, 1)
    bias = trace.require(node, 2, "bias") if _has(node, 2) else ()
    if bias and bias[-1] not in (1, shape[write]):
        raise Blocked(f"the bias of {named(node)} does not fit")
    rank = len(trace.dims(node.inputs[0]))
    labels, writes = trace.labels_along(node.inputs[0], -1, shape[read]), trace.classes.fresh(shape[write])
    trace.slice(node, 1, read, labels)
    trace.slice(node, 1, write, writes)
    if bias and bias[-1] == shape[write]:
        trace.slice(node, 2, len(bias) - 1, writes)
    trace.reads[node], trace.writes[node] = labels, writes
    return [Slots(rank - 1, writes)]


def _check_product(node: ir.Node) -> None:
    """A MatMul without a constant on the right is no layer."""
    left, right = node.inputs
    if left is not None and constant(left) is not None:
        raise Blocked(f"the left operand of {named(node)} is the constant")
    if right is not None and not right.is_initializer() and not is_decoded(right):
        raise Blocked(f"{named(node)} multiplies two activations")


def _channelwise(trace: Trace, node: ir.Node) -> Sequence[Known]:
    """BatchNormalization and InstanceNormalization, with one number a channel in every constant."""
    if node.attributes.get_int("training_mode", 0):
        raise Blocked(f"{named(node)} is in training mode")
    indices = range(1, len(node.inputs))
    shapes = {trace.require(node, index, "scale") for index in indices}
    if len(shapes) != 1 or any(len(shape) != 1 for shape in shapes):
        raise Blocked(f"the constants of {named(node)} do not fit")
    labels = trace.labels_along(node.inputs[0], 1, shapes.pop()[0])
    for index in indices:
        trace.slice(node, index, 0, labels)
    known = trace.of(node.inputs[0])
    others = [Fixed(f"it is a statistic of {named(node)}")] * (len(node.outputs) - 1)
    return [known, *others]


def _rounded(trace: Trace, node: ir.Node) -> Sequence[Known]:
    """QuantizeLinear and DequantizeLinear of activations: scales of channels follow."""
    if node.attributes.get_int("block_size", 0):
        raise Blocked(f"{named(node)} has blocks")
    known = trace.of(node.inputs[0])
    if isinstance(known, Fixed):
        return [known]
    scale = trace.fixed_array(node, 1)
    if scale.ndim == 1 and scale.size > 1 and node.attributes.get_int("axis", 1) % _rank(trace, node) == known.axis:
        indices = range(1, len(node.inputs))
        for index in indices:
            value = node.inputs[index]
            if trace.require(node, index, "scale", single=index == 1) != scale.shape or (value and _shared(value)):
                raise Blocked(f"the constants of {named(node)} do not fit")
        if scale.size != known.labels.size:
            raise Blocked(f"the constants of {named(node)} do not fit")
        for index in indices:
            trace.slice(node, index, 0, known.labels)
    return [known]


def _shared(value: ir.Value) -> bool:
    return len(value.uses()) > 1 or value.is_graph_output()


def _rank(trace: Trace, node: ir.Node) -> int:
    return len(trace.dims(node.inputs[0]))


def _has(node: ir.Node, index: int) -> bool:
    return len(node.inputs) > index and node.inputs[index] is not None


def _count(array: NDArray[Any], kept: NDArray[np.bool_]) -> NDArray[Any]:
    return np.asarray(np.count_nonzero(kept), array.dtype)


WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")

LAYERS: Mapping[str, Rule] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), _convolution),
    **dict.fromkeys(("Gemm", "MatMul"), _product),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _channelwise),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _rounded),
}
