"""Apply a decided form to every site: the pass of each site does the work, the compiler's walk fits it."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from onnxcomp.allocation.offering import Offering
from onnxcomp.allocation.problem import key_of
from onnxcomp.calibration.gram import PatchGram
from onnxcomp.contract import Candidate, Context, SitePass, Skip
from onnxcomp.graph.sites import Site
from onnxcomp.options import replace_options, spec_of
from onnxcomp.registry import build_pipeline

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Assigned", "use_of"]


@dataclass(frozen=True)
class Assigned(SitePass):
    """A pass that gives each site the form decided for it; a subclass has the name of the pass that decided.

    Attributes:
        forms: The pass of a site, with its ranks, by the site's key.
        reasons: Why a site has none, by its key.
        split: Names of the sites that an earlier pass has made several nodes of.
    """

    decided: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("Conv", "ConvTranspose", "Gemm", "MatMul")

    forms: Mapping[str, Offering] = field(default_factory=dict[str, Offering])
    reasons: Mapping[str, str] = field(default_factory=dict[str, str])
    split: frozenset[str] = frozenset()

    def requires(self, model: ir.Model, context: Context) -> None:
        """Raise what the passes raise, where one of them cannot run."""
        for form in self.forms.values():
            form.requires(model, context)

    def refuse(self, site: Site) -> str | None:
        """Say why a site stays as it is."""
        form = self.forms.get(key_of(site))
        if form is not None:
            return form.refuse(site) if site.kind in form.kinds else f"{form.name} is not for {site.kind}"
        return self.reasons.get(key_of(site), "no form was asked for")

    def propose(self, site: Site, gram: PatchGram | None, context: Context) -> Sequence[Candidate] | Skip:
        """Let the site's own pass propose."""
        form = self.forms[key_of(site)]
        proposals = form.propose(site, gram, replace(context, replay={}))  # the fit tells what it loses
        return (
            proposals if isinstance(proposals, Skip) else [self._under(site, form, proposal) for proposal in proposals]
        )

    def refit(self, site: Site, candidate: Candidate, gram: PatchGram) -> Candidate:
        """Let the site's own pass fit."""
        text = str(candidate.choice[use_of(site, self.split)])
        (form,) = build_pipeline(text)
        assert isinstance(form, Offering), "_under() has written it"
        settings = form.asked(site)
        assert settings, "an assigned form names its ranks"
        return self._under(site, form, form.refit(site, replace(candidate, choice=form.choice(settings[0])), gram))

    def wants_gram(self) -> bool:
        """Whether any of the passes does."""
        return any(form.wants_gram() for form in self.forms.values())

    def wants_patches(self) -> int:
        """As many as the pass that wants most."""
        return max((form.wants_patches() for form in self.forms.values()), default=0)

    def _under(self, site: Site, form: Offering, candidate: Candidate) -> Candidate:
        """The candidate of a pass as one of this one: its choice names the pass, its ranks and its order."""
        choice = {use_of(site, self.split): spec_of(replace_options(form, candidate.choice))}
        return replace(candidate, summary=f"{form.name}: {candidate.summary}", choice=choice)


def use_of(site: Site, split: Container[str]) -> str:
    """The key of a choice that names the form of a site: one for each node where an earlier pass has made several."""
    return f"use.{site.node.name}" if site.name in split else "use"
