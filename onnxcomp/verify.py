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
    """Read the signature of a model.

    Before IR 4 every initializer had to be listed among the inputs though no caller could set it; those do not count.
    """
    fixed = model.graph.initializers if model.ir_version < 4 else {}

    def entry(value: ir.Value) -> tuple[str, str, str]:
        return value.name or "", str(value.type), str(value.shape)

    graph = model.graph
    inputs = tuple(entry(v) for v in graph.inputs if v.name not in fixed)
    return Signature(inputs, tuple(entry(v) for v in graph.outputs))


def check_structure(model: ir.Model, before: ir.Model) -> None:
    """Check that a model kept the signature of `before` and is valid ONNX if that one was.

    Raises:
        PassError: The checker rejects what it accepted before, or an input or output changed its name, type or shape.
    """
    old, new = signature_of(before), signature_of(model)
    if old != new:
        raise PassError(f"the signature changed: {_difference(old, new)}")
    problem = _violation(model)
    if problem and not _violation(before):
        raise PassError(f"the rewritten model is not valid ONNX: {problem}")


def _difference(old: Signature, new: Signature) -> str:
    for what, before, after in (("input", old.inputs, new.inputs), ("output", old.outputs, new.outputs)):
        if len(before) != len(after):
            return f"an {what} was added or removed"
    pairs = zip((*old.inputs, *old.outputs), (*new.inputs, *new.outputs), strict=True)
    return next(f"{' '.join(a)} became {' '.join(b)}" for a, b in pairs if a != b)


def _violation(model: ir.Model) -> str:
    """The first line of the checker's complaint; empty where it has none or the model is too large for it."""
    if modelio.serialized_bytes(model) > _CHECKER_LIMIT:
        return ""
    try:
        onnx.checker.check_model(modelio.to_bytes(model))
    except onnx.checker.ValidationError as error:
        return str(error).splitlines()[0]
    return ""


def check_outputs(model: ir.Model, before: ir.Model, feed: dict[str, np.ndarray]) -> None:
    """Run a model on one feed in ORT: its outputs must be finite where those of `before` are, and of their shapes.

    Raises:
        PassError: ORT cannot run the model, or an output has NaN, Inf or another shape.
    """
    old_session = open_session(before)
    old = run(old_session, feed)
    try:
        new = run(open_session(model), feed)
    except OnnxcompError as error:
        raise PassError(f"the rewritten model does not run: {error}") from error
    fixed = _fixed_shapes(before)
    for name, a, b in zip(output_names(old_session), old, new, strict=True):
        _check_output(name, a, b, fixed)


def _check_output(name: str, old: object, new: object, fixed: bool) -> None:
    if not isinstance(old, np.ndarray) or not isinstance(new, np.ndarray):  # a sequence or a map
        return
    if old.shape != new.shape and fixed:
        raise PassError(f"output {name!r} has shape {new.shape} where the original has {old.shape}")
    if np.issubdtype(old.dtype, np.floating) and np.isfinite(old).all() and not np.isfinite(new).all():
        raise PassError(f"output {name!r} holds NaN or Inf where the original has none")


def _fixed_shapes(model: ir.Model) -> bool:
    """Whether no output's shape depends on the values of the input (as those after NonMaxSuppression do)."""
    dynamic = {"NonZero", "NonMaxSuppression", "Unique", "Compress"}
    return not any(node.op_type in dynamic for node in model.graph.all_nodes())
