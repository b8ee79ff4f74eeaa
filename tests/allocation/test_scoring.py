"""Candidates: what they are predicted to lose, which are kept, in whatever order they are computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.allocation.scoring import SiteScores, score_sites
from onnxcomp.contract import Context
from onnxcomp.data import open_feeds
from onnxcomp.decomposition.base import Decomposition
from onnxcomp.graph.products import weighted_sites
from onnxcomp.graph.sites import Site
from onnxcomp.passes.channel import Channel
from onnxcomp.passes.lowrank import Lowrank
from onnxcomp.passes.spatial import Spatial
from onnxcomp.passes.tucker2 import Tucker2

InContext = Callable[..., Context]
Arrays = Mapping[str, NDArray[Any]]
FORMS: list[Decomposition] = [Tucker2(), Spatial(), Channel(), Lowrank()]


@pytest.fixture
def scored(stack: ir.Model, samples: Arrays, in_context: InContext) -> Callable[..., list[SiteScores]]:
    """Scores of the stack's sites."""

    def score(forms: list[Decomposition] | None = None, *, data: bool = True, **options: Any) -> list[SiteScores]:
        context = in_context(data=open_feeds(samples, stack) if data else None, objective="macs")
        sites = [s for s in weighted_sites(stack, ("Conv", "Gemm")) if isinstance(s, Site)]
        return score_sites(stack, sites, forms or FORMS, context, 4, **options)

    return score


def test_every_candidate_saves_and_is_worth_it(scored: Callable[..., list[SiteScores]]) -> None:
    for own in scored():
        whole = own.site.cost.macs or 0
        assert own.offers and all(0 < (offer.cost.macs or 0) < whole for offer in own.offers)
        assert all(0 <= offer.error <= 0.7 for offer in own.offers)
        for name in {offer.form.name for offer in own.offers}:
            row = sorted((o.cost.macs or 0, o.error) for o in own.offers if o.form.name == name)
            assert len(row) <= 12
            assert [error for _, error in row] == sorted((error for _, error in row), reverse=True), name
            for _, offer_error in row:
                assert np.isfinite(offer_error)
        for offer in own.offers:
            work = offer.cost.macs or 0
            assert not any(o.error <= offer.error and (o.cost.macs or 0) < 0.7 * work for o in own.offers)


def test_what_does_not_fit_says_why(scored: Callable[..., list[SiteScores]]) -> None:
    by_name = {own.site.name: own for own in scored()}
    assert by_name["head"].refusals == dict.fromkeys(("tucker2", "spatial", "channel"), "not for Gemm")
    assert by_name["a"].refusals["lowrank"] == "the kernel is 3x3"
    assert scored([Spatial()])[-1].probes == ()


def test_predictions_are_those_of_the_passes(
    scored: Callable[..., list[SiteScores]], stack: ir.Model, samples: Arrays, in_context: InContext
) -> None:
    """The first layer sees the same inputs in both; the fit is at least as good as its score."""
    own = scored([Channel()])[0]
    for offer in own.offers[:3]:
        model = stack.clone()
        made = Channel(rank=offer.setting.ranks[0])
        report = made.run(model, in_context(data=open_feeds(samples, stack), objective="macs", exclude=("[bc]",)))
        (change,) = report.changes
        assert change.error == pytest.approx(offer.error, rel=0.1, abs=1e-9)
        assert change.after.macs == offer.cost.macs


@pytest.mark.parametrize("data", [True, False])
def test_the_order_of_the_work_does_not_matter(scored: Callable[..., list[SiteScores]], data: bool) -> None:
    def told(scores: list[SiteScores]) -> list[tuple[Any, ...]]:
        return [(s.site.name, [(o.form.name, o.setting, o.error) for o in s.offers]) for s in scores]

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(4) as four:
        first, second = scored(data=data, executor=one), scored(data=data, executor=four)
    assert told(first) == told(second) == told(scored(data=data))


def test_the_input_model_is_not_touched(scored: Callable[..., list[SiteScores]], stack: ir.Model) -> None:
    before = ir.to_proto(stack).SerializeToString(deterministic=True)
    scored()
    assert ir.to_proto(stack).SerializeToString(deterministic=True) == before
