"""Reading and replacing the integer weight and bias of a node in a quantized model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.quantize.weights import quantize_bias

__all__ = ["Codes", "dequantizer", "input_scale", "read_weight", "write_bias", "write_weight"]


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """Integers of a weight and one scale for each output channel."""

    values: NDArray[np.int8]
    scales: NDArray[np.float32]


def read_weight(node: ir.Node) -> Codes:
    """The weight that a node reads through a DequantizeLinear."""
    pair = dequantizer(node, 1)
    return Codes(_array(pair.inputs[0]), _array(pair.inputs[1]))


def write_weight(node: ir.Node, values: NDArray[np.int8], scales: NDArray[np.float32]) -> None:
    """Replace codes and scales of a weight that no other node reads; shapes stay."""
    pair = dequantizer(node, 1)
    _replace(pair.inputs[0], values)
    _replace(pair.inputs[1], scales)


def write_bias(node: ir.Node, bias: NDArray[np.float32]) -> None:
    """Replace the bias of a node, which is an int32 tensor with a DequantizeLinear or a float tensor, shape (Co,)."""
    value = node.inputs[2]
    assert value is not None
    if value.is_initializer():
        _replace(value, bias)
        return
    pair = dequantizer(node, 2)
    quantized = quantize_bias(bias, input_scale(node), read_weight(node).scales)
    _replace(pair.inputs[0], quantized.values)
    _replace(pair.inputs[1], quantized.scales)


def input_scale(node: ir.Node) -> float:
    """Scale of the activation that a node reads through a DequantizeLinear."""
    return float(_array(dequantizer(node, 0).inputs[1]).reshape(()))


def dequantizer(node: ir.Node, index: int) -> ir.Node:
    """The DequantizeLinear behind an input of a quantized node."""
    value = node.inputs[index]
    pair = value.producer() if value is not None else None
    assert pair is not None and pair.op_type == "DequantizeLinear", "the node was quantized"
    return pair


def _array(value: ir.Value | None) -> NDArray[Any]:
    assert value is not None and value.const_value is not None, "parameters of a pair are constants"
    array: NDArray[Any] = value.const_value.numpy()
    return array


def _replace(value: ir.Value | None, array: NDArray[np.generic]) -> None:
    assert value is not None and value.const_value is not None and value.const_value.numpy().dtype == array.dtype
    value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
