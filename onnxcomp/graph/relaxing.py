"""Make values free where the activation behind them hides what they are: targets that are easier to come close to.

What a Relu reads may be any negative number where its output is zero. A layer that is to take over from others, which
have made the value in another way, should not be fitted to theirs there but left as it is (Zhang et al. 2016, section
3.2, do so for every layer; here it is one exact step).
"""

from __future__ import annotations

from math import isfinite

import numpy as np
import onnx_ir as ir

from onnxcomp.graph.edit import add_initializer, names_of, unique_name

__all__ = ["relax"]


def relax(model: ir.Model, hidden: str, other: str, limits: tuple[float, float]) -> None:
    """Let a value that only a Relu or a Clip reads be another one's where the activation leaves the same of both.

    In place; what the model computes stays the same. Where the value lies outside the limits, on the side where the
    other one is outside too, it becomes the other one; elsewhere outside, the limit. The new value takes its name.

    Args:
        model: The model.
        hidden: Name of the value, which a node makes.
        other: Name of a value of the same shape that is there before it.
        limits: What the activation limits its input to.
    """
    graph, taken = model.graph, names_of(model.graph)
    values = {value.name: value for value in graph.inputs} | {v.name: v for node in graph for v in node.outputs}
    value, instead = values[hidden], values[other]
    producer = value.producer()
    assert producer is not None, "a node makes it"
    nodes: list[ir.Node] = []

    def add(kind: str, *inputs: ir.Value, boolean: bool = False) -> ir.Value:
        node = ir.node(kind, inputs, name=unique_name(graph, f"{hidden}.{kind.lower()}", taken))
        output = node.outputs[0]
        output.name = unique_name(graph, f"{hidden}.{kind.lower()}", taken)
        output.type = ir.TensorType(ir.DataType.BOOL) if boolean else value.type
        output.shape = value.shape
        nodes.append(node)
        return output

    result = value
    for limit, inside, outside in ((limits[0], "Greater", "Min"), (limits[1], "Less", "Max")):
        if isfinite(limit):
            bound = add_initializer(graph, unique_name(graph, f"{hidden}.limit", taken), np.asarray(limit, np.float32))
            result = add("Where", add(inside, value, bound, boolean=True), result, add(outside, instead, bound))
    if result is value:
        return
    own = set(nodes)
    for use in list(value.uses()):
        if use.node not in own:
            use.node.replace_input_with(use.idx, result)
    graph.insert_after(producer, nodes)
    value.name, result.name = unique_name(graph, f"{hidden}.exact", taken), hidden
