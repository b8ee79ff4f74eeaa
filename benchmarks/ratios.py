"""Tucker-2 at the parameter ratios of a published table in which VBMF ranks collapsed plain networks.

Kim et al. 2016 take ranks from VBMF on the weights. A reimplementation for CIFAR-10 left AlexNet 28.6 % of its 74.7 %
top-1 at a ratio of 1.04, and VGG16 15.0 % of 86.6 % at 1.11, before fine-tuning. Ratios are of all parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from judging import Bench, Job
from real import model_file

import onnxcomp
from onnxcomp.allocation.problem import Problem, Setting, group_shape, problems_of
from onnxcomp.graph.products import weighted_sites
from onnxcomp.graph.sites import Site
from onnxcomp.numeric.ranks import weakened
from onnxcomp.passes.tucker2 import Tucker2

__all__ = ["ratios"]

RATIOS = {
    "vgg16_cifar10": (1.11,),  # targets has it at far higher ones
    "resnet20_cifar10": (1.04, 1.11, 1.18, 1.81),
    "resnet32_cifar10": (1.04, 1.11, 1.18, 1.81),
    "squeezenet1_1_imagenet": (1.11, 1.81),
}


def ratios(bench: Bench) -> Iterator[str]:
    """Rows of the table."""
    yield "| model | ratio | pipeline | parameters | top-1 drop (95 %) | SQNR dB |\n|---|--:|---|--:|--:|--:|\n"
    for model, asked in RATIOS.items():
        if not bench.wanted(model):
            continue
        sites = _Sites(bench, model)
        for ratio in asked:
            jobs = [
                (f"decompose(size={1 / ratio:.3f})", None),
                (sites.uniform(ratio), None),
                (sites.by_vbmf(ratio), 0),
            ]
            for pipeline, images in jobs:
                if not pipeline:
                    continue
                own = bench.judge(Job(model, pipeline, "size", images=images), timed=False)
                yield (
                    f"| {model} | {ratio} | `{pipeline}` | 1/{1 / own.parameters:.2f} | {own.drop} "
                    f"| {own.decibels:.1f} |\n"
                )


class _Sites:
    """What Tucker-2 may rewrite in a model, to find the options that bring the whole model to a ratio."""

    def __init__(self, bench: Bench, model: str) -> None:
        graph = onnxcomp.load(model_file(model, bench.work))
        form = Tucker2()
        found = [s for s in weighted_sites(graph, form.kinds) if isinstance(s, Site) and form.refuse(s) is None]
        self._form = form
        self._sites = [(site, problems_of(site, None)) for site in found]
        self._all = onnxcomp.cost.model_cost(graph).parameters
        self._ranks: list[tuple[int, ...]] = []

    def uniform(self, ratio: float) -> str:
        """The ratio of every layer that gives the ratio of the model; empty where there is none."""
        inside = sum(site.weight.size for site, _ in self._sites)
        left = self._all / ratio - (self._all - inside)
        return f"tucker2(ratio={inside / left:.4g})" if left > 0 else ""

    def by_vbmf(self, ratio: float) -> str:
        """Weights alone: how far towards the VBMF ranks the ratio of the model leads."""
        self._ranks = self._ranks or [_largest(self._form, problems) for _, problems in self._sites]
        weaken = _least(lambda w: self._after(w) * ratio <= self._all)
        return "" if weaken is None else f"tucker2(rank=weakened, weaken={weaken:.3f}, fit=weights)"

    def _after(self, weaken: float) -> int:
        """Parameters of the model; a layer whose ranks are past break-even stays whole, as in the pass."""
        left = self._all
        for (site, _), ranks in zip(self._sites, self._ranks, strict=True):
            full = self._form.full(group_shape(site), "")
            setting = Setting(tuple(weakened(r, f, weaken) for r, f in zip(ranks, full, strict=True)))
            saved = site.cost.parameters - self._form.cost(site, setting).parameters
            left -= max(0, saved) if all(ranks) else 0
        return left


def _largest(form: Tucker2, problems: list[Problem]) -> tuple[int, ...]:
    return tuple(max(side) for side in zip(*(form.vbmf(p.weight, "") for p in problems), strict=True))


def _least(holds: Callable[[float], bool]) -> float | None:
    return next((k / 1000 for k in range(1, 1001) if holds(k / 1000)), None)
