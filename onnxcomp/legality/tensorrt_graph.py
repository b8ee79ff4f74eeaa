"""Rules of NVIDIA TensorRT on operators, opsets and element types; sources in :mod:`onnxcomp.legality.tensorrt`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from onnxcomp.legality.finding import Breach, Rule, Subject, label
from onnxcomp.legality.pairs import is_pair

__all__ = ["GRAPH_RULES"]

_OPSETS = (9, 25)  # TensorRT 11; 10.15 reads up to 24
_TYPES = frozenset(
    {
        *(ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE, ir.DataType.BOOL),
        *(ir.DataType.INT32, ir.DataType.INT64, ir.DataType.INT8, ir.DataType.INT4),
        *(ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT4E2M1, ir.DataType.UNDEFINED),
    }
)
_QUANTIZED = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"})
# Operators of the default domain that the parser of 10.15 does not have.
_MISSING = _QUANTIZED | frozenset(
    {
        *("AffineGrid", "Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),
        *("CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence", "DFT", "Det", "ImageDecoder"),
        *("MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss"),
        *("Optional", "OptionalGetElement", "OptionalHasElement", "RegexFullMatch", "SequenceAt"),
        *("SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength"),
        *("SequenceMap", "SoftmaxCrossEntropyLoss", "SplitToSequence", "StringConcat", "StringNormalizer"),
        *("StringSplit", "TfIdfVectorizer", "Unique"),
    }
)


def _valid(subject: Subject) -> Iterator[Breach]:
    """The parser reads valid ONNX: known operators and attributes, types and shapes that fit."""
    if subject.problem:
        yield Breach("", f"the model is not valid ONNX: {subject.problem}", "export it anew")


def _opset(subject: Subject) -> Iterator[Breach]:
    """TensorRT 11 reads opsets 9 to 25 [ONNX Opset Guide]; 10.15 up to 24 [operators.md]."""
    opset = subject.model.graph.opset_imports.get("", 0)
    if not _OPSETS[0] <= opset <= _OPSETS[1]:
        what = f"opset {opset} is outside the parser's {_OPSETS[0]} to {_OPSETS[1]}"
        old = opset < _OPSETS[0]
        remedy = "'onnxcomp optimize -p fold' raises it to 17" if old else "export the model with an older opset"
        yield Breach("", what, remedy)


def _operator(subject: Subject) -> Iterator[Breach]:
    """The parser has no importer for these [operators.md], nor for operators of com.microsoft and other domains."""
    for node in subject.nodes:
        if (node.domain, node.op_type, node.overload) in subject.model.functions:
            continue
        if node.domain:
            remedy = "write it in the default domain" if is_pair(node) else "leave out the pass or tool that made it"
            yield Breach(label(node), f"{node.op_type} is of the domain {node.domain!r}", remedy)
        elif node.op_type in _QUANTIZED:
            remedy = "quantize the float model with pairs: --target tensorrt"
            yield Breach(label(node), f"the parser does not know {node.op_type}", remedy)
        elif node.op_type in _MISSING:
            remedy = "replace it before export, or give TensorRT a plugin"
            yield Breach(label(node), f"the parser does not know {node.op_type}", remedy)


def _type(subject: Subject) -> Iterator[Breach]:
    """Element types that TensorRT has; uint8 is for inputs and outputs of the network alone [operators.md]."""
    told: set[ir.Value] = set()
    for node in subject.nodes:
        if is_pair(node):
            continue
        for value in (*node.inputs, *node.outputs):
            if value is None or value.dtype is None or value in told or value.dtype in _TYPES:
                continue
            told.add(value)
            if value.dtype == ir.DataType.UINT8 and _is_port(value, node):
                continue
            what = f"{value.name!r} is {value.dtype.name.lower()}, a type that {node.op_type} does not have there"
            yield Breach(
                label(node), what, "cast it to a type that TensorRT has (float32, float16, int32, int64, bool)"
            )


def _is_port(value: ir.Value, node: ir.Node) -> bool:
    """Whether a uint8 value is an input or output of the network that is cast at once."""
    return (value.is_graph_input() or value.is_graph_output()) and node.op_type in ("Cast", "CastLike")


def _restriction(subject: Subject) -> Iterator[Breach]:
    """Attributes and outputs that the importers refuse [operators.md, restrictions]."""
    for node in subject.nodes:
        test = None if node.domain else _RESTRICTIONS.get(node.op_type)
        problem = "" if test is None else test(node)
        if problem:
            yield Breach(
                label(node), f"{node.op_type} with {problem}", "export it without that, or give TensorRT a plugin"
            )


def _used(node: ir.Node, index: int) -> bool:
    if index >= len(node.outputs):
        return False
    value = node.outputs[index]
    return bool(value.uses()) or value.is_graph_output()


def _pool(node: ir.Node) -> str:
    if any(d != 1 for d in node.attributes.get_ints("dilations", ())):
        return "dilations"
    return "the output Indices" if node.op_type == "MaxPool" and _used(node, 1) else ""


def _recurrent(node: ir.Node) -> str:
    if node.attributes.get_int("input_forget", 0):
        return "input_forget"
    return "layout=1" if node.attributes.get_int("layout", 0) else ""


def _resize(node: ir.Node) -> str:
    if node.attributes.get_int("antialias", 0):
        return "antialias"
    mode = node.attributes.get_string("mode", "nearest")
    if mode not in ("nearest", "linear"):
        return f"mode={mode}"
    policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
    return "" if policy == "stretch" else f"keep_aspect_ratio_policy={policy}"


_RESTRICTIONS: dict[str, Callable[[ir.Node], str]] = {
    "AveragePool": _pool,
    "LpPool": _pool,
    "MaxPool": _pool,
    "LSTM": _recurrent,
    "LayerNormalization": lambda node: "more than its first output" if _used(node, 1) or _used(node, 2) else "",
    "Resize": _resize,
    "ScatterND": lambda n: "a reduction" if n.attributes.get_string("reduction", "none") != "none" else "",
    "TopK": lambda n: "" if n.attributes.get_int("sorted", 1) else "sorted=0",
}

GRAPH_RULES = (
    Rule("trt-valid", "error", _valid),
    Rule("trt-opset", "error", _opset),
    Rule("trt-operator", "error", _operator),
    Rule("trt-type", "error", _type, general=True),
    Rule("trt-restriction", "error", _restriction),
)
