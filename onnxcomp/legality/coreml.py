"""Rules of ONNX Runtime's CoreML provider, ML Program form.

What it takes is read from the list that ONNX Runtime ships (tools/mobile_helpers/coreml_supported_mlprogram_ops.md).
Nothing here was run on a device of Apple's; that the rest runs on the CPU was verified.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from onnxcomp.graph.fixing import free_inputs
from onnxcomp.legality.finding import Breach, Rule, Subject, label
from onnxcomp.legality.ort import ORT_RULES
from onnxcomp.legality.ort_mobile import listed_reason, rank_of
from onnxcomp.legality.pairs import is_constant, is_pair
from onnxcomp.legality.partitions import fallbacks
from onnxcomp.legality.tables import COREML, supported_operators
from onnxcomp.runtime.qdq import is_quantized_kernel

__all__ = ["RULES"]


def _quantized(subject: Subject) -> Iterator[Breach]:
    """Neither list of the provider holds QuantizeLinear, DequantizeLinear or a QLinear operator, so that everything
    between pairs goes back and forth to the CPU."""
    found = [node for node in subject.nodes if is_pair(node) or is_quantized_kernel(node)]
    if found:
        what = f"quantized operators ({len(found)} in all): the CoreML provider has none, they run on the CPU"
        yield Breach(label(found[0]), what, "deploy the float model, with structural passes alone")


def _shape(subject: Subject) -> Iterator[Breach]:
    """The provider is at its best with fixed shapes [CoreML provider, RequireStaticInputShapes; usability checker]."""
    for value in free_inputs(subject.model):
        what = f"the input has free dimensions, {value.shape}, with which much stays on the CPU"
        yield Breach(value.name or "", what, f"fix them: onnxcomp check --shapes {value.name}:1x... -o OUT")


def _fallback(subject: Subject) -> Iterator[Breach]:
    """Operators that are not in ORT's list for CoreML, or not in the form that the list asks for."""
    known = supported_operators(COREML)

    def reason(node: ir.Node) -> str:
        told = is_pair(node) or is_quantized_kernel(node)
        return "" if told else listed_reason(node, known, _FORMS)

    yield from fallbacks(subject, reason, "CoreML", "replace it; few large parts are faster than many small ones")


def _conv(node: ir.Node) -> str:
    if rank_of(node.inputs[0]) not in (None, 3, 4):
        return "only 1-D and 2-D convolutions are taken"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return "" if bias is None or is_constant(bias) else "its bias is not a constant"


def _deconv(node: ir.Node) -> str:
    if not all(is_constant(value) for value in node.inputs[1:]):
        return "its weight or bias is not a constant"
    if node.attributes.get_string("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        return "auto_pad SAME is not taken"
    odd = any(node.attributes.get_ints("output_padding", ())) or "output_shape" in node.attributes
    return "output_shape and output_padding are not taken" if odd else ""


def _pool(node: ir.Node) -> str:
    return "" if rank_of(node.inputs[0]) in (None, 4) else "only 2-D pools are taken"


def _constant_rest(node: ir.Node) -> str:
    return (
        "" if all(is_constant(value) for value in node.inputs[1:]) else "an input besides the first is not a constant"
    )


def _gemm(node: ir.Node) -> str:
    return "" if is_constant(node.inputs[1]) else "its B is not a constant"


_FORMS: dict[str, Callable[[ir.Node], str]] = {
    "AveragePool": _pool,
    "Conv": _conv,
    "ConvTranspose": _deconv,
    "Gemm": _gemm,
    "GlobalAveragePool": _pool,
    "GlobalMaxPool": _pool,
    "MaxPool": _pool,
    "Slice": _constant_rest,
    "Split": _constant_rest,
}

RULES = (
    # Of what is quantized one line is said, not one for each pair that the CPU then does not fuse.
    *(rule for rule in ORT_RULES if rule.severity == "error" or rule.name == "ort-deprecated"),
    Rule("coreml-quantized", "warning", _quantized),
    Rule("coreml-shape", "warning", _shape),
    Rule("coreml-fallback", "warning", _fallback),
)
