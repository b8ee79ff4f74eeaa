"""decompose from the outside: targets, layers, forms, replays, budgets and what the report says."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import onnxcomp
from onnxcomp.api import Result
from onnxcomp.contract import Override
from onnxcomp.data import open_feeds
from onnxcomp.errors import DataError, InputError, OptionError, UnknownPassError
from onnxcomp.pipeline import Step

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


@pytest.mark.usefixtures("brief_timing")
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


def test_forms_that_are_given_count_towards_a_target(decomposed: Callable[..., Result]) -> None:
    """A layer that is cut to a fraction leaves the others what it saves."""
    given = decomposed("decompose(macs=0.6)", overrides=[[Override("a", {"use": "tucker2(ranks=16x16)"})]])
    assert 0.5 < _share(given) <= 0.6


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
        ("spatial", r"'spatial' names no setting; write it, as in spatial\(rank=32\)"),
        ("spatial(keep=0.3)", "names no setting"),
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


def test_the_better_order_is_fitted(parsed: Callable[..., ir.Model]) -> None:
    """Of a weight that is exact with 1 x kw first; the pass is told of no order."""
    rng = np.random.default_rng(0)
    second, first = rng.standard_normal((16, 4, 3)), rng.standard_normal((4, 16, 3))
    weight = np.einsum("orp,riq->oipq", second, first).astype(np.float32)
    model = parsed("g (float[N,16,8,8] x) => (float[N,16,6,6] y) { [a] y = Conv(x, w) }", w=weight)
    feeds = open_feeds({"x": rng.standard_normal((32, 16, 8, 8)).astype(np.float32)}, model)
    result = onnxcomp.optimize(model, 'decompose(use="spatial(rank=4)")', objective="macs", data=feeds)
    (change,) = _step(result).report.changes
    assert change.choice == {"use": "spatial(rank=4, order=hv)"}
    assert change.error is not None and change.error < 1e-6


def test_a_form_is_not_for_every_operator(parsed: Callable[..., ir.Model]) -> None:
    """A low rank of a ConvTranspose would be one of a Conv, which is another layer."""
    weight = np.random.default_rng(0).standard_normal((8, 8, 1, 1)).astype(np.float32)
    model = parsed("g (float[N,8,6,6] x) => (float[N,8,6,6] y) { [up] y = ConvTranspose(x, w) }", w=weight)
    result = onnxcomp.optimize(model, 'decompose(use="lowrank(rank=2)")', objective="macs")
    assert set(_skipped(result).values()) == {"lowrank is not for ConvTranspose"}


def test_a_layer_takes_nothing_but_a_form(stack: ir.Model) -> None:
    with pytest.raises(OptionError, match=r"a layer \(b\) takes use= and nothing else, not macs"):
        onnxcomp.optimize(stack, "decompose", objective="macs", overrides=[[Override("b", {"macs": 0.3})]])
