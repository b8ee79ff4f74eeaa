"""What int8 does for accuracy beyond ranges and plain rounding: which of it applies to a run, and carrying it out."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxcomp.contract import Context
from onnxcomp.data import Feeds
from onnxcomp.numeric.ranges import Range
from onnxcomp.quantize.given import Given, given_inputs
from onnxcomp.quantize.inputs import Spread, spread_inputs
from onnxcomp.quantize.layers import Layers
from onnxcomp.quantize.placement import Plan, place
from onnxcomp.quantize.refine import Pair, Twin, refine
from onnxcomp.quantize.storage import admit
from onnxcomp.targets.target import Scheme

__all__ = ["admit_bits", "refined", "spread", "spread_ranges", "twins_of"]


def admit_bits(model: ir.Model, scheme: Scheme, layers: Layers) -> str | None:
    """Raise the opset, in place, to one that has weights of the bits asked for; None, or why that cannot be."""
    bits = [layers.rules(w.node).bits for w in place(model, scheme, layers.refusal).weighted]
    narrow = [b for b in bits if b <= 4]
    return admit(model, min(narrow)) if narrow else None


def spread(model: ir.Model, scheme: Scheme, context: Context, layers: Layers) -> tuple[Spread, ...]:
    """Give the channels of image inputs grids of their own, in place, where the target and the options allow it.

    Statistics hold nothing of single channels, and made-up data say nothing about them.
    """
    if not scheme.channel_inputs or context.statistics is not None or layers.whole.inputs == "tensor":
        return ()
    if context.data is None or given_inputs(model, layers):
        return ()
    integer = {w.node for w in place(model, scheme, layers.refusal).weighted}
    return spread_inputs(model, context.data, lambda node: node in integer, limit=layers.whole.samples)


def spread_ranges(spreads: Sequence[Spread]) -> dict[str, Range]:
    """The ranges of spread inputs: 256 levels at step 1."""
    return {s.tensor: Range(s.low, s.low + 255, "channel", {"exact": s.exact}) for s in spreads}


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


def refined(pair: Pair | None, feeds: Feeds, context: Context, layers: Layers) -> dict[str, float]:
    """Round the weights of the quantized model by their Grams, in place; relative squared error of each site."""
    if pair is None:
        return {}
    return refine(pair, feeds, context.workdir, limit=layers.whole.samples, seed=context.seed)
