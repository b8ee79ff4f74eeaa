"""Residual blocks: find the branches that can go, so that only the shortcut past them stays, and take some out.

A block is an Add of a shortcut and a branch, both computed from one value, the source. The shortcut is the source
itself or a short path from it, such as a projection, a pooling or a slice with padding. Without the branch the shortcut
stands for the sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import combinations

import onnx_ir as ir

from onnxcomp.cost import Cost, node_macs
from onnxcomp.graph.blockrules import NoBlockError, bodies_of, channel_axis, refuse_branch, refuse_shapes
from onnxcomp.graph.edit import ORIGIN, PASS, drop_unused, names_of, origin_of, unique_name
from onnxcomp.graph.fold.values import is_op
from onnxcomp.graph.limits import activation_limits, value_limits
from onnxcomp.graph.relaxing import relax
from onnxcomp.graph.sites import static_shape

__all__ = ["Block", "Blocks", "drop", "find_blocks"]

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")
# Nodes of a shortcut that is not the source itself, decoding of weights aside.
_SHORT = 12


@dataclass(frozen=True, eq=False, slots=True)
class Block:
    """A residual block whose branch can go.

    Attributes:
        name: Name of the Add in the user's own model.
        add: The Add.
        branch: The nodes that go with the branch, in topological order.
        layers: Those of them that have weights.
        source: The value that the branch is computed from.
        shortcut: The other operand of the Add; the source itself, or computed from it.
        axis: Of the channels of both operands: the second one, or the last one (-1) behind a matrix product.
    """

    name: str
    add: ir.Node
    branch: tuple[ir.Node, ...]
    layers: tuple[ir.Node, ...]
    source: ir.Value
    shortcut: ir.Value
    axis: int

    @property
    def channels(self) -> int:
        """Number of channels of both operands."""
        known = (static_shape(value)[self.axis] for value in self.add.inputs)
        return next(channels for channels in known if channels is not None)

    @property
    def sites(self) -> dict[str, Cost]:
        """The cost of each layer of the branch, by their names in the user's own model."""
        found: dict[str, Cost] = {}
        for node in self.layers:
            found[origin_of(node)] = found.get(origin_of(node), Cost(0, 0, 0)) + _cost([node], shared=True)
        return found

    @property
    def cost(self) -> Cost:
        """MACs of the branch, and its constants that nothing else reads."""
        return _cost(self.branch)

    def excludes(self, other: Block) -> bool:
        """Whether the two cannot both be dropped: one lies in the other's branch, or they are the same."""
        own = {self.add, *self.branch}
        return other.add in own or self.add in other.branch or not own.isdisjoint(other.branch)


@dataclass(frozen=True, slots=True)
class Blocks:
    """What was found.

    Attributes:
        blocks: The blocks that can go, in topological order of their Adds; some may lie inside others.
        refusals: By the name of an Add of two activations that looks like the end of a block: why it is none.
    """

    blocks: tuple[Block, ...]
    refusals: Mapping[str, str]


def find_blocks(model: ir.Model) -> Blocks:
    """Find the residual blocks of the main graph that hold a layer with weights; the model is not modified.

    Left alone are blocks of transformers, which hold a product of two activations or a layer normalisation; branches
    that anything else reads from, or that read anything but the source; and sums that broadcast.

    Args:
        model: A model with inferred shapes.
    """
    walk = _Walk(model.graph)
    blocks: list[Block] = []
    refusals: dict[str, str] = {}
    for node in model.graph:
        if not is_op(node, "Add", "Sum") or PASS in node.metadata_props:
            continue
        found = walk.block(node)
        if isinstance(found, Block):
            blocks.append(found)
        elif found:
            refusals[origin_of(node)] = found
    return Blocks(tuple(blocks), refusals)


def drop(model: ir.Model, blocks: Sequence[Block], original: ir.Model | None = None) -> None:
    """Drop the branches of blocks, in place; the model is to have been unchanged since they were found.

    What stands for a value behind a block takes its name: the shortcut that of the sum, and where the sum's Relu (or
    Clip) would only repeat the one that made the shortcut, that of the second one's output, while what the first one
    reads takes the name of the sum. So one and the same name stands for values that should be alike in the model before
    and after. An Identity bears the name where the shortcut is read elsewhere too or cannot be renamed.

    Args:
        model: The model.
        blocks: What to drop.
        original: A clone of the model, to which what is left will be fitted. It goes on computing the same, but what it
            adds up in front of such a second Relu is left free where the Relu hides it, for the layer in front of the
            first one, which now stands for it, knows nothing of signs there (:func:`onnxcomp.graph.relaxing.relax`).

    Raises:
        ValueError: Two of the blocks lie one in the other.
    """
    for one, other in combinations(blocks, 2):
        if one.excludes(other):
            raise ValueError(f"the blocks {one.name!r} and {other.name!r} exclude each other")
    order = {node: index for index, node in enumerate(model.graph)}
    ordered = sorted(blocks, key=lambda block: order[block.add])
    for block in ordered if original is not None else ():
        repeated, before = _repeated(block), _before(block)
        limits = None if repeated is None else activation_limits(repeated)
        if before is not None and limits is not None and original is not None:
            relax(original, block.add.outputs[0].name or "", before.name or "", limits)
    # Upwards, so that of several names in a row the last one wins and what belongs to the other blocks stays.
    for block in reversed(ordered):
        _drop(model.graph, block)


class _Walk:
    def __init__(self, graph: ir.Graph) -> None:
        self._nodes = tuple(graph)
        self._order = {node: index for index, node in enumerate(self._nodes)}
        self._varying = set(_varying(graph))

    def block(self, add: ir.Node) -> Block | str | None:
        """The block that an Add ends, or why it ends none; None for a sum that does not look like the end of one."""
        if len(add.inputs) != 2 or not all(value in self._varying for value in add.inputs):
            return None
        left, right = (value for value in add.inputs if value is not None)
        if left is right:
            return None
        found: list[tuple[int, Block]] = []
        reasons: list[str] = []
        for end, shortcut in ((left, right), (right, left)):
            try:
                found.append(self._cut(add, end, shortcut))
            except NoBlockError as reason:
                reasons.append(str(reason))
        if found:
            return max(found, key=lambda pair: pair[0])[1]
        return next((reason for reason in reasons if reason), None)

    def _cut(self, add: ir.Node, end: ir.Value, shortcut: ir.Value) -> tuple[int, Block]:
        """The block with this operand as its branch, and by how many layers the branch is longer than the shortcut."""
        branch = self._exclusive(end, add)
        layers = [node for node in branch if self._is_layer(node)]
        if not layers:
            past = () if branch else self._path(end, shortcut) or ()
            raise NoBlockError("its branch is also read elsewhere" if any(map(self._is_layer, past)) else "")
        inside = {value for node in branch for value in node.outputs}
        given = [v for node in branch for v in node.inputs if v is not None and v in self._varying and v not in inside]
        source = given[0]
        if any(value is not source for value in given):
            raise NoBlockError(f"its branch reads {len(set(given))} activations")
        path = self._path(shortcut, source)
        if path is None:
            raise NoBlockError("its branch does not begin where the shortcut does, or is read elsewhere too")
        axis = channel_axis(branch, layers[-1])
        refuse_branch(branch, self._varying)
        refuse_shapes(add, end, shortcut, axis)
        longer = len(layers) - sum(self._is_layer(node) for node in path)
        if longer <= 0:
            raise NoBlockError("neither operand of the sum is a shortcut past the other")
        return longer, Block(origin_of(add), add, branch, tuple(layers), source, shortcut, axis)

    def _is_layer(self, node: ir.Node) -> bool:
        return node.op_type in _LAYERS and any(value in self._varying for value in node.inputs)

    def _exclusive(self, end: ir.Value, add: ir.Node) -> tuple[ir.Node, ...]:
        """The nodes that nothing needs but the Add through this operand, in topological order."""
        found: set[ir.Node] = set()
        pending = self._places([end])
        while pending:
            node = self._nodes[-heappop(pending)]
            if node not in found and all(
                _only_read_by(value, found | {add} if value is end else found) for value in node.outputs
            ):
                found.add(node)
                for place in self._places(node.inputs):
                    heappush(pending, place)
        return tuple(sorted(found, key=lambda node: self._order[node]))

    def _places(self, values: Iterable[ir.Value | None]) -> list[int]:
        """Where the producers of values stand, the last one first."""
        producers = (value.producer() for value in values if value is not None)
        return sorted(-self._order[node] for node in producers if node is not None and node in self._order)

    def _path(self, end: ir.Value, start: ir.Value) -> set[ir.Node] | None:
        """The nodes between two values, a few at most; None where the second is not computed from the first alone."""
        path: set[ir.Node] = set()
        pending = [] if end is start else [end]
        while pending:
            node = pending.pop().producer()
            if node is None or len(path) > _SHORT:
                return None
            path.add(node)
            pending += [v for v in node.inputs if v is not None and v in self._varying and v is not start]
        return path


def _varying(graph: ir.Graph) -> Iterator[ir.Value]:
    """The values that depend on an input of the graph."""
    found = {value for value in graph.inputs if not value.is_initializer()}
    for node in graph:
        reads = [
            *node.inputs,
            *(value for body in bodies_of(node) for inner in body.all_nodes() for value in inner.inputs),
        ]
        if any(value in found for value in reads):
            found.update(node.outputs)
    yield from found


def _only_read_by(value: ir.Value, nodes: set[ir.Node]) -> bool:
    return not value.is_graph_output() and all(use.node in nodes for use in value.uses())


def _cost(nodes: Sequence[ir.Node], *, shared: bool = False) -> Cost:
    """MACs of nodes, and their constants; of those that other nodes read as well only where `shared`."""
    macs = [node_macs(node) for node in nodes]
    parameters = size = 0
    for value in dict.fromkeys(value for node in nodes for value in node.inputs if value is not None):
        tensor = value.const_value
        if tensor is not None and value.is_initializer() and (shared or _only_read_by(value, set(nodes))):
            parameters += tensor.size if tensor.dtype.is_floating_point() or tensor.dtype.itemsize <= 1 else 0
            size += tensor.nbytes
    return Cost(parameters, None if None in macs else sum(m for m in macs if m is not None), size)


def _drop(graph: ir.Graph, block: Block) -> None:
    shortcut, total = block.shortcut, block.add.outputs[0]
    repeated, before = _repeated(block), _before(block)
    last = total if repeated is None else repeated.outputs[0]
    gone = {block.add, *block.branch, *([] if repeated is None else [repeated])}
    stand_in = shortcut
    if not _movable(block):
        taken = names_of(graph)
        node = ir.node(
            "Identity", [shortcut], name=unique_name(graph, f"{block.add.name or last.name}.shortcut", taken)
        )
        node.metadata_props.update({**block.add.metadata_props, ORIGIN: block.name})
        graph.insert_before(block.add, node)
        stand_in = node.outputs[0]
    ir.convenience.replace_all_uses_with(last, stand_in, replace_graph_outputs=True)
    constants = dict.fromkeys(v for node in gone for v in node.inputs if v is not None and v.is_initializer())
    graph.remove([node for node in graph if node in gone], safe=True)
    drop_unused(graph, constants)
    _become(stand_in, last)
    if before is not None:
        _become(before, total)


def _movable(block: Block) -> bool:
    """Whether the shortcut can take another name: nothing but the block reads it."""
    return block.shortcut.producer() is not None and _only_read_by(block.shortcut, {block.add, *block.branch})


def _before(block: Block) -> ir.Value | None:
    """What takes the name of the sum: what the activation in front of the block reads, if the one behind goes."""
    repeated, first = _repeated(block), block.shortcut.producer()
    if repeated is None or first is None or first.op_type != repeated.op_type or not _movable(block):
        return None
    value = first.inputs[0]
    free = value is not None and value.producer() is not None and _only_read_by(value, {first})
    return value if free else None


def _become(value: ir.Value, other: ir.Value) -> None:
    """Let a value take the place of another one, which has left the graph, in the eyes of who goes by names."""
    value.name, value.doc_string = other.name, other.doc_string
    value.type = value.type if other.type is None else other.type
    value.shape = value.shape if other.shape is None else other.shape
    for mine, theirs in ((value.metadata_props, other.metadata_props), (value.meta, other.meta)):
        mine.clear()
        mine.update(theirs)


def _repeated(block: Block) -> ir.Node | None:
    """The activation behind the sum, where without the branch it would change nothing."""
    total = block.add.outputs[0]
    readers = {use.node for use in total.uses()}
    if len(readers) != 1 or total.is_graph_output():
        return None
    (reader,) = readers
    if reader.graph is not block.add.graph or reader.inputs[0] is not total or reader.inputs.count(total) > 1:
        return None
    leaves = activation_limits(reader)
    if leaves is None:
        return None
    low, high = value_limits(block.shortcut)
    return reader if low >= leaves[0] and high <= leaves[1] else None
