"""What may be done with each site, with what it costs and loses: the table that the allocation works on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxcomp import progress
from onnxcomp.allocation.problem import key_of
from onnxcomp.allocation.scoring import Scored, SiteScores
from onnxcomp.allocation.sensitivity import Response
from onnxcomp.choose import PAYS
from onnxcomp.contract import Context
from onnxcomp.cost import Cost
from onnxcomp.graph.sites import Site
from onnxcomp.options import replace_options, spec_of
from onnxcomp.runtime.sitebench import SiteTiming, time_chains

__all__ = ["Choice", "SiteMenu", "make_menus"]


@dataclass(frozen=True)
class Choice:
    """One way to write a site.

    Attributes:
        scored: The form and its ranks; None: the site as it is.
        cost: Of the site in this form.
        time: Relative to the site as it is; None where nothing is timed.
        error: Predicted relative squared error of the site's output.
        loss: What that is expected to cost the worst output of the model, as relative squared error.
        why: Why it must not be taken; empty where it may.
    """

    scored: Scored | None
    cost: Cost
    time: float | None
    error: float
    loss: float
    why: str = ""

    @property
    def spec(self) -> str:
        """The pass that leads to this form, as text; empty for the site as it is."""
        if self.scored is None:
            return ""
        form = self.scored.form
        return spec_of(replace_options(form, form.choice(self.scored.setting)))


@dataclass(frozen=True)
class SiteMenu:
    """All choices for one site; the first one leaves it as it is.

    Attributes:
        site: The site.
        choices: The choices.
        site_ms: Time of the site as it is, milliseconds; None where nothing is timed.
        refusals: Why a form offers nothing, by its name.
    """

    site: Site
    choices: tuple[Choice, ...]
    site_ms: float | None
    refusals: Mapping[str, str]


def make_menus(
    scores: Sequence[SiteScores], responses: Mapping[str, Response], opset: int, context: Context
) -> list[SiteMenu]:
    """Time the candidates where latency counts, and weigh their errors.

    A candidate that does not pay in time is out. Where nothing was measured of a site, its error is the model's.
    """
    return [
        _menu(own, responses.get(key_of(own.site), Response()), opset, context)
        for own in progress.each(scores, "weigh candidates")
    ]


def _menu(own: SiteScores, response: Response, opset: int, context: Context) -> SiteMenu:
    timing = _timing(own, opset, context)
    choices = [Choice(None, own.site.cost, None if timing is None else 1.0, 0.0, 0.0)]
    for index, scored in enumerate(own.offers):
        time = None if timing is None else timing.ratios[index]
        why = ""
        if time is not None and time * PAYS > 1.0:
            why = f"does not pay: {1 / time:.2f}x of the original's speed"
        elif (context.objective == "size" or scored.form.saves == "bytes") and scored.cost.bytes >= own.site.cost.bytes:
            why = f"no smaller: {own.site.cost.bytes:,} -> {scored.cost.bytes:,} bytes"
        choices.append(Choice(scored, scored.cost, time, scored.error, response(scored.error), why))
    return SiteMenu(own.site, tuple(choices), None if timing is None else timing.site_ms, own.refusals)


def _timing(own: SiteScores, opset: int, context: Context) -> SiteTiming | None:
    if context.objective != "latency" or not context.target.host or not own.offers:
        return None
    if all(offer.form.saves == "bytes" for offer in own.offers):
        return None
    chains = [offer.form.blank(own.site, offer.setting) for offer in own.offers]
    return time_chains(own.site, chains, opset, context)
