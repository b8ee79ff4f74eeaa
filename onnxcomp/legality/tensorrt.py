"""Rules of NVIDIA TensorRT: what its ONNX parser refuses.

None of these were run against TensorRT itself; each restates a published rule. Sources: onnx-tensorrt, operators.md of
TensorRT 10.15 (operators and types) and onnxOpImporters.cpp (QuantizeLinear, DequantizeLinear); NVIDIA, TensorRT
documentation, "Working with Quantized Types" and "ONNX Opset Guide" for TensorRT 11.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxcomp.legality.finding import Breach, Rule, Subject, label
from onnxcomp.legality.pairs import WEIGHTED, Quantizer, dequantizer, is_constant, is_pair, output_axis, quantizers
from onnxcomp.legality.tensorrt_advice import ADVICE
from onnxcomp.legality.tensorrt_graph import GRAPH_RULES

__all__ = ["RULES"]

_STORAGE = (ir.DataType.INT8, ir.DataType.INT4, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT4E2M1)
_FOUR_BIT = (ir.DataType.INT4, ir.DataType.FLOAT4E2M1)
_RETARGET = "make it with --target tensorrt, or 'onnxcomp retarget' it"


def _zero_point(subject: Subject) -> Iterator[Breach]:
    """Quantization is symmetric: every zero point is a constant 0 [onnxOpImporters.cpp, QuantDequantLinearHelper]."""
    for pair in quantizers(subject.nodes):
        if not pair.zero_given or pair.storage == ir.DataType.INT32:
            continue
        if pair.zero is None:
            what = f"{pair.node.op_type} has a zero point that is not a constant"
            yield Breach(label(pair.node), what, "make it an initializer of zeros")
        elif np.any(pair.zero != 0):
            what = f"{pair.node.op_type} has zero point {_first(pair.zero != 0, pair.zero)}; only 0 is allowed"
            yield Breach(label(pair.node), what, _RETARGET)


def _storage(subject: Subject) -> Iterator[Breach]:
    """Integers are int8, or int4 for weights; uint8 fails the node check [onnxOpImporters.cpp; operators.md]."""
    for pair in quantizers(subject.nodes):
        if pair.storage is not None and pair.storage not in (*_STORAGE, ir.DataType.INT32):
            what = f"{pair.node.op_type} stores {pair.storage.name.lower()}; int8 is wanted"
            yield Breach(label(pair.node), what, _RETARGET)


def _bias(subject: Subject) -> Iterator[Breach]:
    """Biases stay in floating point: DequantizeLinear of int32 is rejected [onnx-tensorrt#850, TensorRT#3360]."""
    for pair in quantizers(subject.nodes):
        if pair.storage == ir.DataType.INT32:
            yield Breach(label(pair.node), "an int32 bias behind DequantizeLinear", "store the bias in float32")


def _scale(subject: Subject) -> Iterator[Breach]:
    """Scales are build-time constants and strictly positive [onnxOpImporters.cpp]."""
    for pair in quantizers(subject.nodes):
        if pair.scale is None:
            if not is_constant(pair.node.inputs[1]):
                what = f"{pair.node.op_type} has a scale that is computed at run time"
                yield Breach(label(pair.node), what, "quantize statically, with calibration data")
        elif not np.all(pair.scale.astype(np.float64) > 0):
            bad = _first(~(pair.scale.astype(np.float64) > 0), pair.scale)
            what = f"{pair.node.op_type} has scale {bad}; scales must be positive"
            yield Breach(label(pair.node), what, "use the smallest positive scale where a channel is all zero")


def _scale_count(subject: Subject) -> Iterator[Breach]:
    """A per-axis scale has as many elements as the axis, and as many zero points [onnxOpImporters.cpp]."""
    for pair in quantizers(subject.nodes):
        data = pair.node.inputs[0]
        if pair.scale is None or pair.block or data is None:
            continue
        if pair.zero is not None and pair.zero.size != pair.scale.size:
            what = f"{pair.node.op_type} has {pair.scale.size} scales and {pair.zero.size} zero points"
            yield Breach(label(pair.node), what, "give one zero point a scale")
        shape = data.shape
        if pair.scale.size == 1 or shape is None:
            continue
        size = shape[pair.axis] if -len(shape) <= pair.axis < len(shape) else 0
        if isinstance(size, int) and size != pair.scale.size:
            what = f"{pair.node.op_type} has {pair.scale.size} scales for the {size} slices of axis {pair.axis}"
            yield Breach(label(pair.node), what, "give one scale a slice, or a single one")


def _activation_axis(subject: Subject) -> Iterator[Breach]:
    """Activations have one scale; only weights have one a channel [onnxOpImporters.cpp; developer guide]."""
    for pair in quantizers(subject.nodes):
        if not pair.weight and pair.per_axis and pair.storage != ir.DataType.INT32:
            what = f"{pair.node.op_type} has several scales for an activation"
            yield Breach(label(pair.node), what, "use one scale for the tensor; only weights may have one a channel")


def _weight_axis(subject: Subject) -> Iterator[Breach]:
    """Scales of a weight run over its output channels: Conv 0, ConvTranspose 1, Gemm 0 with transB, else 1 [developer
    guide; Model Optimizer]."""
    for node, weight in _weights(subject):
        value, wanted = node.inputs[1], output_axis(node)
        if not weight.per_axis or weight.block or value is None:
            continue
        rank = len(value.shape) if value.shape is not None else 0
        axis = weight.axis + rank if weight.axis < 0 else weight.axis
        if axis != wanted:
            what = f"its weight has scales along axis {axis}; {node.op_type} wants axis {wanted}"
            yield Breach(label(node), what, f"quantize the weight along axis {wanted}")


def _four_bits(subject: Subject) -> Iterator[Breach]:
    """int4 and fp4 are for constant weights; int4 has one blocked axis, and an even last dimension [operators.md;
    quantized types]."""
    for pair in quantizers(subject.nodes):
        if pair.storage not in _FOUR_BIT:
            continue
        name = "int4" if pair.storage == ir.DataType.INT4 else "fp4"
        shape = pair.node.inputs[0].shape if pair.node.inputs[0] is not None else None
        if not pair.weight and pair.storage == ir.DataType.INT4:
            yield Breach(label(pair.node), f"{name} activations", "keep 4 bits for weights; use int8 here")
        elif shape is not None and len(shape) and isinstance(shape[-1], int) and shape[-1] % 2:
            what = f"a {name} weight whose last dimension is {shape[-1]}"
            yield Breach(label(pair.node), what, "use int8 for this layer, or pad the weight to an even size")


def _integer_operator(subject: Subject) -> Iterator[Breach]:
    """Quantized types are for QuantizeLinear and DequantizeLinear alone; no other operator reads or writes them
    [operators.md, columns of types]."""
    for node in subject.nodes:
        if is_pair(node) or node.op_type in ("Constant", "If", "Loop", "Scan"):
            continue
        found = next((v for v in (*node.inputs, *node.outputs) if v is not None and v.dtype in _STORAGE), None)
        if found is not None and found.dtype is not None:
            what = f"{node.op_type} works on integers ({found.name!r}, {found.dtype.name.lower()})"
            yield Breach(label(node), what, "put it behind DequantizeLinear, or make it with --target tensorrt")


def _weights(subject: Subject) -> Iterator[tuple[ir.Node, Quantizer]]:
    """Weighted nodes with a quantized constant weight."""
    for node in subject.nodes:
        if node.op_type in WEIGHTED and not node.domain:
            weight = dequantizer(node.inputs[1])
            if weight is not None and weight.weight:
                yield node, weight


def _first(where: np.ndarray, array: np.ndarray) -> object:
    return array.reshape(-1)[np.asarray(where).reshape(-1)][0].item()


RULES = (
    *GRAPH_RULES,
    Rule("trt-zero-point", "error", _zero_point),
    Rule("trt-storage", "error", _storage),
    Rule("trt-bias", "error", _bias),
    Rule("trt-scale", "error", _scale),
    Rule("trt-scale-count", "error", _scale_count),
    Rule("trt-activation-axis", "error", _activation_axis),
    Rule("trt-weight-axis", "error", _weight_axis),
    Rule("trt-4-bit", "error", _four_bits),
    Rule("trt-integer-operator", "error", _integer_operator, general=True),
    *ADVICE,
)
