"""What a rule is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import onnx_ir as ir

from onnxcomp.errors import ModelError
from onnxcomp.graph.edit import origin_of
from onnxcomp.runtime.fusion import NodeFate, fusion_proof
from onnxcomp.runtime.session import open_session
from onnxcomp.targets.target import Target

__all__ = ["Breach", "Finding", "Rule", "Severity", "Subject", "label"]

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A place where a model breaks a rule.

    Attributes:
        severity: ``error``: the runtime refuses the model or computes something else; ``warning``: it runs, but slower
            or elsewhere than meant.
        node: Name of the node, the input or the initializer; empty where it is the model as a whole.
        rule: Short name of the rule, such as ``trt-zero-point``.
        message: What is wrong there.
        remedy: What to do.
    """

    severity: Severity
    node: str
    rule: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Breach:
    """What a rule yields: node, message and remedy of a :class:`Finding`."""

    node: str
    message: str
    remedy: str


@dataclass(frozen=True)
class Subject:
    """The model under examination; what several rules ask for is worked out once.

    Attributes:
        model: The model, its shapes inferred as far as they can be; rules never modify it.
        target: The target whose rules are asked about.
        known_fates: What the runtime of the target does with the nodes, if the caller knows it.
        problem: Why the model is not valid ONNX; empty where it is.
    """

    model: ir.Model
    target: Target
    known_fates: tuple[NodeFate, ...] | None = None
    problem: str = ""

    @cached_property
    def nodes(self) -> tuple[ir.Node, ...]:
        """Every node, those of If and Loop bodies included."""
        return tuple(self.model.graph.all_nodes())

    @cached_property
    def loaded(self) -> tuple[tuple[NodeFate, ...], str]:
        """What ONNX Runtime makes of the nodes, or why it cannot load the model."""
        if self.known_fates is not None:
            return self.known_fates, ""
        try:
            fates = fusion_proof(self.model, int8_kernels=self.target.name != "ort-x86")
            if not fates:  # nothing to look at, or too large to be: it has to load all the same
                open_session(self.model, optimize="basic")
            return fates, ""
        except ModelError as error:
            return (), self._reason(error)

    def _reason(self, error: ModelError) -> str:
        """Why the runtime does not load the model, with its own names: the proof gives the nodes others."""
        try:
            open_session(self.model)
        except ModelError as own:
            error = own
        return str(error).split(": ", 1)[-1]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of a runtime.

    Attributes:
        name: Short name, fixed: users write it into scripts.
        severity: What a breach means.
        find: Yields the breaches.
        general: Whether a breach is left out where another rule says more about the same node.
    """

    name: str
    severity: Severity
    find: Callable[[Subject], Iterator[Breach]]
    general: bool = False


def label(node: ir.Node) -> str:
    """Name a node as the model does: by its own name, or by what it writes where it has none."""
    return node.name or origin_of(node) or node.op_type
