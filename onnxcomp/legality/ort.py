"""Rules of ONNX Runtime's CPU provider, which runs a model or what another provider leaves to it.

Where a rule says *verified*, a test breaks it in the installed runtime. Sources: onnxruntime's QDQ transformers
(core/optimizer/qdq_transformer: selectors_actions/qdq_selectors.cc, qdq_util.cc, weight_bias_quantization.cc,
qdq_s8_to_u8.cc) and docs/performance/model-optimizations/quantization.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir

from onnxcomp.guards import MAX_IR_VERSION, MAX_OPSET
from onnxcomp.legality.finding import Breach, Rule, Subject, label
from onnxcomp.legality.pairs import (
    WEIGHTED,
    Quantizer,
    dequantizer,
    is_pair,
    output_axis,
    quantizers,
    readers,
    reads_quantized,
)

__all__ = ["ORT_RULES", "activation_types"]

_MOVING = frozenset(
    {"MaxPool", "Resize", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather"}
)
_BIASED = ("Conv", "ConvTranspose", "Gemm")


def _opset(subject: Subject) -> Iterator[Breach]:
    """onnxruntime 1.31 registers kernels up to ai.onnx opset 26 and reads IR version 13; verified."""
    opset = subject.model.graph.opset_imports.get("", 0)
    if opset > MAX_OPSET:
        what = f"opset {opset} is newer than the runtime's {MAX_OPSET}"
        yield Breach("", what, f"export the model with opset {MAX_OPSET} or older")


def _ir_version(subject: Subject) -> Iterator[Breach]:
    """See :func:`_opset`; verified."""
    if subject.model.ir_version > MAX_IR_VERSION:
        what = f"IR version {subject.model.ir_version} is newer than the runtime's {MAX_IR_VERSION}"
        yield Breach("", what, f"save the model with IR version {MAX_IR_VERSION}")


def _loads(subject: Subject) -> Iterator[Breach]:
    """The final test: an operator or a type without a CPU kernel, or a graph that is not valid, ends here; verified."""
    _, refusal = subject.loaded
    if refusal:
        remedy = "leave out the pass that made it so; 'compare' and 'inspect' show where the models differ"
        yield Breach("", f"the runtime does not load the model: {refusal}", remedy)


def _unfused(subject: Subject) -> Iterator[Breach]:
    """DequantizeLinear -> op -> QuantizeLinear that the runtime computes in float [qdq_selectors.cc]; verified."""
    if subject.target.name == "ort-x86" and not subject.target.host:
        return  # another processor fuses other things
    fates, _ = subject.loaded
    floats = {fate.node: fate for fate in fates if not fate.integer and fate.kernel}
    for node in subject.nodes:
        fate = floats.get(label(node))
        if fate is not None and fate.op_type == node.op_type and _is_group(node):
            what = f"runs in float, as {fate.kernel}, between quantized tensors: {_type_reason(node) or fate.reason}"
            yield Breach(fate.node, what, "leave it out of int8 (--exclude), or quantize what the reason names")


def _type_reason(node: ir.Node) -> str:
    """Why no kernel is there for the type of the activations; empty for 8 bits."""
    pair = dequantizer(node.inputs[0])
    if pair is None or pair.storage is None or pair.storage in (ir.DataType.INT8, ir.DataType.UINT8):
        return ""
    return f"its activations are {pair.storage.name.lower()}, and integer kernels have 8 bits"


def _is_group(node: ir.Node) -> bool:
    """Whether a node is meant to compute on integers: it reads dequantized values and its result is quantized."""
    if is_pair(node) or not reads_quantized(node):
        return False
    if node.op_type in WEIGHTED and dequantizer(node.inputs[1]) is not None:
        return True
    followers = [user for value in node.outputs for user, _ in value.uses()]
    while len(followers) == 1 and followers[0].op_type in ("Relu", "Clip"):
        followers = [user for user, _ in followers[0].outputs[0].uses()]
    return any(user.op_type == "QuantizeLinear" for user in followers)


def _zero_point(subject: Subject) -> Iterator[Breach]:
    """Pairs of an operator that only moves values need explicit zero points [qdq_util.cc IsQDQPairSupported], and so do
    pairs of another type than uint8: with ``output_dtype`` alone they stay float on x86 and do not load on ARM;
    verified."""
    for pair in quantizers(subject.nodes):
        if pair.zero_given or pair.weight or not (pair.storage != ir.DataType.UINT8 or _at_moving(pair.node)):
            continue
        what = f"{pair.node.op_type} has no zero-point input, so that it does not fuse"
        yield Breach(label(pair.node), what, "give it a scalar zero point of the storage type as an initializer")


def _at_moving(node: ir.Node) -> bool:
    """Whether a Q follows, or a DQ feeds, an operator that only moves values."""
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    near = [source] if node.op_type == "QuantizeLinear" else readers(node.outputs[0])
    return any(other is not None and other.op_type in _MOVING for other in near)


def _bias(subject: Subject) -> Iterator[Breach]:
    """A bias is int32 at the scale input x weight with zero point 0, or the node stays float [qdq_selectors.cc];
    verified."""
    for node in subject.nodes:
        if node.op_type not in _BIASED or len(node.inputs) < 3:
            continue
        data, weight, bias = (dequantizer(value) for value in node.inputs[:3])
        if data is None or weight is None or bias is None or not reads_quantized(node):
            continue
        problem = _bias_problem(data, weight, bias)
        if problem:
            remedy = "store it as int32 at the scale input x weight with zero point 0, or leave it in float"
            yield Breach(label(node), f"its quantized bias {problem}, so that it stays float", remedy)


def _bias_problem(data: Quantizer, weight: Quantizer, bias: Quantizer) -> str:
    if bias.storage != ir.DataType.INT32:
        return f"is stored as {bias.storage.name.lower() if bias.storage else 'an unknown type'}"
    if bias.zero is not None and np.any(bias.zero != 0):
        return "has a zero point that is not 0"
    if data.scale is None or weight.scale is None or bias.scale is None:
        return ""
    wanted = data.scale.astype(np.float64) * weight.scale.astype(np.float64)
    if not np.allclose(bias.scale.astype(np.float64).reshape(-1), wanted.reshape(-1), rtol=1e-3, atol=0):
        return "does not have the scale input x weight"
    return ""


def _weight_only_conv(subject: Subject) -> Iterator[Breach]:
    """A DequantizeLinear before the weight of a float Conv is never folded: it runs in every inference; verified."""
    for node in subject.nodes:
        if node.op_type not in ("Conv", "ConvTranspose") or reads_quantized(node):
            continue
        weight = dequantizer(node.inputs[1])
        if weight is not None and weight.weight:
            what = "its weight alone is quantized: the runtime dequantizes it anew in every run"
            yield Breach(label(node), what, "use a weight-only pass (its Cast and Mul are folded at load), or int8")


def _weight_axis(subject: Subject) -> Iterator[Breach]:
    """Scales of a weight run over its output channels: Conv 0, ConvTranspose 1, Gemm 1 or 0 (transB), MatMul 1; along
    another axis the node silently stays float [quantization.md, onnxruntime#19694]; verified."""
    for node in subject.nodes:
        if node.op_type not in WEIGHTED or not reads_quantized(node):
            continue
        weight, axis = dequantizer(node.inputs[1]), output_axis(node)
        if weight is None or not weight.weight or not weight.per_axis or weight.block:
            continue
        value = node.inputs[1]
        rank = len(value.shape) if value is not None and value.shape is not None else 0
        actual = weight.axis + rank if weight.axis < 0 else weight.axis
        if actual != axis:
            what = f"its weight has scales along axis {actual}, not along its output channels (axis {axis})"
            yield Breach(label(node), what, f"quantize the weight with axis={axis}")


def _deprecated(subject: Subject) -> Iterator[Breach]:
    """An operator that the standard deprecates leaves with some later opset [onnx/defs]."""
    imports = subject.model.graph.opset_imports
    for node in subject.nodes:
        version = imports.get(node.domain)
        if version is None or node.domain:
            continue
        try:
            schema = onnx.defs.get_schema(node.op_type, version, "")
        except onnx.defs.SchemaError:
            continue
        if schema.deprecated:
            yield Breach(label(node), f"{node.op_type} is deprecated in opset {version}", "export the model anew")


def activation_types(subject: Subject) -> Iterator[tuple[ir.Node, ir.DataType, ir.DataType]]:
    """Weighted nodes between pairs, with the storage types of their input and of their weight."""
    for node in subject.nodes:
        if node.op_type in WEIGHTED and reads_quantized(node):
            data, weight = dequantizer(node.inputs[0]), dequantizer(node.inputs[1])
            if data is not None and weight is not None and data.storage and weight.storage:
                yield node, data.storage, weight.storage


ORT_RULES = (
    Rule("ort-opset", "error", _opset),
    Rule("ort-ir-version", "error", _ir_version),
    Rule("ort-load", "error", _loads, general=True),
    Rule("ort-zero-point", "warning", _zero_point),
    Rule("ort-bias", "warning", _bias),
    Rule("ort-weight-axis", "warning", _weight_axis),
    Rule("ort-weight-only-conv", "warning", _weight_only_conv),
    Rule("ort-unfused", "warning", _unfused, general=True),
    Rule("ort-deprecated", "warning", _deprecated),
)
