"""Layers that TensorRT runs no faster on integers, or that are better left in float there.

Restates the exclusions of NVIDIA's Model Optimizer (modelopt/onnx/quantization): tensor cores want 16 channels, with
two forms of 8 that have kernels of their own; products of a matrix and a vector are bound by memory; the layer that
makes an output has its rounding seen at once.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxcomp.graph.sites import static_shape
from onnxcomp.quantize.weighted import Weighted

__all__ = ["unprofitable_in_tensorrt"]

_LEAST = 16
_SMALL = 8
# What may lie between a layer and the output it makes.
_TAIL = frozenset(
    {
        *("Softmax", "LogSoftmax", "Sigmoid", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Concat"),
        *("Identity", "Cast", "Slice", "Split"),
    }
)


def unprofitable_in_tensorrt(w: Weighted) -> str | None:
    """Why TensorRT should not run a layer on integers; None where it should."""
    if _makes_output(w.node.outputs[0]):
        return "it makes an output of the network: left in float for accuracy"
    if w.node.op_type in ("Gemm", "MatMul"):
        return _product_reason(w)
    return _small_channels(w) if w.node.op_type == "Conv" else None


def _makes_output(value: ir.Value) -> bool:
    """Whether a value is a graph output, or one is made from it by moving values or by a last activation."""
    if value.is_graph_output():
        return True
    return any(_is_tail(user) and any(_makes_output(out) for out in user.outputs) for user, _ in value.uses())


def _is_tail(node: ir.Node) -> bool:
    adds_constant = node.op_type == "Add" and any(v is not None and v.is_initializer() for v in node.inputs)
    return node.op_type in _TAIL or adds_constant


def _product_reason(w: Weighted) -> str | None:
    assert w.weight.const_value is not None
    sizes = [d for d in w.weight.const_value.shape if isinstance(d, int)]
    if min(sizes) < _LEAST:
        return f"the weight has {sizes[0]} x {sizes[1]} values: integer kernels want {_LEAST} of both"
    rows = static_shape(w.node.outputs[0])[:-1]
    if len(rows) == 1 and rows[0] == 1:
        return "a matrix times a vector: bound by memory, not by arithmetic"
    return None


def _small_channels(w: Weighted) -> str | None:
    assert w.weight.const_value is not None
    out, channels, *kernel = (d for d in w.weight.const_value.shape if isinstance(d, int))
    if out >= _LEAST and channels >= _LEAST:
        return None
    if w.node.attributes.get_int("group", 1) > 1:
        fits = out % _SMALL == 0 and min(kernel) >= 3
    else:
        first = w.node.inputs[0] is not None and w.node.inputs[0].is_graph_input()
        divides = out % _SMALL == 0 or channels % _SMALL == 0
        fits = divides and len(set(kernel)) == 1 and (first or out >= _LEAST or channels >= _LEAST)
    return None if fits else f"too few channels ({channels} to {out} a group) for an integer kernel"
