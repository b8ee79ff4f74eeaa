"""Refit the layers of a model that has lost channels or blocks, one after the other, to what the original computed.

The closed form of reconstruction (He, Zhang and Sun 2017, equation 4; asymmetric, so that each layer also repairs what
the layers before it have lost): with the inputs x that the rewritten model delivers and the outputs y of the original,
the weight minimises E|y - W x - b|^2 + lambda |W - W0|^2. The bias takes the means, so that what removed channels have
contributed on average stays (bias absorption).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxcomp import progress
from onnxcomp.allocation.offering import Offering
from onnxcomp.allocation.problem import key_of, problems_of
from onnxcomp.calibration.beside import Beside, Kept
from onnxcomp.calibration.gram import PatchGram, site_gram
from onnxcomp.channels.scoring import too_wide
from onnxcomp.contract import Context, Skip, Value
from onnxcomp.cost import Cost
from onnxcomp.graph.chain import chain_cost
from onnxcomp.graph.edit import names_of, replace_by_chain
from onnxcomp.graph.products import rows_of, weighted_sites
from onnxcomp.graph.sites import Site
from onnxcomp.numeric.heldout import fitted, fitted_alone, merged
from onnxcomp.numeric.moments import predicted_error
from onnxcomp.options import replace_options, spec_of
from onnxcomp.pruning import Pruned, written

__all__ = ["Refitted", "recover"]

_KINDS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# A relative squared error below this is rounding: the layer is what it was.
_EXACT = 1e-9


@dataclass(frozen=True, slots=True)
class Refitted:
    """What a layer became.

    Attributes:
        summary: Its form in words; empty for a layer that stayed one node.
        error: Relative squared error of its output that remains.
        cost: What it costs now.
        choice: The options that lead back to its form.
    """

    summary: str
    error: float | None
    cost: Cost
    choice: Mapping[str, Value]


def recover(
    original: ir.Model,
    model: ir.Model,
    name: str,
    context: Context,
    kept: Kept | None = None,
    forms: Mapping[str, Offering] | None = None,
) -> dict[str, Refitted]:
    """Refit, in place, every layer whose input or target is no longer the original's.

    Args:
        original: The model as it was; values correspond by name.
        model: The rewritten model, with inferred shapes.
        name: Of the pass, for provenance.
        context: The run's context; without calibration data only forms are written, which then follow the weights.
        kept: Channels that are left of values, by name.
        forms: Forms that layers get, by key.

    Returns:
        What was refitted, by key.
    """
    walk = _Walk(name, context, forms or {}, names_of(model.graph))
    sites = [site for site in weighted_sites(model, _KINDS) if isinstance(site, Site)]
    if context.data is None:
        keys = {site: key_of(site) for site in sites}  # of nodes that are about to go
        formed = {keys[site]: walk.formed(site, None) for site in sites}
        return {key: own for key, own in formed.items() if own is not None}
    found: dict[str, Refitted] = {}
    walked = Beside(
        original, model, kept or {}, context.data, context.workdir, kinds=_KINDS, rewritten=frozenset(walk.forms)
    )
    with closing(walked) as beside:
        for site in progress.each(sites, "refit layers"):
            key = key_of(site)  # of the node that is about to go
            fixed = site.geometry.transposed or too_wide(site) or beside.repeats(site)
            if context.excluded(site.name) or (fixed and key not in walk.forms):
                continue
            fitted = walk.refitted(site, beside)
            if fitted is not None:
                found[key] = fitted
    return found


@dataclass(frozen=True)
class _Walk:
    name: str
    context: Context
    forms: Mapping[str, Offering]
    taken: set[str]

    def refitted(self, site: Site, beside: Beside) -> Refitted | None:
        """Write the layer as its form, or as it is with another weight; None where it stays what it was."""
        if site.geometry.transposed or too_wide(site):
            return self.formed(site, None)
        beside.advance(site)
        if key_of(site) in self.forms:
            gram = _gram(site, beside, self.context)
            formed = self.formed(site, gram if gram.varies() else None)
            if formed is not None:
                return formed
        own = _refitted(site, _halves(site, beside, self.context))
        if own is None:
            return None
        chain = written(site, own.rows, own.bias, "fitted")
        replace_by_chain(site.node, chain, self.name, self.taken)
        return Refitted("", own.error, chain_cost(site, chain), {})

    def formed(self, site: Site, gram: PatchGram | None) -> Refitted | None:
        """Write the layer in the form that was decided for it; None where there is none, or it takes no less now."""
        form = self.forms.get(key_of(site))
        proposals = None if form is None else form.propose(site, gram, replace(self.context, replay={}, overrides=()))
        if form is None or proposals is None or isinstance(proposals, Skip) or not proposals:
            return None
        candidate = proposals[0]
        if gram is not None:
            candidate = form.refit(site, candidate, gram)
        replace_by_chain(site.node, candidate.chain, self.name, self.taken)
        use = spec_of(replace_options(form, candidate.choice))
        cost = chain_cost(site, candidate.chain)
        return Refitted(f"{form.name}: {candidate.summary}", candidate.error, cost, {"use": use})


def _gram(site: Site, beside: Beside, context: Context) -> PatchGram:
    assert context.data is not None
    gram = site_gram(site, len(context.data), context.seed)
    for x, target in progress.each(beside.batches(site), site.name):
        gram.update(rows_of(site, x), rows_of(site, target))
        if gram.full:
            break
    return gram


def _halves(site: Site, beside: Beside, context: Context) -> tuple[PatchGram, PatchGram]:
    """The Grams of every other sample and of those between."""
    assert context.data is not None
    halves = tuple(site_gram(site, -(-len(context.data) // 2), context.seed, part=0.5) for _ in range(2))
    for index, (x, target) in enumerate(progress.each(beside.batches(site), site.name)):
        for number, gram in enumerate(halves):
            own = slice((number + index * len(x)) % 2, None, 2)
            gram.update(rows_of(site, x[own]), rows_of(site, target[own]))
        if all(gram.full for gram in halves):
            break
    return halves[0], halves[1]


def _refitted(site: Site, halves: tuple[PatchGram, PatchGram]) -> Pruned | None:
    """The layer with its new weight and bias, and its error; None where it is what it was."""
    grams = [gram for gram in halves if gram.count]
    if not any(gram.varies() for gram in grams):
        return None
    parts = [gram.moments() for gram in grams]
    whole = parts[0] if len(parts) == 1 else tuple(merged(*pair) for pair in zip(*parts, strict=True))
    weights = [problem.weight.reshape(len(problem.weight), -1) for problem in problems_of(site, None)]
    offset = np.zeros(site.channels_out) if site.bias is None else site.bias.astype(np.float64)
    biases = np.split(offset, len(whole))
    known = zip(whole, weights, biases, strict=True)
    if all(predicted_error(weight, bias, moments) < _EXACT for moments, weight, bias in known):
        return None
    biased = site.kind != "MatMul"
    if len(parts) == 1:
        fits = fitted_alone(whole, weights, biased=biased)
    else:
        fits = fitted(list(zip(*parts, strict=True)), weights, biased=biased)
    bias32 = np.concatenate([bias for _, bias, _ in fits]).astype(np.float32) if biased else None
    return Pruned(np.concatenate([rows for rows, _, _ in fits]), bias32, float(np.mean([error for *_, error in fits])))
