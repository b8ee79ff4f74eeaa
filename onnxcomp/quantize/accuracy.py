"""What int8 does for accuracy beyond ranges and plain rounding: which of it applies to a run, and carrying it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxcomp.contract import Context
from onnxcomp.data import Feeds
from onnxcomp.numeric.ranges import Range
from onnxcomp.quantize.absorb import absorb
from onnxcomp.quantize.equalize import Rule, equalize
from onnxcomp.quantize.given import Given, given_inputs
from onnxcomp.quantize.inputs import Spread, spread_inputs
from onnxcomp.quantize.layers import Layers
from onnxcomp.quantize.placement import Plan
from onnxcomp.quantize.refine import Pair, Twin, refine
from onnxcomp.quantize.storage import admit
from onnxcomp.quantize.weights import on_grid

__all__ = ["Prepared", "prepare", "refined", "spread_ranges", "twins_of"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was done to a model before it is quantized; its outputs are those it had.

    Attributes:
        spreads: Inputs that got a grid for each channel.
        wide: Why weights of fewer than 8 bits lie in 8; None where they do not.
        notes: What the report should say.
    """

    spreads: tuple[Spread, ...]
    wide: str | None
    notes: tuple[str, ...]


def prepare(model: ir.Model, plan: Plan, context: Context, layers: Layers) -> Prepared:
    """Bring a model into a form that loses less, in place: opset, equalized channels, inputs channel by channel.

    Statistics were taken of the model as it was, so where they are given the channels stay; so they do where data are
    made up, which say nothing about channels. An input gets a grid for each channel where the bias behind it is fitted,
    which takes up the constants by which pixels miss their grids: left alone, they cost more than the grids gain.
    """
    bits = [layers.rules(w.node).bits for w in plan.weighted]
    narrow = [b for b in bits if b <= 4]
    fitted = {
        w.node.outputs[0].name
        for w in plan.weighted
        if layers.settings(w.node).rounding != "nearest" and not layers.keeps_codes(w.node)
    }
    wide = admit(model, min(narrow)) if narrow else None
    notes: tuple[str, ...] = () if wide is None else (f"weights of fewer than 8 bits lie in 8: {wide}",)
    feeds = context.data if context.statistics is None else None
    notes += _equalized(model, feeds, context, layers)
    spreads: tuple[Spread, ...] = ()
    allowed = plan.scheme.channel_inputs and layers.whole.inputs == "auto" and not given_inputs(model, layers)
    if allowed and feeds is not None:
        spreads = spread_inputs(model, feeds, lambda n: n.outputs[0].name in fitted, limit=layers.whole.samples)
    return Prepared(spreads, wide, notes)


def _equalized(model: ir.Model, feeds: Feeds | None, context: Context, layers: Layers) -> tuple[str, ...]:
    """Rescale channels, in place; what the report says of it."""
    whole = layers.whole
    rule: Rule = "activations" if whole.equalize == "auto" else whole.equalize
    rule = "smooth" if whole.smooth else rule
    if rule == "off" or layers.overridden:
        return ()
    if feeds is None and rule != "weights":
        asked = whole.equalize == "activations" or whole.smooth
        return ("channels stay as they are: to equalize them takes real data, and no statistics",) if asked else ()
    threads = context.threads

    def refuse(node: ir.Node) -> str | None:
        stored = "its weight is stored in codes, which stay" if layers.keeps_codes(node) else None
        return layers.refusal(node) or stored or _on_a_grid(node)

    lines: tuple[str, ...] = ()
    if whole.absorb and feeds is not None:
        lines = absorb(model, feeds, refuse=refuse, threads=threads).lines
    done = equalize(model, feeds, rule, refuse=refuse, threads=threads, alpha=whole.smooth or 0.5)
    return (*lines, *done.lines)


def _on_a_grid(node: ir.Node) -> str | None:
    """Why a weight must not be rescaled that 8 bits hold exactly; None for others."""
    weight = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if node.op_type != "Conv" or weight is None or weight.dtype != ir.DataType.FLOAT:
        return None
    return "its weight lies on an 8-bit grid" if on_grid(weight.numpy()) else None


def spread_ranges(spreads: Sequence[Spread]) -> dict[str, Range]:
    """The ranges of spread inputs: 256 levels of their steps."""
    return {s.tensor: Range(s.low, s.low + 255 * s.step, "channel", {**s.facts, "exact": s.exact}) for s in spreads}


def twins_of(model: ir.Model, plan: Plan, layers: Layers, given: Given) -> Pair | None:
    """The layers whose weights are rounded by their Grams, with the original model; None without any.

    Call it before the plan is written into the model. Weights whose scales are given keep what was made of them.
    """
    chosen = [w for w in plan.weighted if layers.rounds_by_gram(w.node) and w.weight.name not in given.weight_names]
    if not chosen:
        return None
    original = model.clone()
    place_of = {node: i for i, node in enumerate(model.graph)}
    nodes = list(original.graph)
    twins = [Twin(w.site, nodes[place_of[w.node]], w.node, layers.rules(w.node).bits, w.axis) for w in chosen]
    return Pair(original, model, tuple(twins))


def refined(pair: Pair | None, feeds: Feeds, context: Context, layers: Layers) -> None:
    """Round the weights of the quantized model by their Grams, in place."""
    if pair is not None:
        refine(pair, feeds, context.workdir, limit=layers.whole.samples, seed=context.seed)
