"""Which channels of a model can change places without changing its outputs, and the constants that go with them.

Every channel of a tensor has a label (`onnxcomp.graph.labels`); operators that treat channels alike pass labels on, or
make one class of the channels that they combine. Two classes can change places where the same tensors and constants
hold both, each once. Residual Adds, gates, Concat, Slice and zeros padded to the channels are followed through the
model; operators that are not known to treat channels alike fix theirs. So do inputs and outputs of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.graph.edit import names_of, unique_name
from onnxcomp.graph.flow import FLOW, Blocked, ranked
from onnxcomp.graph.fold.values import constant, is_op
from onnxcomp.graph.holders import held_constant
from onnxcomp.graph.labels import ZERO, Forest, Labels
from onnxcomp.graph.reshaping import dims_of

__all__ = ["Freedom", "Part", "find_freedom", "moved", "permute"]

Refuse = Callable[[ir.Node], str | None]

_ALIKE: tuple[str, ...] = (
    *("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Clip", "Gelu", "Mish", "Identity", "Dropout"),
    *("Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus", "Softsign", "Erf", "Exp", "Log", "Sqrt", "Reciprocal"),
    *("Neg", "Abs", "Cast"),
)
_TOGETHER: tuple[str, ...] = ("Add", "Sub", "Mul", "Div", "Sum", "Mean", "Max", "Min", "Pow", "PRelu")
# The rules by which factors pass hold for places as well, where an operator only moves or averages elements.
_MOVING: tuple[str, ...] = (
    *("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "Resize"),
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "Concat", "Split", "Slice"),
    *("Gather", "Pad", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"),
)
_CHANNELWISE = ("BatchNormalization", "InstanceNormalization")


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One axis of a constant, of which the entries belong to channels.

    Attributes:
        value: The constant.
        axis: Its axis.
        labels: Class of each entry, (n,); 0: it stays where it is.
    """

    value: ir.Value
    axis: int
    labels: Labels


@dataclass(frozen=True, slots=True, eq=False)
class Freedom:
    """What can change places.

    Attributes:
        sets: Classes of which any two can change places, each (n,) with n of 2 or more, ascending; numbered from 1.
        parts: The constants that go with them.
        reads: For every Conv, ConvTranspose, Gemm and MatMul that mixes its channels, their classes, (Ci,).
        tensors: Every activation that holds a class of the sets, with the classes of its elements.
    """

    sets: tuple[Labels, ...]
    parts: tuple[Part, ...]
    reads: Mapping[ir.Node, Labels]
    tensors: Mapping[ir.Value, Labels]

    @property
    def count(self) -> int:
        """Number of the classes."""
        return sum(len(own) for own in self.sets)


def find_freedom(model: ir.Model, refuse: Refuse | None = None) -> Freedom:
    """Find the channels of the main graph that can change places; the model is not modified.

    Constants that would have to follow must be float32 initializers that are finite, have one reader and no graph input
    or output of their name.

    Args:
        model: A model with inferred shapes.
        refuse: Why a node's constants must stay as they are.
    """
    walk = _Walk(refuse if refuse is not None else lambda node: None)
    for value in model.graph.inputs:
        walk.labels[value] = walk.forest.pinned("an input of the model")
    for node in model.graph:
        walk.visit(node)
    for value in model.graph.outputs:
        walk.forest.pin(walk.of(value), "an output of the model")
    for body in model.graph.subgraphs():
        for value in (*body.outputs, *(v for node in body for v in node.inputs if v is not None)):
            walk.forest.pin(walk.of(value), "a body reads it")
    return walk.result()


def moved(labels: Labels, moves: Labels) -> Labels:
    """Where each entry along an axis comes from when classes change places.

    Args:
        labels: Classes of the entries, (n,).
        moves: For each class, from 0, the one whose place it takes its content from.
    """
    place = np.zeros(len(moves), np.int64)
    place[labels] = np.arange(len(labels))
    return np.where(labels == 0, np.arange(len(labels)), place[moves[labels]])


def permute(model: ir.Model, freedom: Freedom, moves: Labels) -> None:
    """Let classes change places, in place: the outputs stay what they are but for the order of sums.

    Inner tensors whose channels move get other names: compared by name with the original, they would seem wrong.

    Args:
        model: The model that `freedom` was found in.
        freedom: What can change places.
        moves: For each class, from 0, the one that comes to its place, of its own set.
    """
    for part in freedom.parts:
        source = moved(part.labels, moves)
        tensor = part.value.const_value
        assert tensor is not None
        if (source != np.arange(len(source))).any():
            part.value.const_value = ir.tensor(np.take(tensor.numpy(), source, part.axis), name=part.value.name)
    taken = names_of(model.graph)
    for value, labels in freedom.tensors.items():
        if (moves[labels] != labels).any() and value.name:
            value.name = unique_name(model.graph, f"{value.name}.permuted", taken)


class _Walk:
    def __init__(self, refuse: Refuse) -> None:
        self.forest = Forest()
        self.labels: dict[ir.Value, Labels] = {}
        self._refuse = refuse
        self._parts: list[Part] = []
        self._reads: dict[ir.Node, Labels] = {}

    def of(self, value: ir.Value) -> Labels:
        """The labels of a value; zeros are alike wherever they are, other constants stay."""
        if value not in self.labels:
            array = constant(value)
            zero = array is not None and array.size > 0 and not array.any()
            self.labels[value] = np.asarray(ZERO) if zero else self.forest.pinned("a constant")
        return self.labels[value]

    def visit(self, node: ir.Node) -> None:
        """Give labels to the outputs of a node."""
        given = [value for value in node.inputs if value is not None]
        try:
            outputs = self._outputs(node, given)
        except Blocked as blocked:
            for value in given:
                self.forest.pin(self.of(value), str(blocked))
            outputs = [self.forest.pinned(str(blocked))] * len(node.outputs)
        for value, labels in zip(node.outputs, outputs, strict=False):
            self.labels[value] = labels

    def _outputs(self, node: ir.Node, given: Sequence[ir.Value]) -> Sequence[Labels]:
        if is_op(node, "Shape", "Size"):
            return [self.forest.pinned("a shape")]
        if is_op(node, *_MOVING):
            return FLOW[node.op_type](self.forest, node, [self.of(value) for value in given])
        if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
            raise Blocked(f"{node.op_type} has more than one output in use")
        if is_op(node, *_ALIKE):
            return [self.of(given[0])]
        if is_op(node, *_TOGETHER):
            return [self._together(node, given)]
        if is_op(node, "Conv", "ConvTranspose"):
            return [self._convolution(node)]
        if is_op(node, "Gemm", "MatMul"):
            return [self._product(node)]
        if is_op(node, *_CHANNELWISE) and not node.attributes.get_int("training_mode", 0):
            return [self._channelwise(node)]
        raise Blocked(f"{node.op_type} does not treat channels alike")

    def _together(self, node: ir.Node, given: Sequence[ir.Value]) -> Labels:
        """Elements that meet become one class; constants go with them."""
        data = [value for value in given if constant(value) is None]
        if not data:
            raise Blocked("it is computed from constants")
        labels = self.of(data[0])
        for value in data[1:]:
            labels = self.forest.join(labels, self.of(value))
        for value in given:
            array = constant(value)
            if array is not None and (array != array.reshape(-1)[:1]).any():
                labels = self._with_constant(node, value, array, labels)
        return labels

    def _with_constant(self, node: ir.Node, value: ir.Value, array: NDArray[Any], labels: Labels) -> Labels:
        labels = self._told_apart(labels)
        varying = [axis for axis in range(-labels.ndim, 0) if labels.shape[axis] > 1]
        met = [axis for axis in varying if axis >= -array.ndim and array.shape[axis] > 1]
        if met and len(varying) == 1 and array.shape[met[0]] == labels.size:
            self._hold(node, value, array.ndim + met[0], labels.reshape(-1))
        elif met:
            self.forest.pin(labels, "a constant varies along several axes with it")
        return labels

    def _told_apart(self, labels: Labels) -> Labels:
        """Zeros that differ from now on get labels of their own."""
        return np.where(labels == ZERO, self.forest.fresh(labels.shape), labels)

    def _convolution(self, node: ir.Node) -> Labels:
        shape = self._shape(node, 1)
        transposed, group = node.op_type == "ConvTranspose", node.attributes.get_int("group", 1)
        if len(shape) < 3:
            raise Blocked("the weight has no spatial axis")
        if group > 1 and shape[:2] == (group, 1):
            return self._channelwise(node)
        if group > 1:
            raise Blocked("channels of a group stay together")
        read, write = (0, 1) if transposed else (1, 0)
        writes = self._mixed(node, 1, shape, read, write)
        return writes.reshape(1, -1, *(1,) * (len(shape) - 2))

    def _product(self, node: ir.Node) -> Labels:
        shape = self._shape(node, 1)
        if len(shape) != 2 or node.attributes.get_int("transA", 0) != 0:
            raise Blocked("the product is not of the usual form")
        read, write = (1, 0) if node.attributes.get_int("transB", 0) else (0, 1)
        return self._mixed(node, -1, shape, read, write)

    def _mixed(self, node: ir.Node, axis: int, shape: tuple[int, ...], read: int, write: int) -> Labels:
        """Hold the weight and bias of a node that mixes its channels; returns labels of those that it writes."""
        reads, writes = self._channels(node, axis, shape[read]), self.forest.fresh((shape[write],))
        weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        assert weight is not None
        self._reads[node] = reads
        self._hold(node, weight, read, reads)
        self._hold(node, weight, write, writes)
        if bias is not None:
            extents = self._shape(node, 2)
            if extents and extents[-1] > 1:
                self._hold(node, bias, len(extents) - 1, writes)
        return writes

    def _channelwise(self, node: ir.Node) -> Labels:
        """Hold constants that have one entry for each channel."""
        shape = self._shape(node, 1)
        labels = self._told_apart(self._channels(node, 1, shape[0]))
        for index, value in enumerate(node.inputs[1:], 1):
            if value is not None:
                if self._shape(node, index)[:1] != shape[:1]:
                    raise Blocked("a constant does not fit")
                self._hold(node, value, 0, labels)
        return labels.reshape(1, -1, *(1,) * (len(dims_of(node.inputs[0]) or ()) - 2))

    def _channels(self, node: ir.Node, axis: int, count: int) -> Labels:
        """The labels of a node's input channels, (count,)."""
        source = node.inputs[0]
        if source is None:
            raise Blocked("an input is missing")
        full = ranked(source, self.of(source))
        axis %= full.ndim
        flat = self.forest.flatten(full, tuple(k for k in range(full.ndim) if k != axis)).reshape(-1)
        if flat.size not in (1, count):
            raise Blocked("the weight does not fit its input")
        return np.broadcast_to(flat, (count,))

    def _hold(self, node: ir.Node, value: ir.Value, axis: int, labels: Labels) -> None:
        """Let a constant follow the channels, or fix them where it cannot."""
        reason = self._refuse(node) or held_constant(value, "constant")
        if reason is not None:
            self.forest.pin(labels, reason)
        else:
            self._parts.append(Part(value, axis, labels))

    def _shape(self, node: ir.Node, index: int) -> tuple[int, ...]:
        array = constant(node.inputs[index])
        if array is None:
            raise Blocked(f"input {index} of {node.op_type} is not constant")
        return array.shape

    def result(self) -> Freedom:
        parts = [Part(p.value, p.axis, self._roots(p.labels)) for p in self._parts]
        reads = {node: self._roots(labels) for node, labels in self._reads.items()}
        tensors = {value: self.forest.roots(labels) for value, labels in self.labels.items()}
        sets = self._sets([*(p.labels for p in parts), *reads.values(), *tensors.values()])
        numbers: dict[int, int] = {}
        for own in sets:
            for label in own:
                numbers[label] = len(numbers) + 1

        def numbered(labels: Labels) -> Labels:
            unique, inverse = np.unique(labels, return_inverse=True)
            return np.asarray([numbers.get(int(k), 0) for k in unique], np.int64)[inverse].reshape(labels.shape)

        held = {value: numbered(labels) for value, labels in tensors.items() if value.name}
        return Freedom(
            tuple(np.asarray([numbers[label] for label in own]) for own in sets),
            tuple(Part(p.value, p.axis, numbered(p.labels)) for p in parts),
            {node: numbered(labels) for node, labels in reads.items()},
            {value: labels for value, labels in held.items() if labels.any()},
        )

    def _roots(self, labels: Labels) -> Labels:
        return np.broadcast_to(self.forest.roots(labels), labels.shape)

    def _sets(self, arrays: Sequence[Labels]) -> list[list[int]]:
        """Classes by the arrays that hold them; left out are fixed ones and those that an array holds twice."""
        distinct = {array.tobytes(): array for array in arrays}
        holders: dict[int, list[int]] = {}
        fixed: set[int] = set()
        for index, array in enumerate(distinct.values()):
            unique, counts = np.unique(array, return_counts=True)
            fixed.update(unique[counts > 1].tolist())
            for label in unique.tolist():
                holders.setdefault(label, []).append(index)
        sets: dict[tuple[int, ...], list[int]] = {}
        for label, own in sorted(holders.items()):
            if label != ZERO and label not in fixed and self.forest.reason(label) is None:
                sets.setdefault(tuple(own), []).append(label)
        return [own for own in sets.values() if len(own) > 1]
