"""Weights of fewer than 8 bits inside Q/DQ pairs, in a form that still fuses.

A DequantizeLinear of int4 does not fuse with the convolution behind it. But codes of 4 or 2 bits that are cast to int8
are folded when the model is loaded; what the runtime then sees is an int8 weight like any other. So the file shrinks
and the arithmetic stays: initializer (int4 or int2) -> Cast to int8 -> DequantizeLinear.

A row that uses the codes -1 ... 2 is stored with its signs turned, as int2 ends at 1, and multiplied by -1 after the
cast; that too is folded.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.graph.edit import ORIGIN, PASS, add_initializer, drop_unused, names_of, origin_of, unique_name
from onnxcomp.quantize.constants import dequantizer
from onnxcomp.quantize.storage import narrow

__all__ = ["narrow_weights"]


def narrow_weights(model: ir.Model, layers: Iterable[tuple[ir.Node, int]]) -> None:
    """Store the int8 weights of a quantized model's layers in as few bits as they have, in place.

    Args:
        model: A quantized model, of an opset that has the types (:func:`onnxcomp.quantize.storage.admit`).
        layers: Nodes with the bits of their weights; 5 and more stay in 8.
    """
    pairs = {dequantizer(node, 1): (node, bits) for node, bits in layers if bits <= 4}
    taken = names_of(model.graph)
    for pair, (node, bits) in pairs.items():
        _store(model.graph, pair, node, bits, taken)


def _store(graph: ir.Graph, pair: ir.Node, node: ir.Node, bits: int, taken: set[str]) -> None:
    wide = pair.inputs[0]
    assert wide is not None and wide.const_value is not None
    axis = pair.attributes.get_int("axis", 0)
    codes, signs = _turned(wide.const_value.numpy().astype(np.int8), axis, bits)
    base = (wide.name or "weight").removesuffix(".quantized")
    stored = add_initializer(
        graph, unique_name(graph, f"{base}.int{2 if bits == 2 else 4}", taken), narrow(codes, bits)
    )
    made = [ir.node("Cast", [stored], attributes={"to": ir.DataType.INT8.value})]
    if signs is not None:
        factors = add_initializer(graph, unique_name(graph, f"{base}.signs", taken), signs)
        made.append(ir.node("Mul", [made[0].outputs[0], factors]))
    for new in made:
        new.name = unique_name(graph, f"{base}.{new.op_type}", taken)
        new.outputs[0].name = unique_name(graph, f"{base}.{new.op_type.lower()}", taken)
        new.metadata_props.update({ORIGIN: origin_of(node), PASS: "int8"})
    graph.insert_before(pair, made)
    pair.replace_input_with(0, made[-1].outputs[0])
    drop_unused(graph, [wide])


def _turned(codes: NDArray[np.int8], axis: int, bits: int) -> tuple[NDArray[np.int8], NDArray[np.int8] | None]:
    """Codes that the type holds, and the signs by which rows were turned; None where none was."""
    width = 2 if bits == 2 else 4
    others = tuple(i for i in range(codes.ndim) if i != axis)
    high = codes.max(axis=others, keepdims=True) > 2 ** (width - 1) - 1
    if not high.any():
        return codes, None
    signs = np.where(high, -1, 1).astype(np.int8)
    return codes * signs, signs
