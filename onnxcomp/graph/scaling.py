"""Which channels of a model can be scaled by positive factors without changing its outputs, and which constants pay.

With x' = x / d at every tensor of a class of channels, the constants that write such a channel are divided by d, those
that read it multiplied by it; activations that are positively homogeneous (Relu) pass the factor on. Residual Adds,
Concat and channel shuffles tie channels of many tensors together: the classes are the connected components.
(Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019, section 4.1, for pairs.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxcomp.contract import Skip
from onnxcomp.graph.edit import origin_of
from onnxcomp.graph.flow import FLOW, Blocked
from onnxcomp.graph.fold.values import constant, is_op
from onnxcomp.graph.holders import HOLDERS, Held, Role, held_constant
from onnxcomp.graph.labels import ZERO, Forest, Labels

__all__ = ["Refuse", "Scaling", "Slot", "find_scaling"]

# Why the constants of a node must stay as they are; None where they may change.
Refuse = Callable[[ir.Node], str | None]

_ADDITIVE = ("Add", "Sub", "Sum", "Max", "Min")


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """A constant that takes factors: ``array * f[multiply] / f[divide]``, with broadcasting.

    Attributes:
        node: The node that reads it.
        index: Which input of it.
        role: ``weight`` mixes channels; ``bias`` is added; ``gain`` belongs to a normalization.
        multiply: Classes of the channels that the constant reads; None: none.
        divide: Classes of the channels that it writes; None: none.
    """

    node: ir.Node
    index: int
    role: Role
    multiply: Labels | None
    divide: Labels | None


@dataclass(frozen=True, slots=True, eq=False)
class Scaling:
    """The free factors of a model.

    Attributes:
        count: Number of free classes; they are numbered from 1. Class 0 has factor 1, class -1 is always zero.
        slots: The constants that take factors.
        tensors: For every tensor with a free class the classes of its elements, an array that broadcasts to its shape.
        skips: Nodes with weights whose inputs or outputs cannot be scaled, and why.
    """

    count: int
    slots: tuple[Slot, ...]
    tensors: dict[str, Labels]
    skips: tuple[Skip, ...]


def find_scaling(model: ir.Model, refuse: Refuse | None = None) -> Scaling:
    """Find the classes of channels in the main graph; the model is not modified.

    Weights must be float32 initializers that are finite, have one reader and no graph input or output of their name.
    What a body of If, Loop or Scan reads has factor 1.

    Args:
        model: A model with inferred shapes.
        refuse: Why a node's constants must stay as they are.
    """
    walk = _Walk(refuse if refuse is not None else lambda node: None)
    for value in model.graph.inputs:
        walk.labels[value] = walk.forest.pinned(f"{value.name} is an input of the model")
    for node in model.graph:
        walk.visit(node)
    for value in model.graph.outputs:
        walk.forest.pin(walk.of(value), f"{value.name} is an output of the model")
    return walk.result()


class _Walk:
    def __init__(self, refuse: Refuse) -> None:
        self.forest = Forest()
        self.labels: dict[ir.Value, Labels] = {}
        self._refuse = refuse
        self._slots: list[Slot] = []
        self._weighted: list[tuple[ir.Node, Labels, Labels]] = []
        self._skips: list[Skip] = []

    def of(self, value: ir.Value) -> Labels:
        """The labels of a value; a constant has factor 1."""
        if value not in self.labels:
            array = constant(value)
            zero = array is not None and array.size > 0 and not array.any()
            self.labels[value] = np.asarray(ZERO) if zero else self.forest.pinned(f"{value.name} is a constant")
        return self.labels[value]

    def visit(self, node: ir.Node) -> None:
        """Give labels to the outputs of a node."""
        for body in _bodies(node):
            for inner in body.all_nodes():
                self._pin_all(inner, f"a body of {node.op_type} reads it")
            for value in body.outputs:
                self.forest.pin(self.of(value), f"a body of {node.op_type} reads it")
        try:
            outputs = self._outputs(node)
        except Blocked as blocked:
            self._pin_all(node, str(blocked))
            outputs = [self.forest.pinned(str(blocked))] * len(node.outputs)
            if is_op(node, *HOLDERS) and not is_op(node, "MatMul"):
                self._skips.append(Skip(origin_of(node), str(blocked)))
        for value, labels in zip(node.outputs, outputs, strict=False):
            self.labels[value] = labels

    def _outputs(self, node: ir.Node) -> list[Labels]:
        if is_op(node, "Shape", "Size"):
            return [self.forest.pinned("it is a shape")]
        if is_op(node, *HOLDERS) and (node.op_type != "MatMul" or constant(node.inputs[1]) is not None):
            return self._held(node)
        if not is_op(node, *FLOW):
            raise Blocked(f"{node.op_type} does not pass a factor on")
        if node.op_type in _ADDITIVE:
            return self._additive(node)
        rule = FLOW[node.op_type]
        given = [self.of(value) for value in node.inputs if value is not None]
        return list(rule(self.forest, node, given))

    def _held(self, node: ir.Node) -> list[Labels]:
        reason = self._refuse(node)
        if reason is not None:
            raise Blocked(reason)
        source = node.inputs[0]
        if source is None or any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
            raise Blocked(f"{node.op_type} is not of the usual form")
        held: Held = HOLDERS[node.op_type](self.forest, node, self.of(source))
        self._slots += [Slot(node, *parts) for parts in held.constants]
        if held.weighted:
            self._weighted.append((node, held.reads, held.writes))
        return [held.output]

    def _additive(self, node: ir.Node) -> list[Labels]:
        """Constants are scaled like what they are added to."""
        pairs = list(enumerate(v for v in node.inputs if v is not None))
        data = [self.of(value) for _, value in pairs if constant(value) is None]
        if not data:
            return [self.forest.pinned("it is computed from constants")]
        labels = FLOW[node.op_type](self.forest, node, data)[0]
        for index, value in pairs:
            array = constant(value)
            if array is None or not array.any():
                continue
            reason = self._refuse(node) or held_constant(value, "constant")
            if reason is not None:
                self.forest.pin(labels, reason)
            else:
                self._slots.append(Slot(node, index, "bias", None, labels))
        return [labels]

    def _pin_all(self, node: ir.Node, reason: str) -> None:
        for value in node.inputs:
            if value is not None:
                self.forest.pin(self.of(value), reason)

    def result(self) -> Scaling:
        numbers: dict[int, int] = {}
        tensors: dict[str, Labels] = {}
        for value, labels in self.labels.items():
            final = self._numbered(labels, numbers)
            if value.name and (final > 0).any():
                tensors[value.name] = final
        slots = [
            Slot(slot.node, slot.index, slot.role, *(self._side(s, numbers) for s in (slot.multiply, slot.divide)))
            for slot in self._slots
        ]
        live = tuple(slot for slot in slots if slot.multiply is not None or slot.divide is not None)
        return Scaling(len(numbers), live, tensors, (*self._skips, *self._reasons()))

    def _side(self, labels: Labels | None, numbers: dict[int, int]) -> Labels | None:
        if labels is None:
            return None
        final = self._numbered(labels, numbers)
        return final if (final > 0).any() else None

    def _numbered(self, labels: Labels, numbers: dict[int, int]) -> Labels:
        roots = self.forest.roots(labels)
        unique, inverse = np.unique(roots, return_inverse=True)
        final = [
            label if label == ZERO else 0 if self.forest.reason(label) else numbers.setdefault(label, len(numbers) + 1)
            for label in (int(k) for k in unique)
        ]
        return np.asarray(final, np.int64)[inverse].reshape(roots.shape)

    def _reasons(self) -> list[Skip]:
        """Why a node with weights has no free channel on one side."""
        skips: list[Skip] = []
        for node, reads, writes in self._weighted:
            for side, labels in (("inputs", reads), ("outputs", writes)):
                reasons = [self.forest.reason(int(label)) for label in labels.reshape(-1) if label != ZERO]
                if reasons and None not in reasons:
                    skips.append(Skip(origin_of(node), f"the {side} have no factor: {reasons[0]}"))
        return skips


def _bodies(node: ir.Node) -> list[ir.Graph]:
    bodies: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            bodies.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            bodies.extend(attribute.as_graphs())
    return bodies
