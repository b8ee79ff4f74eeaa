"""Replace a node by a chain, with names, provenance and signature kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.graph.decoding import is_decoded

__all__ = [
    "ORIGIN",
    "PASS",
    "Link",
    "add_initializer",
    "merge_equal",
    "origin_of",
    "replace_by_chain",
    "unique_name",
]

ORIGIN = "onnxcomp.origin"
PASS = "onnxcomp.pass"


@dataclass(frozen=True, slots=True)
class Link:
    """One node of a replacement chain.

    Attributes:
        role: Short name that is unique in the chain (``first``, ``core``, ``last``); suffix of the node's and tensors'
            names.
        op_type: Operator of the default domain.
        constants: The inputs after the data inputs, in order (weight, then bias).
        attributes: ONNX attributes.
        inputs: Roles of the links whose outputs this node reads; empty: the previous link (the site's input for the
            first one). The role ``""`` is the site's input. None: it reads constants alone, as what decodes a weight.
        ahead: How many of the constants come before the inputs (the table of a Gather).
    """

    role: str
    op_type: str
    constants: tuple[NDArray[np.generic], ...] = ()
    attributes: Mapping[str, int | float | str | tuple[int, ...]] = field(
        default_factory=dict[str, "int | float | str | tuple[int, ...]"]
    )
    inputs: tuple[str, ...] | None = ()
    ahead: int = 0


def unique_name(graph: ir.Graph, wanted: str, taken: set[str] | None = None) -> str:
    """Return `wanted`, or `wanted` with a number, such that no value or node of the graph has that name."""
    names = taken if taken is not None else names_of(graph)
    name, k = wanted, 1
    while name in names:
        name, k = f"{wanted}_{k}", k + 1
    names.add(name)
    return name


def names_of(graph: ir.Graph) -> set[str]:
    """Return every value and node name in the graph and its subgraphs."""
    names = {v.name for v in graph.inputs} | set(graph.initializers)
    for node in graph.all_nodes():
        names.add(node.name)
        names.update(v.name for v in node.outputs)
        names.update(v.name for v in node.inputs if v is not None)
    return {n for n in names if n}


def add_initializer(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """Register a new initializer; `name` must be free."""
    tensor = ir.tensor(np.asarray(array, order="C"), name=name)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    graph.register_initializer(value)
    return value


def merge_equal(graph: ir.Graph, pass_name: str) -> None:
    """Store and compute but once what several nodes decode weights from, in place."""
    first: dict[tuple[object, ...], ir.Value] = {}
    done: dict[tuple[object, ...], ir.Value] = {}
    for node in list(graph):
        output = node.outputs[0] if node.outputs else None
        if node.metadata_props.get(PASS) != pass_name or output is None or not is_decoded(output):
            continue
        for index, value in enumerate(node.inputs):
            if value is None or value.const_value is None or not value.is_initializer() or value.is_graph_input():
                continue
            tensor = value.const_value
            content = sha256(tensor.tobytes()).digest()
            kept = first.setdefault((tensor.dtype, tuple(tensor.shape.numpy()), content), value)
            if kept is not value:
                node.replace_input_with(index, kept)
                drop_unused(graph, [value])
        key = (node.op_type, tuple(node.inputs), tuple(sorted((k, str(v.value)) for k, v in node.attributes.items())))
        same = done.setdefault(key, output)
        if same is not output and not output.is_graph_output():
            output.replace_all_uses_with(same)
            graph.remove(node, safe=True)


def origin_of(node: ir.Node) -> str:
    """Return the name of the node in the user's own model that this node stands for."""
    name = node.metadata_props.get(ORIGIN) or node.name
    if name:
        return name
    return (node.outputs[0].name or "") if node.outputs else ""


def replace_by_chain(
    node: ir.Node, chain: Sequence[Link], pass_name: str, taken: set[str] | None = None
) -> list[ir.Node]:
    """Replace `node` in its graph by `chain`; the last link writes the node's output value under its old name.

    Weight initializers of the old node that nobody else uses are removed. Every new node carries where it came from.

    Args:
        node: A node with one data input (its first) and one used output, in a graph.
        chain: The links, in order; each one's constants become initializers.
        pass_name: Name of the pass, for provenance.
        taken: The graph's names if the caller keeps them (so that many replacements stay linear); updated.

    Returns:
        The new nodes, in order.
    """
    graph = node.graph
    assert isinstance(graph, ir.Graph), "only nodes of a graph are rewritten"
    names = taken if taken is not None else names_of(graph)
    base = node.name or node.outputs[0].name or node.op_type
    source = node.inputs[0]
    old_constants = [v for v in node.inputs[1:] if v is not None]
    made: dict[str, ir.Value | None] = {"": source}
    previous = ""
    decoders: set[str] = set()
    nodes: list[ir.Node] = []
    for link in chain:
        roles = () if link.inputs is None else link.inputs or (previous,)
        inputs = [made[role] for role in roles]
        constants = [
            add_initializer(graph, unique_name(graph, f"{base}.{link.role}.{kind}", names), array)
            for kind, array in zip(_kinds(link), link.constants, strict=True)
        ]
        new = ir.node(
            link.op_type,
            [*constants[: link.ahead], *inputs, *constants[link.ahead :]],
            attributes=_attributes(link.attributes),
            name=unique_name(graph, f"{base}.{link.role}", names),
        )
        new.outputs[0].name = unique_name(graph, f"{node.outputs[0].name}.{link.role}", names)
        if any(role not in decoders for role in roles):
            new.outputs[0].type = node.outputs[0].type
        else:
            decoders.add(link.role)  # its type is for shape inference to tell
        new.metadata_props.update(node.metadata_props)
        new.metadata_props.update({ORIGIN: origin_of(node), PASS: pass_name})
        made[link.role] = new.outputs[0]
        nodes.append(new)
        previous = link.role
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [node.outputs[0]], [nodes[-1].outputs[0]])
    drop_unused(graph, old_constants)
    return nodes


def drop_unused(graph: ir.Graph, values: Iterable[ir.Value]) -> None:
    """Remove those of `values` that are initializers which nothing uses and that are no graph inputs or outputs."""
    for value in values:
        if (
            value.name is not None
            and value.name in graph.initializers
            and not value.uses()
            and not value.is_graph_output()
            and not value.is_graph_input()
        ):
            del graph.initializers[value.name]


def _kinds(link: Link) -> tuple[str, ...]:
    """What the constants of a link are, for their names."""
    count = len(link.constants)
    if link.op_type == "DequantizeLinear":
        known: tuple[str, ...] = ("codes", "scale", "zero_point")
    elif link.inputs is None:
        known = ("codes",)
    else:  # a weight that comes from another link is no constant
        known = ("bias",) if len(link.inputs) > 1 else ("weight", "bias")
    return (*known, *(f"constant{i}" for i in range(len(known), count)))[:count]


def _attributes(
    attributes: Mapping[str, int | float | str | tuple[int, ...]],
) -> dict[str, int | float | str | list[int]]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in attributes.items()}
