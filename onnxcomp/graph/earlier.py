"""What an earlier pass made of a weight, as a reason why a later one leaves the layer alone."""

from __future__ import annotations

import re

import onnx_ir as ir

from onnxcomp.graph.decoding import is_decoded
from onnxcomp.graph.edit import PASS

__all__ = ["earlier_maker", "earlier_reason"]

_MAKER = re.compile(r" by (\w+): put this pass before ")


def earlier_reason(node: ir.Node, value: ir.Value, what: str) -> str | None:
    """Why a weight or bias that is no initializer stays as it is; None where nobody stored or quantized it.

    Args:
        node: The layer.
        value: What it reads.
        what: ``weight`` or ``bias``.
    """
    producer = value.producer()
    if producer is None:
        return None
    quantized = producer.op_type == "DequantizeLinear"
    if not quantized and not is_decoded(value):
        return None
    maker = producer.metadata_props.get(PASS) or node.metadata_props.get(PASS)
    done = "already quantized" if quantized else f"its {what} is stored in codes"
    if maker == "sparsity":
        return f"its {what} is stored as a mask of zeros: give sparsity and this pass in one pipeline, in that order"
    if maker:
        return f"{done} by {maker}: put this pass before {maker}"
    return done if quantized else None


def earlier_maker(reason: str) -> str | None:
    """The pass that a reason of :func:`earlier_reason` names; None of other reasons."""
    found = _MAKER.search(reason)
    return found.group(1) if found else None
