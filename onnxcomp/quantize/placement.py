"""Where a model gets quantized: which nodes compute on integers, which tensors get a Q/DQ pair, and why the rest stays
float.

A runtime fuses ``DequantizeLinear -> op -> QuantizeLinear`` into one integer kernel. A pair that does not fuse costs
more than it saves, so the rule is: integers start and end at a weighted node (Conv, Gemm, MatMul), and what lies
between two of them (residual Add, Concat, pools, reshapes) joins in if the runtime has a kernel for it. Heads and tails
stay float.

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

from collections.abc import Callable
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxcomp.contract import Skip
from onnxcomp.graph.edit import origin_of
from onnxcomp.graph.sites import is_default_domain
from onnxcomp.quantize.parameters import Limits
from onnxcomp.quantize.rules import can_join, guaranteed
from onnxcomp.quantize.weighted import WEIGHTED, Weighted, already_quantized, nested_skips, weighted_or_reason
from onnxcomp.targets.target import Scheme

__all__ = ["IntegerNode", "Plan", "Quantized", "place"]


# Weights of a product that takes microseconds in float.
_SMALL_HEAD = 1 << 14


@dataclass(slots=True, eq=False)
class Quantized:
    """A tensor that is stored as integers.

    Attributes:
        value: The float tensor.
        root: The tensor whose range it shares (see Plan.root_of): itself, the input of the operator that only moved its
            values, or the result of the Concat that alone reads it.
        limits: What an absorbed activation guarantees; kept at the root.
        stored: Whether its producer (Pad) writes the integers itself.
        closed: Whether every reader, float ones included, reads the dequantized value, as an integer producer demands.
        readers: The integer nodes that read it.
    """

    value: ir.Value
    root: ir.Value
    limits: Limits = field(default_factory=Limits)
    stored: bool = False
    closed: bool = False
    readers: list[ir.Node] = field(default_factory=list[ir.Node])


@dataclass(frozen=True, slots=True, eq=False)
class IntegerNode:
    """A node without weight that will be computed on integers, and its quantized outputs."""

    node: ir.Node
    site: str


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The decision for a whole model.

    Attributes:
        weighted: Nodes with weights, in graph order.
        others: Integer nodes without weights, in graph order.
        tensors: Quantized tensors by name, in graph order.
        outputs: Node to the tensors that hold its quantized results (behind an absorbed activation); absent where it
            stays float.
        skips: Weighted nodes that stay float, and why.
    """

    weighted: tuple[Weighted, ...]
    others: tuple[IntegerNode, ...]
    tensors: dict[str, Quantized]
    outputs: dict[ir.Node, list[ir.Value]]
    skips: tuple[Skip, ...]

    @property
    def roots(self) -> list[str]:
        """Names of the tensors whose ranges have to be measured, in graph order."""
        return [name for name, tensor in self.tensors.items() if tensor.root is tensor.value]

    def root_of(self, value: ir.Value | None) -> str:
        """Name of the tensor whose range a quantized tensor uses."""
        assert value is not None and value.name
        tensor = self.tensors[value.name]
        while tensor.root is not tensor.value:
            assert tensor.root.name
            tensor = self.tensors[tensor.root.name]
        assert tensor.value.name
        return tensor.value.name


def place(
    model: ir.Model,
    scheme: Scheme,
    refuse: Callable[[ir.Node], str | None] = lambda node: None,
    close: Callable[[ir.Node], bool] = lambda node: False,
) -> Plan:
    """Decide what is quantized. The model is not changed.

    Args:
        model: A canonical model (constants are initializers).
        scheme: The target's rules.
        refuse: Reason why the user or the recipe leaves a node alone, or None.
        close: Whether the output of a node with weights is quantized even where the scheme does not ask for it.
    """
    weighted, skips = _weighted(model, scheme, refuse)
    ends = {w.node for w in weighted if w.node.op_type in scheme.output_required or close(w.node)}
    placer = _Placer(scheme, {w.node for w in weighted}, ends, {n for n in model.graph if refuse(n) is not None})
    placer.find_paths(model.graph)
    placer.mark(model.graph)
    return Plan(
        weighted=tuple(weighted),
        others=tuple(
            IntegerNode(n, origin_of(n)) for n in model.graph if n in placer.chosen and n not in placer.weighted
        ),
        tensors=placer.tensors,
        outputs=placer.outputs,
        skips=(*skips, *nested_skips(model)),
    )


def _weighted(
    model: ir.Model, scheme: Scheme, refuse: Callable[[ir.Node], str | None]
) -> tuple[list[Weighted], list[Skip]]:
    found: list[Weighted] = []
    skips: list[Skip] = []
    foreign = already_quantized(model)
    for node in model.graph:
        if not is_default_domain(node, *WEIGHTED):
            if node.op_type.startswith(("QLinearConv", "QLinearMatMul", "QGemm")):
                skips.append(Skip(origin_of(node), "already quantized"))
            continue
        result = (
            refuse(node) or ("the model is already quantized" if foreign else None) or weighted_or_reason(node, scheme)
        )
        if isinstance(result, Weighted):
            found.append(result)
        else:
            skips.append(Skip(origin_of(node), result))
    heads = _small_heads(model.graph, found)
    skips.extend(
        Skip(w.site, "a small product that ends the network: int8 gains no time there and costs accuracy")
        for w in heads
    )
    return [w for w in found if w not in heads], skips


def _small_heads(graph: ir.Graph, weighted: list[Weighted]) -> list[Weighted]:
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


class _Placer:
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
        return can_join(node)

    def _data(self, node: ir.Node) -> list[ir.Value]:
        """The inputs that carry activations (and not shapes, indices, weights)."""
        inputs = node.inputs if node.op_type in ("Add", "Mul", "Concat") else node.inputs[:1]
        return [v for v in inputs if v is not None]
