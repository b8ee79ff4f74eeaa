"""Where two models of one origin part: every output, every layer, and which layer adds how much of the error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxcomp.comparison.channels import Adapter, kept_channels, scales
from onnxcomp.comparison.forced import cut_points
from onnxcomp.comparison.graphs import WEIGHTED, at_fault, floats, segment, typed, varying
from onnxcomp.comparison.matching import How, Matching, match
from onnxcomp.comparison.measuring import Measured, Subjects, fit_factors, measure
from onnxcomp.comparison.outputs import Outputs, compare_outputs
from onnxcomp.comparison.reading import check_inputs
from onnxcomp.comparison.recipes import Step, dropped_blocks, rewrites_of, steps_between
from onnxcomp.comparison.sums import ratio_to_decibels
from onnxcomp.comparison.tracing import shares
from onnxcomp.cost import constant_behind
from onnxcomp.data import Feeds
from onnxcomp.graph.edit import origin_of

__all__ = ["SAMPLES", "Comparison", "LayerNoise", "NotCompared", "compare_models"]

SAMPLES = 128
"""Layers are compared on so many samples unless the caller says otherwise."""

# Noise over signal, as power, up to which a difference is the rounding of float32 sums in another order.
_ROUNDING = 1e-11


@dataclass(frozen=True, slots=True)
class LayerNoise:
    """One tensor of the base that the other model has a counterpart of.

    Attributes:
        tensor: Its name in the base.
        counterpart: Name of the tensor that stands for it: where all readers see it quantized, of what they see.
        match: How that was found: ``name``, ``provenance`` (the node says which layer it stands for) or ``structure``
            (the only node of its kind in its place).
        layer: The node of the user's model that is accounted for it: of all nodes since the tensors before it that have
            counterparts, the one that has weights.
        nodes: All these nodes, where they are more than one: where several have weights, each can be at fault.
        other: The node that computes it in the other model, as it is called in the user's model.
        op_type: Operator of `layer`.
        rewrites: The passes that rewrote the layer, in order, with what they chose there; ``weights changed`` where no
            pass says so; empty where nothing changed.
        channels: Channels that are compared and that the base has, where some were removed; else None.
        rescaled: Whether channels were brought back to the base's scale before they were compared.
        sqnr: 10 log10(signal power / noise power) against the base, dB; inf where equal, -inf where values are lost.
        cosine: Cosine between both, over all samples; NaN where values are lost.
        max_error: Largest absolute error.
        relative: That over the largest absolute value of the base.
        bias: Mean of other - base.
        added: Power of the noise that the layer adds, over the power of the signal: what the other model computes less
            what the base makes of the same inputs. None for what an activation or normalization follows, whose noise
            counts there; inf where the layer makes NaN or Inf of finite values.
        share: Share of the noise at the outputs that the layer adds, 0 to 1.
        lost: Elements that are NaN or infinite where the base's are finite.
        unknown: Elements that are NaN or infinite in the base.
    """

    tensor: str
    counterpart: str
    match: How
    layer: str
    nodes: tuple[str, ...]
    other: str
    op_type: str
    rewrites: tuple[str, ...]
    channels: tuple[int, int] | None
    rescaled: bool
    sqnr: float
    cosine: float
    max_error: float
    relative: float
    bias: float
    added: float | None
    share: float
    lost: int
    unknown: int


@dataclass(frozen=True, slots=True)
class NotCompared:
    """A tensor of the base that is not compared.

    Attributes:
        tensor: Its name.
        layer: The node that computes it.
        op_type: Operator of that node.
        reason: Why.
    """

    tensor: str
    layer: str
    op_type: str
    reason: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models side by side.

    Attributes:
        outputs: Their outputs, on all samples.
        layers: Every compared tensor, in the order of the base.
        missing: What is not compared, in the order of the base.
        fault: The layer that adds most of the noise at the outputs; None where nothing differs beyond rounding.
        samples: Number of samples that layers were compared on.
    """

    outputs: Outputs
    layers: tuple[LayerNoise, ...]
    missing: tuple[NotCompared, ...]
    fault: LayerNoise | None
    samples: int

    @property
    def related(self) -> bool:
        """Whether at least a third of the base's tensors have a counterpart; else names meet by accident."""
        return 2 * len(self.layers) >= len(self.missing)

    @property
    def ranked(self) -> tuple[LayerNoise, ...]:
        """The layers that add noise, most first: those that lose values, then by share, then by what they add."""
        adding = [layer for layer in self.layers if layer.added is not None and layer.added > _ROUNDING]
        return tuple(sorted(adding, key=_rank, reverse=True))


def compare_models(
    base: ir.Model, other: ir.Model, feeds: Feeds, *, samples: int | None = SAMPLES, threads: int = 1
) -> Comparison:
    """Compare outputs and inner tensors, streaming: memory does not grow with the samples.

    Outputs are measured on the models as they are, over all samples. Inner tensors are read by making them outputs,
    which can keep the runtime from fusing an operator. What a layer adds is measured: the base runs a second time, with
    the tensors of the other model fed into each of its layers, and what the other model computes is compared with that.

    Args:
        base: The model to compare with.
        other: A model made from it; what passes of onnxcomp did to it is read from its metadata.
        feeds: The data, opened for `comparison.reading.check_inputs(base, other)`; labels are not read.
        samples: Layers are compared on at most that many samples; None: all.
        threads: Intra-op threads.

    Raises:
        InputError: The models have different inputs, or no output in common.
        DataError: There are no samples, or they do not fit a model.
        ModelError: ORT cannot run a model.
    """
    check_inputs(base, other)
    outputs = compare_outputs(base, other, feeds, threads=threads)
    steps = steps_between(base, other)
    base, other = typed(base), typed(other)
    matching = match(base, other)
    subjects = _subjects(base, other, matching, steps, feeds, samples, threads)
    alive = varying(base)
    values = list(floats(base, alive))
    ends = cut_points(values, matching.pairs, alive)
    measured = measure(subjects, [value.name or "" for value in values], {value.name or "" for value in ends})
    told = _Telling(subjects, matching, measured, ends, alive, steps)
    layers = tuple(told.layer(value) for value in values if told.compared(value))
    missing = tuple(told.missing(value) for value in values if not told.compared(value))
    comparison = Comparison(outputs, layers, missing, None, measured.samples)
    return replace(comparison, fault=next(iter(comparison.ranked), None))


def _rank(layer: LayerNoise) -> tuple[bool, float, float]:
    added = layer.added or 0.0
    return added == float("inf"), layer.share, added


def _subjects(
    base: ir.Model,
    other: ir.Model,
    matching: Matching,
    steps: Sequence[Step],
    feeds: Feeds,
    samples: int | None,
    threads: int,
) -> Subjects:
    """What is compared, with the adapters for channels that were removed or scaled."""
    adapters = {
        name: Adapter(axis, kept) for name, (axis, kept) in kept_channels(base, steps).items() if name in matching.pairs
    }
    subjects = Subjects(base, other, matching.pairs, adapters, feeds, samples, threads)
    factors = scales(base, steps)
    if factors is None:
        return subjects
    fit_factors(subjects, factors)
    ranks = {v.name: len(v.shape) for node in base.graph for v in node.outputs if v.shape is not None}
    for name in matching.pairs:
        if name in factors.labels and name in ranks:
            adapter = adapters.get(name, Adapter())
            adapters[name] = replace(adapter, factors=factors.of(name, ranks[name], adapter))
    return subjects


class _Telling:
    """Words for what was measured."""

    def __init__(
        self,
        subjects: Subjects,
        matching: Matching,
        measured: Measured,
        ends: set[ir.Value],
        alive: set[ir.Value],
        steps: Sequence[Step],
    ) -> None:
        self._subjects, self._matching, self._measured = subjects, matching, measured
        self._ends, self._alive = ends, alive
        self._rewrites = rewrites_of(subjects.other, steps)
        self._dropped = dropped_blocks(steps)
        self._twins = {node.name: node for node in subjects.other.graph if node.name}
        self._told: dict[ir.Node, tuple[str, ...]] = {}
        self._shares = shares(subjects.base, measured.sums, ends, _ROUNDING)

    def compared(self, value: ir.Value) -> bool:
        """Whether a tensor of the base was compared."""
        return value.name in self._matching.pairs and value.name not in self._measured.misfits

    def layer(self, value: ir.Value) -> LayerNoise:
        """A tensor that was compared."""
        name = value.name or ""
        pair, sums, adapter = self._matching.pairs[name], self._measured.sums[name], self._subjects.adapters.get(name)
        nodes = segment(value, self._ends, self._alive)
        chosen = at_fault(nodes, {node: bool(self._of(node)) for node in nodes})
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
            rewrites=tuple(dict.fromkeys(text for node in reversed(nodes) for text in self._of(node))),
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

    def _of(self, node: ir.Node) -> tuple[str, ...]:
        """What was done to a node of the base."""
        if node not in self._told:
            twin = self._twins.get(node.name or "")
            changed = ("weights changed",) if twin is not None and _differ(node, twin) else ()
            self._told[node] = self._rewrites.get(origin_of(node)) or changed
        return self._told[node]

    def missing(self, value: ir.Value) -> NotCompared:
        """A tensor that was not compared."""
        node = value.producer()
        assert node is not None  # only what nodes compute is compared
        layer = origin_of(node)
        return NotCompared(value.name or "", layer, node.op_type, self._why(value.name or "", layer))

    def _why(self, name: str, layer: str) -> str:
        shapes = self._measured.misfits.get(name)
        if layer in self._dropped and name not in self._matching.pairs:
            return f"dropped with the residual block {self._dropped[layer]}"
        if shapes is None:
            return self._matching.missing[name]
        ours, theirs = shapes
        if len(ours) == len(theirs) > 1 and ours[1] > theirs[1] and ours[2:] == theirs[2:]:
            return f"channels removed: {ours[1]} -> {theirs[1]}, and nothing tells which"
        return f"another shape: {list(ours)} against {list(theirs)}"


def _channels(value: ir.Value, adapter: Adapter | None) -> int:
    """How many channels the base has."""
    extent = value.shape[adapter.axis] if value.shape is not None and adapter is not None else 0
    return extent if isinstance(extent, int) else 0


def _differ(node: ir.Node, twin: ir.Node) -> bool:
    """Whether constants of two nodes of one name differ, or how they are stored."""
    for ours, theirs in zip(node.inputs, twin.inputs, strict=False):
        if ours is None or theirs is None or ours.const_value is None:
            continue
        left, right = ours.const_value, theirs.const_value
        if right is None:
            if constant_behind(theirs) is not None:
                return True
        elif left is not right and left.tobytes() != right.tobytes():
            return True
    return node.op_type in WEIGHTED and node.op_type != twin.op_type
