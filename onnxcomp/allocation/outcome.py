"""What the report tells of an allocation: every candidate, the frontier, and why a layer stays as it is."""

from __future__ import annotations

from collections.abc import Sequence

from onnxcomp.allocation.deciding import Decision
from onnxcomp.allocation.menu import SiteMenu
from onnxcomp.allocation.problem import key_of
from onnxcomp.allocation.scoring import not_for
from onnxcomp.contract import FrontierPoint, Offer
from onnxcomp.numeric.hull import frontier

__all__ = ["frontier_of", "offers_of", "reasons_of"]


def offers_of(menus: Sequence[SiteMenu], decision: Decision) -> tuple[Offer, ...]:
    """Every candidate of every site."""
    return tuple(
        Offer(
            site=menu.site.name,
            form=choice.spec,
            macs=choice.cost.macs,
            parameters=choice.cost.parameters,
            bytes=choice.cost.bytes,
            time=choice.time,
            site_ms=menu.site_ms,
            error=choice.error,
            loss=choice.loss,
            chosen=index == pick,
            why=choice.why,
        )
        for menu, pick in zip(menus, decision.picks, strict=True)
        for index, choice in enumerate(menu.choices)
        if index
    )


def frontier_of(menus: Sequence[SiteMenu], decision: Decision) -> tuple[FrontierPoint, ...]:
    """The model's frontier in what was scarce, and the decision among it, by falling cost."""
    picks = {tuple(found) for _, _, found in frontier(decision.table.costs, decision.table.losses)}
    points = [_point(menus, own, decision) for own in picks | {decision.picks}]
    return tuple(sorted(points, key=lambda point: (point.loss, -point.bytes)))


def reasons_of(menus: Sequence[SiteMenu], decision: Decision) -> dict[str, str]:
    """Why a site stays as it is, by its key."""
    return {key_of(menu.site): _reason(menu) for menu, pick in zip(menus, decision.picks, strict=True) if not pick}


def _reason(menu: SiteMenu) -> str:
    offers = menu.choices[1:]
    if not offers:
        forms: dict[str, list[str]] = {}
        for form, why in menu.refusals.items():
            forms.setdefault(why, []).append(form)
        told = {why: names for why, names in forms.items() if why != not_for(menu.site)} or forms
        return "no form fits" + ("" if not told else f": {'; '.join(_by(*each) for each in told.items())}")
    allowed = [choice for choice in offers if not choice.why]
    if not allowed:
        best = min(offers, key=lambda choice: (choice.time or 1.0, choice.cost.bytes))
        return f"no form pays: {best.spec}, {best.why.partition(': ')[2]}"
    gentle = min(allowed, key=lambda choice: choice.loss)
    return f"kept whole: the mildest form, {gentle.spec}, is expected to lose {gentle.loss:.2g} of the output"


def _by(why: str, names: Sequence[str]) -> str:
    return f"{why} ({', '.join(names)})"


def _point(menus: Sequence[SiteMenu], picks: Sequence[int], decision: Decision) -> FrontierPoint:
    chosen = [menu.choices[pick] for menu, pick in zip(menus, picks, strict=True)]
    timed = all(menu.site_ms is not None for menu in menus if len(menu.choices) > 1)
    macs = None if any(c.cost.macs is None for c in chosen) else sum(c.cost.macs or 0 for c in chosen)
    times = [(c.time or 0.0) * (m.site_ms or 0.0) for m, c in zip(menus, chosen, strict=True)]
    return FrontierPoint(
        macs=macs,
        bytes=sum(choice.cost.bytes for choice in chosen),
        time_ms=sum(times) if timed else None,
        loss=decision.table.loss(picks),
        chosen=tuple(picks) == decision.picks,
    )
