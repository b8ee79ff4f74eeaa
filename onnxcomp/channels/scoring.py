"""What each group of channels loses when it is pruned: an order of removal, and the errors of the layers that read it.

Everything follows from the Gram of what each reader reads in the original model; groups are looked at as soon as the
last of their readers was reached, and Grams that no other group needs are let go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp import progress
from onnxcomp.allocation.grams import grams_of
from onnxcomp.allocation.probe import make_probes
from onnxcomp.allocation.problem import Problem, problems_of
from onnxcomp.allocation.scoring import SiteScores
from onnxcomp.contract import Context
from onnxcomp.graph.groups import Group, Groups
from onnxcomp.graph.labels import Labels
from onnxcomp.graph.sites import Site
from onnxcomp.numeric.elimination import Consumer, Path, eliminate, path_of
from onnxcomp.numeric.selection import contributions, lasso_order, norm_scores, order_of, taylor_scores, thinet_order
from onnxcomp.quantize.layout import Layout

__all__ = ["Criterion", "GroupScores", "Scores", "score_groups", "too_wide"]

Float = NDArray[np.float64]
Criterion = Literal["auto", "obs", "thinet", "he", "taylor", "l1", "l2"]

# Columns of a Gram that takes minutes and 800 MB; what reads more is neither ranked by nor refitted.
_WIDEST = 10_000
# Noise that each input is thought to have, relative to their mean power; and what is added for columns that are many
# beside the samples, patches of one image being alike: this times columns / sqrt(images x patches).
_DAMPING, _UNSEEN = 1e-3, 0.03


@dataclass(frozen=True, eq=False)
class GroupScores:
    """What a group loses.

    Attributes:
        group: The group.
        order: Its classes in the order of removal, as numbered in the groups, (m,).
        readers: The layers that read it.
        errors: Relative squared error of each reader's output after the first 0, 1 .. m removals, (readers, m + 1).
    """

    group: Group
    order: NDArray[np.int64]
    readers: tuple[Site, ...]
    errors: Float

    @property
    def size(self) -> int:
        """Number of its classes."""
        return len(self.group.classes)


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of a model.

    Attributes:
        groups: Of the groups, in the order of their last readers.
        sites: The readers with the probes that tell what their errors do to the outputs.
    """

    groups: tuple[GroupScores, ...]
    sites: tuple[SiteScores, ...]


@dataclass(frozen=True, eq=False)
class _Reader:
    """A reader's consumers, one for each of its groups of channels, and the classes of their columns."""

    site: Site
    consumers: tuple[Consumer, ...]


def score_groups(
    model: ir.Model,
    groups: Groups,
    sites: Mapping[ir.Node, Site],
    criterion: Criterion,
    context: Context,
    *,
    refit: bool = True,
) -> Scores:
    """Score every group of a model but for those that are read by too wide a layer.

    Args:
        model: The original; not modified.
        groups: Its groups.
        sites: Its layers, by node, in topological order.
        criterion: How the order of removal is found; auto is obs with data, else l2.
        context: The run's context; without calibration data every input has the same power.
        refit: Whether the errors are those of readers that are fitted to what is left.
    """
    wanted = {
        node for group in groups.groups for node in group.consumers if node in sites and not too_wide(sites[node])
    }
    if criterion == "auto":
        criterion = "obs" if context.data is not None else "l2"
    images = 0 if context.data is None else len(context.data)
    held: dict[ir.Node, _Reader] = {}
    found: list[GroupScores] = []
    probed: list[SiteScores] = []
    left = list(groups.groups)
    readers = [site for node, site in sites.items() if node in wanted]
    for site, problems in progress.each(_problems(model, readers, context), "score channels", len(readers)):
        held[site.node] = _Reader(site, _consumers(site, problems, groups.reads[site.node], images))
        if not site.geometry.transposed:
            probed.append(SiteScores(site, (), make_probes(problems), {}))
        ready = [group for group in left if all(node in held for node in group.consumers)]
        found += [
            _scored(group, [held[node] for node in group.consumers], groups, sites, criterion, refit=refit)
            for group in ready
        ]
        left = [group for group in left if group not in ready]
        needed = {node for group in left for node in group.consumers}
        held = {node: reader for node, reader in held.items() if node in needed}
    return Scores(tuple(found), tuple(probed))


def too_wide(site: Site) -> bool:
    """Whether a layer reads too many columns for a Gram of them."""
    return not site.geometry.transposed and site.weight[0].size > _WIDEST


def _problems(model: ir.Model, sites: Sequence[Site], context: Context) -> Iterator[tuple[Site, list[Problem]]]:
    """Each site with what is known of its inputs, in the original."""
    if context.data is None:
        yield from ((site, problems_of(site, None)) for site in sites)
        return
    for site, gram in grams_of(model, sites, context):
        if not site.geometry.transposed:
            yield site, problems_of(site, gram if gram.varies() else None)
        else:  # its moments are of single positions, of which each makes a patch of the output
            plain = problems_of(site, None)
            yield site, [replace(p, moments=m) for p, m in zip(plain, gram.moments(), strict=True)]


def _consumers(site: Site, problems: Sequence[Problem], reads: Labels, images: int) -> tuple[Consumer, ...]:
    """One consumer for each of a layer's groups of channels; their labels are the classes."""
    found: list[Consumer] = []
    for problem, own in zip(problems, np.split(np.asarray(reads), len(problems)), strict=True):
        weight, labels = problem.weight.reshape(len(problem.weight), -1), own
        if site.geometry.transposed:
            weight = np.moveaxis(problem.weight, 1, -1).reshape(-1, len(own))
        else:
            labels = np.repeat(own, weight.shape[1] // len(own))
        found.append(Consumer(weight, _gram(site, problem, weight.shape[1], images), labels))
    return tuple(found)


def _gram(site: Site, problem: Problem, columns: int, images: int) -> Float:
    """The covariance of the inputs where a bias takes the means, else their second moments; with noise for few."""
    moments = problem.moments
    if moments is None:
        return np.eye(columns)
    gram = moments.xx.copy()
    if site.kind != "MatMul" and not site.geometry.transposed:
        gram -= np.outer(moments.mean_x, moments.mean_x)
    noise = _UNSEEN * columns / sqrt(images * moments.count)
    gram[np.diag_indices_from(gram)] += noise * float(np.trace(gram)) / columns
    return gram


def _scored(
    group: Group,
    readers: Sequence[_Reader],
    groups: Groups,
    sites: Mapping[ir.Node, Site],
    criterion: Criterion,
    *,
    refit: bool,
) -> GroupScores:
    n = len(group.classes)
    place = np.full(groups.count + 1, -1, np.int64)
    place[group.classes] = np.arange(n)
    consumers: list[Consumer] = []
    for reader in readers:
        energy = sum(float(np.vdot(c.weight @ c.gram, c.weight)) for c in reader.consumers)
        importance = 1.0 / energy if energy > 0.0 else 0.0
        consumers += [replace(own, labels=place[own.labels], importance=importance) for own in reader.consumers]
    producers = [(sites[node], groups.writes[node]) for node in group.producers if node in sites]
    path = _path(consumers, [(Layout(site).rows(), place[labels]) for site, labels in producers], n, criterion)
    if not refit:
        path = path_of(path.order, consumers, damping=_DAMPING, without_refit=True)
    errors = _by_reader(path, [len(reader.consumers) for reader in readers], consumers)
    return GroupScores(group, group.classes[path.order], tuple(reader.site for reader in readers), errors)


def _path(
    consumers: Sequence[Consumer], producers: Sequence[tuple[Float, Labels]], n: int, criterion: Criterion
) -> Path:
    """The order of removal by a criterion, and what is lost along it when the readers are fitted."""
    if criterion == "obs":
        return eliminate(consumers, n, damping=_DAMPING)
    if criterion in ("l1", "l2"):
        weights, labels = [own for own, _ in producers], [own for _, own in producers]
        order = order_of(norm_scores(weights, labels, n, 1 if criterion == "l1" else 2))
    else:
        matrix = np.zeros((n, n))
        for own in consumers:
            matrix += own.importance * contributions(own.weight, own.gram, own.labels, n)
        if criterion == "taylor":
            order = order_of(taylor_scores(matrix))
        else:
            order = thinet_order(matrix) if criterion == "thinet" else lasso_order(matrix)
    return path_of(order[:-1], consumers, damping=_DAMPING)


def _by_reader(path: Path, parts: Sequence[int], consumers: Sequence[Consumer]) -> Float:
    """The errors of whole readers from those of their groups of channels, which count by their variance."""
    energies = [float(np.vdot(own.weight @ own.gram, own.weight)) for own in consumers]
    errors: list[Float] = []
    start = 0
    for count in parts:
        some = slice(start, start + count)
        weights = np.array(energies[some]) / (sum(energies[some]) or 1.0)
        errors.append(weights @ path.errors[some])
        start += count
    return np.reshape(np.array(errors), (len(parts), path.errors.shape[1]))
