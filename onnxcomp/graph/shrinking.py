"""Remove channels from a model: constants, group counts and shapes follow."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.graph.edit import add_initializer, drop_unused, names_of, unique_name
from onnxcomp.graph.groups import Groups
from onnxcomp.graph.slots import Edit

__all__ = ["remove_classes"]


def remove_classes(model: ir.Model, groups: Groups, removed: NDArray[np.bool_]) -> None:
    """Remove classes of channels, in place; the names of all tensors stay.

    Nothing makes up for what is removed: outputs are the same only where the channels were zero.

    Args:
        model: The model that `groups` was found in; `groups` is out of date afterwards.
        groups: Its classes.
        removed: Whether each class is removed, (count + 1,); the first one, of what stays, is False.

    Raises:
        ValueError: `removed` does not fit, or a tensor would have no channels left. The model is as it was then.
    """
    if removed.shape != (groups.count + 1,) or removed.dtype != np.bool_ or removed[0]:
        raise ValueError(f"expected {groups.count + 1} truth values, the first of them False")
    for value, (_, labels) in groups.tensors.items():
        if removed[labels].all():
            raise ValueError(f"no channels of {value.name} would be left")
    taken = names_of(model.graph)
    for edit in groups.edits:
        kept = ~removed[edit.labels]
        if not kept.all():
            _apply(model.graph, edit, kept, taken)
    for value, (axis, labels) in groups.tensors.items():
        kept = ~removed[labels]
        if value.shape is not None and not kept.all():
            dims = list(value.shape)
            dims[axis] = int(np.count_nonzero(kept))
            value.shape = ir.Shape(dims)


def _apply(graph: ir.Graph, edit: Edit, kept: NDArray[np.bool_], taken: set[str]) -> None:
    node, target = edit.node, edit.target
    if isinstance(target, str):
        changed = edit.change(np.asarray(node.attributes.get_int(target, 1), np.int64), kept)
        node.attributes[target] = ir.AttrInt64(target, int(changed))
        return
    value = node.inputs[target] if len(node.inputs) > target else None
    if value is None or value.const_value is None:
        _add_input(graph, node, target, edit.change(np.zeros(0, np.int64), kept), taken)
        return
    array = edit.change(value.const_value.numpy(), kept)
    if len(value.uses()) == 1 and not value.is_graph_output():
        value.const_value = ir.tensor(np.asarray(array, order="C"), dtype=value.const_value.dtype, name=value.name)
        value.shape = ir.Shape(array.shape)
    else:
        node.replace_input_with(target, add_initializer(graph, unique_name(graph, f"{value.name}.kept", taken), array))
        drop_unused(graph, [value])


def _add_input(graph: ir.Graph, node: ir.Node, index: int, array: NDArray[np.int64], taken: set[str]) -> None:
    """Say what a node took from its input's shape (the sizes of Split)."""
    name = unique_name(graph, f"{node.name or node.outputs[0].name}.sizes", taken)
    node.resize_inputs(max(len(node.inputs), index + 1))
    node.replace_input_with(index, add_initializer(graph, name, array))
    node.attributes.pop("num_outputs", None)
