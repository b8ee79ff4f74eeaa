"""What a graph is made of: types of its constants, what nodes share, its depth, whether it is quantized already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import onnx_ir as ir

from onnxcomp.record import RECIPE, VERSION

__all__ = ["Made", "Quantized", "Shared", "Stored", "Structure", "structure_of"]

Quantized = Literal["no", "qdq", "qoperator", "dynamic", "weights"]
_INTEGER = frozenset({"QLinearConv", "QLinearMatMul", "QGemm"})
_DYNAMIC = frozenset({"ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"})
_DECODING = frozenset({"DequantizeLinear", "MatMulNBits", "GatherBlockQuantized"})
# Constants below are scales, axes and such.
_WEIGHTS = 16


@dataclass(frozen=True, slots=True)
class Stored:
    """The constants of one type.

    Attributes:
        dtype: Their type.
        tensors: How many there are.
        elements: Their elements, together.
        bytes: What they take in the file.
    """

    dtype: str
    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Shared:
    """A constant that several nodes read.

    Attributes:
        tensor: Its name.
        readers: Number of nodes.
        bytes: What it takes in the file, once.
    """

    tensor: str
    readers: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Made:
    """What a file says about an earlier run of onnxcomp.

    Attributes:
        version: Of onnxcomp.
        passes: Specs of the passes, in order.
        recipe: The recipe with its choices, as it stands in the metadata.
    """

    version: str
    passes: tuple[str, ...]
    recipe: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Structure:
    """The make-up of a graph.

    Attributes:
        stored: Its constants by type, those that take most bytes first.
        shared: Constants of 16 elements or more that several nodes read, largest first.
        depth: Nodes on the longest path from an input to an output, main graph only.
        branches: Values that more than one node reads, main graph only.
        quantized: ``qdq``: QuantizeLinear and DequantizeLinear around float operators; ``qoperator``: operators on
            integers; ``dynamic``: ranges are found at run time; ``weights``: only weights are stored in few bits.
        made: What an earlier run left in the metadata; None where there was none, or what stands there is no recipe.
    """

    stored: tuple[Stored, ...]
    shared: tuple[Shared, ...]
    depth: int
    branches: int
    quantized: Quantized
    made: Made | None


def structure_of(model: ir.Model) -> Structure:
    """Look at a graph; takes time in proportion to the number of its nodes, and reads no weights."""
    graphs = (model.graph, *model.graph.subgraphs())
    constants = [value for graph in graphs for value in graph.initializers.values() if value.const_value is not None]
    return Structure(
        _stored(constants),
        _shared(constants),
        _depth(model.graph),
        sum(len({user for user, _ in value.uses()}) > 1 for value in _computed(model.graph)),
        _quantized(model),
        _made(model),
    )


def _stored(constants: list[ir.Value]) -> tuple[Stored, ...]:
    sums: dict[str, tuple[int, int, int]] = {}
    for value in constants:
        tensor = value.const_value
        assert tensor is not None, "only constants are counted"
        tensors, elements, size = sums.get(name := tensor.dtype.name.lower(), (0, 0, 0))
        sums[name] = tensors + 1, elements + tensor.size, size + tensor.nbytes
    found = (Stored(name, *own) for name, own in sums.items())
    return tuple(sorted(found, key=lambda own: (-own.bytes, own.dtype)))


def _shared(constants: list[ir.Value]) -> tuple[Shared, ...]:
    found: list[Shared] = []
    for value in constants:
        tensor, readers = value.const_value, len({user for user, _ in value.uses()})
        if tensor is not None and readers > 1 and tensor.size >= _WEIGHTS:
            found.append(Shared(value.name or "", readers, tensor.nbytes))
    return tuple(sorted(found, key=lambda own: (-own.bytes, own.tensor)))


def _computed(graph: ir.Graph) -> list[ir.Value]:
    inputs = [value for value in graph.inputs if not value.is_initializer()]
    return [*inputs, *(value for node in graph for value in node.outputs)]


def _depth(graph: ir.Graph) -> int:
    """Longest path, by the order of the nodes, which is topological; what bodies read from outside does not count."""
    lengths: dict[ir.Value, int] = {}
    longest = 0
    for node in graph:
        own = 1 + max((lengths.get(value, 0) for value in node.inputs if value is not None), default=0)
        longest = max(longest, own)
        lengths.update(dict.fromkeys(node.outputs, own))
    return longest


def _quantized(model: ir.Model) -> Quantized:
    operators = {node.op_type for node in model.graph.all_nodes()}
    if operators & _DYNAMIC:
        return "dynamic"
    if operators & _INTEGER:
        return "qoperator"
    if "QuantizeLinear" in operators:
        return "qdq"
    return "weights" if operators & _DECODING else "no"


def _made(model: ir.Model) -> Made | None:
    """The metadata are the file's: whatever stands there may be no recipe."""
    try:
        recipe = json.loads(model.metadata_props.get(RECIPE, "null"))
    except (ValueError, RecursionError):
        return None
    passes = recipe.get("passes") if isinstance(recipe, dict) else None
    if not isinstance(passes, list) or not all(isinstance(spec, str) for spec in passes):
        return None
    return Made(model.metadata_props.get(VERSION, ""), tuple(passes), recipe)
