"""The allocator: candidates of every form of a family for every site, one budget, one pick a site."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from onnxcomp.allocation.assigned import Assigned, use_of
from onnxcomp.allocation.deciding import Aim, Decision, decide
from onnxcomp.allocation.layers import layer_options
from onnxcomp.allocation.menu import SiteMenu, make_menus
from onnxcomp.allocation.offering import Fit, Offering
from onnxcomp.allocation.outcome import frontier_of, offers_of, reasons_of
from onnxcomp.allocation.problem import key_of
from onnxcomp.allocation.scoring import score_sites
from onnxcomp.allocation.sensitivity import Response, sensitivities
from onnxcomp.allocation.targets import Totals
from onnxcomp.choose import run_site_pass
from onnxcomp.contract import Context, PassReport, Skip, Value
from onnxcomp.cost import Cost, model_cost
from onnxcomp.decomposition.ranking import rank_step
from onnxcomp.errors import OptionError, UnknownPassError
from onnxcomp.graph.fingerprint import model_fingerprint
from onnxcomp.graph.products import weighted_sites
from onnxcomp.graph.sites import Site
from onnxcomp.options import spec_of
from onnxcomp.registry import available, build_pipeline, load_pass
from onnxcomp.runtime.timing import time_many

__all__ = ["Allocator", "Family", "menus_of"]


@dataclass(frozen=True)
class Family:
    """The passes that an allocator chooses among.

    Attributes:
        kind: Their base, an abstract :class:`Offering`.
        noun: What one of them is called.
        example: One of them, with a setting.
        assigned: Gives each site what was decided; it bears the name of the pass that allocates.
    """

    kind: type[Any]
    noun: str
    example: str
    assigned: type[Assigned]

    @property
    def owner(self) -> str:
        """The pass that allocates."""
        return self.assigned.name


@dataclass(frozen=True)
class Allocator:
    """Chooses among the passes of a family.

    Attributes:
        family: The family.
        names: Names of the passes, with colons, commas or blanks between; None for all that are installed.
        fit: As in the passes.
        relu: As in the passes.
    """

    family: Family
    names: str | None = None
    fit: Fit = "auto"
    relu: bool = False

    def run(self, model: ir.Model, aim: Aim, use: str | None, context: Context) -> PassReport:
        """Choose a form for every site and rewrite the model in place."""
        original = model.clone()
        # Sites that are given back keep their part of the decision: the others would else make up for them.
        everywhere = replace(context, given_back=frozenset())
        uses, left = layer_options(original, context.overrides, use, self.family.owner, self.family.example)
        for text in uses.values():
            self._form(text)  # what cannot be read is refused before anything is scored
        sites = [
            site
            for site in weighted_sites(original, Assigned.kinds)
            if isinstance(site, Site)
            and not everywhere.excluded(site.name)
            and key_of(site) not in uses
            and key_of(site) not in left
        ]
        if use is not None or not sites:
            return self.apply(model, uses, left, context)
        menus, decision = self._decided(original, sites, aim, self._saved(original, uses), context)
        decision = decision.without({index for index, menu in enumerate(menus) if context.excluded(menu.site.name)})
        chosen = {
            key_of(menu.site): menu.choices[pick].spec for menu, pick in zip(menus, decision.picks, strict=True) if pick
        }
        report = self.apply(model, {**uses, **chosen}, {**left, **reasons_of(menus, decision)}, context)
        return replace(
            report,
            notes=(*report.notes, *([decision.note] if decision.note else [])),
            offers=offers_of(menus, decision),
            frontier=frontier_of(menus, decision),
        )

    def apply(
        self, model: ir.Model, uses: Mapping[str, str], reasons: Mapping[str, str], context: Context
    ) -> PassReport:
        """Give each site its form, fitted to what the compressed prefix feeds it; both mappings are by key."""
        forms = {site: self._form(text) for site, text in uses.items()}
        settled = replace(context, replay=None, overrides=())
        return run_site_pass(self.family.assigned(forms=forms, reasons=reasons, split=_split(model)), model, settled)

    def replay(self, model: ir.Model, choices: Mapping[str, Mapping[str, Value]], context: Context) -> PassReport:
        """Give each site the form that an earlier run has chosen."""
        uses: dict[str, str] = {}
        left: dict[str, str] = {}
        split = _split(model)
        for site in weighted_sites(model, Assigned.kinds):
            if isinstance(site, Site):
                use = choices.get(site.name, {}).get(use_of(site, split))
                if use is None:
                    left[key_of(site)] = "not rewritten in the replayed run"
                else:
                    uses[key_of(site)] = str(use)
        return self.apply(model, uses, left, context)

    def _form(self, text: str) -> Offering:
        passes, own = build_pipeline(text), self.family
        form = passes[0] if len(passes) == 1 and issubclass(type(passes[0]), own.kind) else None
        if not isinstance(form, Offering):
            raise OptionError(f"{own.owner}.use: {text!r} is not one {own.noun} pass, such as {own.example}")
        if not form.named:
            raise OptionError(f"{own.owner}.use: {text!r} names no setting; write it, as in {own.example}")
        return form

    def forms(self) -> list[Offering]:
        """The passes to choose from, as their defaults are but for the fit."""
        wanted = None if self.names is None else [name for name in re.split(r"[\s:,+]+", self.names) if name]
        found: list[Offering] = []
        for name in available() if wanted is None else wanted:
            try:
                kind = load_pass(name)
            except UnknownPassError as error:
                raise UnknownPassError(f"{self.family.owner}.forms: {error}") from error
            if issubclass(kind, Offering) and issubclass(kind, self.family.kind):
                found.append(kind().plain(self.fit, relu=self.relu))
            elif wanted is not None:
                raise OptionError(
                    f"{self.family.owner}.forms: {name} is no {self.family.noun}; it may not be chosen from"
                )
        return found

    def _saved(self, model: ir.Model, uses: Mapping[str, str]) -> Cost:
        """What the forms that were given take less than their layers."""
        saved = Cost(0, 0, 0)
        for site in weighted_sites(model, Assigned.kinds):
            if isinstance(site, Skip) or key_of(site) not in uses:
                continue
            form = self._form(uses[key_of(site)])
            settings = None if site.kind not in form.kinds or form.refuse(site) else form.asked(site)
            if settings:
                own, whole = form.cost(site, settings[0]), site.cost
                macs = None if own.macs is None or whole.macs is None else whole.macs - own.macs
                saved += Cost(whole.parameters - own.parameters, macs, whole.bytes - own.bytes)
        return saved

    def _decided(
        self, model: ir.Model, sites: Sequence[Site], aim: Aim, saved: Cost, context: Context
    ) -> tuple[list[SiteMenu], Decision]:
        """The menus of all sites, made once for all runs under a budget, and the picks, made once for each aim."""
        forms = self.forms()
        key = (model_fingerprint(model), tuple(spec_of(form) for form in forms), tuple(site.name for site in sites))

        def make() -> tuple[list[SiteMenu], Totals]:
            menus, _ = menus_of(model, sites, forms, context)
            return menus, Totals(model_cost(model), _milliseconds(model, menus, context), saved)

        menus, whole = context.memo.once(key, make)
        # Timed again, a speed that is met would be met by other picks, and what is given back would move the rest.
        return menus, context.memo.once((*key, aim), lambda: decide(model, menus, aim, whole, context))


def menus_of(
    model: ir.Model, sites: Sequence[Site], forms: Sequence[Offering], context: Context
) -> tuple[list[SiteMenu], dict[str, Response]]:
    """What forms offer for each site, and what the errors of sites do to the outputs, by key."""
    scores = score_sites(model, sites, forms, context, rank_step(context))
    responses = sensitivities(model, scores, context)
    return make_menus(scores, responses, model.opset_imports.get("", 17), context), responses


def _split(model: ir.Model) -> frozenset[str]:
    """The names that several sites share."""
    names = Counter(site.name for site in weighted_sites(model, Assigned.kinds) if isinstance(site, Site))
    return frozenset(name for name, count in names.items() if count > 1)


def _milliseconds(model: ir.Model, menus: Sequence[SiteMenu], context: Context) -> float | None:
    """Time of the whole model, as the later passes leave it; None where nothing is timed."""
    feeds = context.data or context.stand_in
    if feeds is None or not any(menu.site_ms is not None for menu in menus):
        return None
    return time_many([context.rehearsed(model)], feeds.first(1), threads=context.threads)[0]
