"""The layers behind a quantized tensor: how far its rounding is followed, and that part as a model of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.graph.sites import is_default_domain
from onnxcomp.quantize.placement import Plan

__all__ = ["Reach", "reaches"]

# What only moves values, or picks from them: the next layer shows what their rounding does.
_MOVING = frozenset(
    {
        *("MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Gather", "Pad"),
        *("Concat", "Resize", "Upsample", "Identity", "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "Dropout"),
    }
)
_ACTIVATIONS = ("Relu", "Clip")


@dataclass(frozen=True, eq=False, slots=True)
class Reach:
    """What lies between a quantized tensor and the outputs at which its error is taken.

    Attributes:
        root: The tensor.
        nodes: The nodes in between, in graph order.
        stops: The outputs; the root itself where it leaves the graph or nothing computes on it in the main graph.
        sides: What else the nodes read that is not an initializer.
    """

    root: str
    nodes: tuple[ir.Node, ...]
    stops: tuple[str, ...]
    sides: tuple[str, ...]

    def segment(self, model: ir.Model, values: Mapping[str, NDArray[Any]]) -> ir.Model:
        """The nodes as a model that reads the root and the sides; `values` tell their types."""
        known = {v.name: v for node in self.nodes for v in (*node.inputs, *node.outputs) if v is not None}
        constants = [v for v in known.values() if v.is_initializer()]
        inputs = [known[name] for name in (self.root, *self.sides)]
        outputs = [known[name] for name in self.stops if name != self.root]
        opsets = model.graph.opset_imports
        view = ir.GraphView(
            inputs, outputs, nodes=self.nodes, initializers=constants, opset_imports=opsets, name="readers"
        )
        graph = view.clone()
        for value in graph.inputs:
            if value.type is None and value.name:
                value.type = ir.TensorType(ir.DataType.from_numpy(values[value.name].dtype))
        return ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))


def reaches(model: ir.Model, plan: Plan, roots: Sequence[str]) -> Iterator[Reach]:
    """Yield for each root what lies behind it, up to the next computing layers."""
    order = {node: index for index, node in enumerate(model.graph)}
    for root in roots:
        tensor = plan.tensors[root]
        walk = _Walk(order, None if tensor.closed else set(tensor.readers))
        walk.follow(tensor.value)
        stops = [v for v in walk.stops if v.dtype in (None, ir.DataType.FLOAT)] or [tensor.value]
        nodes = sorted(walk.nodes, key=order.__getitem__)
        inside = {tensor.value, *(v for node in nodes for v in node.outputs)}
        read = [v for node in nodes for v in node.inputs if v is not None and v not in inside]
        sides = dict.fromkeys(v.name for v in read if not v.is_initializer() and v.name)
        yield Reach(root, tuple(nodes), tuple(dict.fromkeys(v.name for v in stops if v.name)), tuple(sides))


class _Walk:
    """From a tensor forward; what is met on the way."""

    def __init__(self, order: Mapping[ir.Node, int], first: set[ir.Node] | None) -> None:
        self._order = order
        self._first = first
        self._seen: set[ir.Value] = set()
        self.nodes: dict[ir.Node, None] = {}
        self.stops: dict[ir.Value, None] = {}

    def follow(self, value: ir.Value) -> None:
        """Follow all that read a value; only the given nodes count at the first step."""
        first, waiting = self._first, [value]
        while waiting:
            current = waiting.pop()
            if current in self._seen:
                continue
            self._seen.add(current)
            if current.is_graph_output() and first is None:
                self.stops[current] = None
            users = dict.fromkeys(user for user, _ in current.uses() if first is None or user in first)
            first = None
            for user in users:
                if user in self._order and not _has_body(user):
                    waiting.extend(self._through(user))
                else:
                    self.stops[current] = None

    def _through(self, node: ir.Node) -> Iterator[ir.Value]:
        """Where a walk goes on behind a node; an end is noted."""
        self.nodes[node] = None
        if is_default_domain(node, *_MOVING):
            yield from node.outputs
            return
        for out in node.outputs:
            last = self._behind(out)
            if last.uses() or last.is_graph_output():
                self.stops[last] = None

    def _behind(self, out: ir.Value) -> ir.Value:
        """The value behind the activation that alone reads `out`."""
        users = [user for user, _ in out.uses()]
        if len(users) != 1 or out.is_graph_output() or users[0] not in self._order:
            return out
        if not is_default_domain(users[0], *_ACTIVATIONS):
            return out
        self.nodes[users[0]] = None
        return users[0].outputs[0]


def _has_body(node: ir.Node) -> bool:
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
