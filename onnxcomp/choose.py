"""The compiler's half of a site pass: choose among the proposals, fit the choice, apply it, account for every site."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import onnx_ir as ir
from threadpoolctl import threadpool_limits

from onnxcomp import progress
from onnxcomp.calibration.gram import PatchGram, site_gram
from onnxcomp.calibration.sweep import Sweep
from onnxcomp.contract import Candidate, Change, Context, Override, PassReport, SitePass, Skip, Value
from onnxcomp.cost import Cost
from onnxcomp.graph.chain import chain_cost
from onnxcomp.graph.edit import names_of, replace_by_chain
from onnxcomp.graph.fold.shapes import infer_shapes
from onnxcomp.graph.products import rows_of, weighted_sites
from onnxcomp.graph.sites import Site
from onnxcomp.options import replace_options
from onnxcomp.runtime.sitebench import chain_speedups

__all__ = ["PAYS", "overridden", "run_site_pass"]

_log = logging.getLogger(__name__)

PAYS = 1 / 0.9
"""A candidate is kept under ``latency`` when the site takes less than 0.9 of its time."""


@dataclass(frozen=True)
class _Choice:
    candidate: Candidate
    cost: Cost
    speedup: float | None


def run_site_pass(site_pass: SitePass, model: ir.Model, context: Context) -> PassReport:
    """Run a site pass over a model in place.

    Sites are visited in topological order. Each one is proposed on the statistics of the original model, chosen by the
    objective, and fitted to what the already rewritten prefix feeds it (methods, 0.4: the asymmetric form), so that
    errors do not pile up with depth.
    """
    changes: list[Change] = []
    skips: list[Skip] = []
    taken = names_of(model.graph)
    variants = [site_pass, *(_with_options(site_pass, o.options) for o in context.overrides if o.options)]
    for variant in variants:
        variant.requires(model, context)
    with _sweep(variants, model, context) as sweep:
        for site in progress.each(list(weighted_sites(model, site_pass.kinds)), "layers"):
            outcome = site if isinstance(site, Skip) else _visit(site_pass, site, model, sweep, context, taken)
            if isinstance(outcome, Skip):
                _log.debug("%s leaves %s alone: %s", site_pass.name, outcome.site, outcome.reason)
                skips.append(outcome)
            else:
                _log.debug("%s: %s becomes %s", site_pass.name, outcome.site, outcome.summary)
                changes.append(outcome)
    if changes:
        infer_shapes(model)
    return PassReport(tuple(changes), tuple(skips))


def overridden(site_pass: SitePass, site: Site, overrides: Sequence[Override]) -> SitePass | None:
    """Return the pass with the options that a recipe gives this layer; None where the recipe leaves the layer alone.

    The most specific match wins: a glob on the node's name, then the operator type.
    """
    by_name = [o for o in overrides if fnmatchcase(site.name, o.match) and o.match != site.kind]
    chosen = by_name or [o for o in overrides if o.match == site.kind]
    if not chosen:
        return site_pass
    options = chosen[-1].options
    return None if options is None else _with_options(site_pass, options)


def _with_options(site_pass: SitePass, options: Mapping[str, Value]) -> SitePass:
    configured = replace_options(site_pass, options)
    assert isinstance(configured, SitePass)
    return configured


@contextmanager
def _sweep(variants: Sequence[SitePass], model: ir.Model, context: Context) -> Generator[Sweep | None]:
    if context.data is None or not any(v.wants_gram() for v in variants):
        yield None
        return
    sweep = Sweep(model.clone(), model, context.data, context.workdir, kinds=variants[0].kinds)
    try:
        yield sweep
    finally:
        sweep.close()


def _visit(
    site_pass: SitePass, site: Site, model: ir.Model, sweep: Sweep | None, context: Context, taken: set[str]
) -> Change | Skip:
    excluded = context.excluded(site.name)
    if excluded:
        return Skip(site.name, excluded)
    configured = overridden(site_pass, site, context.overrides)
    if configured is None:
        return Skip(site.name, "left alone by the recipe")
    if context.replay is not None:
        if site.name not in context.replay:
            return Skip(site.name, "not rewritten in the replayed run")
        configured = _with_options(configured, context.replay[site.name])
    reason = configured.refuse(site)
    if reason:
        return Skip(site.name, reason)
    original, compressed = _grams(configured, site, sweep, context, once=site_pass.decided)
    # Weights alone take many small decompositions, in which BLAS threads wait for each other on a busy machine.
    with threadpool_limits(1 if original is None else None):
        proposals = configured.propose(site, original, context)
    if isinstance(proposals, Skip):
        return proposals
    smallest = site_pass.saves == "bytes"
    opset = model.opset_imports.get("", 17)
    if site_pass.decided or context.replay is not None:
        chosen: _Choice | Skip = _Choice(proposals[0], _cost(site, proposals[0]), None)
    else:
        chosen = _choose(site, proposals, opset, context, smallest=smallest)
    if isinstance(chosen, Skip):
        return chosen
    candidate = chosen.candidate
    if compressed is not None:
        candidate = configured.refit(site, candidate, compressed)
    replace_by_chain(site.node, candidate.chain, site_pass.name, taken)
    if sweep is not None:
        sweep.mark_changed()
    return Change(
        site.name,
        candidate.summary,
        site.cost,
        chosen.cost,
        candidate.error,
        chosen.speedup,
        candidate.choice,
        milder=candidate.milder,
    )


def _cost(site: Site, candidate: Candidate) -> Cost:
    cost = chain_cost(site, candidate.chain)
    return cost if candidate.bytes is None else replace(cost, bytes=candidate.bytes)


def _grams(
    configured: SitePass, site: Site, sweep: Sweep | None, context: Context, *, once: bool
) -> tuple[PatchGram | None, PatchGram | None]:
    """Patch statistics of a site: in the original, and of the rewritten prefix against the original's outputs.

    With `once` the latter stand for both, where ranks are known and what they would lose in the original is no matter.
    None where the inputs do not vary over the samples: then the weights are followed.
    """
    if sweep is None or site.geometry.transposed or not configured.wants_gram():
        return None, None
    sweep.advance(site)
    samples = 0 if context.data is None else len(context.data)
    original, compressed = (site_gram(site, samples, context.seed, configured.wants_patches()) for _ in range(2))
    for before, after, target in progress.each(sweep.batches(site), site.name):
        wanted = rows_of(site, target)
        if after is before or not once:
            original.update(rows_of(site, before), wanted)
        if after is not before:
            compressed.update(rows_of(site, after), wanted)
    fitted = compressed if compressed.count else original
    if not fitted.varies():
        return None, None
    return (fitted if once else original), fitted


def _choose(
    site: Site, candidates: Sequence[Candidate], opset: int, context: Context, *, smallest: bool
) -> _Choice | Skip:
    costs = [_cost(site, c) for c in candidates]
    before = site.cost
    if context.objective == "size" or smallest:
        best = min(range(len(costs)), key=lambda i: costs[i].bytes)
        if costs[best].bytes >= before.bytes:
            return Skip(site.name, f"no gain: {before.bytes:,} -> {costs[best].bytes:,} bytes")
        return _Choice(candidates[best], costs[best], None)
    speedups = chain_speedups(site, [c.chain for c in candidates], opset, context) if _timed(context) else None
    if speedups is None:
        return _fewest_macs(site, candidates, costs)
    best = max(range(len(costs)), key=lambda i: speedups[i])
    if speedups[best] < PAYS:
        return Skip(
            site.name, f"does not pay: {candidates[best].summary} runs at {speedups[best]:.2f}x of the original's speed"
        )
    return _Choice(candidates[best], costs[best], speedups[best])


def _timed(context: Context) -> bool:
    return context.objective == "latency" and context.target.host


def _fewest_macs(site: Site, candidates: Sequence[Candidate], costs: Sequence[Cost]) -> _Choice | Skip:
    """Choose by MACs, or by parameters where a shape is unknown."""

    def work(cost: Cost) -> int:
        return cost.parameters if cost.macs is None or site.cost.macs is None else cost.macs

    best = min(range(len(costs)), key=lambda i: work(costs[i]))
    if work(costs[best]) >= work(site.cost):
        return Skip(site.name, f"no gain: {work(site.cost):,} -> {work(costs[best]):,} MACs")
    return _Choice(candidates[best], costs[best], None)
