"""Remove what nothing reads.

onnx-ir's RemoveUnusedNodesPass is not used: it also rewrites live nodes (drops optional outputs and attributes) and
removes nodes of other domains, whose side effects it cannot know.
"""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["drop_dead"]

_QUANTIZATION_ANNOTATION = "quant_parameter_tensor_names"  # key in onnx-ir's Value.meta


def drop_dead(model: ir.Model) -> list[str]:
    """Remove unread nodes of the ONNX domain, then unread initializers; at most one line for each of the two."""
    nodes = _drop_nodes(model.graph)
    annotated = _annotated(model)
    unused = 0
    for graph in (model.graph, *model.graph.subgraphs()):
        for name, value in list(graph.initializers.items()):
            if not (value.uses() or value.is_graph_output() or value.is_graph_input() or name in annotated):
                del graph.initializers[name]
                unused += 1
    lines = [f"removed {_count(nodes, 'node')} whose outputs nothing reads"] if nodes else []
    return lines + ([f"removed {_count(unused, 'unused initializer')}"] if unused else [])


def _drop_nodes(graph: ir.Graph) -> int:
    count = 0
    for node in reversed(graph):
        live = any(v.uses() or v.is_graph_output() for v in node.outputs)
        if not live and node.domain in ("", "ai.onnx"):
            graph.remove(node, safe=True)
            count += 1
            continue
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                count += _drop_nodes(attribute.as_graph())
            elif attribute.type == ir.AttributeType.GRAPHS:
                count += sum(_drop_nodes(body) for body in attribute.as_graphs())
    return count


def _annotated(model: ir.Model) -> set[str]:
    """Names that only a quantization annotation mentions (scales and zero points)."""
    names: set[str] = set()
    for node in model.graph.all_nodes():
        for value in (*node.inputs, *node.outputs):
            if value is not None and _QUANTIZATION_ANNOTATION in value.meta:
                names.update(value.meta[_QUANTIZATION_ANNOTATION].values())
    return names


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
