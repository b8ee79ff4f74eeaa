"""The number of axes of a value, where onnx's shape inference gives up but its producers tell."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxcomp.graph.fold.values import is_op

__all__ = ["rank_of"]

_DEPTH = 16  # producers that are followed
_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Where", "Pow", "Max", "Min")
_SAME = (
    "Relu",
    "Cast",
    "Identity",
    "Dropout",
    "Clip",
    "Sigmoid",
    "Tanh",
    "Sqrt",
    "Neg",
    "Softmax",
    "BatchNormalization",
)


def rank_of(value: ir.Value | None, known: Mapping[str, int], depth: int = _DEPTH) -> int | None:
    """Return the rank of a value.

    Args:
        value: The value.
        known: Ranks that inference found, by name.
        depth: How many producers back the operators are asked.

    Returns:
        None where it stays unknown.
    """
    if value is None:
        return None
    if value.name and value.name in known:
        return known[value.name]
    node = value.producer()
    if node is None or depth == 0:
        return None
    if is_op(node, "Transpose") and "perm" in node.attributes:
        return len(node.attributes.get_ints("perm", ()))
    if is_op(node, "Transpose", *_SAME):
        return rank_of(node.inputs[0], known, depth - 1)
    if is_op(node, "MatMul", *_ELEMENTWISE):
        ranks = [rank_of(v, known, depth - 1) for v in node.inputs]
        certain = [r for r in ranks if r is not None]
        vector = is_op(node, "MatMul") and min(certain, default=0) < 2  # a vector operand loses its axis
        return max(certain) if len(certain) == len(ranks) and not vector else None
    return None
