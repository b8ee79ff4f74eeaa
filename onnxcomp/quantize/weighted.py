"""Which Conv, Gemm and MatMul nodes can be quantized, and the reason for each one that cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxcomp.contract import Skip
from onnxcomp.graph.decoding import is_decoded
from onnxcomp.graph.edit import origin_of
from onnxcomp.graph.foreign import foreign_reason, is_quantized
from onnxcomp.graph.sites import is_default_domain
from onnxcomp.targets.target import Scheme

__all__ = ["WEIGHTED", "Weighted", "already_quantized", "nested_skips", "weighted_or_reason"]

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# An attention of 3 heads on 16, 64 and 197 positions ran 1.56, 1.76 and 1.53 times as fast as in float with these left
# alone, and 1.35, 1.14 and 0.73 times as fast with all of it on integers (onnxruntime 1.31, AVX-512 VNNI).
_TWO_ACTIVATIONS = "a product of two activations: it is faster in float"


@dataclass(frozen=True, slots=True, eq=False)
class Weighted:
    """A node with a constant weight that will be computed on integers.

    Attributes:
        node: The node.
        site: Its name in the user's model.
        weight: The float32 weight initializer.
        bias: The float32 bias initializer, or None.
        axis: The weight's axis of output channels.
    """

    node: ir.Node
    site: str
    weight: ir.Value
    bias: ir.Value | None
    axis: int


def already_quantized(model: ir.Model) -> bool:
    """Whether someone quantized the model's activations before (QDQ or QOperator form, contrib operators included)."""
    return any(is_quantized(node) for node in model.graph.all_nodes())


def weighted_or_reason(node: ir.Node, scheme: Scheme) -> Weighted | str:
    """Return the node as something to quantize, or why it cannot be. `node` is one of the operators WEIGHTED."""
    if _reads_two_activations(node):
        return _TWO_ACTIVATIONS
    if node.op_type not in scheme.weighted:
        return f"the runtime has no integer kernel for {node.op_type}"
    if len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
        return "an input is missing"
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    if node.inputs[0].is_initializer():
        return "its data input is a constant"
    reason = _unfit("weight", weight) or (_unfit("bias", bias) if bias is not None else None)
    if reason:
        return reason
    if not (node.outputs[0].uses() or node.outputs[0].is_graph_output()):
        return "its output is not used"
    axis = _channel_axis(node, weight, scheme)
    if isinstance(axis, str):
        return axis
    if bias is not None and node.op_type == "Gemm" and not _is_row(bias, weight, axis):
        return "the bias is not one value for each output"
    return Weighted(node, origin_of(node), weight, bias, axis)


def _reads_two_activations(node: ir.Node) -> bool:
    return node.op_type == "MatMul" and not any(v is None or _is_constant(v) for v in node.inputs[:2])


def _unfit(what: str, value: ir.Value) -> str | None:
    producer = value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        return "already quantized"
    if producer is not None and _is_constant(value):
        return f"the {what} is stored in another form, which the runtime computes from constants"
    if value.const_value is None or not value.is_initializer():
        return f"the {what} {value.name!r} is not a constant"
    if value.is_graph_input():
        return f"the {what} {value.name!r} can be overridden by a graph input"
    if value.const_value.dtype != ir.DataType.FLOAT:
        return f"the {what} is {value.const_value.dtype.name.lower()}, not float32"
    if value.const_value.size == 0:
        return f"the {what} is empty"
    if not np.isfinite(value.const_value.numpy()).all():
        return f"the {what} holds NaN or Inf"
    return None


def _is_constant(value: ir.Value) -> bool:
    """Whether a value depends on initializers alone."""
    return value.is_initializer() or is_decoded(value)


def _channel_axis(node: ir.Node, weight: ir.Value, scheme: Scheme) -> int | str:
    """The weight's axis of output channels, or why there is none that an integer kernel takes."""
    assert weight.const_value is not None
    rank = len(weight.const_value.shape)
    if node.op_type in ("Conv", "ConvTranspose"):
        if rank < 3:
            return "the weight has no spatial axis"
        if rank - 2 not in scheme.conv_ranks:
            return f"the runtime has no integer kernel for a convolution of {rank - 2} spatial axes"
        return 0 if node.op_type == "Conv" else 1
    if rank != 2:
        return f"the weight has {rank} axes; integer kernels take 2"
    if node.op_type == "MatMul":
        return 1
    if node.attributes.get_int("transA", 0):
        return "transA is set"
    if node.attributes.get_float("alpha", 1.0) != 1.0:
        return "alpha is not 1"
    if len(node.inputs) > 2 and node.attributes.get_float("beta", 1.0) != 1.0:
        return "beta is not 1"
    return 0 if node.attributes.get_int("transB", 0) else 1


def _is_row(bias: ir.Value, weight: ir.Value, axis: int) -> bool:
    assert bias.const_value is not None and weight.const_value is not None
    return tuple(bias.const_value.shape.numpy()) == (weight.const_value.shape[axis],)


def nested_skips(model: ir.Model) -> Iterator[Skip]:
    """Yield a Skip for every weighted node in a subgraph or a function: only the main graph is rewritten."""
    top = set(model.graph)
    for node in model.graph.all_nodes():
        if node not in top and _does_such_work(node):
            yield Skip(origin_of(node), "inside a subgraph (If, Loop or Scan body)")
    for function in model.functions.values():
        for node in function.all_nodes():
            if _does_such_work(node):
                yield Skip(origin_of(node), f"inside the function {function.name}")


def _does_such_work(node: ir.Node) -> bool:
    return is_default_domain(node, *WEIGHTED) or foreign_reason(node) is not None
