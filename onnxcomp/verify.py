"""What must hold of a model after every pass: structure, signature, and outputs that are numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from onnxcomp import modelio
from onnxcomp.errors import OnnxcompError, PassError
from onnxcomp.runtime.session import open_session, output_names, run

__all__ = ["Signature", "check_outputs", "check_structure", "signature_of"]

_CHECKER_LIMIT = 1_500_000_000


@dataclass(frozen=True)
class Signature:
    """Names, element types and (symbolic) shapes of the inputs and outputs of a model."""

    inputs: tuple[tuple[str, str, str], ...]
    outputs: tuple[tuple[str, str, str], ...]


def signature_of(model: ir.Model) -> Signature:
    """Read the signature of a model."""

    def entry(value: ir.Value) -> tuple[str, str, str]:
        return value.name or "", str(value.type), str(value.shape)

    graph = model.graph
    return Signature(tuple(entry(v) for v in graph.inputs), tuple(entry(v) for v in graph.outputs))


def check_structure(model: ir.Model, before: Signature) -> None:
    """Check that a model is valid ONNX and kept its signature.

    Raises:
        PassError: The checker rejects the model, or an input or output changed its name, type or shape.
    """
    after = signature_of(model)
    if after != before:
        for old, new in zip((*before.inputs, *before.outputs), (*after.inputs, *after.outputs), strict=False):
            if old != new:
                raise PassError(f"the signature changed: {' '.join(old)} became {' '.join(new)}")
        raise PassError("the signature changed: an input or output was added or removed")
    if sum(t.nbytes for v in model.graph.initializers.values() if (t := v.const_value) is not None) > _CHECKER_LIMIT:
        return
    try:
        onnx.checker.check_model(modelio.to_bytes(model))
    except onnx.checker.ValidationError as error:
        raise PassError(f"the rewritten model is not valid ONNX: {str(error).splitlines()[0]}") from error


def check_outputs(model: ir.Model, before: ir.Model, feed: dict[str, np.ndarray]) -> None:
    """Run a model on one feed in ORT and check that its outputs are finite wherever those of `before` are, with their shapes.

    Raises:
        PassError: ORT cannot run the model, or an output has NaN, Inf or another shape.
    """
    old_session = open_session(before)
    old = run(old_session, feed)
    try:
        new = run(open_session(model), feed)
    except OnnxcompError as error:
        raise PassError(f"the rewritten model does not run: {error}") from error
    for name, a, b in zip(output_names(old_session), old, new, strict=True):
        if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
            continue
        if a.shape != b.shape and _fixed(before, name):
            raise PassError(f"output {name!r} has shape {b.shape} where the original has {a.shape}")
        if np.issubdtype(a.dtype, np.floating) and np.isfinite(a).all() and not np.isfinite(b).all():
            raise PassError(f"output {name!r} holds NaN or Inf where the original has none")


def _fixed(model: ir.Model, name: str) -> bool:
    """Whether the shape of an output does not depend on the values of the input (as that of NonMaxSuppression does)."""
    dynamic = {"NonZero", "NonMaxSuppression", "Unique", "Compress"}
    return not any(node.op_type in dynamic for node in model.graph.all_nodes())
