"""Picks for targets and losses, what is out of reach, and what cannot be counted."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest

from onnxcomp.allocation import deciding
from onnxcomp.allocation.deciding import Aim, Decision, decide
from onnxcomp.allocation.menu import Choice, SiteMenu
from onnxcomp.allocation.outcome import frontier_of, reasons_of
from onnxcomp.allocation.problem import key_of
from onnxcomp.allocation.targets import Totals
from onnxcomp.contract import Context
from onnxcomp.cost import Cost
from onnxcomp.graph.products import weighted_sites
from onnxcomp.graph.sites import Site

InContext = Callable[..., Context]
# (MACs, loss, why not) of the choices of two sites; 1,000 more are in the rest of the model.
TABLE = (
    ((1000, 0.0, ""), (500, 0.001, ""), (200, 0.02, ""), (100, 0.0, "does not pay: 0.5x of the original's speed")),
    ((2000, 0.0, ""), (1000, 0.004, ""), (300, 0.3, "")),
)
WHOLE = 4000


def _menus(model: ir.Model, *, macs: bool = True, ms: float | None = None) -> list[SiteMenu]:
    sites = [site for site in weighted_sites(model, ("Conv",)) if isinstance(site, Site)]

    def choice(work: int, loss: float, why: str, full: int) -> Choice:
        time = None if ms is None else work / full
        return Choice(None, Cost(work // 10, work if macs else None, 4 * work // 10), time, loss, loss, why)

    return [
        SiteMenu(site, tuple(choice(*row, rows[0][0]) for row in rows), ms and ms * rows[0][0], {})
        for site, rows in zip(sites, TABLE, strict=False)
    ]


def _totals(*, macs: bool = True, ms: float | None = None) -> Totals:
    return Totals(Cost(WHOLE // 10, WHOLE if macs else None, 4 * WHOLE // 10), ms)


@pytest.mark.parametrize(
    ("part", "picks"), [(0.99, (1, 0)), (0.7, (1, 1)), (0.6, (2, 1)), (0.46, (1, 2)), (0.375, (2, 2))]
)
@pytest.mark.parametrize("resource", ["macs", "bytes"])
def test_the_least_loss_for_a_target(
    stack: ir.Model, in_context: InContext, resource: Any, part: float, picks: tuple[int, ...]
) -> None:
    decision = decide(stack, _menus(stack), Aim(resource, part, 0.0), _totals(), in_context())
    assert (decision.picks, decision.note) == (picks, "")
    assert decision.table.total(decision.picks) <= part * decision.table.whole


@pytest.mark.parametrize(
    ("loss", "picks"), [(0.0, (0, 0)), (0.001, (1, 0)), (0.004, (0, 1)), (0.005, (1, 1)), (0.03, (2, 1)), (0.9, (2, 2))]
)
def test_the_most_gain_for_a_loss(stack: ir.Model, in_context: InContext, loss: float, picks: tuple[int, ...]) -> None:
    decision = decide(stack, _menus(stack), Aim("macs", None, loss), _totals(), in_context())
    assert decision.picks == picks and decision.note == ""


def test_out_of_reach(stack: ir.Model, in_context: InContext) -> None:
    decision = decide(stack, _menus(stack), Aim("macs", 0.2, 0.0), _totals(), in_context())
    assert decision.picks == (2, 2)
    assert decision.note == (
        "the target is out of reach: at least 0.375 of the original's MACs is left, 0.2 was asked for"
    )


def test_weights_stand_for_macs_that_are_not_known(stack: ir.Model, in_context: InContext) -> None:
    menus, totals = _menus(stack, macs=False), _totals(macs=False)
    decision = decide(stack, menus, Aim("macs", 0.7, 0.0), totals, in_context())
    assert decision.picks == (1, 1) and decision.note.startswith("MACs are not known")
    assert decide(stack, menus, Aim("ms", None, 0.005), totals, in_context()).picks == (1, 1)
    assert frontier_of(menus, decision)[0].macs is None


def test_a_speed_that_cannot_be_timed_changes_nothing(stack: ir.Model, in_context: InContext) -> None:
    decision = decide(stack, _menus(stack), Aim("ms", 0.5, 0.0), _totals(), in_context())
    assert decision.picks == (0, 0) and "no layer could be timed" in decision.note


@pytest.mark.parametrize(
    ("ratios", "picks", "note"),
    [
        ([0.7], (1, 1), ""),  # as predicted
        ([0.8, 0.69], (2, 1), ""),  # less is saved than the sites' times say: more has to be
        ([0.3, 1.0], (1, 1), ""),  # too much, but what is milder is too slow
        ([0.9, 0.85, 0.75], (2, 2), "0.75 of the original's time is left, 0.7 was asked for"),
        ([3.0, 0.8], (2, 2), "0.8 of the original's time is left, 0.7 was asked for"),
        ([3.0, 0.6], (2, 2), ""),  # out of reach by the sites' times, and yet reached
    ],
)
def test_a_speed_is_corrected_by_the_whole_model(
    stack: ir.Model,
    in_context: InContext,
    monkeypatch: pytest.MonkeyPatch,
    ratios: list[float],
    picks: tuple[int, ...],
    note: str,
) -> None:
    """By what the whole model takes; of what is fast enough, what loses least."""
    measured = iter(ratios)

    def timed(base: ir.Model, other: ir.Model, context: Context) -> Any:
        return SimpleNamespace(ratio=1 / next(measured))

    monkeypatch.setattr(deciding, "time_models", timed)
    decision = decide(stack, _menus(stack, ms=1e-3), Aim("ms", 0.7, 0.0), _totals(ms=4.0), in_context())
    assert (decision.picks, decision.note) == (picks, note and f"the target is out of reach: {note}")
    assert next(measured, None) is None


def test_a_speed_is_met_though_the_whole_model_was_timed_on_a_busy_machine(
    stack: ir.Model, in_context: InContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sites seem to be next to nothing of it: the least of all is far too fast, and milder picks are tried."""
    measured = iter([0.3, 0.69])

    def timed(base: ir.Model, other: ir.Model, context: Context) -> Any:
        return SimpleNamespace(ratio=1 / next(measured))

    monkeypatch.setattr(deciding, "time_models", timed)
    decision = decide(stack, _menus(stack, ms=1e-3), Aim("ms", 0.7, 0.0), _totals(ms=1000.0), in_context())
    assert decision.picks not in ((2, 2), (0, 0)) and decision.note == ""


def test_what_is_given_back_stays_and_the_rest_keeps_its_part(stack: ir.Model, in_context: InContext) -> None:
    decision = decide(stack, _menus(stack), Aim("macs", 0.6, 0.0), _totals(), in_context())
    assert decision.without({0}).picks == (0, 1) and decision.without(()) == decision


def test_reasons_and_frontier(stack: ir.Model, in_context: InContext) -> None:
    menus = _menus(stack)
    decision = decide(stack, menus, Aim("macs", 0.8, 0.0), _totals(), in_context())
    points = frontier_of(menus, decision)
    assert [p.loss for p in points] == sorted(p.loss for p in points)
    assert [p.macs for p in points] == sorted((p.macs or 0 for p in points), reverse=True)
    (chosen,) = [point for point in points if point.chosen]
    assert chosen.macs == decision.table.total(decision.picks) - 1000
    forbidden = SiteMenu(menus[0].site, (menus[0].choices[0], menus[0].choices[3]), None, {})
    refused = SiteMenu(menus[1].site, menus[1].choices[:1], None, {"cp": "too narrow", "x": "1x1", "y": "1x1"})
    why = reasons_of([forbidden, refused], Decision((0, 0), decision.table))
    assert why == {
        key_of(menus[0].site): "no form pays: , 0.5x of the original's speed",
        key_of(menus[1].site): "no form fits: too narrow (cp); 1x1 (x, y)",
    }
