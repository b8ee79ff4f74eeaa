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
from numpy.typing import NDArray

from onnxcomp.allocation.offering import Offering
from onnxcomp.allocation.problem import Problem, key_of, problems_of
from onnxcomp.calibration.beside import Beside, Kept
from onnxcomp.calibration.gram import PatchGram, site_gram
from onnxcomp.channels.scoring import too_wide
from onnxcomp.contract import Context, Skip, Value
from onnxcomp.cost import Cost
from onnxcomp.graph.chain import chain_cost
from onnxcomp.graph.edit import names_of, replace_by_chain
from onnxcomp.graph.products import rows_of, weighted_sites
from onnxcomp.graph.sites import Site
from onnxcomp.numeric.moments import predicted_error
from onnxcomp.numeric.refit import least_squares_target, remainder
from onnxcomp.options import replace_options, spec_of
from onnxcomp.pruning import Pruned, written

__all__ = ["Refitted", "recover"]

Float = NDArray[np.float64]

_KINDS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Pull towards the layer's own weight, in units of the mean power of an input.
_RIDGE = 0.01
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
        for site in sites:
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
        gram = _gram(site, beside, self.context)
        formed = self.formed(site, gram if gram.varies() else None)
        if formed is not None:
            return formed
        fitted = _refitted(site, gram)
        if fitted is None:
            return None
        chain = written(site, fitted.rows, fitted.bias, "fitted")
        replace_by_chain(site.node, chain, self.name, self.taken)
        return Refitted("", fitted.error, chain_cost(site, chain), {})

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
    beside.advance(site)
    gram = site_gram(site, len(context.data), context.seed)
    for _, x, target in beside.batches(site):
        gram.update(rows_of(site, x), rows_of(site, target))
        if gram.full:
            break
    return gram


def _refitted(site: Site, gram: PatchGram) -> Pruned | None:
    """The layer with its new weight and bias, and its error; None where it is what it was."""
    if not gram.varies():
        return None
    problems = problems_of(site, gram)
    groups = len(problems)
    own = np.zeros(site.channels_out) if site.bias is None else site.bias.astype(np.float64)
    biases = np.split(own, groups)
    if all(_missed(problem, bias) < _EXACT for problem, bias in zip(problems, biases, strict=True)):
        return None
    biased = site.kind != "MatMul"
    fits = [_solved(problem, biased=biased) for problem in problems]
    bias = np.concatenate([own for _, own, _ in fits]).astype(np.float32) if biased else None
    return Pruned(np.concatenate([rows for rows, _, _ in fits]), bias, float(np.mean([error for *_, error in fits])))


def _missed(problem: Problem, bias: Float) -> float:
    """Relative squared error of the layer as it is."""
    assert problem.moments is not None, "there is a Gram"
    return predicted_error(problem.weight, bias, problem.moments)


def _solved(problem: Problem, *, biased: bool) -> tuple[Float, Float, float]:
    """Rows, bias and relative squared error of one group."""
    moments = problem.moments
    assert moments is not None, "there is a Gram"
    rows, _ = least_squares_target(moments, problem.weight.reshape(len(problem.weight), -1), _RIDGE, biased=biased)
    bias, error, power = remainder(moments, rows, biased=biased)
    return rows, bias, float(error.sum() / max(power.sum(), np.finfo(np.float64).tiny))
