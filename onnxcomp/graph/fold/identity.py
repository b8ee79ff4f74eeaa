"""Drop nodes that do nothing: Identity, and Dropout in inference.

onnx-ir's IdentityEliminationPass is not used: it renames a value that is a graph output already, renames values of the
outer scope from inside a branch, and merges shapes towards the static one, which freezes symbolic dimensions.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxcomp.graph.fold.values import bypass, constant, is_op, title

__all__ = ["drop_identities"]


def drop_identities(graph: ir.Graph) -> list[str]:
    """Remove every Identity and inference Dropout of this graph that can go; one line each.

    The names of graph outputs stay. Kept are: a node between a graph output and a graph input, an initializer, a value
    of an outer scope or another graph output (each needs a node of its own), and a Dropout whose mask is read or that
    may train.
    """
    lines: list[str] = []
    for node in graph:
        if not (is_op(node, "Identity") or _is_idle_dropout(node, graph)):
            continue
        source, output = node.inputs[0], node.outputs[0]
        if source is None:
            continue
        is_output = output.is_graph_output()
        producer = source.producer()
        if is_output and (producer is None or producer.graph is not graph or source.is_graph_output()):
            continue
        line = f"removed {title(node)}"
        bypass(node, output, source, take_name=is_output)
        lines.append(line)
    return lines


def _is_idle_dropout(node: ir.Node, graph: ir.Graph) -> bool:
    if not is_op(node, "Dropout"):
        return False
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        return False
    if len(node.inputs) > 2 and node.inputs[2] is not None:  # training_mode, from opset 12 on
        training = constant(node.inputs[2])
        return training is not None and not training.any()
    return "is_test" not in node.attributes or node.attributes.get_int("is_test", 0) == 1
