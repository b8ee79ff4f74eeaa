"""Reading a model in QDQ form: where its activations are integers, and what happens to them as such."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.errors import ModelError
from onnxcomp.graph.decoding import is_decoded

__all__ = ["Pair", "constant_of", "dequantizers", "integer_values", "is_pair", "quantizers", "stored_type"]

_PAIR_DOMAINS = ("", "ai.onnx", "com.microsoft")
# Operators that only move or select values: the same on int8 and on uint8.
_MOVING = frozenset(
    {
        *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "MaxPool", "Pad"),
        *("ReduceMax", "ReduceMin", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile"),
        *("Transpose", "Unsqueeze"),
    }
)


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear.

    Attributes:
        scale: float [] or [n].
        zero_point: int64 of the same shape, or a scalar.
        axis: The axis of the scales, where there are several.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    axis: int

    @classmethod
    def of(cls, node: ir.Node) -> Pair:
        """Read a node; raises ModelError where its scale or zero point is not constant."""
        scale = constant_of(node.inputs[1])
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        value = np.zeros((), np.int64) if zero is None else constant_of(zero)
        if scale is None or value is None:
            raise ModelError(f"the scale or the zero point of {node.name or node.op_type!r} is not constant")
        return cls(scale.astype(np.float32), value.astype(np.int64), node.attributes.get_int("axis", 1))

    def along(self, rank: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return scale and zero point in a shape that broadcasts against a tensor of that rank."""
        if self.scale.size == 1:
            return self.scale.reshape(()), self.zero_point.reshape(())
        shape = [1] * rank
        shape[self.axis] = -1
        return self.scale.reshape(shape), np.broadcast_to(self.zero_point, self.scale.shape).reshape(shape)


def is_pair(node: ir.Node | None, op_type: str) -> bool:
    """Whether a node is a QuantizeLinear or DequantizeLinear, as asked for, of ONNX or of ONNX Runtime."""
    return node is not None and node.op_type == op_type and node.domain in _PAIR_DOMAINS


def quantizers(model: ir.Model) -> list[ir.Node]:
    """The QuantizeLinear nodes of activations, bodies included: those whose input is not constant."""
    found = (node for node in model.graph.all_nodes() if is_pair(node, "QuantizeLinear"))
    return [node for node in found if constant_of(node.inputs[0]) is None and not is_decoded(node.inputs[0])]


def dequantizers(model: ir.Model) -> list[ir.Node]:
    """The DequantizeLinear nodes, bodies included."""
    return [node for node in model.graph.all_nodes() if is_pair(node, "DequantizeLinear")]


def stored_type(node: ir.Node) -> ir.DataType:
    """The type that a QuantizeLinear writes."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is not None and zero.dtype is not None:
        return zero.dtype
    return ir.DataType(node.attributes.get_int("output_dtype", 0) or int(ir.DataType.UINT8))


def constant_of(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The content of an initializer that nothing can override; None of anything else."""
    if value is None or value.const_value is None or value.is_graph_input() or not value.is_initializer():
        return None
    return value.const_value.numpy()


def integer_values(starts: Iterable[ir.Value]) -> list[ir.Value]:
    """Return the tensors that hold what quantizers wrote, as integers: theirs, and what is moved from these.

    Raises:
        ModelError: An operator computes on the integers, or they leave the model as such.
    """
    pending, seen = list(starts), dict[ir.Value, None]()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen[value] = None
        if value.is_graph_output():
            raise ModelError(f"the output {value.name!r} is of integers: another target's type would change it")
        for user, index in value.uses():
            if is_pair(user, "DequantizeLinear"):
                continue
            if not _moves(user, index):
                name = user.name or value.name
                raise ModelError(f"{name!r} ({user.op_type}) computes on integers outside of a pair: kept as it is")
            pending.extend(user.outputs if user.op_type == "Split" else user.outputs[:1])
    return list(seen)


def _moves(node: ir.Node, index: int) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type not in _MOVING:
        return False
    if node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") != "nearest":
        return False
    return index == 0 or node.op_type == "Concat"
