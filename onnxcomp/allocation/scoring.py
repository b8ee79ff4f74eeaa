"""Score the settings of many forms for every site of a model, on the statistics of the original.

Sites are independent: while one's Gram is being gathered, those before it are scored on the other cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from onnxcomp import progress
from onnxcomp.allocation.grams import grams_of
from onnxcomp.allocation.offering import Offering
from onnxcomp.allocation.probe import Probe, make_probes
from onnxcomp.allocation.problem import Problem, Setting, problems_of
from onnxcomp.calibration.gram import PatchGram
from onnxcomp.contract import Context
from onnxcomp.cost import Cost
from onnxcomp.decomposition.ranking import share
from onnxcomp.graph.sites import Site
from onnxcomp.numeric.hull import pareto

__all__ = ["Scored", "SiteScores", "not_for", "score_sites"]

Float = NDArray[np.float64]

# Settings that are kept for each form and site, spread evenly over the logarithm of the error.
_KEPT = 12
# An error below is as good as none, one above as bad as losing the layer.
_LEAST, _MOST = 1e-5, 0.7
# Sites that are scored at the same time; each holds a Gram and its factors.
_WORKERS = 8
# Ranks of one side that are scored, the smaller ones closer together.
_RANKS = 12
# A form that takes so much more work than another one for the same error is not worth its timing; memory-bound nodes
# do not follow their MACs closer than this.
_DOMINATED = 0.7


@dataclass(frozen=True)
class Scored:
    """One candidate of a site.

    Attributes:
        form: The pass.
        setting: Its ranks.
        cost: Of the chain.
        error: Predicted relative squared error of the site's output.
    """

    form: Offering
    setting: Setting
    cost: Cost
    error: float


@dataclass(frozen=True)
class SiteScores:
    """What the forms offer for one site.

    Attributes:
        site: The site.
        offers: Candidates that no other one beats by far, in no order.
        probes: Versions of the layer with known errors, to measure what these do to the model.
        refusals: Why a form has nothing to offer, by its name.
    """

    site: Site
    offers: tuple[Scored, ...]
    probes: tuple[Probe, ...]
    refusals: Mapping[str, str]


def score_sites(
    model: ir.Model,
    sites: Sequence[Site],
    forms: Sequence[Offering],
    context: Context,
    step: int,
    executor: Executor | None = None,
) -> list[SiteScores]:
    """Score every form at every site.

    Args:
        model: The original; not modified.
        sites: Its sites, in topological order.
        forms: The passes to choose from.
        context: The run's context; without calibration data the weights are scored.
        step: Ranks are multiples of this.
        executor: Runs the tasks, one a site; None: threads, as many as there are cores.
    """
    workers = min(os.cpu_count() or 1, _WORKERS)
    with threadpool_limits(1):  # the tasks fill the cores; results do not depend on their number
        pool = executor or ThreadPoolExecutor(workers)
        try:
            tasks = _in_turn(_tasks(model, sites, forms, context, step, pool), workers)
            return list(progress.each(tasks, "score layers", len(sites)))
        finally:
            if executor is None:
                pool.shutdown(cancel_futures=True)


def _in_turn(tasks: Iterator[Future[SiteScores]], ahead: int) -> Iterator[SiteScores]:
    """Results in order, with at most `ahead` tasks begun and not taken: each holds a Gram."""
    waiting: list[Future[SiteScores]] = []
    for task in tasks:
        waiting.append(task)
        if len(waiting) > ahead:
            yield waiting.pop(0).result()
    for task in waiting:
        yield task.result()


def _tasks(
    model: ir.Model,
    sites: Sequence[Site],
    forms: Sequence[Offering],
    context: Context,
    step: int,
    pool: Executor,
) -> Iterator[Future[SiteScores]]:
    if context.data is None or not any(form.wants_gram() for form in forms):
        for site in sites:
            yield pool.submit(_score, site, forms, None, step)
        return
    for site, gram in grams_of(model, sites, context):
        yield pool.submit(_score, site, forms, None if site.geometry.transposed else gram, step)


def _score(site: Site, forms: Sequence[Offering], gram: PatchGram | None, step: int) -> SiteScores:
    problems = problems_of(site, gram if gram is not None and gram.varies() else None)
    offers: list[Scored] = []
    refusals: dict[str, str] = {}
    for form in forms:
        reason = form.refuse(site) if site.kind in form.kinds else not_for(site)
        found = [] if reason else _offers(form, site, problems, step)
        if not found:
            none = "no codes are smaller" if form.saves == "bytes" else "no ranks short of break-even"
            refusals[form.name] = reason or none
        offers += found
    return SiteScores(site, _worthy(offers), make_probes(problems) if offers else (), refusals)


def not_for(site: Site) -> str:
    """Why a form that does not take this operator offers nothing."""
    return f"not for {site.kind}"


def _offers(form: Offering, site: Site, problems: Sequence[Problem], step: int) -> list[Scored]:
    """The settings of one form that none of its others beats, thinned out."""
    costs = [(setting, form.cost(site, setting)) for setting in _thinned(form.settings(site, step))]
    costs = [(setting, cost) for setting, cost in costs if _share(form, cost, site.cost) < 1.0]
    if not costs:
        return []
    score: Callable[[Setting], float] = form.scored(problems)
    errors = np.array([score(setting) for setting, _ in costs], np.float64)
    errors[~np.isfinite(errors) | (errors > _MOST)] = np.inf
    work = np.array([_share(form, cost, site.cost) for _, cost in costs])
    front = pareto(work, errors)
    return [Scored(form, *costs[i], float(errors[i])) for i in _spread(front, errors)]


def _thinned(settings: Sequence[Setting]) -> list[Setting]:
    """The settings of which every rank is one of a few, in geometric steps."""
    by_order: dict[str, list[Setting]] = {}
    for setting in settings:
        by_order.setdefault(setting.order, []).append(setting)
    kept: list[Setting] = []
    for own in by_order.values():
        sides = zip(*(setting.ranks for setting in own), strict=True)
        few = [_few(sorted(set(side))) for side in sides]
        kept += [s for s in own if all(rank in side for rank, side in zip(s.ranks, few, strict=True))]
    return kept


def _few(ranks: Sequence[int]) -> frozenset[int]:
    wanted = np.geomspace(ranks[0], ranks[-1], _RANKS)
    return frozenset(ranks[int(np.abs(np.array(ranks) - rank).argmin())] for rank in wanted)


def _spread(front: Sequence[int], errors: Float) -> list[int]:
    """Some of a front, evenly over the logarithm of the error; the first one of those that lose next to nothing."""
    if len(front) <= _KEPT:
        return list(front)
    levels = np.log10(np.maximum(errors[list(front)], _LEAST))
    wanted = np.linspace(levels.min(), levels.max(), _KEPT)
    return sorted({front[int(np.abs(levels - level).argmin())] for level in wanted})


def _worthy(offers: Sequence[Scored]) -> tuple[Scored, ...]:
    """All but those that another one beats in error with far less work."""

    def work(offer: Scored) -> int:
        cost = offer.cost
        return cost.bytes if offer.form.saves == "bytes" else cost.parameters if cost.macs is None else cost.macs

    return tuple(
        own for own in offers if not any(o.error <= own.error and work(o) < _DOMINATED * work(own) for o in offers)
    )


def _share(form: Offering, cost: Cost, whole: Cost) -> float:
    """What a setting takes of what its pass is to save."""
    return cost.bytes / whole.bytes if form.saves == "bytes" else share(cost, whole)
