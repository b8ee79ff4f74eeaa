"""Reading QuantizeLinear and DequantizeLinear: parameters, what is a weight, what stands around an operator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = [
    "WEIGHTED",
    "Quantizer",
    "array_of",
    "dequantizer",
    "is_constant",
    "is_pair",
    "output_axis",
    "quantizers",
    "readers",
    "reads_quantized",
]

Array = NDArray[np.generic]

# Operators with a weight, and the index of that input.
WEIGHTED = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}


@dataclass(frozen=True)
class Quantizer:
    """A QuantizeLinear or DequantizeLinear node and its parameters.

    Attributes:
        node: The node.
        scale: Its scales, () or (C,) or blocks; None where they are not constant.
        zero: Its zero points likewise; None where there are none or they are not constant.
        zero_given: Whether the node has a zero-point input.
        storage: Element type of the integers.
        axis: The axis of the scales, 1 where the node does not say.
        block: Size of a block; 0 where scales are per tensor or per axis.
        weight: Whether it reads or stores a constant.
    """

    node: ir.Node
    scale: Array | None
    zero: Array | None
    zero_given: bool
    storage: ir.DataType | None
    axis: int
    block: int
    weight: bool

    @property
    def per_axis(self) -> bool:
        """Whether it has a scale a slice of an axis (a one-element vector counts as per tensor)."""
        scale = self.node.inputs[1]
        shape = None if scale is None else scale.shape
        if self.scale is not None:
            return self.scale.size > 1
        return shape is not None and len(shape) > 0


def is_pair(node: ir.Node) -> bool:
    """Whether a node is QuantizeLinear or DequantizeLinear, of the default domain or of com.microsoft."""
    return node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.domain in ("", "com.microsoft")


def quantizers(nodes: tuple[ir.Node, ...]) -> Iterator[Quantizer]:
    """Every QuantizeLinear and DequantizeLinear with its parameters."""
    return (_read(node) for node in nodes if is_pair(node))


def dequantizer(value: ir.Value | None) -> Quantizer | None:
    """The DequantizeLinear that writes a value, or None."""
    producer = None if value is None else value.producer()
    return _read(producer) if producer is not None and producer.op_type == "DequantizeLinear" else None


def array_of(value: ir.Value | None) -> Array | None:
    """The elements of a constant, initializer or output of a Constant node; None where a value is not constant."""
    if value is None:
        return None
    if value.const_value is not None and not value.is_graph_input():
        return np.asarray(value.const_value.numpy())
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant":
        tensor = producer.attributes.get_tensor("value", None)
        return None if tensor is None else np.asarray(tensor.numpy())
    return None


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is made of constants alone, so that a runtime folds it at load.

    Initializers that are also graph inputs may be overridden by the caller, and are not constant.
    """
    seen: set[ir.Node] = set()
    stack = [value]
    while stack:
        current = stack.pop()
        if current is None or (current.const_value is not None and not current.is_graph_input()):
            continue
        producer = current.producer()
        if producer is None or any(isinstance(a.value, ir.Graph) for a in producer.attributes.values()):
            return False
        if producer not in seen:
            seen.add(producer)
            stack.extend(producer.inputs)
    return True


def readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read a value, each once."""
    return list(dict.fromkeys(node for node, _ in value.uses()))


def reads_quantized(node: ir.Node) -> bool:
    """Whether the data input of a node comes from DequantizeLinear."""
    found = dequantizer(node.inputs[0]) if node.inputs else None
    return found is not None and not found.weight


def output_axis(node: ir.Node) -> int | None:
    """The axis of a weight that runs over the output channels; None where the operator has no such axis.

    Conv 0, ConvTranspose 1, Gemm 0 with transB and 1 without, MatMul the last one.
    """
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    if node.op_type == "MatMul":
        shape = None if node.inputs[1] is None else node.inputs[1].shape
        return 1 if shape is None else len(shape) - 1
    return {"Conv": 0, "ConvTranspose": 1}.get(node.op_type)


def _read(node: ir.Node) -> Quantizer:
    scale = node.inputs[1] if len(node.inputs) > 1 else None
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    data = node.inputs[0]
    weight = is_constant(data)
    return Quantizer(
        node=node,
        scale=array_of(scale),
        zero=array_of(zero),
        zero_given=zero is not None,
        storage=_storage(node, zero),
        axis=node.attributes.get_int("axis", 1),
        block=node.attributes.get_int("block_size", 0),
        weight=weight,
    )


def _storage(node: ir.Node, zero: ir.Value | None) -> ir.DataType | None:
    if zero is not None and zero.dtype is not None:
        return zero.dtype
    if node.op_type == "QuantizeLinear":
        declared: Any = node.attributes.get_int("output_dtype", 0)
        return ir.DataType(declared) if declared else node.outputs[0].dtype or ir.DataType.UINT8
    return None if node.inputs[0] is None else node.inputs[0].dtype
