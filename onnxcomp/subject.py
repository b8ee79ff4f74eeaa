"""What a result is of: the model that came in, in a few words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

__all__ = ["Subject", "operator_counts", "operator_name", "subject_of"]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model at a glance.

    Attributes:
        file: Path of its file as the user gave it; None where it came from memory.
        producer: What wrote the file, with its version; empty where the file does not say.
        ir_version: ONNX IR version.
        opsets: Operator-set version by domain; the default domain is ``ai.onnx``.
        inputs: Name of each input to its type and shape, such as ``float32[N,3,224,224]``.
        outputs: Name of each output, likewise.
    """

    file: str | None = None
    producer: str = ""
    ir_version: int = 0
    opsets: Mapping[str, int] = field(default_factory=dict[str, int])
    inputs: Mapping[str, str] = field(default_factory=dict[str, str])
    outputs: Mapping[str, str] = field(default_factory=dict[str, str])


def subject_of(model: ir.Model, file: str | None) -> Subject:
    """Describe a model that came from `file`, None where it came from memory."""
    return Subject(
        file,
        " ".join(part for part in (model.producer_name, model.producer_version) if part),
        model.ir_version,
        {domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
        {value.name or "": _typed(value) for value in model.graph.inputs if not value.is_initializer()},
        {value.name or "": _typed(value) for value in model.graph.outputs},
    )


def operator_counts(model: ir.Model) -> dict[str, int]:
    """How many nodes of the main graph each operator has; those of other domains are named with their domain."""
    return dict(sorted(Counter(operator_name(node) for node in model.graph).items()))


def operator_name(node: ir.Node) -> str:
    """The operator of a node, with its domain where that is not the default one."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _typed(value: ir.Value) -> str:
    dtype = "?" if value.dtype is None else value.dtype.name.lower()
    if dtype == "float":
        dtype = "float32"
    if value.shape is None:
        return f"{dtype}[?]"
    return f"{dtype}[{','.join('?' if str(size) == 'None' else str(size) for size in value.shape)}]"
