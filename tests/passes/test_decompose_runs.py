"""decompose from the outside: replays, budgets, what the report says, and its place in a pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import onnxcomp
from onnxcomp.allocation.scoring import score_sites
from onnxcomp.api import Result
from onnxcomp.data import open_feeds
from onnxcomp.passes.decompose import Decompose
from onnxcomp.pipeline import Step
from onnxcomp.recipe import Recipe
from onnxcomp.recipe_yaml import from_yaml, load_recipe
from onnxcomp.report.schema import report_document
from onnxcomp.runtime.sitebench import SiteTiming

Arrays = Mapping[str, NDArray[Any]]
MACS = {"a": 64 * 24 * 16 * 9, "b": 16 * 32 * 24 * 9, "c": 16 * 32 * 32 * 9, "head": 320}
SITES = list(MACS)


def _step(result: Result, index: int = 0) -> Step:
    return result.report.steps[index]


def _bytes(result: Result) -> bytes:
    return ir.to_proto(result.model).SerializeToString(deterministic=True)


def _became(result: Result) -> dict[str, str]:
    return {change.site: str(change.choice["use"]) for change in _step(result).report.changes}


def _skipped(result: Result) -> dict[str, str]:
    return {skip.site: skip.reason for skip in _step(result).report.skips}


def _share(result: Result, what: str = "macs") -> float:
    step = _step(result)
    return float(getattr(step.after, what) / getattr(step.before, what))


def _sqnr(result: Result) -> float:
    quality = result.report.after.quality
    assert quality is not None
    return min(quality.sqnr.values())


# The same again.


def test_the_same_run_gives_the_same_bytes(decomposed: Callable[..., Result]) -> None:
    first, second = decomposed("decompose(macs=0.3)", seed=3), decomposed("decompose(macs=0.3)", seed=3)
    assert _bytes(first) == _bytes(second)
    assert _step(first).report == _step(second).report


def test_a_replay_gives_the_same_bytes(decomposed: Callable[..., Result], tmp_path: Path) -> None:
    first = decomposed("decompose(macs=0.25,forms=tucker2:lowrank)", exclude=["head"])
    for passes, options in (
        ("decompose(macs=0.25,forms=tucker2:lowrank)", {"exclude": ["head"]}),
        ("decompose(forms=tucker2)", {}),  # what was chosen is in the choices
    ):
        again = decomposed(passes, replay=first.report.choices, **options)
        assert _graph(again) == _graph(first)
        assert _step(again).report.offers == ()
    path = tmp_path / "out.onnx"
    first.save(path)
    recipe = load_recipe(path)
    replayed = decomposed("decompose(macs=0.25,forms=tucker2:lowrank)", replay=recipe.replay, exclude=["head"])
    assert _bytes(replayed) == _bytes(first)


def _graph(result: Result) -> bytes:
    return ir.to_proto(result.model).graph.SerializeToString(deterministic=True)


def test_recipes_hold_forms_for_layers(decomposed: Callable[..., Result]) -> None:
    text = """passes:
- decompose:
    options: {macs: 0.4, forms: tucker2:lowrank}
    layers: {a: null, b: {use: "spatial(rank=8)"}}
"""
    recipe = from_yaml(text)
    assert isinstance(recipe, Recipe) and recipe.build() == (Decompose(macs=0.4, forms="tucker2:lowrank"),)
    result = decomposed("decompose(macs=0.4,forms=tucker2:lowrank)", overrides=[recipe.passes[0].layers])
    assert set(_became(result)) >= {"b", "c"} and "a" not in _became(result)
    stored = _recipe_of(result)
    assert stored.passes[0].layers == recipe.passes[0].layers


def _recipe_of(result: Result) -> Recipe:
    return from_yaml(json.dumps(report_document(result.report)["recipe"]))


# Budgets.


def test_the_loss_is_turned_to_what_a_budget_bears(decomposed: Callable[..., Result]) -> None:
    """Down from the default where the budget breaks, up where there is room; the less it bears, the more is left."""
    shares: list[float] = []
    for limit in (12.0, 24.0, 36.0):
        result = decomposed("decompose(forms=tucker2:lowrank)", min_sqnr=limit)
        assert result.report.failures == () and limit <= _sqnr(result) < limit + 6, limit
        shares.append(_share(result))
        assert not any("given back" in reason for reason in _skipped(result).values())
    assert shares == sorted(shares) and shares[0] < _share(decomposed("decompose(forms=tucker2:lowrank)")) < shares[-1]


def test_a_target_is_eased_where_the_budget_breaks(decomposed: Callable[..., Result]) -> None:
    result = decomposed("decompose(macs=0.05,forms=tucker2)", min_sqnr=20.0)
    assert result.report.failures == () and _sqnr(result) >= 20 and _share(result) > 0.05
    easy = decomposed("decompose(macs=0.5,forms=tucker2)", min_sqnr=5.0)
    assert _step(easy).spec == "decompose(macs=0.5, forms=tucker2)"  # what was asked for is enough


def test_a_drop_of_accuracy_is_held(stack: ir.Model, samples: Arrays, outputs_of: Any) -> None:
    labels = outputs_of(stack, samples)["y"].argmax(1)
    scored = {**samples, "labels": labels}
    for limit in (2.0, 20.0):
        result = onnxcomp.optimize(
            stack, "decompose(forms=tucker2)", objective="macs", data=samples, eval=scored, max_drop=limit
        )
        before, after = result.report.before.quality, result.report.after.quality
        assert before is not None and after is not None and before.top1 == 1.0 and after.top1 is not None
        assert result.report.failures == () and 100 * (1 - after.top1) <= limit
        assert _step(result).report.changes


def test_sites_are_given_back_where_no_dial_helps(decomposed: Callable[..., Result]) -> None:
    result = decomposed('decompose(use="tucker2(rank=2)")', min_sqnr=20.0)
    assert result.report.failures == () and _sqnr(result) >= 20
    assert "given back to hold the accuracy budget" in _skipped(result).values()


def test_a_budget_out_of_reach_leaves_the_model_as_it_is(decomposed: Callable[..., Result]) -> None:
    result = decomposed("decompose(macs=0.1,forms=tucker2)", min_sqnr=190.0)
    assert _step(result).report.changes == () and result.report.failures == ()


def test_scores_are_made_once_under_a_budget(
    decomposed: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(len(arguments[1]))
        return score_sites(*arguments, **options)

    monkeypatch.setattr("onnxcomp.allocation.allocator.score_sites", counted)
    decomposed("decompose(forms=tucker2)", min_sqnr=36.0)
    assert calls == [4]
    calls.clear()
    decomposed("decompose(macs=0.1,forms=tucker2)", min_sqnr=190.0)  # gives sites back in the end
    assert calls == [4]


# The report.


def test_the_report_holds_what_was_chosen_from(decomposed: Callable[..., Result]) -> None:
    result = decomposed("decompose(macs=0.5)")
    report = _step(result).report
    became = _became(result)
    sites = [offer.site for offer in report.offers]
    assert sites == sorted(sites, key=SITES.index) and set(sites) == set(SITES)
    for site in SITES:
        chosen = [offer.form for offer in report.offers if offer.site == site and offer.chosen]
        assert chosen == [became[site]] if site in became else chosen == []
    assert all(offer.error >= 0 and offer.loss >= 0 and offer.time is None for offer in report.offers)
    assert {*became, *_skipped(result)} == set(SITES)
    chosen_point = [point for point in report.frontier if point.chosen]
    assert len(chosen_point) == 1
    left = MACS | {change.site: change.after.macs or 0 for change in report.changes}
    assert chosen_point[0].macs == sum(left.values())
    assert [point.loss for point in report.frontier] == sorted(point.loss for point in report.frontier)
    first = report.frontier[0]
    assert first.loss == 0 and first.time_ms is None and first.macs == sum(MACS.values())


def test_the_report_is_json(decomposed: Callable[..., Result]) -> None:
    result = decomposed("decompose(macs=0.5)")
    document = json.loads(json.dumps(report_document(result.report), allow_nan=False))
    step = document["steps"][0]
    assert len(step["offers"]) == len(_step(result).report.offers)
    assert len(step["frontier"]) == len(_step(result).report.frontier)
    stored = result.model.metadata_props["onnxcomp.recipe"]
    assert "tucker2" in stored and "offers" not in stored


def test_what_stays_whole_says_why(decomposed: Callable[..., Result], stack: ir.Model) -> None:
    skipped = _skipped(decomposed("decompose(loss=0.00001,forms=tucker2)"))
    assert skipped["head"] == "no form fits: not for Gemm (tucker2)"
    half = _skipped(decomposed("decompose(macs=0.7)"))
    assert half and all(reason.startswith("kept whole: the mildest form, ") for reason in half.values())
    got = onnxcomp.optimize(stack, "decompose(forms=tucker2)", objective="size", exclude=["[bc]", "head"])
    report = _step(got).report
    assert all(("no smaller" in o.why) == (o.bytes >= 4 * (24 * 16 * 9 + 24)) for o in report.offers)


def test_what_does_not_pay_says_so(decomposed: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every chain is slower, nothing changes; the reason names the best of them."""

    def slow(site: object, chains: list[object], opset: int, context: object) -> SiteTiming:
        return SiteTiming(1.0, tuple(1.25 + index for index in range(len(chains))))

    monkeypatch.setattr("onnxcomp.allocation.menu.time_chains", slow)
    result = decomposed("decompose", objective="latency")
    assert _step(result).report.changes == ()
    assert set(_skipped(result)) == set(SITES)
    for site, reason in _skipped(result).items():
        if site == "head":  # too small for ranks of whole blocks of channels
            assert reason == "no form fits: no ranks short of break-even (lowrank)"
            continue
        assert reason.startswith("no form pays: ") and reason.endswith(", 0.80x of the original's speed")
    assert all(offer.why and not offer.chosen for offer in _step(result).report.offers)


# In a pipeline.


def test_twice_in_a_row(decomposed: Callable[..., Result]) -> None:
    """The nodes that the first one made of a layer have that layer's name, and are decided each by itself."""
    passes = "decompose(macs=0.5,forms=tucker2:channel),decompose(macs=0.7)"
    result = decomposed(passes)
    first, second = result.report.steps
    assert first.kept and second.kept and (second.after.macs or 0) <= 0.7 * (second.before.macs or 0)
    again = decomposed(passes, replay=result.report.choices)
    assert _graph(again) == _graph(result)
    keys = {key for choice in result.report.choices[1].values() for key in choice}
    assert any(key.startswith("use.") for key in keys)


def test_after_another_pass_and_before_int8(decomposed: Callable[..., Result]) -> None:
    result = decomposed("tucker2(ranks=12x12),decompose(macs=0.6),int8")
    assert [step.kept for step in result.report.steps] == [True, True, True]
    assert _sqnr(result) > 5
    plain = decomposed("decompose(macs=0.4),int8")
    assert _sqnr(plain) > _sqnr(decomposed("decompose(macs=0.4)")) - 6
    again = decomposed("decompose(macs=0.4),int8", replay=plain.report.choices)
    assert _graph(again) == _graph(plain)


def test_options_ease_the_pass() -> None:
    assert Decompose().eased(0.5) == Decompose(loss=0.005)
    assert Decompose(loss=0.5).eased(4.0) == Decompose(loss=0.9)
    assert Decompose(macs=0.25).eased(0.5) == Decompose(macs=0.625)
    assert Decompose(macs=0.25).eased(2.0) == Decompose(macs=0.25)
    assert Decompose(size=0.5).eased(0.1) == Decompose(size=0.95)
    assert Decompose(speedup=3.0).eased(0.5) == Decompose(speedup=2.0)
    assert Decompose(use="tucker2(rank=2)").eased(0.5) is None
    assert not Decompose().explicit() and Decompose(macs=0.5).explicit() and Decompose(use="x").explicit()


def test_feeds_of_one_sample_are_enough_to_run(stack: ir.Model, samples: Arrays) -> None:
    one = open_feeds({"x": samples["x"][:1]}, stack)
    result = onnxcomp.optimize(stack, "decompose(macs=0.5)", objective="macs", data=one)
    assert _share(result) <= 0.5
