"""Questions about values that every fold asks before it touches anything."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.graph.edit import origin_of

__all__ = ["bypass", "constant", "graphs_of", "is_constant", "is_op", "sole_consumer", "title"]


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether the node is one of these operators of the ONNX domain."""
    return node is not None and node.domain in ("", "ai.onnx") and node.op_type in op_types


def title(node: ir.Node) -> str:
    """Operator and name of a node, for people: ``BatchNormalization bn1``."""
    return f"{node.op_type} {origin_of(node)}"


def is_constant(value: ir.Value | None) -> bool:
    """Whether the value is an initializer that no caller can override."""
    return value is not None and value.is_initializer() and value.const_value is not None and not value.is_graph_input()


def constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The array of an initializer that no caller can override, or None."""
    if value is None or not is_constant(value) or value.const_value is None:
        return None
    array: NDArray[np.generic] = value.const_value.numpy()
    return array


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The only reader of a node's output, where it runs exactly when the node does and nobody else sees the value."""
    uses = value.uses()
    producer = value.producer()
    if len(uses) != 1 or value.is_graph_output() or producer is None:
        return None
    reader = next(iter(uses)).node
    return reader if reader.graph is producer.graph else None


def graphs_of(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph and every If/Loop/Scan body; function bodies are left alone."""
    yield model.graph
    yield from model.graph.subgraphs()


def bypass(node: ir.Node, output: ir.Value, source: ir.Value, *, take_name: bool) -> None:
    """Remove `node`, whose `output` has the same elements as `source`: readers of `output` now read `source`.

    With `take_name`, `source` also takes the name, type, shape and metadata of `output` (which may then be a graph
    output); `source` must be a node's output in the same graph, and no graph output itself.
    """
    ir.convenience.replace_all_uses_with(output, source, replace_graph_outputs=True)
    graph = node.graph
    assert graph is not None
    graph.remove(node, safe=True)
    if take_name:
        source.name, source.type, source.shape, source.doc_string = (
            output.name,
            output.type,
            output.shape,
            output.doc_string,
        )
        source.metadata_props.clear()
        source.metadata_props.update(output.metadata_props)
        source.meta.clear()
        source.meta.update(output.meta)
