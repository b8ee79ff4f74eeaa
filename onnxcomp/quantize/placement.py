"""Where a model gets quantized: which nodes compute on integers, which tensors get a Q/DQ pair, and why the rest stays float.

A runtime fuses ``DequantizeLinear -> op -> QuantizeLinear`` into one integer kernel. A pair that does not fuse costs more than
it saves, so the rule is: integers start and end at a weighted node (Conv, Gemm, MatMul), and what lies between two of them
(residual Add, Concat, pools, reshapes) joins in if the runtime has a kernel for it. Heads and tails stay float.

1. Every weighted node that can be quantized is; so are its data input and, where the runtime asks for it, its output.
2. Another operator of the scheme joins if something it reads is quantized and its result leads to a weighted node.
3. Relu and Clip right after an integer node vanish: their output is quantized in place of the node's, with a range that makes them
   redundant. Anything else (Sigmoid apart) reads the dequantized value in float.
4. Operators that only move values share the scale and zero point of their input. Pad, which has no fused form, is computed on the
   stored integers themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxcomp.contract import Skip
from onnxcomp.graph.edit import origin_of
from onnxcomp.graph.sites import is_default_domain
from onnxcomp.quantize.parameters import Limits
from onnxcomp.quantize.weighted import WEIGHTED, Weighted, already_quantized, nested_skips, weighted_or_reason
from onnxcomp.targets.target import Scheme

__all__ = ["IntegerNode", "Plan", "Quantized", "place"]


@dataclass(slots=True, eq=False)
class Quantized:
    """A tensor that is stored as integers.

    Attributes:
        value: The float tensor.
        root: The tensor whose range it shares; itself unless an operator that only moves values made it.
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
        outputs: Node to the tensors that hold its quantized results (behind an absorbed activation); absent where it stays float.
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
        root = self.tensors[value.name].root.name
        assert root
        return root


def place(model: ir.Model, scheme: Scheme, refuse: Callable[[ir.Node], str | None] = lambda node: None) -> Plan:
    """Decide what is quantized. The model is not changed.

    Args:
        model: A canonical model (constants are initializers).
        scheme: The target's rules.
        refuse: Reason why the user or the recipe leaves a node alone, or None.
    """
    weighted, skips = _weighted(model, scheme, refuse)
    placer = _Placer(scheme, {w.node for w in weighted}, {n for n in model.graph if refuse(n) is not None})
    placer.find_paths(model.graph)
    placer.mark(model.graph)
    return Plan(
        weighted=tuple(weighted),
        others=tuple(IntegerNode(n, origin_of(n)) for n in model.graph if n in placer.chosen and n not in placer.weighted),
        tensors=placer.tensors,
        outputs=placer.outputs,
        skips=(*skips, *nested_skips(model)),
    )


def _weighted(model: ir.Model, scheme: Scheme, refuse: Callable[[ir.Node], str | None]) -> tuple[list[Weighted], list[Skip]]:
    found: list[Weighted] = []
    skips: list[Skip] = []
    foreign = already_quantized(model)
    for node in model.graph:
        if not is_default_domain(node, *WEIGHTED):
            if node.op_type.startswith(("QLinearConv", "QLinearMatMul", "QGemm")):
                skips.append(Skip(origin_of(node), "already quantized"))
            continue
        result = refuse(node) or ("the model is already quantized" if foreign else None) or weighted_or_reason(node, scheme)
        if isinstance(result, Weighted):
            found.append(result)
        else:
            skips.append(Skip(origin_of(node), result))
    return found, skips


class _Placer:
    """The two sweeps over the graph: backwards for what leads to a weighted node, forwards for what is fed by one."""

    def __init__(self, scheme: Scheme, weighted: set[ir.Node], refused: set[ir.Node]) -> None:
        self.scheme = scheme
        self.weighted = weighted
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
            elif node.op_type not in self.scheme.output_required and not self._leads(node.outputs[0]):
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
            if node in self.weighted and node.op_type not in self.scheme.output_required and not self._leads(node.outputs[0]):
                continue
            for out in node.outputs:
                self._mark_output(node, out)

    def _mark_output(self, node: ir.Node, out: ir.Value) -> None:
        last, limits = self._behind(out, node)
        tensor = self._tensor(last)
        tensor.closed = True
        self.outputs.setdefault(node, []).append(last)
        if node.op_type in self.scheme.passing or node.op_type in self.scheme.stored:
            source = self._data(node)[0]
            tensor.root = self._tensor(source).root
            tensor.stored = node.op_type in self.scheme.stored
        else:
            tensor.limits = limits

    def _tensor(self, value: ir.Value) -> Quantized:
        assert value.name
        return self.tensors.setdefault(value.name, Quantized(value, value))

    def _behind(self, out: ir.Value, node: ir.Node) -> tuple[ir.Value, Limits]:
        """The value behind an activation that vanishes after `node`, and what the activation guarantees; else `out` itself."""
        users = list(out.uses())
        if node.op_type in self.scheme.passing or len(users) != 1 or out.is_graph_output():
            return out, Limits()
        user = users[0][0]
        limits = _limits(user) if user.graph is node.graph and is_default_domain(user, *self.scheme.absorbed) else None
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
        if any(v is None or v.is_initializer() or v.dtype not in (None, ir.DataType.FLOAT) for v in self._data(node)):
            return False
        return _JOINS.get(node.op_type, _always)(node)

    def _data(self, node: ir.Node) -> list[ir.Value]:
        """The inputs that carry activations (and not shapes, indices, weights)."""
        inputs = node.inputs if node.op_type in ("Add", "Mul", "Concat") else node.inputs[:1]
        return [v for v in inputs if v is not None]


def _limits(node: ir.Node) -> Limits | None:
    """What Relu or Clip guarantees; None where the bounds are not constant or do not hold 0."""
    if node.op_type == "Relu":
        return Limits(low=0.0)
    bounds = [_scalar(v) for v in _optional(node.inputs[1:3])]
    if any(b is None for b, v in zip(bounds, _optional(node.inputs[1:3]), strict=True) if v is not None):
        return None
    low, high = bounds
    limits = Limits() if low is None and high is None else Limits(-float("inf") if low is None else low, float("inf") if high is None else high)
    return limits if limits.low <= 0.0 < limits.high else None


def _optional(values: Iterable[ir.Value | None]) -> list[ir.Value | None]:
    return ([*values] + [None, None])[:2]


def _scalar(value: ir.Value | None) -> float | None:
    if value is None or value.const_value is None or value.is_graph_input() or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(()))


def _always(node: ir.Node) -> bool:
    del node
    return True


def _single_output(node: ir.Node) -> bool:
    return sum(bool(v.name) for v in node.outputs) == 1


def _undilated(node: ir.Node) -> bool:
    return all(d == 1 for d in node.attributes.get_ints("dilations", (1,)))


def _within_range(node: ir.Node) -> bool:
    """Cubic interpolation overshoots, so that its result does not share its input's range."""
    return node.attributes.get_string("mode", "nearest") in ("nearest", "linear")


def _pads_zero(node: ir.Node) -> bool:
    """Only pads with 0 (or mirrored values) can be written on the integers."""
    if node.attributes.get_string("mode", "constant") != "constant":
        return True
    value = node.inputs[2] if len(node.inputs) > 2 else None
    return value is None or _scalar(value) == 0.0


_JOINS: dict[str, Callable[[ir.Node], bool]] = {
    "MaxPool": _single_output,
    "AveragePool": _undilated,
    "Resize": _within_range,
    "Pad": _pads_zero,
}
