"""Menus: what a choice costs, what it is expected to lose, and what is out from the start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.allocation.menu import SiteMenu, make_menus
from onnxcomp.allocation.problem import key_of
from onnxcomp.allocation.scoring import score_sites
from onnxcomp.allocation.sensitivity import Response
from onnxcomp.contract import Context
from onnxcomp.graph.products import weighted_sites
from onnxcomp.graph.sites import Site
from onnxcomp.passes.spatial import Spatial
from onnxcomp.passes.tucker2 import Tucker2
from onnxcomp.runtime.sitebench import SiteTiming
from onnxcomp.targets.target import load_target

InContext = Callable[..., Context]
Arrays = Mapping[str, NDArray[Any]]


@pytest.fixture
def menus(stack: ir.Model, in_context: InContext) -> Callable[..., list[SiteMenu]]:
    """Menus of the stack's convolutions by weights alone."""

    def make(objective: str = "macs", responses: Mapping[str, Response] | None = None, **fields: Any) -> list[SiteMenu]:
        context = in_context(objective=objective, **fields)
        sites = [s for s in weighted_sites(stack, ("Conv",)) if isinstance(s, Site)]
        scores = score_sites(stack, sites, [Tucker2(fit="weights"), Spatial(fit="weights")], context, 4)
        return make_menus(scores, responses or {}, 17, context)

    return make


def test_the_first_choice_is_the_site_itself(menus: Callable[..., list[SiteMenu]]) -> None:
    for menu in menus():
        first, *others = menu.choices
        assert (first.scored, first.loss, first.why, first.spec) == (None, 0.0, "", "")
        assert first.cost == menu.site.cost and menu.site_ms is None and first.time is None
        assert others and not any(choice.why for choice in others)


def test_a_spec_leads_to_the_choice(menus: Callable[..., list[SiteMenu]]) -> None:
    specs = [choice.spec for menu in menus() for choice in menu.choices[1:]]
    assert all(spec.startswith(("tucker2(fit=weights, ranks=", "spatial(rank=")) for spec in specs), specs
    assert all("fit=weights" in spec for spec in specs)


def test_errors_are_weighed(menus: Callable[..., list[SiteMenu]]) -> None:
    plain = menus()
    key = key_of(plain[1].site)
    weighed = menus(responses={key: Response(((0.01, 0.001),))})
    for before, after in zip(plain, weighed, strict=True):
        factor = 0.1 if key_of(after.site) == key else 1.0
        assert [c.loss for c in after.choices] == pytest.approx([factor * c.loss for c in before.choices])
        assert [c.error for c in after.choices] == [c.error for c in before.choices]


def test_only_time_that_pays_is_allowed(menus: Callable[..., list[SiteMenu]], monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(site: Site, chains: Sequence[object], opset: int, context: Context) -> SiteTiming | None:
        del opset, context
        return None if site.name == "b" else SiteTiming(2.0, tuple(0.85 + 0.1 * (i % 2) for i in range(len(chains))))

    monkeypatch.setattr("onnxcomp.allocation.menu.time_chains", timed)
    by_name = {menu.site.name: menu for menu in menus("latency")}
    assert by_name["a"].site_ms == 2.0 and by_name["a"].choices[0].time == 1.0
    for choice in by_name["a"].choices[1:]:
        assert choice.time is not None
        assert choice.why == ("does not pay: 1.05x of the original's speed" if choice.time > 0.9 else "")
    assert by_name["b"].site_ms is None and all(c.time is None and not c.why for c in by_name["b"].choices)


def test_nothing_is_timed_elsewhere(menus: Callable[..., list[SiteMenu]], monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(*arguments: object) -> SiteTiming:
        raise AssertionError("timed")

    monkeypatch.setattr("onnxcomp.allocation.menu.time_chains", timed)
    assert menus("macs") and menus("size") and menus("latency", target=load_target("tensorrt"))


def test_only_what_is_smaller_is_allowed_for_size(menus: Callable[..., list[SiteMenu]]) -> None:
    for menu in menus("size"):
        for choice in menu.choices[1:]:
            assert bool(choice.why) == (choice.cost.bytes >= menu.site.cost.bytes)
            assert not choice.why or choice.why.startswith("no smaller: ")
