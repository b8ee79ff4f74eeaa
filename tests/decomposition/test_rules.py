"""Options, and the ranks that each rule takes, of every form that is Tucker-2 in a view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.contract import Change, Context, Override, PassReport
from onnxcomp.data import open_feeds
from onnxcomp.decomposition.base import Decomposition
from onnxcomp.errors import OptionError
from onnxcomp.passes.channel import Channel
from onnxcomp.passes.lowrank import Lowrank
from onnxcomp.passes.spatial import Spatial
from onnxcomp.passes.tucker2 import Tucker2
from onnxcomp.runtime.processor import rank_block
from onnxcomp.targets.target import load_target

Array = NDArray[np.float32]
Parsed = Callable[..., ir.Model]
InContext = Callable[..., Context]
Fading = Callable[..., Array]
Form = type[Decomposition]
FORMS: list[Form] = [Tucker2, Spatial, Channel, Lowrank]
TEXT = """g (float[N,24,6,6] x) => (float[N,32,a,b] y) {
  [first] h = Conv<pads=[P,P,P,P]>(x, w1, b1) [act] r = Relu(h)
  [second] y = Conv<pads=[P,P,P,P], strides=[2,2]>(r, w2) }"""
REPLAY: dict[str, dict[str, Any]] = {"first": {}, "second": {}}


@pytest.fixture
def net(parsed: Parsed, fading: Fading) -> Callable[[Form], ir.Model]:
    """Two convolutions with falling spectra; of one tap for lowrank."""

    def make(form: Form) -> ir.Model:
        n = 1 if form is Lowrank else 3
        arrays = {"w1": fading((32, 24, n, n), 1), "w2": fading((32, 32, n, n), 2), "b1": np.ones(32, np.float32)}
        return parsed(TEXT.replace("P", str(n // 2)), **arrays)

    return make


def _one(report: PassReport, site: str = "first") -> Change:
    (change,) = [c for c in report.changes if c.site == site]
    return change


def _ranks(change: Change) -> list[int]:
    return [int(r) for r in str(change.choice.get("ranks", change.choice.get("rank"))).split("x")]


def _share(change: Change) -> float:
    assert change.before.macs is not None and change.after.macs is not None
    return change.after.macs / change.before.macs


RULES: dict[str, dict[str, Any]] = {
    "energy": {},
    "vbmf": {"rank": "vbmf"},
    "weakened": {"weaken": 0.9},
    "keep": {"keep": 0.5},
    "ratio": {"ratio": 3.0},
    "rank": {"rank": 8},
}


@pytest.mark.parametrize(("rule", "options"), RULES.items(), ids=RULES)
@pytest.mark.parametrize("form", FORMS)
def test_a_rule_follows_from_the_option_that_belongs_to_it(form: Form, rule: str, options: dict[str, Any]) -> None:
    assert form(**options).rule == rule
    assert form(**options).explicit() == bool(options)
    assert form(rank="ratio").rule == "ratio" and form(rank="weakened", weaken=0.5).rule == "weakened"
    assert form(rank="energy", energy=0.9).rule == "energy" and form(energy=0.9).explicit()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 8, "keep": 0.5}, "rank=8 and keep"),
        ({"rank": "vbmf", "energy": 0.5}, "rank=vbmf and energy"),
        ({"rank": "energy", "weaken": 0.5}, "rank=energy and weaken"),
        ({"keep": 0.5, "ratio": 2.0}, "keep and ratio"),
        ({"energy": 0.5, "keep": 0.5}, "energy and keep"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_amounts_exclude_each_other(form: Form, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=f"^{form.name}: {words} exclude each other; give one$"):
        form(**options)


def test_tucker2_has_ranks_as_well() -> None:
    with pytest.raises(OptionError, match="tucker2: ranks and ratio exclude each other; give one"):
        Tucker2(ranks="8x8", ratio=2.0)


@pytest.mark.parametrize(("rule", "options"), RULES.items(), ids=RULES)
@pytest.mark.parametrize("form", FORMS)
def test_every_rule_stays_short_of_break_even(
    form: Form, rule: str, options: dict[str, Any], net: Callable[[Form], ir.Model], in_context: InContext
) -> None:
    """In exact ranks by MACs, and in blocks of the runtime where latency counts."""
    for objective in ("macs", "latency"):
        report = form(**options).run(net(form), in_context(objective=objective, replay=REPLAY))
        assert len(report.changes) + len(report.skips) == 2
        assert report.changes or objective == "latency", report.skips
        for change in report.changes:
            assert _share(change) < 1.0
            assert change.error is not None and 0 <= change.error < 1
            if rule == "keep":
                assert _share(change) <= 0.5
            if rule == "ratio":
                biases = 32 if change.site == "first" else 0
                assert 3 * (change.after.parameters - biases) <= change.before.parameters - biases
            if rule == "energy":
                assert change.error <= 0.002 + 1e-9
            if rule == "rank":
                assert set(_ranks(change)) == {8}
            elif objective == "latency":
                block = rank_block(load_target("ort-x86"))
                assert all(r % block == 0 or r == full for r, full in zip(_ranks(change), (24, 32), strict=False))


@pytest.mark.parametrize("form", FORMS)
def test_more_energy_takes_more_and_loses_less(
    form: Form, net: Callable[[Form], ir.Model], in_context: InContext
) -> None:
    reports = [form(energy=e).run(net(form), in_context(objective="macs")) for e in (0.6, 0.8, 0.95)]
    shares = [_share(_one(report)) for report in reports]
    errors = [_one(report).error or 0.0 for report in reports]
    assert shares == sorted(shares) and errors == sorted(errors, reverse=True) and len(set(shares)) == 3


@pytest.mark.parametrize("form", FORMS)
def test_weakened_lies_between_vbmf_and_the_full_rank(
    form: Form, net: Callable[[Form], ir.Model], in_context: InContext
) -> None:
    vbmf = _ranks(_one(form(rank="vbmf").run(net(form), in_context())))
    weakened = _ranks(_one(form(weaken=0.7 if form in (Tucker2, Channel) else 0.9).run(net(form), in_context())))
    assert all(a <= b for a, b in zip(vbmf, weakened, strict=True)) and vbmf != weakened
    assert _ranks(_one(form(weaken=1.0).run(net(form), in_context()))) == vbmf


@pytest.mark.parametrize("form", FORMS)
def test_white_noise_has_no_ranks_that_pay(form: Form, net: Callable[[Form], ir.Model], in_context: InContext) -> None:
    model = net(form)
    rng = np.random.default_rng(0)
    for name in ("w1", "w2"):
        value = model.graph.initializers[name]
        assert value.const_value is not None
        shape = value.const_value.shape.numpy()
        value.const_value = ir.tensor(rng.standard_normal(shape).astype(np.float32), name=name)
    every: list[dict[str, Any]] = [{}, {"energy": 1.0}, {"rank": "vbmf"}, {"weaken": 0.01}]
    for options in every:
        report = form(**options).run(model.clone(), in_context(objective="macs"))
        assert report.changes == () and len(report.skips) == 2
        assert all("past break-even" in s.reason or "rank 0" in s.reason for s in report.skips), report.skips


@pytest.mark.parametrize("form", FORMS)
def test_a_budget_that_no_rank_reaches_is_a_skip(
    form: Form, net: Callable[[Form], ir.Model], in_context: InContext
) -> None:
    context = in_context(objective="latency", replay=REPLAY)
    block = rank_block(load_target("ort-x86"))
    few = form(keep=0.01).run(net(form), context)
    assert {s.reason for s in few.skips} == {f"no ranks in steps of {block} keep 0.01 of the MACs or less"}
    small = form(ratio=200.0).run(net(form), context)
    assert {s.reason for s in small.skips} == {f"no ranks in steps of {block} cut the weights by 200"}


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_has_a_rule_of_its_own(form: Form, net: Callable[[Form], ir.Model], in_context: InContext) -> None:
    """Whatever amount the pass was given, that of the layer takes its place."""
    for base in (form(keep=0.5), form(rank=8), form(rank="weakened"), form(ratio=3.0)):
        overrides = (Override("first", {"rank": 6}), Override("second", None))
        report = base.run(net(form), in_context(overrides=overrides))
        assert _ranks(_one(report)) == [6] * len(_ranks(_one(report)))
        assert [s.reason for s in report.skips] == ["left alone by the recipe"]
        kept = base.run(net(form), in_context(objective="macs", overrides=(Override("first", {"keep": 0.25}),)))
        assert 0.15 < _share(_one(kept)) <= 0.25


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_replayed_choices_give_the_same_bytes(
    form: Form, data: bool, net: Callable[[Form], ir.Model], in_context: InContext
) -> None:
    base = net(form)
    rng = np.random.default_rng(4)
    feeds = open_feeds({"x": rng.standard_normal((8, 24, 6, 6)).astype(np.float32)}, base) if data else None
    every: list[dict[str, Any]] = [{"keep": 0.3}, {"energy": 0.9}, {"rank": 8}, {"keep": 0.3, "relu": True}]
    for options in every:
        first, second = base.clone(), base.clone()
        report = form(**options).run(first, in_context(data=feeds))
        choices = {c.site: c.choice for c in report.changes}
        assert choices
        replayed = form(**options).run(second, in_context(data=feeds, replay=choices))
        assert [c.choice for c in replayed.changes] == [c.choice for c in report.changes]
        assert [c.error for c in replayed.changes] == pytest.approx([c.error for c in report.changes])
        assert _bytes(first) == _bytes(second)


def _bytes(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)
