"""Which nodes of the user's model each kernel of the runtime's graph is made of.

Tokens (:mod:`onnxcomp.runtime.optimised`) say it of one node a kernel, or of the first and the last one. What was
absorbed without a trace is found by what surrounds it: what lies behind the value that a kernel makes belongs to that
kernel, and what follows a kernel, up to the next one, as activations do, does as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxcomp.graph.decoding import is_decoded
from onnxcomp.graph.edit import ORIGIN, PASS, origin_of
from onnxcomp.runtime.optimised import Token, kernel_name, nodes_of, tokens
from onnxcomp.runtime.qdq import is_quantized_kernel

__all__ = ["Attribution", "attribute"]

_PLUMBING = ("QuantizeLinear", "DequantizeLinear", "Cast")
# What a kernel is named after, where it is made of several nodes.
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits", "LSTM", "GRU", "RNN", "Attention")
_AHEAD = ("Pad",)  # fused into what reads it
_WEIGHTED_PREFIXES = ("QLinear", "QGemm", "ConvInteger", "MatMulInteger")


@dataclass(frozen=True, slots=True)
class Attribution:
    """Where a kernel comes from.

    Attributes:
        kernel: Its operator, with the layout that it works in.
        layer: The node of the user's model that it is named after.
        origins: All nodes of the user's model that it computes, `layer` first.
        nodes: The nodes of the profiled model that it computes; empty where it only changes a layout or a type.
        operators: The operators of these.
        passes: The passes that made any of them.
        quantized: Whether it is one of the runtime's kernels for integers.
    """

    kernel: str
    layer: str
    origins: tuple[str, ...]
    nodes: tuple[str, ...]
    operators: tuple[str, ...]
    passes: tuple[str, ...]
    quantized: bool


def attribute(model: ir.Model, kernels: Sequence[ir.Node]) -> tuple[Attribution, ...]:
    """Say of every kernel what it is made of.

    Args:
        model: The profiled model, as the user knows it.
        kernels: The main graph of what the runtime made of its tokenised copy, in order.
    """
    nodes = nodes_of(model)
    members = _members(nodes, kernels)
    layers = _Layers(nodes)
    named = [layers.primary(own) for own in members]
    layer_of = {node: named[k] for k, own in enumerate(members) for node in own}
    makers = {value: k for k, kernel in enumerate(kernels) for value in kernel.outputs}
    for k in reversed(range(len(kernels))):  # a change of layout belongs to what reads it, which may be another one
        if named[k] is None:
            named[k] = _written(kernels[k], nodes, layers, layer_of) or _reader(kernels[k], kernels, named)
    for k, kernel in enumerate(kernels):
        if named[k] is None:
            made = [makers[value] for value in kernel.inputs if value is not None and value in makers]
            named[k] = next((named[m] for m in made if named[m] is not None), None)
    fallback = next((name for name in named if name is not None), None) or layers.of(nodes[0])
    return tuple(
        _attribution(kernel, own, layer or fallback, layers)
        for kernel, own, layer in zip(kernels, members, named, strict=True)
    )


def _attribution(kernel: ir.Node, members: Sequence[ir.Node], layer: str, layers: _Layers) -> Attribution:
    computing = [node for node in members if node.op_type not in _PLUMBING] or members
    origins = dict.fromkeys((layer, *(layers.of(node) for node in computing)))
    passes = dict.fromkeys(name for node in members if (name := node.metadata_props.get(PASS)))
    return Attribution(
        kernel_name(kernel),
        layer,
        tuple(origins),
        tuple(node.name or origin_of(node) for node in members),
        tuple(node.op_type for node in members),
        tuple(passes),
        is_quantized_kernel(kernel),
    )


def _members(nodes: Sequence[ir.Node], kernels: Sequence[ir.Node]) -> list[list[ir.Node]]:
    """The nodes of each kernel, in graph order; every node that runs is in one kernel."""
    owner = _claimed(nodes, kernels)
    for node, k in list(owner.items()):
        if kernels[k].op_type != node.op_type:  # otherwise nothing went before it
            _claim_behind(node, k, owner)
    free = [node for node in nodes if node not in owner and node.graph is nodes[0].graph and not _is_decoder(node)]
    for node in reversed(free):
        if node.op_type in _AHEAD:
            _join(node, _readers(node), owner, min)
    for node in free:  # activations, and the Q and DQ that a kernel for integers made superfluous
        _join(node, _producers(node), owner, max)
    for node in reversed(free):
        _join(node, _readers(node), owner, min)
    members: list[list[ir.Node]] = [[] for _ in kernels]
    for node in nodes:
        if node in owner:
            members[owner[node]].append(node)
    return members


def _join(
    node: ir.Node, neighbours: Iterable[ir.Node], owner: dict[ir.Node, int], choose: Callable[[list[int]], int]
) -> None:
    found = [owner[neighbour] for neighbour in neighbours if neighbour in owner]
    if found:
        owner.setdefault(node, choose(found))


def _claimed(nodes: Sequence[ir.Node], kernels: Sequence[ir.Node]) -> dict[ir.Node, int]:
    """Nodes whose token a kernel carries: the kernel that is named after it; else the first that makes its value.

    What has no token in its own name only moves what others made.
    """
    owner: dict[ir.Node, int] = {}
    named = [(k, kernel) for k, kernel in enumerate(kernels) if tokens(kernel.name)]
    for k, kernel in named:
        for token in tokens(kernel.name):
            owner.setdefault(nodes[token.node], k)
    for k, kernel in named:
        for token in _output_tokens(kernel):
            owner.setdefault(nodes[token.node], k)
    return owner


def _output_tokens(kernel: ir.Node) -> list[Token]:
    return [token for value in kernel.outputs for token in tokens(value.name)]


def _claim_behind(node: ir.Node, k: int, owner: dict[ir.Node, int]) -> None:
    """Give a kernel what lies behind a node of it, up to what other kernels make and up to a layer with weights."""
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if _is_weighted(current):
            continue
        for producer in _producers(current):
            if producer not in owner and producer.op_type not in _PLUMBING and not _is_decoder(producer):
                owner[producer] = k
                waiting.append(producer)


def _is_weighted(node: ir.Node) -> bool:
    return node.op_type in _WEIGHTED or node.op_type.startswith(_WEIGHTED_PREFIXES)


def _is_decoder(node: ir.Node) -> bool:
    """Whether it runs once, when the model is loaded."""
    return bool(node.outputs) and is_decoded(node.outputs[0])


def _producers(node: ir.Node) -> Iterable[ir.Node]:
    return (p for value in node.inputs if value is not None and (p := value.producer()) is not None)


def _readers(node: ir.Node) -> Iterable[ir.Node]:
    return (user for value in node.outputs for user, _ in value.uses())


def _written(
    kernel: ir.Node, nodes: Sequence[ir.Node], layers: _Layers, layer_of: Mapping[ir.Node, str | None]
) -> str | None:
    """The layer whose value a kernel writes in another layout or type, by the token of what it writes."""
    token = next(iter((*tokens(kernel.name), *_output_tokens(kernel))), None)
    if token is None:
        return None
    return layer_of.get(nodes[token.node]) or layers.of(nodes[token.node])


def _reader(kernel: ir.Node, kernels: Sequence[ir.Node], named: Sequence[str | None]) -> str | None:
    place = {other: k for k, other in enumerate(kernels)}
    readers = (place.get(user) for value in kernel.outputs for user, _ in value.uses())
    return next((named[k] for k in readers if k is not None and named[k] is not None), None)


class _Layers:
    """Names of nodes of the user's model."""

    def __init__(self, nodes: Sequence[ir.Node]) -> None:
        graph = nodes[0].graph if nodes else None
        self._inputs = {value.name for value in graph.inputs} if isinstance(graph, ir.Graph) else set[str | None]()
        self._known: dict[ir.Node, str] = {}

    def of(self, node: ir.Node) -> str:
        """The node that a node stands for; what only prepares an input or a weight stands for what reads it."""
        if node not in self._known:
            self._known[node] = origin_of(node)  # ends a cycle, which a valid graph has not
            reader = next(iter(_readers(node)), None) if self._prepares(node) else None
            if reader is not None:
                self._known[node] = self.of(reader)
        return self._known[node]

    def primary(self, members: Sequence[ir.Node]) -> str | None:
        """What a kernel of these nodes is named after."""
        weighted = [node for node in members if _is_weighted(node)]
        computing = [node for node in members if node.op_type not in _PLUMBING]
        first = next(iter((*weighted, *computing, *members)), None)
        return None if first is None else self.of(first)

    def _prepares(self, node: ir.Node) -> bool:
        if origin_of(node) in self._inputs:
            return True
        return not node.name and ORIGIN not in node.metadata_props and _is_decoder(node)
