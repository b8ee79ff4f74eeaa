"""No weighted layer in float but those that may be: what the runtime really runs, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import onnx_ir as ir

from onnxcomp.gate.line import Line, listed, skipped
from onnxcomp.graph.edit import origin_of
from onnxcomp.runtime.fusion import NodeFate

__all__ = ["float_only", "fusion_line"]

# What has weights and runs in float in any case; the proof of fusion does not look at it.
_NEVER_INTEGER = ("LSTM", "GRU", "RNN", "FusedConv", "NhwcFusedConv", "FusedGemm", "FusedMatMul", "Attention")
_DOMAINS = ("", "ai.onnx", "com.microsoft")
_FLOAT = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_INTEGER = ("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "DynamicQuantizeMatMul")


def float_only(model: ir.Model) -> tuple[NodeFate, ...]:
    """Return weighted layers that no runtime computes on integers, which :func:`fusion_proof` does not look at."""
    return tuple(
        NodeFate(node.name or origin_of(node), node.op_type, node.op_type, False, "there is no integer kernel for it")
        for node in model.graph.all_nodes()
        if node.op_type in _NEVER_INTEGER and node.domain in _DOMAINS
    )


def fusion_line(fates: Sequence[NodeFate], origins: Mapping[str, str], allow: Sequence[str]) -> Line:
    """Judge on which kernels the weighted layers run.

    Args:
        fates: What :func:`onnxcomp.runtime.fusion.fusion_proof` and :func:`float_only` say.
        origins: Names of nodes to those in the user's model.
        allow: Globs of the layers that may run in float, by either name.
    """
    limit = f"no layer in float but {listed(allow)}" if allow else "no layer in float"
    weighted = (*_FLOAT, *_NEVER_INTEGER)
    layers = [fate for fate in fates if fate.op_type in weighted or fate.op_type.startswith(_INTEGER)]
    unseen = [fate for fate in layers if fate.reason.startswith("not looked at")]
    if unseen:
        return skipped("fusion", limit, unseen[0].reason)
    floats = [(origins.get(fate.node, fate.node), fate) for fate in layers if not fate.integer]
    wrong = [(name, fate) for name, fate in floats if not _allowed((name, fate.node), allow)]
    value = f"{len(floats)} of {len(layers)} in float"
    figures = {"value": float(len(wrong))}
    if not wrong:
        return Line("fusion", limit, value, "pass", "", (), figures)
    shown = [f"{name} runs as {fate.kernel or 'part of another kernel'} ({fate.reason})" for name, fate in wrong]
    return Line(
        "fusion", limit, value, "fail", listed(shown, few=2), tuple(dict.fromkeys(n for n, _ in wrong)), figures
    )


def _allowed(names: Sequence[str], globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for name in names for glob in globs)
