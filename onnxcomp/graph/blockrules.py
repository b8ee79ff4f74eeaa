"""Which branches may not go, and which sums are no residual ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from onnxcomp.graph.fold.values import is_op
from onnxcomp.graph.sites import static_shape

__all__ = ["NoBlockError", "bodies_of", "channel_axis", "refuse_branch", "refuse_shapes"]

_NORMALISING = ("LayerNormalization", "SkipLayerNormalization", "Attention", "MultiHeadAttention", "RMSNormalization")


class NoBlockError(Exception):
    """Why a sum with one of its operands as the branch is no block; empty where it does not look like one."""


def channel_axis(branch: Sequence[ir.Node], last: ir.Node) -> int:
    """The axis of the channels of what a branch writes, by its last layer."""
    behind = branch[branch.index(last) + 1 :]
    return 1 if "Conv" in last.op_type or any(is_op(node, "Transpose") for node in behind) else -1


def refuse_branch(branch: Sequence[ir.Node], varying: set[ir.Value]) -> None:
    """Raise where the branch must stay for what it is."""
    if any(True for node in branch for _ in bodies_of(node)):
        raise NoBlockError("its branch holds an If, Loop or Scan")
    kinds = {node.op_type for node in branch}
    products = (node for node in branch if node.op_type == "MatMul")
    if any(all(value in varying for value in node.inputs) for node in products):
        raise NoBlockError("its branch holds a product of two activations, as transformers do")
    if not kinds.isdisjoint(_NORMALISING) or {"ReduceMean", "Sqrt"} <= kinds:
        raise NoBlockError("its branch holds a layer normalisation, as those of transformers do")


def refuse_shapes(add: ir.Node, end: ir.Value, shortcut: ir.Value, axis: int) -> None:
    """Raise where the sum is not of two equal shapes, as far as they are known, in float32."""
    if add.outputs[0].dtype not in (None, ir.DataType.FLOAT):
        raise NoBlockError("the sum is not float32")
    mine, theirs = static_shape(end), static_shape(shortcut)
    if len(mine) < 2 or len(theirs) < 2:
        raise NoBlockError("the shapes of the sum's operands are unknown")
    pairs = list(zip(mine, theirs, strict=False))
    if len(mine) != len(theirs) or any(a != b and (None not in (a, b) or 1 in (a, b)) for a, b in pairs):
        raise NoBlockError(f"the shapes of the sum's operands differ: {mine} and {theirs}")
    if pairs[axis] == (None, None):
        raise NoBlockError("the number of channels is unknown")


def bodies_of(node: ir.Node) -> Iterator[ir.Graph]:
    """The bodies of an If, Loop or Scan."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()
