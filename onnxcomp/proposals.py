"""What each pass on single sites would make of each layer: chain, cost and predicted error; nothing is applied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxcomp import progress
from onnxcomp.calibration.frontier import Frontier, data_input, lifetimes
from onnxcomp.calibration.gram import PatchGram, site_gram
from onnxcomp.contract import Candidate, Context, SitePass, Skip, Value
from onnxcomp.graph.chain import chain_cost, chain_weights
from onnxcomp.graph.products import rows_of, weighted_sites
from onnxcomp.graph.sites import Site

__all__ = ["Amount", "Answers", "Proposal", "Subject", "ask_all", "refusals_of"]

Subject = Literal["output", "weight"]

# Patches a dimension: to look ahead takes fewer than to fit.
_PATCHES = 4
# Bytes of activations in memory.
_MEMORY = 1 << 28
# Output channels that are rounded to predict what rounding all of them loses.
_ROWS = 64


@dataclass(frozen=True, slots=True)
class Amount:
    """What a layer costs.

    Attributes:
        weights: Number of weights, biases not counted.
        macs: Multiply-accumulates at batch 1; None where a shape is unknown.
        bytes: Bytes of its constants in the file, biases included.
    """

    weights: int
    macs: int | None
    bytes: int


@dataclass(frozen=True, slots=True)
class Proposal:
    """What one pass would make of one layer.

    Attributes:
        spec: The pass with its options, as it was asked for.
        summary: The chain in words.
        before: Cost of the layer as it is.
        after: Cost of what would replace it.
        weights_kept: Weights after / before.
        macs_kept: Multiply-accumulates after / before; None where they are unknown.
        bytes_saved: Bytes before - after; negative where the chain is larger.
        error: Predicted relative squared error (0 exact, 1 all signal lost); None where the pass predicts none.
        error_of: What the error is of; None where there is none.
        choice: The options that lead to this very chain.
    """

    spec: str
    summary: str
    before: Amount
    after: Amount
    weights_kept: float
    macs_kept: float | None
    bytes_saved: int
    error: float | None
    error_of: Subject | None
    choice: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Answers:
    """What the passes say about one layer; each of them is in one of the three.

    Attributes:
        open: The passes that do not refuse it and were not asked further.
        refusals: Spec of a pass to why it would leave the layer alone.
        proposals: What the others would make of it.
    """

    open: tuple[str, ...] = ()
    refusals: Mapping[str, str] = field(default_factory=dict[str, str])
    proposals: tuple[Proposal, ...] = ()


def refusals_of(model: ir.Model, passes: Mapping[str, SitePass]) -> dict[str, dict[str, str]]:
    """The nodes that are no sites: name of the node to spec of each pass on such nodes to the reason."""
    found: dict[str, dict[str, str]] = {}
    by_kinds: dict[tuple[str, ...], list[str]] = {}
    for spec, item in passes.items():
        by_kinds.setdefault(item.kinds, []).append(spec)
    for kinds, specs in by_kinds.items():
        for site in weighted_sites(model, kinds):
            if isinstance(site, Skip):
                found.setdefault(site.site, {}).update(dict.fromkeys(specs, site.reason))
    return found


def ask_all(
    model: ir.Model,
    passes: Mapping[str, SitePass],
    context: Context,
    *,
    propose: bool,
) -> Iterator[tuple[ir.Node, Answers]]:
    """Ask passes about every site of a model, in topological order; one site is in memory at a time.

    Args:
        model: The canonical model; not modified.
        passes: The passes by spec.
        context: The context of the run that is looked ahead to. With ``context.data`` errors are of the layers'
            outputs, given the inputs that the original model produces; in a run, layers follow compressed ones.
        propose: Whether passes that do not refuse a site are asked what they would make of it, which takes a while.
    """
    kinds = tuple(dict.fromkeys(kind for item in passes.values() for kind in item.kinds))
    walk = _Walk(model, kinds, context)
    with closing(walk):
        sites = (site for site in weighted_sites(model, kinds) if isinstance(site, Site))
        about = sum(node.op_type in kinds for node in model.graph)
        for site in progress.each(sites, "ask about layers", about):
            yield site.node, _ask(site, passes, walk, context, propose=propose)


def _ask(site: Site, passes: Mapping[str, SitePass], walk: _Walk, context: Context, *, propose: bool) -> Answers:
    refusals: dict[str, str] = {}
    willing: dict[str, SitePass] = {}
    for spec, item in passes.items():
        if site.kind in item.kinds:
            reason = item.refuse(site)
            refusals.update({spec: reason} if reason else {})
            willing.update({} if reason else {spec: item})
    if not propose:
        return Answers(tuple(willing), refusals)
    gram = walk.gram(site, list(willing.values()))
    proposals: list[Proposal] = []
    for spec, item in willing.items():
        own = gram if item.wants_gram() else None
        found = item.propose(site, own, context)
        if isinstance(found, Skip):
            refusals[spec] = found.reason
        elif not found:
            refusals[spec] = "nothing is proposed"
        else:
            proposals.append(_proposal(spec, item, site, found, own, context))
    return Answers((), refusals, tuple(proposals))


def _proposal(
    spec: str, item: SitePass, site: Site, candidates: Sequence[Candidate], gram: PatchGram | None, context: Context
) -> Proposal:
    candidate = candidates[0]
    error = candidate.error
    if gram is not None and item.saves == "bytes":  # such passes look at the data when they round, not before
        error = _rounded(item, site, candidate, gram, context)
    before = Amount(site.weight.size, site.cost.macs, site.cost.bytes)
    cost = chain_cost(site, candidate.chain)
    taken = cost.bytes if candidate.bytes is None else candidate.bytes
    after = Amount(chain_weights(site, candidate.chain), cost.macs, taken)
    subject: Subject = "weight" if gram is None else "output"
    return Proposal(
        spec,
        candidate.summary,
        before,
        after,
        after.weights / before.weights,
        after.macs / before.macs if after.macs is not None and before.macs else None,
        before.bytes - after.bytes,
        error,
        None if error is None else subject,
        candidate.choice,
    )


def _rounded(item: SitePass, site: Site, candidate: Candidate, gram: PatchGram, context: Context) -> float | None:
    """What fitting to the data leaves of the error, on evenly spaced output channels where there are many."""
    part = site
    if site.geometry.group == 1 and site.channels_out > _ROWS:
        rows = np.linspace(0, site.channels_out - 1, _ROWS).round().astype(np.intp)
        part = replace(site, weight=site.weight[rows], bias=None if site.bias is None else site.bias[rows])
    proposed = [candidate] if part is site else item.propose(part, gram, context)
    if isinstance(proposed, Skip) or not proposed:  # so few rows save nothing
        part, proposed = site, [candidate]
    return item.refit(part, proposed[0], gram).error


class _Walk:
    """The original model, run up to one site after another over the calibration data, if there are any."""

    def __init__(self, model: ir.Model, kinds: Sequence[str], context: Context) -> None:
        self._data, self._seed = context.data, context.seed
        self._order = {node: index for index, node in enumerate(model.graph)}
        self._frontier: Frontier | None = None
        if context.data is not None:
            alive = lifetimes(model.graph, lambda node: node.op_type in kinds)
            self._frontier = Frontier(model, alive, context.data, context.workdir, [_MEMORY])

    def gram(self, site: Site, passes: Sequence[SitePass]) -> PatchGram | None:
        """Patch statistics of a site; None without data, or where no pass wants them."""
        if self._frontier is None or self._data is None or site.geometry.transposed:
            return None
        if not any(item.wants_gram() for item in passes):
            return None
        name = data_input(site.node)
        self._frontier.advance(self._order[site.node], [name])
        gram = site_gram(site, len(self._data), self._seed, a_dimension=_PATCHES)
        for batch in self._frontier.values(name):
            gram.update(rows_of(site, batch))
            if gram.full:
                break
        return gram

    def close(self) -> None:
        """Free the activations."""
        if self._frontier is not None:
            self._frontier.close()
