"""Where ONNX Runtime wants pairs: around every operator that it fuses into one integer kernel.

1. Every weighted node that can be quantized is; so are its data input and, where the runtime asks for it, its output.
2. Another operator of the scheme joins if something it reads is quantized and its result leads to a weighted node.
3. Relu and Clip right after an integer node vanish: their output is quantized in place of the node's, with a range that
   makes them redundant. Anything else (Sigmoid apart) reads the dequantized value in float.
4. Operators that only move values share the scale and zero point of their input. Pad, which has no fused form, is
   computed on the stored integers themselves. What only a Concat reads is stored at the scale of its result, so that it
   is rounded once, not twice.
5. A small matrix product that ends the network stays float: it costs nothing there, and its rounding would be the last
   word.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxcomp.graph.sites import is_default_domain
from onnxcomp.quantize.parameters import Limits
from onnxcomp.quantize.plan import Quantized
from onnxcomp.quantize.rules import can_join, guaranteed
from onnxcomp.quantize.weighted import Weighted
from onnxcomp.targets.target import Scheme

__all__ = ["GroupPlacer", "small_heads"]

# Weights of a product that takes microseconds in float.
_SMALL_HEAD = 1 << 14


def small_heads(graph: ir.Graph, weighted: list[Weighted]) -> list[Weighted]:
    """Matrix products of few weights with no weighted node behind them."""
    nodes = {w.node for w in weighted}
    leading: set[ir.Node] = set()
    for node in reversed(graph):
        if any(user in nodes or user in leading for out in node.outputs for user, _ in out.uses()):
            leading.add(node)
    return [
        w for w in weighted if w.node.op_type != "Conv" and w.node not in leading and _size(w.weight) <= _SMALL_HEAD
    ]


def _size(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.size


class GroupPlacer:
    """The two sweeps over the graph: backwards for what leads to a weighted node, forwards for what is fed by one."""

    def __init__(self, scheme: Scheme, weighted: set[ir.Node], closed: set[ir.Node], refused: set[ir.Node]) -> None:
        self.scheme = scheme
        self.weighted = weighted
        self.closed = closed
        self.refused = refused
        self.chosen = set(weighted)
        self.outputs: dict[ir.Node, list[ir.Value]] = {}
        self.tensors: dict[str, Quantized] = {}
        self._leading: set[ir.Node] = set()

    def find_paths(self, graph: ir.Graph) -> None:
        """Choose the nodes: weighted ones, and others of the scheme on a path between quantized values."""
        for node in reversed(graph):
            if self._may_join(node) and any(self._leads(out) for out in node.outputs):
                self._leading.add(node)
        fed: set[ir.Value] = {v for node in self.weighted for v in node.inputs[:1] if v is not None}
        for node in graph:
            if node not in self.weighted:
                if node not in self._leading or not any(v in fed for v in self._data(node)):
                    continue
                self.chosen.add(node)
            elif self._ends_in_float(node):
                continue
            for out in node.outputs:
                last, _ = self._behind(out, node)
                fed.add(last)

    def mark(self, graph: ir.Graph) -> None:
        """List the quantized tensors with their limits and readers."""
        for node in graph:
            if node not in self.chosen:
                continue
            for value in self._data(node):
                self._tensor(value).readers.append(node)
            if node in self.weighted and self._ends_in_float(node):
                continue
            for out in node.outputs:
                self._mark_output(node, out)

    def _ends_in_float(self, node: ir.Node) -> bool:
        """Whether the output of a node with weights is not rounded."""
        return node not in self.closed and not self._leads(node.outputs[0])

    def _mark_output(self, node: ir.Node, out: ir.Value) -> None:
        last, limits = self._behind(out, node)
        tensor = self._tensor(last)
        tensor.closed = True
        self.outputs.setdefault(node, []).append(last)
        if node.op_type in self.scheme.passing or node.op_type in self.scheme.stored:
            tensor.root = self._data(node)[0]
            tensor.stored = node.op_type in self.scheme.stored
        else:
            tensor.limits = limits
        if node.op_type == "Concat":
            self._unify(node, tensor)

    def _unify(self, concat: ir.Node, result: Quantized) -> None:
        """Store what only a Concat reads at the scale of its result.

        Only where all inputs have the same limits: a Relu that vanished into zero point 0 must find it there.
        """
        inputs = [self._tensor(v) for v in dict.fromkeys(self._data(concat))]
        if any(t.limits != inputs[0].limits or t.root is not t.value for t in inputs):
            return
        for tensor in inputs:
            if len(tensor.value.uses()) == 1 and not tensor.value.is_graph_output():
                tensor.root = result.value
                result.limits = tensor.limits if result.limits.open else result.limits

    def _tensor(self, value: ir.Value) -> Quantized:
        assert value.name
        return self.tensors.setdefault(value.name, Quantized(value, value))

    def _behind(self, out: ir.Value, node: ir.Node) -> tuple[ir.Value, Limits]:
        """The value behind an activation that vanishes after `node`, and what that guarantees; else `out` itself."""
        users = list(out.uses())
        if node.op_type in self.scheme.passing or len(users) != 1 or out.is_graph_output():
            return out, Limits()
        user = users[0][0]
        limits = (
            guaranteed(user) if user.graph is node.graph and is_default_domain(user, *self.scheme.absorbed) else None
        )
        if limits is None or user in self.refused:
            return out, Limits()
        return user.outputs[0], limits

    def _leads(self, out: ir.Value) -> bool:
        """Whether a value, or what an absorbed activation makes of it, is read by a weighted or a leading node."""
        producer = out.producer()
        last = self._behind(out, producer)[0] if producer is not None else out
        return any(user in self._leading or (user in self.weighted and i == 0) for user, i in last.uses())

    def _may_join(self, node: ir.Node) -> bool:
        if node in self.refused or not is_default_domain(node, *self.scheme.joining):
            return False
        if any(v.is_initializer() or v.dtype not in (None, ir.DataType.FLOAT) for v in self._data(node)):
            return False
        return can_join(node, self.scheme)

    def _data(self, node: ir.Node) -> list[ir.Value]:
        """The inputs that carry activations (and not shapes, indices, weights)."""
        inputs = node.inputs if node.op_type in ("Add", "Mul", "Concat") else node.inputs[:1]
        return [v for v in inputs if v is not None]
