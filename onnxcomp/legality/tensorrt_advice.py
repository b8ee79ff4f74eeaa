"""Placements that TensorRT runs, but slower than it could.

Sources: NVIDIA, TensorRT developer guide, explicit quantization, "Q/DQ Layer-Placement Recommendations" (7.4.4 in 8.x);
Model Optimizer, modelopt/onnx/quantization (which layers are worth it). Not measured on TensorRT.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxcomp.graph.fixing import free_inputs
from onnxcomp.legality.finding import Breach, Rule, Subject, label
from onnxcomp.legality.pairs import WEIGHTED, dequantizer, is_pair, readers, reads_quantized
from onnxcomp.quantize.unprofitable import unprofitable_in_tensorrt
from onnxcomp.quantize.weighted import Weighted
from onnxcomp.targets.target import load_target

__all__ = ["ADVICE"]


def _shape(subject: Subject) -> Iterator[Breach]:
    """Free dimensions need an optimization profile [trtexec --minShapes, --optShapes, --maxShapes]."""
    for value in free_inputs(subject.model):
        what = f"the input has free dimensions, {value.shape}: the engine needs an optimization profile"
        remedy = "give trtexec --minShapes, --optShapes and --maxShapes, or fix them with 'check --shapes ... -o OUT'"
        yield Breach(value.name or "", what, remedy)


def _double(subject: Subject) -> Iterator[Breach]:
    """float64 is cast down to float32, values beyond its range are clamped [operators.md]."""
    for node in subject.nodes:
        if any(value.dtype == ir.DataType.DOUBLE for value in node.outputs):
            yield Breach(
                label(node), "computes in float64, which TensorRT casts down to float32", "export it in float32"
            )


def _residual(subject: Subject) -> Iterator[Breach]:
    """Of a residual Add the identity operand has a pair, the convolution's branch has none; then the Add is fused into
    the convolution [developer guide]."""
    for node in subject.nodes:
        if node.op_type != "Add" or node.domain or len(node.inputs) != 2:
            continue
        operands = [v for v in node.inputs if v is not None]
        paired = [(pair := dequantizer(v)) is not None and not pair.weight for v in operands]
        if all(paired) and any(_from_weighted(v) for v in operands):
            what = "both operands have pairs, so that it is not fused into the convolution before it"
            yield Breach(label(node), what, "drop the pair between the convolution and this Add")
        elif not any(paired) and any(_quantized_branch(v) for v in operands) and not any(map(_constant, operands)):
            what = "neither operand has a pair: the convolution before it has to write floats"
            yield Breach(label(node), what, "put a pair before the operand that does not come from the convolution")


def _from_weighted(value: ir.Value) -> bool:
    """Whether a dequantized value was written by a weighted node for one reader alone."""
    pair = dequantizer(value)
    stored = None if pair is None else pair.node.inputs[0]
    quantize = None if stored is None else stored.producer()
    source = None if quantize is None or not is_pair(quantize) else quantize.inputs[0]
    producer = None if source is None else source.producer()
    alone = len(value.uses()) == 1 and stored is not None and len(stored.uses()) == 1
    return producer is not None and producer.op_type in WEIGHTED and alone


def _quantized_branch(value: ir.Value) -> bool:
    producer = value.producer()
    alone = len(value.uses()) == 1
    return producer is not None and producer.op_type in WEIGHTED and alone and reads_quantized(producer)


def _constant(value: ir.Value) -> bool:
    return value.const_value is not None


def _concat(subject: Subject) -> Iterator[Breach]:
    """All inputs of a Concat between pairs have one scale, or it requantizes [Model Optimizer, concat_elimination]."""
    for node in subject.nodes:
        if node.op_type != "Concat" or node.domain:
            continue
        pairs = [dequantizer(v) for v in node.inputs]
        scales = [pair.scale for pair in pairs if pair is not None and pair.scale is not None and not pair.weight]
        if len(scales) == len(pairs) and any(not np.array_equal(scales[0], scale) for scale in scales):
            yield Breach(label(node), "its inputs have different scales", "give all inputs and the output one scale")


def _before_activation(subject: Subject) -> Iterator[Breach]:
    """A convolution, BatchNormalization and Relu stay together; the pair comes behind [developer guide]."""
    for node in subject.nodes:
        if node.op_type in ("Relu", "Clip", "LeakyRelu", "BatchNormalization") and node.inputs:
            value = node.inputs[0]
            if value is not None and _from_weighted(value):
                what = f"a pair stands between a layer and its {node.op_type}, which keeps them from being fused"
                yield Breach(label(node), what, f"put the pair behind the {node.op_type}")


def _half(subject: Subject) -> Iterator[Breach]:
    """A layer on integers has pairs at its data and at its weight [developer guide]; int4 weights may stand alone."""
    for node in subject.nodes:
        if node.op_type not in WEIGHTED or node.domain:
            continue
        weight = dequantizer(node.inputs[1])
        eight = weight is not None and weight.storage == ir.DataType.INT8
        if eight and dequantizer(node.inputs[0]) is None:
            what = "its weight is int8 and its input is not: it runs in float"
            yield Breach(label(node), what, "quantize its input as well")
        elif weight is None and reads_quantized(node):
            what = "its input is int8 and its weight is not: it runs in float"
            yield Breach(label(node), what, "quantize its weight as well")


def _unprofitable(subject: Subject) -> Iterator[Breach]:
    """Layers that gain nothing from integers: few channels, products of a matrix and a vector, the outputs of the
    network [Model Optimizer]."""
    for node in subject.nodes:
        if node.op_type not in WEIGHTED or node.domain or not reads_quantized(node) or _reads_input(node):
            continue
        stored = _weight(node)
        if stored is None:
            continue
        reason = unprofitable_in_tensorrt(Weighted(node, label(node), stored, None, 0))
        if reason:
            yield Breach(label(node), f"is quantized, and gains nothing: {reason}", "leave it in float (--exclude)")


def _weight(node: ir.Node) -> ir.Value | None:
    """The initializer behind a quantized weight, integers or the floats that a QuantizeLinear reads."""
    pair = dequantizer(node.inputs[1])
    value = None if pair is None else pair.node.inputs[0]
    producer = None if value is None else value.producer()
    if producer is not None and is_pair(producer):
        value = producer.inputs[0]
    return value if value is not None and value.const_value is not None else None


def _reads_input(node: ir.Node) -> bool:
    """Whether a layer is the first of the network, for which few channels are no matter."""
    pair = dequantizer(node.inputs[0])
    stored = None if pair is None else pair.node.inputs[0]
    quantize = None if stored is None else stored.producer()
    return quantize is not None and quantize.inputs[0] is not None and quantize.inputs[0].is_graph_input()


def _idle(subject: Subject) -> Iterator[Breach]:
    """A pair that nothing on integers reads costs two passes over the tensor and gains nothing [developer guide: do not
    quantize outputs by default]."""
    scheme = load_target("tensorrt").scheme
    assert scheme is not None
    able = scheme.weighted | scheme.joining
    for node in subject.nodes:
        if node.op_type == "DequantizeLinear" and not node.domain:
            stored = node.inputs[0].producer() if node.inputs[0] is not None else None
            users = readers(node.outputs[0])
            if stored is not None and stored.op_type == "QuantizeLinear" and not any(u.op_type in able for u in users):
                by = ", ".join(sorted({u.op_type for u in users})) or "an output of the network"
                yield Breach(label(node), f"only read by {by}, which computes in float", "drop the pair")


ADVICE = (
    Rule("trt-shape", "warning", _shape),
    Rule("trt-float64", "warning", _double),
    Rule("trt-residual", "warning", _residual),
    Rule("trt-concat", "warning", _concat),
    Rule("trt-before-activation", "warning", _before_activation),
    Rule("trt-half-quantized", "warning", _half),
    Rule("trt-unprofitable", "warning", _unprofitable),
    Rule("trt-idle-pair", "warning", _idle),
)
