"""Constants: Constant nodes become initializers, and what is computed from constants alone is computed now."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import onnx.reference.ops
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from onnxcomp.graph.edit import PASS, add_initializer
from onnxcomp.graph.fold.shapes import Dims
from onnxcomp.graph.fold.values import constant, is_constant, is_op

__all__ = ["FOLDABLE", "GROWTH", "evaluate", "fold_constants", "lift_constants"]

GROWTH = 4096  # bytes that folding one node may add to the file
_LARGEST = 64 << 20  # bytes of input that are read to fold one node

# Deterministic operators whose reference implementation a test compares with ONNX Runtime. Not here: random ones, Q/DQ
# (their constants are the small form), control flow, and anything that computes features.
_ARITHMETIC = (
    "Abs Add And Ceil Clip CumSum Div Equal Exp Floor Greater GreaterOrEqual Less LessOrEqual Log Max Min Mod Mul "
    "Neg Not Or Pow Reciprocal ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Sign Sqrt Sub Sum Where"
)
_ARRANGING = (
    "Cast Concat ConstantOfShape Expand Flatten Gather GatherElements GatherND Pad Range Reshape ScatterElements "
    "ScatterND Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze"
)
FOLDABLE = frozenset((*_ARITHMETIC.split(), *_ARRANGING.split()))
_PLAIN = frozenset("biuf")  # numpy kinds that the reference operators handle


def lift_constants(model: ir.Model) -> list[str]:
    """Turn Constant nodes into initializers of the graph they are in, under the same tensor names; at most one line.

    A Constant that is a graph output stays, and so do those in function bodies (functions have no initializers).
    """
    before = _constant_nodes(model)
    if not before:
        return []
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    count = before - _constant_nodes(model)
    return [f"{count} Constant node{'' if count == 1 else 's'} became initializers"] if count else []


def _constant_nodes(model: ir.Model) -> int:
    return sum(is_op(node, "Constant") for node in model.graph.all_nodes())


def fold_constants(graph: ir.Graph, version: int, trusted: Mapping[str, Dims]) -> list[str]:
    """Replace nodes of this graph whose inputs are constants by initializers under the same tensor names.

    Shape and Size of a value are constants where `trusted` gives every dimension in question; Gather and Slice of a
    Shape where the dimensions they pick are given. Left alone: nodes that an earlier pass made (a weight's decoder is
    the small form of the weight), graph outputs, and results that would add over `GROWTH` bytes to the file.
    """
    folded: list[str] = []
    partial: dict[ir.Value, Dims] = {}
    for node in graph:
        if (
            node.domain not in ("", "ai.onnx")
            or PASS in node.metadata_props
            or any(v.is_graph_output() for v in node.outputs)
        ):
            continue
        if is_op(node, "Shape", "Size", "Gather", "Slice"):
            dims = _dims_of(node, version, trusted, partial)
            if dims is not None:
                partial[node.outputs[0]] = dims
                if None in dims:
                    continue
        arrays = _known(node, partial) or _evaluated(node, version)
        if arrays is None:
            continue
        _replace(graph, node, arrays)
        folded.append(node.op_type)
    return folded


def _known(node: ir.Node, partial: Mapping[ir.Value, Dims]) -> list[NDArray[np.generic]] | None:
    dims = partial.get(node.outputs[0])
    if dims is None:
        return None
    array = np.array(dims, np.int64)
    return [array.reshape(()) if _is_scalar(node) else array]


def _is_scalar(node: ir.Node) -> bool:
    picked = constant(node.inputs[1]) if is_op(node, "Gather") else None
    return is_op(node, "Size") or (picked is not None and picked.ndim == 0)


def _dims_of(node: ir.Node, version: int, trusted: Mapping[str, Dims], partial: Mapping[ir.Value, Dims]) -> Dims | None:
    """The elements of a Shape, a Size, or a Gather or Slice of a Shape; None for each unknown one.

    None as a whole where the node is none of these, or not even the number of elements is known.
    """
    source = node.inputs[0]
    if source is None:
        return None
    if is_op(node, "Shape", "Size"):
        dims = trusted.get(source.name or "")
        if dims is None:
            return None
        if node.op_type == "Size":
            return (int(np.prod([d for d in dims if d is not None], dtype=np.int64)),) if None not in dims else None
        return dims[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(dims))]
    known = partial.get(source)
    picks = [constant(v) for v in node.inputs[1:]]
    if known is None or any(p is None for p in picks) or (node.op_type == "Slice" and version < 10):
        return None
    places = np.arange(len(known), dtype=np.int64)
    try:
        chosen = evaluate(node, version, [places, *picks])
    except (ValueError, IndexError):
        return None
    return None if chosen[0].ndim > 1 else tuple(known[int(i)] for i in np.ravel(chosen[0]))


def _evaluated(node: ir.Node, version: int) -> list[NDArray[np.generic]] | None:
    if node.op_type not in FOLDABLE or not all(v is None or is_constant(v) for v in node.inputs):
        return None
    tensors = [v.const_value for v in node.inputs if v is not None and v.const_value is not None]
    if any(t.dtype == ir.DataType.STRING for t in tensors) or sum(t.nbytes for t in tensors) > _LARGEST:
        return None
    inputs = [constant(v) for v in node.inputs]
    if any(a is not None and a.dtype.kind not in _PLAIN for a in inputs):
        return None
    if (
        node.op_type in ("Div", "Mod")
        and inputs[1] is not None
        and inputs[1].dtype.kind in "iu"
        and not inputs[1].all()
    ):
        return None
    try:
        arrays = evaluate(node, version, inputs)
    except (ValueError, IndexError, TypeError, RuntimeError, NotImplementedError, AttributeError, AssertionError):
        return None  # the runtime reports a broken node better than we could
    if len(arrays) != len(node.outputs) or any(not _fits(v, a) for v, a in zip(node.outputs, arrays, strict=True)):
        return None
    freed = sum(
        v.const_value.nbytes
        for v in set(node.inputs)
        if v is not None and v.const_value is not None and len(v.uses()) == 1
    )
    return arrays if sum(a.nbytes for a in arrays) - freed <= GROWTH else None


def _fits(value: ir.Value, array: NDArray[np.generic]) -> bool:
    return array.dtype.kind in _PLAIN and (value.dtype is None or value.dtype == ir.DataType.from_numpy(array.dtype))


def evaluate(node: ir.Node, version: int, inputs: list[NDArray[np.generic] | None]) -> list[NDArray[np.generic]]:
    """Run one operator of the ONNX domain on arrays, by onnx's reference implementation."""
    attributes = {
        name: ir.to_proto(a.as_tensor()) if a.type == ir.AttributeType.TENSOR else a.value
        for name, a in node.attributes.items()
    }
    with np.errstate(all="ignore"):
        results = _operator(node.op_type, version).eval(*inputs, n_outputs=len(node.outputs), **attributes)
    return [np.asarray(r) for r in (results if isinstance(results, (tuple, list)) else (results,))]


@lru_cache(maxsize=256)
def _operator(op_type: str, version: int) -> Any:
    return onnx.reference.ops.load_op("", op_type, version)


def _replace(graph: ir.Graph, node: ir.Node, arrays: list[NDArray[np.generic]]) -> None:
    outputs = list(node.outputs)
    names = [v.name or "" for v in outputs]
    for k, (value, array) in enumerate(zip(outputs, arrays, strict=True)):
        value.name = f"{names[k]}.folded"  # frees the name for the initializer; the node goes in a moment
        new = add_initializer(graph, names[k], array)
        new.metadata_props.update(value.metadata_props)
        new.meta.update(value.meta)
        value.replace_all_uses_with(new)
    graph.remove(node, safe=True)
