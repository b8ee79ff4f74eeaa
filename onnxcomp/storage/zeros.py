"""Weights with many zeros in the file: a bit for each entry that says whether it is zero, and the values of the others.

The bits lie eight to a byte. Two shifts take them apart, a running sum numbers the entries that are not zero, and
GatherElements takes each one's value; zeros take the value 0, which comes first. All of that reads constants alone, so
ONNX Runtime does it once, when it loads the model, and what it then sees is a weight like any other. The operators are
those of opset 11.

Only nodes that a pass has marked (:data:`STORE`) are looked at, and only where the form is smaller.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.graph.edit import ORIGIN, PASS, add_initializer, drop_unused, names_of, origin_of, unique_name
from onnxcomp.graph.sites import is_default_domain
from onnxcomp.targets.target import Target

__all__ = ["STORE", "folds", "stored", "stored_size"]

STORE = "onnxcomp.store"
"""The metadata of a node whose weight may get another form in the file: ``auto`` or ``mask``."""

_PASS = "sparsity"
# Bytes of what is not the weight itself: nine nodes, the shapes and shifts that they read, and all their names.
_AROUND = 1000
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_INT32 = ir.DataType.INT32.value


def stored_size(entries: int, nonzeros: int, itemsize: int) -> int:
    """Bytes of a weight in its smaller form, dense or as bits and values, with all that decodes it.

    Args:
        entries: Of the weight.
        nonzeros: Of them, those that are not 0.
        itemsize: Bytes of an entry.
    """
    return min(entries * itemsize, -(-entries // 8) + (nonzeros + 1) * itemsize + _AROUND)


def stored(model: ir.Model, target: Target) -> ir.Model:
    """The model with its marked weights in their smallest lossless form.

    Args:
        model: The model as the passes left it; not modified.
        target: What it is for: only a runtime that folds what decodes a weight gets any but dense ones.

    Returns:
        A clone, or the model itself where no weight gets smaller.
    """
    if not folds(target) or not _stores(model):
        return model
    clone = model.clone()
    taken = names_of(clone.graph)
    for store in _stores(clone):
        _write(clone.graph, store, taken)
    return clone


def folds(target: Target) -> bool:
    """Whether the runtime makes plain weights of what decodes them, when it loads the model."""
    return target.scheme is not None and target.scheme.narrow_weights


@dataclass(frozen=True, slots=True, eq=False)
class _Store:
    """A constant that gets smaller, and the layer that it belongs to."""

    node: ir.Node
    value: ir.Value
    array: NDArray[Any]


def _stores(model: ir.Model) -> list[_Store]:
    """The marked weights that get smaller, each once."""
    found: dict[ir.Value, _Store] = {}
    for node in model.graph:
        if node.metadata_props.get(STORE) not in ("auto", "mask") or not is_default_domain(node, *_WEIGHTED):
            continue
        value = _constant_of(node)
        if value is None or value.const_value is None or value in found:
            continue
        array = value.const_value.numpy()
        dense = array.nbytes
        # Types of less than a byte have forms of their own.
        if value.const_value.dtype.bitwidth >= 8 and stored_size(array.size, _count(array), array.itemsize) < dense:
            found[value] = _Store(node, value, array)
    return list(found.values())


def _constant_of(node: ir.Node) -> ir.Value | None:
    """The initializer that holds a layer's weight, or what it is stored as: codes behind a DequantizeLinear with zero
    point 0, half precision behind a Cast.
    """
    value = node.inputs[1] if len(node.inputs) > 1 else None
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type in ("DequantizeLinear", "Cast"):
        value = producer.inputs[0]
    if value is None or not value.is_initializer() or value.is_graph_input() or value.is_graph_output():
        return None
    return value


def _count(array: NDArray[Any]) -> int:
    return int(np.count_nonzero(array))


def _write(graph: ir.Graph, store: _Store, taken: set[str]) -> None:
    flat = store.array.reshape(-1)
    chain = _Chain(graph, store, taken)
    # Byte j has entry j in its lowest bit, then those that lie eighths of the weight further on: rows are shifted.
    kept = np.zeros(-(-flat.size // 8) * 8, np.bool_)
    kept[: flat.size] = flat != 0
    bits = np.packbits(kept.reshape(8, -1), axis=0, bitorder="little")
    value = chain.add("BitShift", chain.constant("bits", bits), chain.constant("left", _LEFT), direction="LEFT")
    value = chain.add("BitShift", value, chain.constant("right", np.array(7, np.uint8)), direction="RIGHT")
    value = chain.add("Reshape", value, chain.constant("line", np.array([-1], np.int64)))
    value = chain.add("Cast", value, to=_INT32)
    number = chain.add("CumSum", value, chain.constant("axis", np.array(0, np.int64)))
    index = chain.add("Mul", number, value)
    values = np.concatenate([np.zeros(1, flat.dtype), flat[flat != 0]])
    value = chain.add("GatherElements", chain.constant("values", values), index)
    if flat.size % 8:
        ends = [chain.constant(name, np.array([at], np.int64)) for name, at in (("start", 0), ("end", flat.size))]
        value = chain.add("Slice", value, *ends)
    value = chain.add("Reshape", value, chain.constant("shape", np.array(store.array.shape, np.int64)))
    value.shape, value.type = ir.Shape(store.array.shape), store.value.type
    for user, index_of in tuple(store.value.uses()):
        user.replace_input_with(index_of, value)
    first = next(user for user in graph if any(v is value for v in user.inputs))
    graph.insert_before(first, chain.nodes)
    drop_unused(graph, [store.value])


_LEFT = np.arange(7, -1, -1, dtype=np.uint8)[:, None]
"""By how much a bit is shifted to the left to be the highest; 7 to the right then leave it alone."""


@dataclass
class _Chain:
    """The nodes that decode a weight, under construction."""

    graph: ir.Graph
    store: _Store
    taken: set[str]
    nodes: list[ir.Node] = field(default_factory=list[ir.Node])

    def constant(self, role: str, array: NDArray[Any]) -> ir.Value:
        return add_initializer(
            self.graph, unique_name(self.graph, f"{self.store.value.name}.{role}", self.taken), array
        )

    def add(self, op_type: str, *inputs: ir.Value, **attributes: int | str) -> ir.Value:
        name = unique_name(self.graph, f"{self.store.value.name}.{op_type}", self.taken)
        node = ir.node(op_type, list(inputs), attributes=attributes, name=name)
        node.outputs[0].name = unique_name(self.graph, f"{self.store.value.name}.{op_type.lower()}", self.taken)
        node.metadata_props.update({ORIGIN: origin_of(self.store.node), PASS: _PASS})
        self.nodes.append(node)
        return node.outputs[0]
