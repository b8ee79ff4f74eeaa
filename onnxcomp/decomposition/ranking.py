"""Which ranks a decomposition takes for a layer: given, or found by one of its rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxcomp.allocation.problem import Problem, Setting, group_shape
from onnxcomp.contract import Context, Skip
from onnxcomp.cost import Cost
from onnxcomp.graph.sites import Site
from onnxcomp.numeric.ranks import weakened
from onnxcomp.runtime.processor import rank_block

if TYPE_CHECKING:
    from onnxcomp.decomposition.base import Decomposition

__all__ = ["choose_setting", "rank_step", "share"]

_WEAKEN = 0.7
_RATIO = 2.0
# Patches a dimension from which on a whitened spectrum is believed as it stands.
_PATCHES = 4
# Errors below this are rounding of the sums that they are made of.
_ROUNDING = 1e-10

Found = tuple[Setting, float | None]


def choose_setting(form: Decomposition, site: Site, problems: Sequence[Problem], context: Context) -> Found | Skip:
    """Return the setting that the options of a decomposition lead to, with its predicted error, or why there is none.

    Rules that cut round ranks down, rules that keep round up; no rank is taken past break-even but one that was given.
    """
    ranking = _Ranking(form, site, problems, rank_step(context), context.replay is not None)
    asked = form.asked(site)
    if asked is not None:
        return ranking.given(asked)
    if form.rule in ("vbmf", "weakened"):
        return ranking.by_spectrum()
    return ranking.kept() if form.rule == "energy" else ranking.cut()


def rank_step(context: Context) -> int:
    """Ranks are multiples of this: of the runtime's block of channels where latency counts."""
    return rank_block(context.target) if context.objective == "latency" else 1


def share(cost: Cost, whole: Cost) -> float:
    """The MACs of a replacement as a share of the layer's; parameters where a shape is unknown."""
    if cost.macs is None or not whole.macs:
        return cost.parameters / whole.parameters
    return cost.macs / whole.macs


@dataclass(frozen=True, eq=False)
class _Ranking:
    form: Decomposition
    site: Site
    problems: Sequence[Problem]
    step: int
    replayed: bool = False

    def given(self, asked: Sequence[Setting]) -> Found | Skip:
        """Of the settings with given ranks, the one that loses least."""
        shape = group_shape(self.site)
        less = [setting for setting in asked if not self.form.whole(shape, setting)]
        if len(less) == 1 and self.replayed:
            return less[0], None  # the fit tells what it loses
        if less:
            return self._least_loss(less)
        full = _times(self.form.full(shape, asked[0].order))
        return Skip(self.site.name, f"rank {_times(asked[0].ranks)} reaches the full {full}")

    def cut(self) -> Found | Skip:
        """The least loss among the settings that are small enough."""
        offers = self._offers()
        if self.form.keep is not None:
            few = [setting for setting, part, _ in offers if part <= self.form.keep]
            return self._least_loss(few) if few else self._none(f"keep {self.form.keep:g} of the MACs or less")
        ratio = self.form.ratio or _RATIO
        biases = 0 if self.site.bias is None else self.site.bias.size
        few = [setting for setting, _, cost in offers if ratio * (cost.parameters - biases) <= self.site.weight.size]
        return self._least_loss(few) if few else self._none(f"cut the weights by {ratio:g}")

    def kept(self) -> Found | Skip:
        """The fewest MACs that keep the energy."""
        if not any(p.weight.any() for p in self.problems):
            return Skip(self.site.name, "energy finds nothing to keep (rank 0)")
        energy = self._energy()
        score = self.form.scored(self.problems)
        for setting, _, _ in sorted(self._offers(), key=lambda offer: offer[1]):
            error = score(setting)
            if error <= 1.0 - energy + _ROUNDING:
                return setting, error
        what = "the output's variance" if self.problems[0].moments is not None else "the weight's energy"
        return Skip(self.site.name, f"no gain: to keep {100 * energy:.4g} % of {what} takes ranks past break-even")

    def by_spectrum(self) -> Found | Skip:
        """EVBMF ranks, or weakened ones."""
        form, shape = self.form, group_shape(self.site)
        found: list[Setting] = []
        told = ""
        for order in form.orders(self.site):
            full = form.full(shape, order)
            raw = tuple(max(r) for r in zip(*(form.vbmf(p.weight, order) for p in self.problems), strict=True))
            if 0 in raw:
                return Skip(self.site.name, f"{form.rule} finds nothing to keep (rank 0)")
            if form.rule == "weakened":
                weaken = _WEAKEN if form.weaken is None else form.weaken
                raw = tuple(weakened(r, f, weaken) for r, f in zip(raw, full, strict=True))
            ranks = tuple(min(g for g in form.grid(f, self.step) if g >= r) for r, f in zip(raw, full, strict=True))
            setting = Setting(ranks, order)
            rounded = f", rounded to {_times(ranks)}," if ranks != raw else ""
            told = f"rank {_times(raw)}{rounded} of {_times(full)} is past break-even"
            if not form.whole(shape, setting) and share(form.cost(self.site, setting), self.site.cost) < 1.0:
                found.append(setting)
        return self._least_loss(found) if found else Skip(self.site.name, f"no gain: {told}")

    def _offers(self) -> list[tuple[Setting, float, Cost]]:
        """All settings short of break-even, with their share of the work and their cost."""
        costs = [(s, self.form.cost(self.site, s)) for s in self.form.settings(self.site, self.step)]
        offers = [(setting, share(cost, self.site.cost), cost) for setting, cost in costs]
        return [offer for offer in offers if offer[1] < 1.0]

    def _least_loss(self, settings: Sequence[Setting]) -> Found:
        score = self.form.scored(self.problems)
        errors = [score(setting) for setting in settings]
        best = min(range(len(errors)), key=lambda i: (errors[i], self._share_of(settings[i])))
        return settings[best], errors[best]

    def _share_of(self, setting: Setting) -> float:
        return share(self.form.cost(self.site, setting), self.site.cost)

    def _none(self, what: str) -> Skip:
        return Skip(self.site.name, f"no ranks in steps of {self.step} {what}")

    def _energy(self) -> float:
        """The energy to keep; by default more of it where few patches make the spectrum look steeper than it is."""
        if self.form.energy is not None:
            return self.form.energy
        moments = self.problems[0].moments
        if moments is None:
            return self.form.energy_default
        trust = min(1.0, moments.count / (_PATCHES * int(self.problems[0].weight[0].size)))
        return 1.0 - (1.0 - self.form.energy_default) * trust


def _times(ranks: Sequence[int]) -> str:
    return "x".join(map(str, ranks))
