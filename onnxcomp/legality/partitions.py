"""How a provider that knows only some operators cuts a graph into parts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import onnx_ir as ir

from onnxcomp.legality.finding import Breach, Subject, label
from onnxcomp.legality.pairs import is_constant

__all__ = ["count_partitions", "fallbacks"]


def count_partitions(graph: ir.Graph, takes: Callable[[ir.Node], bool]) -> int:
    """Count the groups of nodes that a provider would run in one go each.

    A group grows as long as a node is ready whose inputs are computed; a node that the provider does not take, and that
    reads from the open group, waits until the group is closed. That is how ONNX Runtime forms its groups
    (core/providers/partitioning_utils.cc, CreateSupportedPartitionNodeGroups).

    Args:
        graph: The main graph, in topological order.
        takes: Whether the provider takes a node.
    """
    waiting = {node: len(_producers(node)) for node in graph}
    ready = deque(node for node in graph if not waiting[node])
    later: deque[ir.Node] = deque()
    border: set[ir.Node] = set()
    count, is_open = 0, False
    while ready or later:
        if not ready:
            count, is_open = count + is_open, False
            border.clear()
            ready, later = later, deque()
            continue
        node = ready.popleft()
        if takes(node):
            is_open = True
            border.discard(node)
            border.update(_consumers(node))
        elif node in border:
            later.append(node)
            continue
        for user in _consumers(node):
            waiting[user] -= 1
            if not waiting[user]:
                ready.append(user)
    return count + is_open


def fallbacks(subject: Subject, reason: Callable[[ir.Node], str], provider: str, remedy: str) -> list[Breach]:
    """One breach a reason and operator, naming the first node, the number of nodes, and into how many parts all of them
    cut the graph.

    Args:
        subject: The model.
        reason: Why the provider leaves a node to the CPU; empty where it takes it.
        provider: Its name.
        remedy: What to do.
    """
    # What is made of constants alone is folded before a provider is asked.
    reasons = {n: "" if is_constant(n.outputs[0]) else reason(n) for n in subject.model.graph if n.outputs}
    groups: dict[tuple[str, str], list[ir.Node]] = {}
    for node, why in reasons.items():
        if why:
            groups.setdefault((node.op_type, why), []).append(node)
    if not groups:
        return []
    parts = count_partitions(subject.model.graph, lambda node: not reasons.get(node))
    total = f"{provider} runs the rest in {parts} part{'' if parts == 1 else 's'}"
    return [
        Breach(label(nodes[0]), f"{op_type} {_times(nodes)}falls back to the CPU: {why}; {total}", remedy)
        for (op_type, why), nodes in groups.items()
    ]


def _times(nodes: list[ir.Node]) -> str:
    return "" if len(nodes) == 1 else f"(here and at {len(nodes) - 1} other{'' if len(nodes) == 2 else 's'}) "


def _producers(node: ir.Node) -> set[ir.Node]:
    made = (value.producer() for value in node.inputs if value is not None)
    return {producer for producer in made if producer is not None and producer.graph is node.graph}


def _consumers(node: ir.Node) -> list[ir.Node]:
    users = (user for value in node.outputs for user, _ in value.uses())
    return [user for user in dict.fromkeys(users) if user.graph is node.graph]
