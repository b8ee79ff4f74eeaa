"""What a model or a site costs: parameters, multiply-accumulates and bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["Cost", "constant_behind", "model_cost", "node_macs", "stored_bytes", "tensor_cost"]


@dataclass(frozen=True, slots=True)
class Cost:
    """Static cost of a site or a model.

    Attributes:
        parameters: Number of constant floating-point or quantized weights (biases included).
        macs: Multiply-accumulates of one inference at batch 1; None where a shape is unknown.
        bytes: Bytes that the constants take in the file.
    """

    parameters: int
    macs: int | None
    bytes: int

    def __add__(self, other: Cost) -> Cost:
        macs = None if self.macs is None or other.macs is None else self.macs + other.macs
        return Cost(self.parameters + other.parameters, macs, self.bytes + other.bytes)


def model_cost(model: ir.Model) -> Cost:
    """Sum the static cost of a model: constants of the main graph and its bodies, MACs of convolutions and products.

    MACs are None where the shape of a counted node is unknown.
    """
    total = Cost(0, 0, 0)
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            total += tensor_cost(value.const_value)
    macs = [node_macs(node) for node in model.graph.all_nodes()]
    return replace(total, macs=None if None in macs else sum(m for m in macs if m is not None))


def tensor_cost(tensor: ir.TensorProtocol | None) -> Cost:
    """Parameters and bytes of a constant; integers of more than 8 bits (shapes, axes) are no parameters."""
    if tensor is None:
        return Cost(0, 0, 0)
    counts = tensor.dtype.is_floating_point() or tensor.dtype.itemsize <= 1
    return Cost(tensor.size if counts else 0, 0, tensor.nbytes)


def stored_bytes(array: NDArray[Any]) -> int:
    """Bytes that an array takes as an initializer; types below 8 bits are packed."""
    return -(-array.size * ir.DataType.from_numpy(array.dtype).bitwidth // 8)


def node_macs(node: ir.Node) -> int | None:
    """Count the multiply-accumulates of one node at batch 1.

    Conv, ConvTranspose, Gemm and MatMul with a constant operand count, quantized and fused forms alike, and the weights
    of LSTM, GRU and RNN once a step; others have 0. None where a shape is unknown.
    """
    if node.op_type in _RECURRENT:
        return _recurrent_macs(node)
    if node.op_type not in _WEIGHTED:
        return 0
    weight = _weight_shape(node.inputs[_WEIGHTED[node.op_type]])
    if weight is None:
        return 0
    out = node.outputs[0].shape
    data = node.inputs[0].shape if node.inputs[0] is not None else None
    if node.op_type in ("Gemm", "QGemm", "FusedGemm"):
        return prod(weight)
    if "MatMul" in node.op_type:
        rows = None if out is None else _known(tuple(out)[1:-1])
        return None if rows is None else prod(weight) * rows
    spatial = data if node.op_type == "ConvTranspose" else out
    positions = None if spatial is None else _known(tuple(spatial)[2:])
    return None if positions is None else prod(weight) * positions


_DECODERS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "Cast",
        "Mul",
        "Add",
        "Sub",
        "Identity",
        "Reshape",
        "Gather",
        "MatMul",
        "Transpose",
        "BitShift",
        "BitwiseAnd",
        "CumSum",
        "GatherElements",
        "Slice",
    }
)
_RECURRENT = ("LSTM", "GRU", "RNN")
# Operators to the place of their weight: ONNX's own, and those of the runtime that do the same.
_WEIGHTED = {
    **dict.fromkeys(("Conv", "ConvInteger", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm"), 1),
    **dict.fromkeys(("MatMul", "MatMulInteger", "FusedMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"), 1),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm"), 3),
}


def _recurrent_macs(node: ir.Node) -> int | None:
    """Weights of the inputs and of the recurrence, each multiplied once a step."""
    shapes = [_weight_shape(value) for value in node.inputs[1:3]]
    data = None if node.inputs[0] is None else node.inputs[0].shape
    layout = node.attributes.get_int("layout", 0)
    steps = None if data is None or len(data) != 3 else data[layout]
    return None if not isinstance(steps, int) else steps * sum(prod(shape) for shape in shapes if shape is not None)


def _weight_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Shape of a constant operand, or of what is computed from constants alone; None where it is not constant.

    Where the shape of a computed operand is not known, it is that of the constant at the start of the computation.
    """
    if value is None or not _is_constant(value):
        return None
    if value.const_value is None and value.shape is not None and value.shape.is_static():
        return tuple(int(d) for d in value.shape.numpy())
    while value is not None and value.const_value is None:
        producer = value.producer()
        value = None if producer is None else producer.inputs[0]
    if value is None or value.const_value is None:
        return None
    return tuple(int(d) for d in value.const_value.shape.numpy())


def constant_behind(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The constant that a value is, or the largest of those that it is computed from, such as the codes of a weight.

    None for what depends on an input of the model.
    """
    if value is None or not _is_constant(value):
        return None
    if value.const_value is not None:
        return value.const_value
    producer = value.producer()
    behind = () if producer is None else (constant_behind(v) for v in producer.inputs)
    return max((tensor for tensor in behind if tensor is not None), key=lambda tensor: tensor.size, default=None)


def _is_constant(value: ir.Value) -> bool:
    """Whether a value is a constant, or made from constants by decoding nodes."""
    if value.const_value is not None:
        return True
    producer = value.producer()
    if producer is None or producer.op_type not in _DECODERS:
        return False
    return all(v is None or _is_constant(v) for v in producer.inputs)


def _known(dims: tuple[object, ...]) -> int | None:
    return prod(d for d in dims if isinstance(d, int)) if all(isinstance(d, int) for d in dims) else None
