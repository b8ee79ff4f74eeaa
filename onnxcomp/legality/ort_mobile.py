"""Rules of ONNX Runtime on phones: NNAPI for what it takes, the CPU provider (and XNNPACK) for the rest.

What NNAPI takes is read from the list that ONNX Runtime ships (tools/mobile_helpers/nnapi_supported_ops.md), with the
notes of that list restated as tests. Nothing here was run on a phone; that the rest runs on the CPU was verified, since
the same kernels are in the installed runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from onnxcomp.graph.fixing import free_inputs
from onnxcomp.legality.finding import Breach, Rule, Subject
from onnxcomp.legality.ort import ORT_RULES
from onnxcomp.legality.pairs import array_of, is_constant
from onnxcomp.legality.partitions import fallbacks
from onnxcomp.legality.tables import NNAPI, supported_operators

__all__ = ["RULES", "listed_reason", "rank_of"]

_MAX_RANK = 4


def _shape(subject: Subject) -> Iterator[Breach]:
    """NNAPI compiles for fixed shapes; with free ones the nodes stay on the CPU [NNAPI provider, usability checker]."""
    for value in free_inputs(subject.model):
        what = f"the input has free dimensions, {value.shape}: NNAPI leaves what depends on them to the CPU"
        yield Breach(value.name or "", what, f"fix them: onnxcomp check --shapes {value.name}:1x... -o OUT")


def _fallback(subject: Subject) -> Iterator[Breach]:
    """Operators that are not in ORT's list for NNAPI, or not in the form that the list asks for; also what computes in
    float16 [core/providers/nnapi, BaseOpBuilder::HasSupportedInputOutputsImpl]."""
    known = supported_operators(NNAPI)

    def reason(node: ir.Node) -> str:
        return listed_reason(node, known, _FORMS) or _half(node)

    yield from fallbacks(subject, reason, "NNAPI", "replace it; few large parts are faster than many small ones")


def listed_reason(node: ir.Node, known: dict[str, str], forms: dict[str, Callable[[ir.Node], str]]) -> str:
    """Why a provider does not take a node: it is not listed, or not in a form it takes; empty where it takes it."""
    domain = node.domain or "ai.onnx"
    if f"{domain}:{node.op_type}".lower() not in known:
        return "it is not in the provider's list of operators"
    form = None if node.domain not in ("", "com.microsoft") else forms.get(node.op_type)
    return "" if form is None else form(node)


def _half(node: ir.Node) -> str:
    value = node.inputs[0] if node.inputs else None
    half = value is not None and value.dtype == ir.DataType.FLOAT16 and node.op_type != "Cast"
    return "it computes in float16, and NNAPI in float32" if half else ""


def rank_of(value: ir.Value | None) -> int | None:
    """The number of dimensions of a value, where it is known."""
    return None if value is None or value.shape is None else len(value.shape)


def _constants(*indices: int) -> Callable[[ir.Node], str]:
    """All of these inputs that there are have to be constant."""

    def test(node: ir.Node) -> str:
        given = [node.inputs[i] for i in indices if i < len(node.inputs)]
        moving = next((v for v in given if v is not None and not is_constant(v)), None)
        return "" if moving is None else f"its input {moving.name!r} is not a constant"

    return test


def _two_dimensional(node: ir.Node) -> str:
    rank = rank_of(node.inputs[0])
    return "" if rank in (None, _MAX_RANK) else f"its input has {rank} dimensions, and only 2-D images are taken"


def _all_of(*tests: Callable[[ir.Node], str]) -> Callable[[ir.Node], str]:
    return lambda node: next((problem for test in tests if (problem := test(node))), "")


def _gemm(node: ir.Node) -> str:
    moving = not is_constant(node.inputs[1])
    return "its B is not a constant, and transB is not 1" if moving and not node.attributes.get_int("transB", 0) else ""


def _pad(node: ir.Node) -> str:
    if node.attributes.get_string("mode", "constant") != "constant":
        return "its mode is not constant"
    pads = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return "it crops (negative pads)" if pads is not None and np.any(pads.astype(np.int64) < 0) else ""


def _blocks(node: ir.Node) -> str:
    return "" if node.attributes.get_string("mode", "DCR") == "DCR" else "its mode is not DCR"


def _indices(node: ir.Node) -> str:
    value = node.inputs[1]
    fine = is_constant(value) or (value is not None and value.dtype == ir.DataType.INT32)
    return "" if fine else "its indices are neither constant nor int32"


_quantized = _constants(1, 2)
_FORMS: dict[str, Callable[[ir.Node], str]] = {
    "AveragePool": _two_dimensional,
    "Conv": _all_of(_two_dimensional, _constants(1, 2)),
    "DepthToSpace": _blocks,
    "DequantizeLinear": _quantized,
    "Gather": _indices,
    "Gemm": _gemm,
    "GlobalAveragePool": _two_dimensional,
    "GlobalMaxPool": _two_dimensional,
    "MaxPool": _two_dimensional,
    "Pad": _all_of(_pad, _constants(1, 2)),
    "QLinearAdd": _constants(1, 2, 4, 5, 6, 7),
    "QLinearAveragePool": _all_of(_two_dimensional, _constants(1, 2, 3, 4)),
    "QLinearConv": _all_of(_two_dimensional, _constants(1, 2, 3, 4, 5, 6, 7, 8)),
    "QLinearMatMul": _constants(1, 2, 4, 5, 6, 7),
    "QLinearSigmoid": _constants(1, 2, 3, 4),
    "QuantizeLinear": _quantized,
    "Resize": _two_dimensional,
    "Split": _constants(1),
    "Squeeze": _constants(1),
    "Unsqueeze": _constants(1),
}

RULES = (*ORT_RULES, Rule("mobile-shape", "warning", _shape), Rule("mobile-fallback", "warning", _fallback))
