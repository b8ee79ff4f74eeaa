"""decompose from the outside: targets, layers, forms, replays, budgets and what the report says."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import onnxcomp
from onnxcomp.api import Result
from onnxcomp.contract import Override
from onnxcomp.data import open_feeds
from onnxcomp.decomposition.scoring import score_sites
from onnxcomp.errors import DataError, InputError, OptionError, UnknownPassError
from onnxcomp.passes.decompose import Decompose
from onnxcomp.pipeline import Step
from onnxcomp.recipe import Recipe
from onnxcomp.recipe_yaml import from_yaml, load_recipe
from onnxcomp.report.schema import report_document
from onnxcomp.runtime.sitebench import SiteTiming

Arrays = Mapping[str, NDArray[Any]]
MACS = {"a": 64 * 24 * 16 * 9, "b": 16 * 32 * 24 * 9, "c": 16 * 32 * 32 * 9, "head": 320}
SITES = list(MACS)


@pytest.fixture
def decomposed(stack: ir.Model, samples: Arrays) -> Callable[..., Result]:
    """Run a pipeline on the stack with its samples; by MACs, so that nothing is timed."""

    def run(passes: str = "decompose", **options: Any) -> Result:
        given: dict[str, Any] = {"objective": "macs", "data": samples}
        return onnxcomp.optimize(stack, passes, **(given | options))

    return run


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


# Targets.


@pytest.mark.parametrize("share", [0.7, 0.4, 0.2])
def test_macs_are_met_and_not_by_far(decomposed: Callable[..., Result], share: float) -> None:
    result = decomposed(f"decompose(macs={share})")
    assert 0.85 * share < _share(result) <= share
    assert _step(result).report.notes == ()


def test_less_work_loses_more(decomposed: Callable[..., Result]) -> None:
    sqnr = [_sqnr(decomposed(f"decompose(macs={share},forms=tucker2:lowrank)")) for share in (0.6, 0.3, 0.15)]
    assert sqnr[0] > sqnr[1] + 3 > sqnr[2] + 6, sqnr


def test_bytes_are_met(decomposed: Callable[..., Result]) -> None:
    for objective in ("macs", "size"):
        result = decomposed("decompose(size=0.4,forms=tucker2:spatial:lowrank)", objective=objective)
        assert 0.3 < _share(result, "bytes") <= 0.4


def test_a_loss_is_about_what_the_outputs_lose(decomposed: Callable[..., Result]) -> None:
    """The prediction is first-order and of single layers; 4 dB is a factor of 2.5."""
    noise: list[float] = []
    for loss in (0.05, 0.01, 0.001):
        result = decomposed(f"decompose(loss={loss},forms=tucker2:lowrank)")
        noise.append(-_sqnr(result))
        (chosen,) = [point for point in _step(result).report.frontier if point.chosen]
        assert 0.3 * loss < chosen.loss <= loss
        assert noise[-1] < 10 * np.log10(loss) + 4
    assert noise == sorted(noise, reverse=True)


def test_nothing_said_is_a_loss_of_one_percent(decomposed: Callable[..., Result]) -> None:
    assert _bytes(decomposed("decompose(forms=tucker2)")) != _bytes(decomposed("decompose(forms=tucker2,loss=0.02)"))
    plain, said = (decomposed(f"decompose(forms=tucker2{loss})") for loss in ("", ",loss=0.01"))
    assert _became(plain) == _became(said) and _sqnr(plain) > 16


def test_the_choice_among_all_forms_beats_each_form_alone(decomposed: Callable[..., Result]) -> None:
    every = _sqnr(decomposed("decompose(macs=0.3)"))
    for form in ("tucker2", "spatial", "channel"):
        assert every > _sqnr(decomposed(f"decompose(macs=0.3,forms={form})")) - 0.5, form


def test_a_target_out_of_reach_takes_the_least_and_says_so(decomposed: Callable[..., Result]) -> None:
    result = decomposed("decompose(macs=0.001,forms=tucker2)")
    step = _step(result)
    (note,) = step.report.notes
    assert note.startswith("the target is out of reach: at least 0.0")
    assert note.endswith("of the original's MACs is left, 0.001 was asked for")
    assert step.kept and result.report.failures == ()
    told = float(note.split("at least ")[1].split(" of")[0])
    assert _share(result) == pytest.approx(told, rel=0.01)
    assert any(point.chosen for point in step.report.frontier)
    assert set(_became(result)) == {"a", "b", "c"}


def test_a_speed_is_met(decomposed: Callable[..., Result], fading: Any, parsed: Any) -> None:
    """Three quarters of a large layer's work is spared with ease: whatever the machine, it is not half of the speed."""
    text = """g (float[N,256,16,16] x) => (float[N,256,a,b] y) {
      [big] h = Conv<pads=[1,1,1,1]>(x, w) y = Relu(h) }""".replace("256", "128")
    model = parsed(text, w=fading((128, 128, 3, 3)))
    result = onnxcomp.optimize(model, "decompose(speedup=1.5,forms=tucker2,fit=weights)")
    step = _step(result)
    assert [change.site for change in step.report.changes] == ["big"]
    assert step.speedup is not None and step.speedup.ratio > 1.2
    offers = step.report.offers
    assert all(offer.time is not None and offer.site_ms for offer in offers)
    assert all(("does not pay" in offer.why) == ((offer.time or 0) > 0.9) for offer in offers)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"objective": "macs"}, r"needs timing: objective latency and a target that runs here, not macs for ort-x86"),
        ({"objective": "latency", "target": "tensorrt"}, "not latency for tensorrt; give macs= or size="),
    ],
)
def test_a_speed_has_to_be_measurable(stack: ir.Model, options: dict[str, Any], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        onnxcomp.optimize(stack, "decompose(speedup=2)", **options)


@pytest.mark.parametrize(
    "two", ["macs=0.5,size=0.5", "macs=0.5,loss=0.1", "speedup=2,size=0.3", "loss=0.1,use=tucker2"]
)
def test_one_target_at_a_time(stack: ir.Model, two: str) -> None:
    with pytest.raises(OptionError, match="exclude each other; give one"):
        onnxcomp.optimize(stack, f"decompose({two})", objective="macs")


@pytest.mark.parametrize("bad", ["macs=0", "macs=1", "size=1.5", "speedup=1", "loss=0", "loss=1", "macs=nan", "fit=no"])
def test_options_have_ranges(stack: ir.Model, bad: str) -> None:
    with pytest.raises(OptionError, match=bad.split("=")[0]):
        onnxcomp.optimize(stack, f"decompose({bad})", objective="macs")


def test_data_are_needed_where_they_are_asked_for(stack: ir.Model) -> None:
    with pytest.raises(DataError, match=r"decompose\(fit=data\) needs calibration data: give --data, or use fit=auto"):
        onnxcomp.optimize(stack, "decompose(fit=data)", objective="macs")
    own = [[Override("b", {"use": "spatial(rank=8,fit=data)"})]]
    with pytest.raises(DataError, match=r"spatial\(fit=data\) needs calibration data"):
        onnxcomp.optimize(stack, "decompose", objective="macs", overrides=own)


def test_weights_alone(decomposed: Callable[..., Result]) -> None:
    """Without data the weights are followed; with them that can be asked for, and the data are the better guide."""
    without = decomposed("decompose(macs=0.3)", data=None)
    assert _share(without) <= 0.3 and without.report.synthetic
    weights, data = decomposed("decompose(macs=0.2,fit=weights)"), decomposed("decompose(macs=0.2)")
    assert _sqnr(data) > _sqnr(weights)


# Forms and layers.


def test_forms_limit_the_choice(decomposed: Callable[..., Result]) -> None:
    result = decomposed("decompose(macs=0.4,forms=spatial:lowrank)")
    assert {use.split("(")[0] for use in _became(result).values()} <= {"spatial", "lowrank"}
    assert {offer.form.split("(")[0] for offer in _step(result).report.offers} == {"spatial", "lowrank"}
    for separator in (",", " "):
        other = decomposed(f'decompose(macs=0.4,forms="spatial{separator}lowrank")')
        assert _became(other) == _became(result)


def test_forms_that_do_not_exist_are_refused(stack: ir.Model) -> None:
    with pytest.raises(UnknownPassError, match="did you mean 'tucker2'"):
        onnxcomp.optimize(stack, "decompose(forms=tucker)", objective="macs")
    with pytest.raises(OptionError, match=r"decompose\.forms: int8 is no decomposition"):
        onnxcomp.optimize(stack, "decompose(forms=tucker2:int8)", objective="macs")


def test_layers_of_a_recipe(decomposed: Callable[..., Result]) -> None:
    layers = [Override("a", None), Override("b", {"use": "spatial(rank=8)"})]
    result = decomposed("decompose(loss=0.01)", overrides=[layers], exclude=["he*"])
    assert _skipped(result) == {"a": "left alone by the recipe", "head": "excluded by the user"}
    became = _became(result)
    assert set(became) == {"b", "c"} and became["b"].startswith("spatial(rank=8")
    assert {offer.site for offer in _step(result).report.offers} == {"c"}


def test_the_more_specific_layer_wins(decomposed: Callable[..., Result]) -> None:
    layers = [
        Override("Conv", None),
        Override("[bc]", {"use": "channel(rank=8)"}),
        Override("c", {"use": "tucker2(rank=9)"}),
    ]
    became = _became(decomposed("decompose(loss=0.001)", overrides=[layers]))
    assert became["b"].startswith("channel(rank=8") and became["c"].startswith("tucker2(")
    assert "a" not in became


def test_one_form_for_all(decomposed: Callable[..., Result]) -> None:
    result = decomposed('decompose(use="spatial(rank=12)")')
    assert {use.split(",")[0].rstrip(")") for use in _became(result).values()} == {"spatial(rank=12"}
    assert set(_skipped(result)) == {"head"} and _step(result).report.offers == ()


@pytest.mark.parametrize(
    ("use", "match"),
    [
        ("spatial", r"'spatial' names no ranks; write them, as in spatial\(rank=32\)"),
        ("spatial(keep=0.3)", "names no ranks"),
        ("int8", "'int8' is not one decomposition pass"),
        ("tucker2(rank=8),spatial(rank=8)", "is not one decomposition pass"),
        ("spacial(rank=8)", "did you mean 'spatial'"),
        ("spatial(rnk=8)", "did you mean 'rank'"),
    ],
)
def test_a_use_names_one_form_with_ranks(stack: ir.Model, use: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        onnxcomp.optimize(stack, "decompose", objective="macs", overrides=[[Override("b", {"use": use})]])
    with pytest.raises(InputError, match=match):
        onnxcomp.optimize(stack, f"decompose(use={json.dumps(use)})", objective="macs")


def test_a_layer_takes_nothing_but_a_form(stack: ir.Model) -> None:
    with pytest.raises(OptionError, match=r"a layer \(b\) takes use= and nothing else, not macs"):
        onnxcomp.optimize(stack, "decompose", objective="macs", overrides=[[Override("b", {"macs": 0.3})]])


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

    monkeypatch.setattr("onnxcomp.decomposition.allocator.score_sites", counted)
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
    assert skipped["head"] == "tucker2: not for Gemm"
    half = _skipped(decomposed("decompose(macs=0.7)"))
    assert half and all(reason.startswith("kept whole: the mildest form, ") for reason in half.values())
    got = onnxcomp.optimize(stack, "decompose(forms=tucker2)", objective="size", exclude=["[bc]", "head"])
    report = _step(got).report
    assert all(("no smaller" in o.why) == (o.bytes >= 4 * (24 * 16 * 9 + 24)) for o in report.offers)


def test_what_does_not_pay_says_so(decomposed: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every chain is slower, nothing changes; the reason names the best of them."""

    def slow(site: object, chains: list[object], opset: int, context: object) -> SiteTiming:
        return SiteTiming(1.0, tuple(1.25 + index for index in range(len(chains))))

    monkeypatch.setattr("onnxcomp.decomposition.menu.time_chains", slow)
    result = decomposed("decompose", objective="latency")
    assert _step(result).report.changes == ()
    assert set(_skipped(result)) == set(SITES)
    for site, reason in _skipped(result).items():
        if site == "head":  # too small for ranks of whole blocks of channels
            assert "lowrank: no ranks short of break-even" in reason
            continue
        assert reason.startswith("no form pays; ") and reason.endswith("does not pay: 0.80x of the original's speed")
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
