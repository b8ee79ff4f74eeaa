"""Which tensor of another model stands for a tensor of the base: by name, by provenance, by the shape of the graphs.

A layer is a node of the user's model. Passes keep names where they can; where they cannot, the nodes that they make say
whose place they take. Runtimes and quantizers fold nodes into others and keep the name of either end; which one it is
shows in what reads the value.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

from onnxcomp.comparison.graphs import (
    absorbing,
    floats,
    is_float,
    kind,
    kinds_of_readers,
    varying,
    what_readers_see,
)
from onnxcomp.cost import constant_behind
from onnxcomp.graph.edit import PASS, origin_of

__all__ = ["Codes", "How", "Matching", "Pair", "maker_of", "match", "misfits"]

How = Literal["name", "provenance", "structure"]
# How `onnxcomp.graph.permuting` calls tensors whose channels it put in another order.
_REORDERED = re.compile(r"\.permuted(_\d+)?$")
_PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True, slots=True)
class Codes:
    """Names of the constants with which integers stand for numbers: ``(code - zero_point) * scale``."""

    scale: str
    zero_point: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor of the base and the one that stands for it.

    Attributes:
        tensor: Its name in the base.
        other: Its name in the other model: where all readers see it quantized, of what they see.
        how: How it was found: the same name; the same layer in the provenance; the same place in the graph.
        maker: The node of the user's model that the node which computes it stands for.
        codes: How to read it where it holds codes of a quantized operator.
    """

    tensor: str
    other: str
    how: How
    maker: str
    codes: Codes | None = None


@dataclass(eq=False, slots=True)
class Matching:
    """The outcome.

    Attributes:
        pairs: By the name of the base's tensor, in the base's order.
        missing: Base tensors without a counterpart, in the base's order, and why.
    """

    pairs: dict[str, Pair] = field(default_factory=dict[str, Pair])
    missing: dict[str, str] = field(default_factory=dict[str, str])

    def drop(self, reasons: Mapping[str, str]) -> None:
        """Tensors that have a counterpart, but cannot be compared with it, and why."""
        for name, reason in reasons.items():
            del self.pairs[name]
            self.missing[name] = reason


def match(base: ir.Model, other: ir.Model) -> Matching:
    """Match the float tensors of the main graph of the base.

    Args:
        base: The base, with inferred types.
        other: The other model, with inferred types.
    """
    search = _Search(base, other)
    search.by_name()
    search.by_provenance()
    search.by_structure()
    return search.result()


def misfits(base: ir.Model, other: ir.Model, matching: Matching, kept: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """Matched tensors whose shapes cannot be compared, as far as they are known, and why.

    Args:
        base: The base, with inferred shapes.
        other: The other model, with inferred shapes.
        matching: Their counterparts.
        kept: By tensor of the base the axis of its channels and how many of them are left, where that is known.
    """
    ours, theirs = ({v.name: v for node in m.graph for v in node.outputs} for m in (base, other))
    reasons: dict[str, str] = {}
    for name, pair in matching.pairs.items():
        left, right = _dims(ours[name]), _dims(theirs[pair.other])
        if left is None or right is None:
            continue
        wanted = list(left)
        if name in kept:
            wanted[kept[name][0]] = kept[name][1]
        if len(wanted) != len(right):
            long = [[d for d in dims if d != 1] for dims in (wanted, right)]
            if len(long[0]) != len(long[1]):
                reasons[name] = f"another shape: {_words(left)} against {_words(right)}"
            continue
        unlike = [i for i, (a, b) in enumerate(zip(wanted, right, strict=True)) if None not in (a, b) and a != b]
        if unlike == [1] and (left[1] or 0) > (right[1] or 0):
            reasons[name] = f"channels removed: {left[1]} -> {right[1]}, and nothing tells which"
        elif unlike:
            reasons[name] = f"another shape: {_words(left)} against {_words(right)}"
    return reasons


def _dims(value: ir.Value) -> list[int | None] | None:
    return None if value.shape is None else [d if isinstance(d, int) else None for d in value.shape]


def _words(dims: list[int | None]) -> str:
    return f"[{', '.join('?' if d is None else str(d) for d in dims)}]"


class _Search:
    def __init__(self, base: ir.Model, other: ir.Model) -> None:
        self._base, self._other = base, other
        self._alive, self._others_alive = varying(base), varying(other)
        self._values = {value.name or "": value for value in floats(base, self._alive)}
        self._theirs = {value.name or "": value for node in other.graph for value in node.outputs if value.name}
        self._found: dict[ir.Value, tuple[ir.Value, How]] = {}
        self._taken: dict[ir.Value, ir.Value] = {}
        self._codes: dict[ir.Value, Codes] = {}
        self._reordered: set[ir.Value] = set()

    def by_name(self) -> None:
        """The same name, or that which ORT's quantizer gives to the codes of it."""
        for name, value in self._values.items():
            theirs = self._theirs.get(name)
            if theirs is not None and is_float(theirs) and theirs in self._others_alive:
                self._add(self._stands_for(value, theirs) or value, theirs, "name")
                continue
            codes = Codes(f"{name}_scale", f"{name}_zero_point")
            theirs = self._theirs.get(f"{name}_quantized")
            if theirs is not None and {codes.scale, codes.zero_point} <= self._other.graph.initializers.keys():
                self._codes[theirs] = codes
                self._add(self._stands_for(value, theirs) or value, theirs, "name")

    def by_provenance(self) -> None:
        """The last node that stands for the same layer."""
        ours, theirs = _by_origin(self._base, self._alive), _by_origin(self._other, self._others_alive)
        for name, nodes in ours.items():
            last = theirs.get(name, [None])[-1]
            if len(nodes) != 1 or last is None or not _same_work(nodes[0], last):
                continue
            for value, found in zip(nodes[0].outputs, last.outputs, strict=False):
                if _REORDERED.search(found.name or ""):
                    self._reordered.add(value)
                elif value.name in self._values and is_float(found) and value not in self._found:
                    stands = self._stands_for(value, found)
                    if stands is not None:
                        self._add(stands, found, "provenance")

    def by_structure(self) -> None:
        """The only node of its type that reads the same, where the base has only one as well."""
        inputs = {v.name: v for v in self._other.graph.inputs}
        seen: dict[ir.Value, ir.Value] = {
            value: inputs[value.name] for value in self._base.graph.inputs if value.name in inputs
        }
        for node in self._base.graph:
            known = [seen.get(v) or self._seen(v) for v in node.inputs if v is not None and v in self._alive]
            ours = [v for v in node.outputs if v.name in self._values and v not in self._found]
            if not known or not ours or any(v is None for v in known) or len(node.outputs) != 1:
                continue
            alike = list(self._alike(node, [v for v in known if v is not None]))
            siblings = {u.node for v in node.inputs if v is not None and v in self._alive for u in v.uses()}
            if len(alike) != 1 or sum(_looks(s) == _looks(node) for s in siblings) != 1:
                continue
            stands = self._stands_for(ours[0], alike[0].outputs[0])
            if stands is not None and stands not in self._reordered:
                self._add(stands, alike[0].outputs[0], "structure")

    def _seen(self, value: ir.Value) -> ir.Value | None:
        return self._found[value][0] if value in self._found else None

    def _alike(self, node: ir.Node, known: list[ir.Value]) -> Iterator[ir.Node]:
        """Nodes of the other model of the same kind that read what stands for the inputs, and stand for nothing yet."""
        wanted = {what_readers_see(v) for v in known} | set(known)
        for reader in {use.node for value in wanted for use in value.uses()}:
            reads = {v for v in reader.inputs if v is not None and v in self._others_alive}
            alike = _looks(reader) == _looks(node) and reads <= wanted and len(reader.outputs) == 1
            if alike and reader.outputs[0] not in self._taken and is_float(reader.outputs[0]):
                yield reader

    def _stands_for(self, value: ir.Value, theirs: ir.Value) -> ir.Value | None:
        """Which base value theirs stands for: `value`, or what activations and normalizations make of it.

        Where these were folded into the layer before them, what reads the result tells. None: neither fits.
        """
        readers = kinds_of_readers(theirs)
        current: ir.Value | None = value
        while current is not None:
            if current.name in self._values and kinds_of_readers(current) == readers:
                return current if current not in self._found else None
            current = absorbing(current, self._alive)
            if current is not None and (current.name in self._theirs or current in self._found):
                return None
        return None

    def _add(self, value: ir.Value, theirs: ir.Value, how: How) -> None:
        if value in self._found or theirs in self._taken or value.name not in self._values:
            return
        self._found[value] = (theirs, how)
        self._taken[theirs] = value

    def result(self) -> Matching:
        matching = Matching()
        for name, value in self._values.items():
            if value not in self._found:
                matching.missing[name] = self._why_missing(value)
                continue
            theirs, how = self._found[value]
            seen = theirs if theirs in self._codes else what_readers_see(theirs)
            matching.pairs[name] = Pair(name, seen.name or "", how, _maker(theirs), self._codes.get(theirs))
        return matching

    def _why_missing(self, value: ir.Value) -> str:
        """What computes a tensor together with others: the counterpart of the next tensor that has one."""
        if value in self._reordered:
            return "its channels have another order"
        waiting, seen = [value], {value}
        while waiting:
            current = waiting.pop(0)
            if current in self._found:
                maker, own = _maker(self._found[current][0]), value.producer()
                if own is not None and origin_of(own) == maker:
                    return "no counterpart: what follows is folded into it"
                return f"no counterpart: {maker} of the other model computes it and more"
            for use in current.uses():
                waiting += [v for v in use.node.outputs if v not in seen]
                seen.update(use.node.outputs)
        return "no counterpart in the other model"


def _by_origin(model: ir.Model, alive: set[ir.Value]) -> Mapping[str, list[ir.Node]]:
    """Nodes that compute on activations by the layer that they stand for, in graph order."""
    found: dict[str, list[ir.Node]] = defaultdict(list)
    for node in model.graph:
        if node.op_type not in _PAIR and any(v in alive for v in node.outputs):
            found[origin_of(node)].append(node)
    return found


def _looks(node: ir.Node) -> tuple[str, tuple[int, ...]]:
    """What tells a node from others that read the same: what it does, and the shape of its largest constant."""
    tensors = [tensor for value in node.inputs if (tensor := constant_behind(value)) is not None]
    largest = max(tensors, key=lambda tensor: tensor.size, default=None)
    return kind(node), () if largest is None else tuple(largest.shape.numpy())


def _same_work(node: ir.Node, theirs: ir.Node) -> bool:
    """Whether nodes of one name can be one layer: of the same kind, or made from it by a pass."""
    return kind(node) == kind(theirs) or PASS in theirs.metadata_props


def maker_of(value: ir.Value) -> ir.Node | None:
    """The node that computes a value, seen through the pairs that quantization puts around it."""
    node = value.producer()
    while node is not None and node.op_type in _PAIR and node.inputs[0] is not None:
        before = node.inputs[0].producer()
        if before is None:
            break
        node = before
    return node


def _maker(value: ir.Value) -> str:
    node = maker_of(value)
    return "" if node is None else origin_of(node)
