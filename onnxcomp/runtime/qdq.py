"""Reading Q/DQ patterns: what is quantized around a node, and which of the runtime's fusion rules it misses."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

__all__ = ["is_quantized_kernel", "reason_for_float", "touches_pairs"]

# Operators for which the CPU provider has an integer kernel or drops the pair around them.
_INTEGER_OPS = frozenset(
    {
        *(
            "Conv",
            "MatMul",
            "Gemm",
            "Add",
            "Mul",
            "Concat",
            "AveragePool",
            "GlobalAveragePool",
            "LeakyRelu",
            "Sigmoid",
            "Softmax",
            "Where",
        ),
        *(
            "Split",
            "Resize",
            "MaxPool",
            "ReduceMax",
            "ReduceMin",
            "Reshape",
            "Transpose",
            "Flatten",
            "Squeeze",
            "Unsqueeze",
        ),
        *("Slice", "Gather", "GatherElements", "Expand", "Tile", "ArgMax"),
    }
)
_SAME_SCALE = frozenset(
    {"Split", "Resize", "MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather"}
)
_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul", "ConvTranspose"})
_OUTPUT_OPTIONAL = frozenset({"Gemm", "MatMul"})
_KERNELS = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul", "QAttention")


def is_quantized_kernel(node: ir.Node) -> bool:
    """Whether the operator itself computes on integers."""
    return node.op_type.startswith(_KERNELS)


def touches_pairs(node: ir.Node) -> bool:
    """Whether a node reads a dequantized activation or writes one that is quantized."""
    reads = any(_dequantize(v) is not None for v in node.inputs)
    writes = any(user.op_type == "QuantizeLinear" for value in node.outputs for user, _ in value.uses())
    return reads or writes


def reason_for_float(node: ir.Node) -> str:
    """Return which rule of ``DequantizeLinear -> op -> QuantizeLinear`` a node breaks; "" where none is seen."""
    if node.op_type not in _INTEGER_OPS:
        return f"the runtime has no integer kernel for {node.op_type}"
    inputs = _inputs_reason(node)
    return inputs or _output_reason(node)


def _inputs_reason(node: ir.Node) -> str:
    if node.op_type in _WEIGHTED and not any(_dequantize(v) is not None for v in node.inputs[:2]):
        return "not quantized"
    data = node.inputs[:2] if node.op_type in _WEIGHTED or node.op_type in ("Add", "Mul") else node.inputs
    if node.op_type in _SAME_SCALE or node.op_type in (
        "AveragePool",
        "GlobalAveragePool",
        "LeakyRelu",
        "Sigmoid",
        "Softmax",
    ):
        data = node.inputs[:1]
    for i, value in enumerate(data):
        pair = _dequantize(value)
        if value is None or pair is not None:
            continue
        if node.op_type in _WEIGHTED and i == 1:
            constant = value.const_value is not None
            return f"the weight {value.name!r} is {'not quantized' if constant else 'not a constant'}"
        return f"its input {value.name!r} is not quantized"
    pair = _dequantize(node.inputs[0])
    if pair is not None and _is_branching_int8(pair):
        return (
            "its input is int8 and has several readers: x86 kernels want uint8, and only unbranched pairs are rewritten"
        )
    return ""


def _output_reason(node: ir.Node) -> str:
    if node.op_type in _OUTPUT_OPTIONAL:
        return ""
    for out in node.outputs:
        if out.is_graph_output():
            return f"its output {out.name!r} is a graph output"
        for user, _ in out.uses():
            if user.op_type == "QuantizeLinear":
                continue
            if user.op_type in ("Relu", "Clip"):
                return _activation_reason(user)
            return f"its output is read in float by {user.op_type} {user.name or ''}".rstrip()
    if node.op_type in _SAME_SCALE and not _same_parameters(node):
        return f"{node.op_type} needs the same scale and zero point before and after"
    return ""


def _activation_reason(activation: ir.Node) -> str:
    readers = [user for user, _ in activation.outputs[0].uses()]
    if not readers or any(user.op_type != "QuantizeLinear" for user in readers):
        return f"the {activation.op_type} after it is not quantized"
    return f"the {activation.op_type} after it clips values that the scale and zero point after it can represent"


def _dequantize(value: ir.Value | None) -> ir.Node | None:
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def _is_branching_int8(pair: ir.Node) -> bool:
    stored = pair.inputs[0]
    zero = pair.inputs[2] if len(pair.inputs) > 2 else None
    is_int8 = zero is not None and zero.dtype == ir.DataType.INT8
    return is_int8 and stored is not None and (len(stored.uses()) > 1 or len(pair.outputs[0].uses()) > 1)


def _same_parameters(node: ir.Node) -> bool:
    before = _dequantize(node.inputs[0])
    after = next((user for user, _ in node.outputs[0].uses()), None)
    if before is None or after is None:
        return True
    return all(_equal(a, b) for a, b in zip(before.inputs[1:3], after.inputs[1:3], strict=False))


def _equal(a: ir.Value | None, b: ir.Value | None) -> bool:
    if a is b or a is None or b is None:
        return True
    if a.const_value is None or b.const_value is None:
        return False
    return bool(np.array_equal(a.const_value.numpy(), b.const_value.numpy()))
