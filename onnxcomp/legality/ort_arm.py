"""Rules of ONNX Runtime on 64-bit ARM: int8 activations, int8 weights."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxcomp.legality.finding import Breach, Rule, Subject, label
from onnxcomp.legality.ort import ORT_RULES, activation_types

__all__ = ["RULES"]


def _unsigned_activation(subject: Subject) -> Iterator[Breach]:
    """ARM is advised to have int8 activations and int8 weights [docstring of onnxruntime.quantization.quantize_static
    1.31]; other pairs run, on other kernels."""
    for node, data, _ in activation_types(subject):
        if data == ir.DataType.UINT8:
            what = "its activations are uint8; int8 is the faster form on ARM"
            yield Breach(label(node), what, "make it with --target ort-arm, or 'onnxcomp retarget' it")


RULES = (*ORT_RULES, Rule("arm-uint8-activation", "warning", _unsigned_activation))
