"""Which values of a rewritten model are computed as in the original."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

__all__ = ["same_operation", "same_values"]


def same_values(original: ir.Graph, current: ir.Graph, rewritten: Collection[str] = ()) -> set[str]:
    """Names of the values that two models compute in the same way from the same inputs.

    What has bodies (If, Loop, Scan) does not count.

    Args:
        original: Of the model as it was; values correspond by name.
        current: Of the rewritten one.
        rewritten: Names of values whose producers are about to be replaced.
    """
    made = {value.name: node for node in original for value in node.outputs}
    same = {value.name or "" for value in current.inputs if not value.is_initializer()}
    for node in current:
        twin = made.get(node.outputs[0].name)
        if twin is None or node.outputs[0].name in rewritten or not same_operation(node, twin):
            continue
        pairs = zip(node.inputs, twin.inputs, strict=True)
        if all(a.name in same or _same_constant(a, b) for a, b in pairs if a is not None and b is not None):
            same.update(value.name or "" for value in node.outputs)
    return same


def same_operation(node: ir.Node, other: ir.Node) -> bool:
    """Whether two nodes do the same to values of the same names; constants may differ."""
    if node.op_identifier() != other.op_identifier() or node.attributes != other.attributes:
        return False
    if len(node.inputs) != len(other.inputs) or len(node.outputs) != len(other.outputs):
        return False
    return all(_place(a) == _place(b) for a, b in zip(node.inputs, other.inputs, strict=True))


def _place(value: ir.Value | None) -> str | None:
    """The name of a value; constants are all alike."""
    return None if value is None else "" if value.is_initializer() else value.name


def _same_constant(value: ir.Value, other: ir.Value) -> bool:
    mine, theirs = value.const_value, other.const_value
    if not value.is_initializer() or mine is None or theirs is None or value.is_graph_input():
        return False
    if mine is theirs:
        return True
    return mine.dtype == theirs.dtype and np.array_equal(mine.numpy(), theirs.numpy())
