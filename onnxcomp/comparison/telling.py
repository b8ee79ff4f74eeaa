"""Words for what was measured of each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxcomp.comparison.channels import Adapter
from onnxcomp.comparison.graphs import WEIGHTED, at_fault, kind, segment
from onnxcomp.comparison.matching import Matching, maker_of
from onnxcomp.comparison.measuring import Measured, Subjects
from onnxcomp.comparison.recipes import Step, dropped_layers, rewrites_of
from onnxcomp.comparison.result import LayerNoise, NotCompared
from onnxcomp.comparison.sums import ratio_to_decibels
from onnxcomp.cost import constant_behind
from onnxcomp.graph.edit import origin_of

__all__ = ["Telling"]


class Telling:
    """Words for what was measured."""

    def __init__(
        self,
        subjects: Subjects,
        matching: Matching,
        measured: Measured,
        ends: set[ir.Value],
        alive: set[ir.Value],
        steps: Sequence[Step],
        shares: Mapping[str, float],
    ) -> None:
        self._subjects, self._matching, self._measured = subjects, matching, measured
        self._ends, self._alive = ends, alive
        self._rewrites = rewrites_of(subjects.other, steps)
        self._dropped = dropped_layers(subjects.other, steps)
        self._twins = {node.name: node for node in subjects.other.graph if node.name}
        self._values = {value.name: value for node in subjects.other.graph for value in node.outputs}
        self._told: dict[ir.Node, tuple[str, ...]] = {}
        self._shares = shares

    def compared(self, value: ir.Value) -> bool:
        """Whether a tensor of the base was compared."""
        return value.name in self._matching.pairs and value.name not in self._measured.misfits

    def layer(self, value: ir.Value) -> LayerNoise:
        """A tensor that was compared."""
        name = value.name or ""
        pair, sums, adapter = self._matching.pairs[name], self._measured.sums[name], self._subjects.adapters.get(name)
        nodes = segment(value, self._ends, self._alive)
        chosen = at_fault(nodes, {node: bool(self._of(node, name)) for node in nodes})
        several = nodes if len(nodes) > 1 else []
        kept = None if adapter is None or adapter.kept is None else adapter.kept
        return LayerNoise(
            tensor=name,
            counterpart=pair.other,
            match=pair.how,
            layer=origin_of(chosen[0]),
            nodes=tuple(dict.fromkeys(origin_of(node) for node in reversed(several))),
            other=pair.maker,
            op_type=chosen[0].op_type,
            rewrites=tuple(dict.fromkeys(text for node in reversed(nodes) for text in self._of(node, name))),
            channels=None if kept is None else (len(kept), _channels(value, adapter)),
            rescaled=adapter is not None and adapter.factors is not None,
            sqnr=ratio_to_decibels(sums.ratio),
            cosine=sums.cosine,
            max_error=sums.largest,
            relative=sums.largest / sums.range if sums.range else 0.0,
            bias=sums.drift / max(sums.count, 1),
            added=sums.added if value in self._ends else None,
            share=self._shares.get(name, 0.0),
            lost=sums.lost,
            unknown=sums.unknown,
        )

    def _of(self, node: ir.Node, tensor: str) -> tuple[str, ...]:
        """What was done to a node of the base that a compared tensor is computed by."""
        if node not in self._told:
            twin = self._twins.get(node.name or "") or self._twin_of(node, tensor)
            changed = None if twin is None else _difference(node, twin)
            self._told[node] = self._rewrites.get(origin_of(node)) or (() if changed is None else (changed,))
        return self._told[node]

    def _twin_of(self, node: ir.Node, tensor: str) -> ir.Node | None:
        """The node that computes the counterpart of what a node computes, or else of the tensor."""
        pair = self._matching.pairs.get(node.outputs[0].name or "") or self._matching.pairs[tensor]
        return maker_of(self._values[pair.other])

    def missing(self, value: ir.Value) -> NotCompared:
        """A tensor that was not compared."""
        node = value.producer()
        assert node is not None  # only what nodes compute is compared
        layer = origin_of(node)
        return NotCompared(value.name or "", layer, node.op_type, self._why(value.name or "", layer))

    def _why(self, name: str, layer: str) -> str:
        shapes = self._measured.misfits.get(name)
        if layer in self._dropped and name not in self._matching.pairs:
            return self._dropped[layer]
        if shapes is None:
            return self._matching.missing[name]
        return f"its shape depends on the data: {list(shapes[0])} against {list(shapes[1])}"


def _channels(value: ir.Value, adapter: Adapter | None) -> int:
    """How many channels the base has."""
    extent = value.shape[adapter.axis] if value.shape is not None and adapter is not None else 0
    return extent if isinstance(extent, int) else 0


def _difference(node: ir.Node, twin: ir.Node) -> str | None:
    """What is different about the constants of two nodes that stand for each other, or about how they are stored."""
    if kind(node) != kind(twin):
        return None
    if node.op_type in WEIGHTED and twin.op_type in WEIGHTED and node.op_type != twin.op_type:
        return f"now {twin.op_type}"
    for ours, theirs in zip(node.inputs, twin.inputs, strict=False):
        if ours is None or theirs is None or ours.const_value is None:
            continue
        left, right = ours.const_value, theirs.const_value
        if right is None and constant_behind(theirs) is not None:
            return "weights quantized" if _decodes(theirs.producer()) else "weights stored in codes"
        if right is not None and left is not right and left.tobytes() != right.tobytes():
            return "weights changed"
    return None


def _decodes(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "DequantizeLinear"
