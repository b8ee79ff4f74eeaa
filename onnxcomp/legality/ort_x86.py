"""Rules of ONNX Runtime on x86-64: uint8 activations, int8 weights."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxcomp.legality.finding import Breach, Rule, Subject, label
from onnxcomp.legality.ort import ORT_RULES, activation_types

__all__ = ["RULES"]


def _unsigned_weight(subject: Subject) -> Iterator[Breach]:
    """uint8 weights have no fast kernel beside VNNI's: some four times slower than int8 weights, measured."""
    for node, _, weight in activation_types(subject):
        if weight == ir.DataType.UINT8:
            yield Breach(label(node), "its weight is uint8, for which x86 has no fast kernel", "store it as int8")


def _signed_operator(subject: Subject) -> Iterator[Breach]:
    """QLinearConv and QLinearMatMul with int8 activations run on a slow kernel of x86 [onnxruntime#12072], measured."""
    for node in subject.nodes:
        if node.op_type in ("QLinearConv", "QLinearMatMul") and not node.domain:
            data = node.inputs[0]
            if data is not None and data.dtype == ir.DataType.INT8:
                what = f"{node.op_type} reads int8 activations, for which x86 has no fast kernel"
                yield Breach(label(node), what, "quantize the float model anew with --target ort-x86")


RULES = (
    *ORT_RULES,
    Rule("x86-uint8-weight", "warning", _unsigned_weight),
    Rule("x86-int8-operator", "warning", _signed_operator),
)
