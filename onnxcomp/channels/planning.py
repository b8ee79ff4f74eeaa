"""Decide which channels and blocks go and which forms layers get, so that a target is met at the least loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp import progress
from onnxcomp.allocation.deciding import Aim, settle
from onnxcomp.allocation.menu import Choice, SiteMenu
from onnxcomp.allocation.problem import key_of
from onnxcomp.allocation.sensitivity import Response, gives_floats, sensitivities
from onnxcomp.allocation.targets import Resource, Totals
from onnxcomp.channels.applying import Decided, Refuse, layers_of, reshape
from onnxcomp.channels.costs import Layer
from onnxcomp.channels.dropping import score_blocks
from onnxcomp.channels.joint import Joint, Options, counts_of
from onnxcomp.channels.outcome import frontier_of, offers_of
from onnxcomp.channels.scoring import Criterion, GroupScores, Scores, score_groups
from onnxcomp.contract import Context
from onnxcomp.cost import model_cost
from onnxcomp.decomposition.ranking import rank_step
from onnxcomp.graph.blocks import Block, find_blocks
from onnxcomp.graph.edit import replace_by_chain
from onnxcomp.graph.fingerprint import model_fingerprint
from onnxcomp.graph.fold.shapes import infer_shapes
from onnxcomp.graph.groups import Groups, find_groups
from onnxcomp.graph.sites import Site
from onnxcomp.pipeline import time_models
from onnxcomp.runtime.sitebench import time_chains
from onnxcomp.runtime.timing import time_many

__all__ = ["Planner", "coupled_layers"]

Float = NDArray[np.float64]
# The forms that the layers of a model may get, a menu for each that has any, and what errors of layers do, by key.
Menus = Callable[[ir.Model, Context], tuple[Sequence[SiteMenu], Mapping[str, Response]]]

# An error above is as bad as losing the layer.
_MOST = 0.7
# What is left of channels that are missing reaches the outputs more than the probes tell, which lose directions of
# little variance: 2.3 to 3.3 times was measured on ResNets, 2 on SqueezeNet, less than 1 on VGG.
_REACH = 2.0


@dataclass(frozen=True, eq=False)
class Problem:
    """What a model offers."""

    options: Options
    totals: Totals
    count: int

    def decided(self, picks: Sequence[int]) -> Decided:
        """What picks, one a layer, one a group, one a block, stand for."""
        options = self.options
        layers, groups = len(options.layers), len(options.groups)
        removed = np.zeros(self.count + 1, np.bool_)
        for own, counts, pick in zip(options.groups, options.counts, picks[layers : layers + groups], strict=True):
            removed[own.order[: own.size - counts[pick]]] = True
        blocks = (block.name for block, pick in zip(options.blocks, picks[layers + groups :], strict=True) if pick)
        forms = {
            key_of(layer.site): layer.choices[pick].spec
            for layer, pick in zip(options.layers, picks[:layers], strict=True)
            if pick
        }
        return Decided(removed, frozenset(blocks), forms)


@dataclass(frozen=True, eq=False)
class Planner:
    """Decides for one pass.

    Attributes:
        criterion: How channels are ranked.
        refuse: Why a node's constants must stay as they are.
        prune: Whether channels may go.
        drop: Whether blocks may go.
        menus: The forms that layers may get; None: none.
        refit: Whether layers will be fitted to what is left.
    """

    criterion: Criterion
    refuse: Refuse
    prune: bool = True
    drop: bool = False
    menus: Menus | None = None
    refit: bool = True

    def decided(self, model: ir.Model, aim: Aim, context: Context) -> tuple[Decided, str]:
        """What to do for an aim, and what the user should know.

        All that is on offer is scored once for all runs under a budget.
        """
        key = (model_fingerprint(model), self.criterion, self.refit, self.prune, self.drop)
        problem = context.memo.once(key, lambda: self._problem(model, context))
        resource = problem.totals.countable(aim.resource)
        joint = Joint(problem.options, resource, problem.totals.of(resource), _biases(model, resource, context))

        def measured(picks: Sequence[int]) -> float | None:
            trial = model.clone()
            nodes = {key_of(site): node for node, site in layers_of(trial).items()}
            reshape(trial, problem.decided(picks), self.refuse)
            _blanks(trial, nodes, problem.options, picks)
            infer_shapes(trial)
            speedup = time_models(context.rehearsed(model), context.rehearsed(trial), context)
            return None if speedup is None else 1.0 / speedup.ratio

        # Timed again, a speed that is met would be met by other picks.
        picks, note = context.memo.once((*key, aim), lambda: settle(joint, aim, measured, context))
        picks = picks or tuple(joint.untouched)
        return replace(
            problem.decided(picks),
            offers=offers_of(problem.options, problem.totals, picks),
            frontier=frontier_of(problem.options, problem.totals, joint, picks),
        ), note

    def scores(self, model: ir.Model, context: Context) -> tuple[Groups, Scores]:
        """The groups of a model, and what they lose."""
        groups = find_groups(model, self.refuse)

        def make() -> Scores:
            return score_groups(model, groups, layers_of(model), self.criterion, context, refit=self.refit)

        return groups, context.memo.once((model_fingerprint(model), self.criterion, self.refit, "scores"), make)

    def _problem(self, model: ir.Model, context: Context) -> Problem:
        sites = layers_of(model)
        groups, scores = self.scores(model, context)
        offers, responses = ((), {}) if self.menus is None else self.menus(model, context)
        menus = {key_of(menu.site): menu for menu in offers}
        unknown = [own for own in scores.sites if key_of(own.site) not in responses] if self.prune else []
        responses = {**responses, **sensitivities(model, unknown, context)}
        blocks = _apart(self._droppable(model)) if self.drop and gives_floats(model) else ()
        timed = context.objective == "latency" and context.target.host
        opset = model.opset_imports.get("", 17)
        layers = progress.each(list(sites.items()), "time layers") if timed else sites.items()
        times = {node: _time(site, opset, context) if timed else None for node, site in layers}
        offered = scores.groups if self.prune else ()
        step = rank_step(context)
        counts = tuple(_bearable(own, counts_of(own.size, step)) for own in offered)
        options = Options(
            coupled_layers(sites, groups, offered, times, menus, blocks),
            offered,
            counts,
            tuple(_losses(own, some, responses) for own, some in zip(offered, counts, strict=True)),
            blocks,
            tuple(score_blocks(model, blocks, context)) if blocks else (),
        )
        return Problem(options, Totals(model_cost(model), _whole(model, context) if timed else None), groups.count)

    def _droppable(self, model: ir.Model) -> list[Block]:
        """The blocks of which every layer may change."""
        found = find_blocks(model).blocks
        return [block for block in found if not any(self.refuse(node) for node in block.layers)]


def coupled_layers(
    sites: Mapping[ir.Node, Site],
    groups: Groups,
    offered: Sequence[GroupScores],
    times: Mapping[ir.Node, float | None],
    menus: Mapping[str, SiteMenu],
    blocks: Sequence[Block],
) -> tuple[Layer, ...]:
    """Every layer, with what each class of each group is of it."""
    group_of = np.full(groups.count + 1, len(offered))
    for number, own in enumerate(offered):
        group_of[own.group.classes] = number
    sizes = np.array([own.size for own in offered], np.float64)

    def each(labels: NDArray[np.int64] | None) -> Float:
        if labels is None:
            return np.zeros(len(offered))
        return np.bincount(group_of[labels], minlength=len(offered) + 1)[:-1] / sizes

    layers: list[Layer] = []
    for node, site in sites.items():
        menu = menus.get(key_of(site))
        depthwise = groups.channelwise.get(node)
        layers.append(
            Layer(
                site,
                times.get(node),
                each(groups.reads.get(node)) if depthwise is None else np.zeros(len(offered)),
                each(groups.writes.get(node) if depthwise is None else depthwise),
                (Choice(None, site.cost, None, 0.0, 0.0),) if menu is None else menu.choices,
                np.array([node in block.branch for block in blocks], np.bool_),
            )
        )
    return tuple(layers)


def _bearable(own: GroupScores, counts: Sequence[int]) -> tuple[int, ...]:
    """The counts at which no reader is as good as lost."""
    return tuple(k for k in counts if k == own.size or (own.errors[:, own.size - k] <= _MOST).all())


def _losses(own: GroupScores, counts: Sequence[int], responses: Mapping[str, Response]) -> Float:
    """What the worst output is expected to lose at each count: the readers' errors, weighed and added up."""
    alike = Response()
    return np.array(
        [
            _REACH
            * sum(
                responses.get(key_of(site), alike)(float(errors[own.size - count]))
                for site, errors in zip(own.readers, own.errors, strict=True)
            )
            for count in counts
        ]
    )


def _apart(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Blocks of which no two exclude each other, the smaller ones first."""
    found: list[Block] = []
    for block in sorted(blocks, key=lambda own: len(own.branch)):
        if not any(block.excludes(other) for other in found):
            found.append(block)
    return tuple(block for block in blocks if block in found)


def _biases(model: ir.Model, resource: Resource, context: Context) -> float:
    """What the biases take that a fit to data may add."""
    each = {"parameters": 1.0, "bytes": 4.0}.get(resource, 0.0) if context.data is not None else 0.0
    sites = layers_of(model).values()
    return each * sum(site.channels_out for site in sites if site.bias is None and site.kind in ("Conv", "Gemm"))


def _time(site: Site, opset: int, context: Context) -> float | None:
    timing = time_chains(site, [], opset, context)
    return None if timing is None else timing.site_ms


def _whole(model: ir.Model, context: Context) -> float | None:
    """Time of the model as the later passes leave it, milliseconds; None where there is nothing to feed it."""
    feeds = context.data or context.stand_in
    return None if feeds is None else time_many([context.rehearsed(model)], feeds.first(1), threads=context.threads)[0]


def _blanks(trial: ir.Model, nodes: Mapping[str, ir.Node], options: Options, picks: Sequence[int]) -> None:
    """Write the forms that were picked with arbitrary weights, for timing; `nodes` by what keys were before."""
    chosen = {
        nodes[key_of(layer.site)]: layer.choices[pick].scored
        for layer, pick in zip(options.layers, picks, strict=False)
        if pick
    }
    for node, site in layers_of(trial).items():
        scored = chosen.get(node)
        if scored is not None:
            replace_by_chain(node, scored.form.blank(site, scored.setting), "trial")
