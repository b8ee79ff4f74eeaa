"""What became of every layer of the user's model: its cost, its time and its error, before and after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxcomp.cost import Cost, node_macs, tensor_cost
from onnxcomp.graph.edit import PASS, origin_of
from onnxcomp.subject import operator_name

__all__ = ["Layer", "layer_costs"]


@dataclass(frozen=True, slots=True)
class Layer:
    """One node of the user's model, and the nodes of the result that stand for it.

    Constants that several nodes read belong to the first of them, so that layers add up to the model.

    Attributes:
        name: Its name, or that of its first output where it has none.
        op_type: Operator; with its domain where that is not the default one.
        before: Its cost in the model that was canonicalised.
        after: The cost of the nodes that stand for it in the result.
        nodes: The number of these; 0 where it is gone.
        passes: The passes that rewrote it, in the order they ran.
        before_ms: Time it takes in the model as it was, milliseconds a run; None where nothing was timed.
        after_ms: Time that the nodes take which stand for it, likewise.
        sqnr: Signal-to-noise ratio of its output, behind the activation where one follows, dB, what came before it
            being compressed too; inf where equal; None without data, or where the result does not compute it.
    """

    name: str
    op_type: str
    before: Cost
    after: Cost
    nodes: int
    passes: tuple[str, ...]
    before_ms: float | None = None
    after_ms: float | None = None
    sqnr: float | None = None


def layer_costs(start: ir.Model, result: ir.Model, rewrites: Iterable[tuple[str, Iterable[str]]]) -> tuple[Layer, ...]:
    """Sum up by layer what two models cost.

    Args:
        start: The user's model after canonicalisation.
        result: What the passes made of it.
        rewrites: (name of a pass, names of the layers that it changed), in the order they ran.

    Returns:
        A layer a node of `start`, in its order; then those of nodes that passes added for no layer in particular.
    """
    old, new = _by_layer(start), _by_layer(result)
    found = {name: nodes[0].op for name, nodes in (*new.items(), *old.items())}
    done = _passes(rewrites, new)
    return tuple(
        Layer(
            name,
            found[name],
            _sum(old.get(name, ())),
            _sum(new.get(name, ())),
            len(new.get(name, ())),
            done.get(name, ()),
        )
        for name in (*old, *(name for name in new if name not in old))
    )


@dataclass(frozen=True, slots=True)
class _Node:
    op: str
    cost: Cost
    made_by: str | None


def _by_layer(model: ir.Model) -> dict[str, list[_Node]]:
    """The nodes of a model by the layer that they stand for, bodies included."""
    counted: set[ir.Value] = set()
    layers: dict[str, list[_Node]] = {}
    for node in model.graph.all_nodes():
        cost = Cost(0, node_macs(node), 0)
        for value in _constants(node):
            if value not in counted:
                counted.add(value)
                cost += tensor_cost(value.const_value)
        layers.setdefault(origin_of(node), []).append(_Node(operator_name(node), cost, node.metadata_props.get(PASS)))
    return layers


def _constants(node: ir.Node) -> Iterator[ir.Value]:
    return (value for value in node.inputs if value is not None and value.is_initializer())


def _sum(nodes: Sequence[_Node]) -> Cost:
    return sum((node.cost for node in nodes), Cost(0, 0, 0))


def _passes(
    rewrites: Iterable[tuple[str, Iterable[str]]], result: Mapping[str, Sequence[_Node]]
) -> dict[str, tuple[str, ...]]:
    """The passes of each layer: those that say so, then those that its nodes were made by."""
    done: dict[str, dict[str, None]] = {}
    for name, sites in rewrites:
        for site in sites:
            done.setdefault(site, {})[name] = None
    for layer, nodes in result.items():
        done.setdefault(layer, {}).update({node.made_by: None for node in nodes if node.made_by is not None})
    return {layer: tuple(names) for layer, names in done.items()}
