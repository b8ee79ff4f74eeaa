"""The base with the tensors of the other model fed into it: what every layer would make of what reaches it there.

The difference between that and what the other model computes is the error that the layer itself adds, whatever came in
and from however many sides. It needs no model of how noise travels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import onnx_ir as ir

from onnxcomp.comparison.graphs import absorbing
from onnxcomp.graph.edit import names_of, unique_name

__all__ = ["cut_points", "splice"]


def cut_points(values: Iterable[ir.Value], matched: Collection[str], alive: set[ir.Value]) -> set[ir.Value]:
    """The tensors of the base at which a layer ends: those with a counterpart that no activation only follows.

    Args:
        values: Tensors of the base.
        matched: Names of those that have a counterpart.
        alive: What depends on the inputs.
    """
    ends: set[ir.Value] = set()
    for value in values:
        behind = absorbing(value, alive)
        if value.name in matched and (behind is None or behind.name not in matched):
            ends.add(value)
    return ends


def splice(base: ir.Model, ends: Collection[str]) -> tuple[ir.Model, Mapping[str, str]]:
    """Return a copy whose nodes read new inputs instead of the named tensors, and which input stands for which.

    The tensors themselves are still computed, each from the inputs before it.

    Args:
        base: The base, with inferred types; not modified.
        ends: Names of tensors of the main graph that nodes compute.
    """
    clone = base.clone()
    graph, taken = clone.graph, names_of(base.graph)
    inputs: dict[str, str] = {}
    for value in [value for node in graph for value in node.outputs if value.name in ends]:
        assert value.name is not None
        fed = ir.Value(name=unique_name(graph, f"{value.name}.fed", taken), type=value.type)
        for use in list(value.uses()):
            use.node.replace_input_with(use.idx, fed)
        graph.inputs.append(fed)
        inputs[value.name] = fed.name or ""
    return clone, inputs
