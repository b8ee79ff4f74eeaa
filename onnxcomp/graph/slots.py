"""Channel slots of values and the classes that they are removed in, as a walk through a model collects them.

A *slot* is a place along one axis of a tensor. Every value has at most one axis with slots that may be removed; a class
holds the slots, of any tensors, that can only be removed together. A class may be pinned, with the reason: its slots
stay. (Fang et al., DepGraph: Towards Any Structural Pruning, 2023, with classes of slots in place of groups of layers.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.graph.earlier import earlier_reason
from onnxcomp.graph.edit import origin_of
from onnxcomp.graph.flow import Blocked
from onnxcomp.graph.fold.values import constant
from onnxcomp.graph.labels import Labels
from onnxcomp.graph.reshaping import Dims, dims_of

__all__ = ["Change", "Classes", "Edit", "Entry", "Fixed", "Known", "Refuse", "Rule", "Slots", "Trace", "named"]

Refuse = Callable[[ir.Node], str | None]
# What a constant or attribute becomes when only the slots that are True stay: (array, kept) -> array.
Change = Callable[[NDArray[Any], NDArray[np.bool_]], NDArray[Any]]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True, slots=True, eq=False)
class Slots:
    """The axis of a value that has slots, counted from the front, and the label of each, (n,)."""

    axis: int
    labels: Labels


@dataclass(frozen=True, slots=True)
class Fixed:
    """Nothing of a value can be removed, and why."""

    reason: str


Known = Slots | Fixed


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """A constant input or an attribute of a node that follows when slots are removed.

    Attributes:
        node: The node.
        target: Which input of it, or the name of an integer attribute.
        labels: Classes of the slots that it depends on, (n,).
        change: What it becomes. An input that is missing is given as an empty array of int64.
    """

    node: ir.Node
    target: int | str
    labels: Labels
    change: Change


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One number of a computed or constant shape.

    Attributes:
        size: The number, the name of a symbol, or None where it is unknown.
        literal: Whether the model states the number.
        labels: Slots whose number it is; None where it does not change when slots are removed.
        place: Node, input and position of a literal that may be rewritten.
    """

    size: int | str | None
    literal: bool = False
    labels: Labels | None = None
    place: tuple[ir.Node, int, int] | None = None


class Classes:
    """A union-find of labels; label 0 is pinned from the start."""

    def __init__(self) -> None:
        self._parents = np.arange(1024, dtype=np.int64)
        self._reasons: dict[int, str] = {}
        self.count = 0
        self.fixed(1, "it is fixed")

    def fresh(self, count: int) -> Labels:
        """New labels, each a class of its own."""
        first, self.count = self.count, self.count + count
        if self.count > len(self._parents):
            grown = np.arange(2 * self.count, dtype=np.int64)
            grown[:first] = self._parents[:first]
            self._parents = grown
        return np.arange(first, self.count, dtype=np.int64)

    def fixed(self, count: int, reason: str) -> Labels:
        """One new label `count` times, pinned."""
        label = self.fresh(1)
        self._reasons[int(label[0])] = reason
        return np.repeat(label, count)

    def roots(self, labels: Labels) -> Labels:
        """The labels with every class named by one of them."""
        found = self._parents[labels]
        while ((above := self._parents[found]) != found).any():
            found = above
        self._parents[labels] = found
        return found

    def unite(self, a: Labels, b: Labels) -> None:
        """Make labels that meet, one by one, the same class; both have the same shape."""
        a, b = self.roots(a), self.roots(b)
        differ = a != b
        if differ.any():
            for x, y in zip(a[differ].tolist(), b[differ].tolist(), strict=True):
                self._union(x, y)

    def pin(self, labels: Labels, reason: str) -> None:
        """Pin every class of the labels; the first reason of a class stays."""
        for root in np.unique(self.roots(labels)).tolist():
            self._reasons.setdefault(root, reason)

    def reasons(self) -> Mapping[int, str]:
        """Why a class is pinned, by its root; others are free."""
        return self._reasons

    def _find(self, label: int) -> int:
        while (above := int(self._parents[label])) != label:
            label = above
        return label

    def _union(self, a: int, b: int) -> None:
        a, b = sorted((self._find(a), self._find(b)))
        if a == b:
            return
        self._parents[b] = a
        reason = self._reasons.pop(b, None)
        if reason is not None:
            self._reasons.setdefault(a, reason)


class Trace:
    """What is known of a model's values so far, and the edits that removal asks for."""

    def __init__(self, refuse: Refuse) -> None:
        self.classes = Classes()
        self.known: dict[ir.Value, Known] = {}
        self.vectors: dict[ir.Value, tuple[Entry, ...]] = {}
        self.edits: list[Edit] = []
        self.reads: dict[ir.Node, Labels] = {}
        self.writes: dict[ir.Node, Labels] = {}
        self.channelwise: dict[ir.Node, Labels] = {}
        self._refuse = refuse

    def of(self, value: ir.Value | None) -> Known:
        """What is known of a value; constants are fixed."""
        if value is None:
            return Fixed("an input is missing")
        return self.known.get(value) or Fixed(f"{value.name} is a constant")

    def pin(self, value: ir.Value, reason: str) -> None:
        """Keep all slots of a value, and those that it counts."""
        known = self.known.get(value)
        if isinstance(known, Slots):
            self.classes.pin(known.labels, reason)
        for entry in self.vectors.get(value, ()):
            if entry.labels is not None:
                self.classes.pin(entry.labels, reason)

    def labels_along(self, value: ir.Value | None, axis: int, count: int) -> Labels:
        """The labels of a value along `axis`, (count,); pinned ones where it has no slots. Other axes lose theirs.

        Raises:
            Blocked: The value has slots along another axis, or not as many.
        """
        known = self.of(value)
        if isinstance(known, Fixed):
            return self.classes.fixed(count, known.reason)
        if known.axis != axis % len(self.dims(value)):
            raise Blocked("channels lie along another axis than the one that is read")
        if known.labels.size != count:
            raise Blocked("a constant does not fit its channels")
        return known.labels

    def require(self, node: ir.Node, index: int, what: str, *, single: bool = True) -> tuple[int, ...]:
        """The shape of a constant of floats that can be sliced for this node.

        Raises:
            Blocked: It cannot, or the node's constants must stay.
        """
        reason = self._refuse(node)
        if reason is not None:
            raise Blocked(reason)
        value = node.inputs[index] if len(node.inputs) > index else None
        if value is None:
            raise Blocked(f"{named(node)} lacks its {what}")
        if value.is_graph_input():
            raise Blocked(f"the {what} {value.name!r} can be overridden by a graph input")
        array = constant(value)
        if array is None or value.const_value is None:
            raise Blocked(earlier_reason(node, value, what) or f"the {what} {value.name!r} is not a constant")
        if single and value.const_value.dtype not in _FLOATS:
            raise Blocked(f"the {what} {value.name!r} is {value.const_value.dtype.name.lower()}")
        if single and (len(value.uses()) > 1 or value.is_graph_output()):
            raise Blocked(f"the {what} {value.name!r} is shared")
        return array.shape

    def slice(self, node: ir.Node, index: int, axis: int, labels: Labels) -> None:
        """Let the entries of a constant along `axis` follow their slots."""
        self.edits.append(Edit(node, index, labels, _Compress(axis)))

    def rewrite(self, node: ir.Node, target: int | str, labels: Labels, change: Change) -> None:
        """Let a constant of numbers of slots, or an attribute, follow."""
        self.edits.append(Edit(node, target, labels, change))

    def dims(self, value: ir.Value | None) -> Dims:
        """The dimensions of a value; raises Blocked where not even their number is known."""
        dims = dims_of(value)
        if dims is None:
            raise Blocked(f"the shape of {value.name if value else 'an input'} is unknown")
        return dims

    def fixed_array(self, node: ir.Node, index: int) -> NDArray[np.generic]:
        """A constant input; raises Blocked where it is none."""
        array = constant(node.inputs[index]) if len(node.inputs) > index else None
        if array is None:
            raise Blocked(f"input {index} of {named(node)} is not a constant")
        return array

    def integers(self, node: ir.Node, index: int) -> tuple[int, ...]:
        """A constant input as integers; raises Blocked where it is none."""
        return tuple(int(k) for k in self.fixed_array(node, index).reshape(-1).tolist())


@dataclass(frozen=True, slots=True)
class _Compress:
    axis: int

    def __call__(self, array: NDArray[Any], kept: NDArray[np.bool_]) -> NDArray[Any]:
        return np.compress(kept, array, self.axis)


# What a node's outputs are known to be; raises Blocked where all its slots must stay.
Rule = Callable[[Trace, ir.Node], Sequence[Known]]


def named(node: ir.Node) -> str:
    """Operator and name of a node, with the domain where it is another than ONNX's own."""
    domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}."
    return f"{domain}{node.op_type} {origin_of(node)}"
