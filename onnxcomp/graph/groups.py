"""Which channels of a model can be removed, and what has to go with each.

The channels of every tensor lie along one axis; those of different tensors that can only be removed together are one
class (`onnxcomp.graph.slots`). Layers read the classes of their inputs and write classes of their own; residual Adds,
gates, Concat, Split, shuffles, depthwise and grouped convolutions tie them or pass them on. Inputs and outputs of the
model and channels that an operator mixes stay. Classes that the same tensors and layers hold make a group.
(Fang et al., DepGraph: Towards Any Structural Pruning, 2023.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxcomp.graph.decoding import is_decoded
from onnxcomp.graph.flow import Blocked
from onnxcomp.graph.fold.values import is_op
from onnxcomp.graph.foreign import foreign_reason
from onnxcomp.graph.labels import Labels
from onnxcomp.graph.slotlayers import LAYERS, WEIGHTED
from onnxcomp.graph.slotrules import RULES
from onnxcomp.graph.slots import Edit, Fixed, Known, Refuse, Slots, Trace, named
from onnxcomp.graph.slotshapes import SHAPED, trace_vector

__all__ = ["Group", "Groups", "find_groups"]

# From this opset on axes and sizes are inputs and Softmax works along one axis.
_OLDEST = 13

_RULES = {**RULES, **SHAPED, **LAYERS}


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Classes that are held by the same tensors and layers, each as often.

    Attributes:
        classes: Their numbers, (n,), ascending.
        producers: Layers that write them, in graph order.
        consumers: Layers that read them, in graph order.
    """

    classes: Labels
    producers: tuple[ir.Node, ...]
    consumers: tuple[ir.Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """The classes of channels that can be removed, numbered from 1; number 0 stands for channels that stay.

    Any classes can be removed as long as every axis keeps a channel. What describes the model here is out of date then.

    Attributes:
        count: Number of the classes.
        groups: The classes by what holds them; every class is in one group.
        writes: For every Conv, ConvTranspose, Gemm and MatMul with a constant weight that mixes channels the classes
            of its output channels, (Co,).
        reads: For each of them the classes of its input channels, (Ci,), all groups of a grouped convolution included.
        channelwise: For every depthwise convolution the classes of its output channels, (Co,).
        reasons: Why a layer's output channels all stay, by layer.
        tensors: For every activation with a class, the axis of its channels and the class of each, (C,).
        edits: The constants and attributes that follow, in graph order.
    """

    count: int
    groups: tuple[Group, ...]
    writes: Mapping[ir.Node, Labels]
    reads: Mapping[ir.Node, Labels]
    channelwise: Mapping[ir.Node, Labels]
    reasons: Mapping[ir.Node, str]
    tensors: Mapping[ir.Value, tuple[int, Labels]]
    edits: tuple[Edit, ...]


def find_groups(model: ir.Model, refuse: Refuse | None = None) -> Groups:
    """Find the channels of the main graph that can be removed; the model is not modified.

    Constants that follow must be initializers of floats with one reader that no caller can override. Whatever a body of
    If, Loop or Scan reads stays.

    Args:
        model: A canonical model (`onnxcomp.graph.fold.canonicalise`).
        refuse: Why a node's constants must stay as they are; None where they may change.
    """
    trace = Trace(refuse if refuse is not None else lambda node: None)
    for value in model.graph.inputs:
        trace.known[value] = Fixed(f"{value.name} is an input of the model")
    reasons: dict[ir.Node, str] = {}
    old = model.opset_imports.get("", _OLDEST) < _OLDEST
    for node in model.graph:
        _visit(trace, node, reasons, f"opset {model.opset_imports['']} has other operators" if old else None)
    for value in model.graph.outputs:
        trace.pin(value, f"{value.name} is an output of the model")
    for body in model.graph.subgraphs():
        for value in (*body.outputs, *(v for node in body for v in node.inputs if v is not None)):
            trace.pin(value, f"a body reads {value.name}")
    return _Numbers(trace).groups(reasons)


def _visit(trace: Trace, node: ir.Node, reasons: dict[ir.Node, str], refusal: str | None) -> None:
    """Note what the outputs of a node are known to be; nothing at all with a refusal."""
    trace_vector(trace, node)
    try:
        if refusal is not None:
            raise Blocked(refusal)
        outputs = _outputs(trace, node)
    except Blocked as blocked:
        for value in node.inputs:
            if value is not None:
                trace.pin(value, str(blocked))
        outputs = [Fixed(str(blocked))] * len(node.outputs)
        if _has_weight(node):
            reasons[node] = str(blocked)
    for value, known in zip(node.outputs, outputs, strict=True):
        trace.known[value] = _checked(trace, value, known)


def _has_weight(node: ir.Node) -> bool:
    """Whether a node is a layer, in whatever form its weight is stored; a MatMul of two activations is none."""
    if is_op(node, "MatMul"):
        return any(value is not None and (value.is_initializer() or is_decoded(value)) for value in node.inputs)
    return is_op(node, *WEIGHTED) or foreign_reason(node, *WEIGHTED) is not None


def _outputs(trace: Trace, node: ir.Node) -> list[Known]:
    if is_op(node, "Shape", "Size"):
        if node.op_type == "Size" and node.inputs[0] is not None:
            raise Blocked(f"{named(node)} counts its elements")
        return [Fixed("it is a shape")]
    foreign = foreign_reason(node, *WEIGHTED)
    if foreign:
        raise Blocked(f"{named(node)}: {foreign}")
    if not is_op(node, *_RULES):
        raise Blocked(f"{named(node)} is not known to treat channels alike")
    found = list(_RULES[node.op_type](trace, node))
    if all(isinstance(known, Fixed) for known in found):
        _hold_others(trace, node)
    return [*found, *[Fixed(f"it is a further output of {named(node)}")] * (len(node.outputs) - len(found))]


def _hold_others(trace: Trace, node: ir.Node) -> None:
    """Nothing follows slots that are indices or the like of fixed data: the output would still grow with them."""
    for value in node.inputs[1:]:
        known = trace.of(value)
        if isinstance(known, Slots):
            trace.classes.pin(known.labels, f"{named(node)} reads them beside data that stay")


def _checked(trace: Trace, value: ir.Value, known: Known) -> Known:
    """Slots that do not fit the value's shape stay, and so does an only one."""
    if isinstance(known, Fixed):
        return known
    dims = value.shape
    reason = None
    if known.labels.size == 1:
        reason = f"{value.name} has one channel"
    elif dims is not None and (
        dims.rank() <= known.axis or (isinstance(dims[known.axis], int) and dims[known.axis] != known.labels.size)
    ):
        reason = f"the shape of {value.name} does not fit"
    if reason is None:
        return known
    trace.classes.pin(known.labels, reason)
    return Fixed(reason)


class _Numbers:
    """Numbers of the classes that are free."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        classes = trace.classes
        self._slots = {value: known for value, known in trace.known.items() if isinstance(known, Slots)}
        for value, known in self._slots.items():
            roots = classes.roots(known.labels)
            if (roots == roots[0]).all():
                classes.pin(roots[:1], f"all channels of {value.name} are tied together")
        self._roots = classes.roots(np.arange(classes.count, dtype=np.int64))
        pinned = np.zeros(classes.count, np.bool_)
        pinned[list(classes.reasons())] = True
        held = np.zeros(classes.count, np.bool_)
        for known in self._slots.values():
            held[self._roots[known.labels]] = True
        free = np.flatnonzero(held & ~pinned)
        self._count = len(free)
        self._of_root = np.zeros(classes.count, np.int64)
        self._of_root[free] = np.arange(1, self._count + 1)

    def groups(self, reasons: dict[ir.Node, str]) -> Groups:
        trace = self._trace
        layers = {**trace.writes, **trace.channelwise}
        for node, labels in layers.items():
            if not self._numbered(labels).any():
                reasons[node] = trace.classes.reasons()[int(self._roots[labels[0]])]
        tensors = {value: (known.axis, self._numbered(known.labels)) for value, known in self._slots.items()}
        edits = [replace(edit, labels=self._numbered(edit.labels)) for edit in trace.edits]
        writes, reads, channelwise = (
            {node: self._numbered(labels) for node, labels in own.items()}
            for own in (trace.writes, trace.reads, trace.channelwise)
        )
        held = {value: own for value, own in tensors.items() if own[1].any()}
        return Groups(
            self._count,
            _grouped(self._count, writes, reads, [*channelwise.values(), *(labels for _, labels in held.values())]),
            writes,
            reads,
            channelwise,
            reasons,
            held,
            tuple(edit for edit in edits if edit.labels.any()),
        )

    def _numbered(self, labels: Labels) -> Labels:
        return self._of_root[self._roots[labels]]


def _grouped(
    count: int, writes: Mapping[ir.Node, Labels], reads: Mapping[ir.Node, Labels], others: Iterable[Labels]
) -> tuple[Group, ...]:
    """Classes by what holds them: a sum of random numbers, one for each array, tells them apart."""
    rng = np.random.default_rng(0)
    marks = np.zeros((2, count + 1), np.uint64)
    for labels in (*writes.values(), *reads.values(), *others):
        own = rng.integers(0, 2**63, 2, dtype=np.uint64)
        for row, mark in zip(marks, own, strict=True):
            np.add.at(row, labels, mark)
    _, inverse = np.unique(marks[:, 1:], axis=1, return_inverse=True)
    numbers = inverse.reshape(-1)
    order = np.argsort(numbers, kind="stable")
    classes = np.split(order + 1, np.flatnonzero(np.diff(numbers[order])) + 1) if count else []
    of_class = np.concatenate([[-1], numbers])
    producers, consumers = _holders(writes, of_class), _holders(reads, of_class)
    found = [Group(own, *(tuple(of.get(k, ())) for of in (producers, consumers))) for k, own in enumerate(classes)]
    return tuple(sorted(found, key=lambda group: int(group.classes[0])))


def _holders(arrays: Mapping[ir.Node, Labels], of_class: Labels) -> dict[int, list[ir.Node]]:
    """The nodes that hold classes of each group."""
    found: dict[int, list[ir.Node]] = {}
    for node, labels in arrays.items():
        for number in np.unique(of_class[labels]).tolist():
            found.setdefault(number, []).append(node)
    return found
