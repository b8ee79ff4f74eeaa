"""No weighted layer in float but those that may be: what the runtime really runs, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from onnxcomp.gate.line import Line, listed, skipped
from onnxcomp.runtime.fusion import NodeFate

__all__ = ["fusion_line"]

_FLOAT = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_INTEGER = ("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "DynamicQuantizeMatMul")


def fusion_line(fates: Sequence[NodeFate], origins: Mapping[str, str], allow: Sequence[str]) -> Line:
    """Judge on which kernels the weighted layers run.

    Args:
        fates: What :func:`onnxcomp.runtime.fusion.fusion_proof` says.
        origins: Names of nodes to those in the user's model.
        allow: Globs of the layers that may run in float, by either name.
    """
    limit = f"no layer in float but {listed(allow)}" if allow else "no layer in float"
    layers = [fate for fate in fates if fate.op_type in _FLOAT or fate.op_type.startswith(_INTEGER)]
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
