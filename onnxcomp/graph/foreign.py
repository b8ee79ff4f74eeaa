"""Nodes that do the work of a convolution or a product in another form: what no pass rewrites, and why."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

__all__ = ["foreign_reason", "is_quantized"]

_QUANTIZED = "already quantized"
_PACKED = "already quantized: its weights are packed into few bits"
_FUSED = "an operator that onnxruntime fused for its own use: start from the model before that"
_RECURRENT = "no runtime here has an integer kernel for {}, and no pass rewrites it"

# Operator to what it does the work of, and why it stays. Quantized forms of the ONNX domain are ConvInteger,
# MatMulInteger, QLinearConv and QLinearMatMul; the rest is com.microsoft.
_FOREIGN: Mapping[str, tuple[str, str]] = {
    "QLinearConv": ("Conv", _QUANTIZED),
    "ConvInteger": ("Conv", _QUANTIZED),
    "QLinearConvTranspose": ("ConvTranspose", _QUANTIZED),
    "QLinearMatMul": ("MatMul", _QUANTIZED),
    "MatMulInteger": ("MatMul", _QUANTIZED),
    "MatMulInteger16": ("MatMul", _QUANTIZED),
    "MatMulIntegerToFloat": ("MatMul", _QUANTIZED),
    "DynamicQuantizeMatMul": ("MatMul", _QUANTIZED),
    "QGemm": ("Gemm", _QUANTIZED),
    "QAttention": ("MatMul", _QUANTIZED),
    "DynamicQuantizeLSTM": ("LSTM", _QUANTIZED),
    "MatMulNBits": ("MatMul", _PACKED),
    "MatMulBnb4": ("MatMul", _PACKED),
    "MatMulFpQ4": ("MatMul", _PACKED),
    "QMoE": ("MatMul", _PACKED),
    "GatherBlockQuantized": ("Gather", _PACKED),
    "FusedConv": ("Conv", _FUSED),
    "NhwcFusedConv": ("Conv", _FUSED),
    "FusedGemm": ("Gemm", _FUSED),
    "FusedMatMul": ("MatMul", _FUSED),
    "Attention": ("MatMul", _FUSED),
    "LSTM": ("LSTM", _RECURRENT.format("LSTM")),
    "GRU": ("GRU", _RECURRENT.format("GRU")),
    "RNN": ("RNN", _RECURRENT.format("RNN")),
}
_OF_ONNX = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "LSTM", "GRU", "RNN"})
_STEPS = ("QuantizeLinear", "DynamicQuantizeLinear")


def foreign_reason(node: ir.Node, *kinds: str) -> str | None:
    """Why a node that stands for one of the operators `kinds` (none given: for any) is not rewritten.

    None for a node that stands for none of them, or that is the plain operator itself.
    """
    kind, reason = _FOREIGN.get(node.op_type, ("", ""))
    if not kind or (kinds and kind not in kinds):
        return None
    domain = "" if node.domain in ("", "ai.onnx") else node.domain
    known = domain == "" if node.op_type in _OF_ONNX else domain == "com.microsoft"
    return reason if known else None


def is_quantized(node: ir.Node) -> bool:
    """Whether a node rounds activations, or computes on rounded ones."""
    if node.op_type in _STEPS or node.op_type.startswith("QLinear"):
        return True
    return foreign_reason(node) == _QUANTIZED
