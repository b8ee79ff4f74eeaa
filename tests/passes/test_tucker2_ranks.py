"""Which ranks tucker2 chooses, rule by rule, and which options it obeys or refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.contract import Change, Context, Override, PassReport, Skip
from onnxcomp.data import open_feeds
from onnxcomp.errors import OptionError
from onnxcomp.numeric.ranks import tail_energy
from onnxcomp.numeric.tucker import mode_spectra, unfold_in, unfold_out
from onnxcomp.numeric.vbmf import evbmf_rank
from onnxcomp.passes.tucker2 import Tucker2
from onnxcomp.registry import build_pipeline

Parsed = Callable[..., ir.Model]
InContext = Callable[..., Context]
Planted = Callable[..., NDArray[np.float32]]
Weight = NDArray[np.float32]
NET = """g (float[N,48,12,12] x) => (float[N,64,6,6] y) {
  [first] a = Conv<pads=[1,1,1,1]>(x, w) [act] r = Relu(a) [second] y = Conv<pads=[1,1,1,1], strides=[2,2]>(r, v) }"""


@pytest.fixture
def noisy(planted: Planted) -> Callable[[int], Weight]:
    """A weight (64, 48, 3, 3) of ranks 9 x 11 in a little noise."""

    def make(seed: int) -> Weight:
        noise = np.random.default_rng(seed).standard_normal((64, 48, 3, 3)) / np.sqrt(48 * 9)
        return np.asarray(planted((64, 48, 3, 3), 9, 11, seed=seed) + 0.02 * noise, np.float32)

    return make


@pytest.fixture
def net(parsed: Parsed, noisy: Callable[[int], Weight]) -> ir.Model:
    """Two convolutions of the same planted ranks."""
    return parsed(NET, w=noisy(1), v=np.ascontiguousarray(np.pad(noisy(2), ((0, 0), (0, 16), (0, 0), (0, 0)))))


def _one(report: PassReport, site: str = "first") -> Change:
    (change,) = [c for c in report.changes if c.site == site]
    return change


def _ranks(change: Change) -> tuple[int, int]:
    first, last = str(change.choice["ranks"]).split("x")
    return int(first), int(last)


@pytest.mark.parametrize(("objective", "ranks"), [("size", (9, 11)), ("macs", (9, 11)), ("latency", (16, 16))])
def test_vbmf_finds_planted_ranks(net: ir.Model, in_context: InContext, objective: str, ranks: tuple[int, int]) -> None:
    context = in_context(objective=objective, replay={"first": {}, "second": {}})
    assert _ranks(_one(Tucker2(rank="vbmf").run(net, context))) == ranks


def test_weakened_lies_between_vbmf_and_full(
    parsed: Parsed, noisy: Callable[[int], Weight], in_context: InContext
) -> None:
    found = {}
    for weaken in (0.5, 0.7, 1.0):
        model = parsed(NET, w=noisy(1), v=np.ones((64, 64, 3, 3), np.float32))
        found[weaken] = _ranks(_one(Tucker2(rank="weakened", weaken=weaken).run(model, in_context())))
    vbmf = (
        evbmf_rank(unfold_in(noisy(1).astype(np.float64))).rank,
        evbmf_rank(unfold_out(noisy(1).astype(np.float64))).rank,
    )
    assert found[1.0] == vbmf
    assert found[0.5] == (int(48 - 0.5 * (48 - vbmf[0])), int(64 - 0.5 * (64 - vbmf[1])))
    assert found[0.5] > found[0.7] > found[1.0]


def test_energy_takes_the_fewest_macs_that_hold_it(parsed: Parsed, in_context: InContext) -> None:
    """One bound on what both sides lose together, over every pair of ranks."""
    rng = np.random.default_rng(0)
    decay = np.exp(-np.arange(64) / 6)
    weight = np.einsum("oi,oipq->oipq", np.outer(decay, decay[:48]), rng.standard_normal((64, 48, 3, 3)))
    into, out = (tail_energy(s) for s in mode_spectra(weight.astype(np.float32)))
    macs: list[int] = []
    for energy in (0.5, 0.8, 0.9, 0.95, 0.99):
        model = parsed(NET, w=weight.astype(np.float32), v=np.ones((64, 64, 3, 3), np.float32))
        change = _one(Tucker2(energy=energy).run(model, in_context()))
        ranks = _ranks(change)
        assert into[ranks[0]] + out[ranks[1]] <= 1 - energy + 1e-9
        assert change.error is not None and change.error <= 1 - energy + 1e-9
        every = [(i, o) for i in range(1, 49) for o in range(1, 65) if (i, o) != (48, 64)]
        assert _macs((48, 64), ranks) == min(_macs((48, 64), r) for r in every if into[r[0]] + out[r[1]] <= 1 - energy)
        macs.append(_macs((48, 64), ranks))
    assert macs == sorted(macs) and len(set(macs)) > 3


@pytest.mark.parametrize("keep", [0.2, 0.33, 0.5, 0.8])
@pytest.mark.parametrize("objective", ["macs", "latency"])
def test_keep_is_a_ceiling_of_macs(net: ir.Model, in_context: InContext, keep: float, objective: str) -> None:
    context = in_context(objective=objective, replay={"first": {}, "second": {}})
    report = Tucker2(keep=keep).run(net, context)
    assert len(report.changes) + len(report.skips) == 2 and report.changes
    for change in report.changes:
        assert change.before.macs is not None and change.after.macs is not None
        assert change.after.macs <= keep * change.before.macs
        rank_in, rank_out = _ranks(change)
        if objective == "latency":
            assert rank_in % 16 == rank_out % 16 == 0
        else:  # the budget is used: one more on either side would overshoot
            full, positions = ((48, 64), (144, 144)) if change.site == "first" else ((64, 64), (144, 36))
            macs = [_macs(full, (rank_in + i, rank_out + o), positions) for i, o in ((1, 0), (0, 1))]
            assert max(macs) > keep * change.before.macs


def test_keep_that_no_ranks_reach_is_a_skip(net: ir.Model, in_context: InContext) -> None:
    report = Tucker2(keep=0.02).run(net, in_context(objective="latency", replay={"first": {}, "second": {}}))
    assert {s.reason for s in report.skips} == {"no ranks in steps of 16 keep 0.02 of the MACs or less"}
    assert report.changes == ()


def test_explicit_ranks_are_obeyed_under_every_objective(parsed: Parsed, in_context: InContext) -> None:
    for objective in ("size", "macs", "latency"):
        model = parsed(NET, w=_white(64, 48), v=_white(64, 64))
        context = in_context(objective=objective, replay={"first": {}, "second": {}})
        report = Tucker2(ranks="7x13").run(model, context)
        assert [_ranks(c) for c in report.changes] == [(7, 13)] * 2
        assert _one(report).error is not None and (_one(report).error or 0) > 0.5
        shapes = [tuple(v.shape.numpy()) for v in model.graph.initializers.values() if v.shape is not None]
        assert shapes[:3] == [(7, 48, 1, 1), (13, 7, 3, 3), (64, 13, 1, 1)]


def test_a_rank_at_full_leaves_out_that_side(parsed: Parsed, in_context: InContext) -> None:
    model = parsed(NET, w=_white(64, 48), v=_white(64, 64))
    report = Tucker2(ranks="48x13").run(model, in_context())
    assert [c.summary for c in report.changes] == ["3x3 48>13, 1x1 13>64", "1x1 64>48, 3x3 48>13, 1x1 13>64"]
    model = parsed(NET, w=_white(64, 48), v=_white(64, 64))
    assert Tucker2(ranks="99x64").run(model, in_context()).skips == (
        Skip("first", "rank 48x64 reaches the full 48x64"),
        Skip("second", "rank 64x64 reaches the full 64x64"),
    )


@pytest.mark.parametrize("options", [{"rank": "vbmf"}, {"energy": 1.0}, {"rank": "weakened", "weaken": 0.01}])
def test_never_past_break_even(parsed: Parsed, in_context: InContext, options: dict[str, Any]) -> None:
    """White noise has no low rank: whatever the rule says, no chain that costs more than the layer is written."""
    model = parsed(NET, w=_white(64, 48), v=_white(64, 64))
    report = Tucker2(**options).run(model, in_context(objective="latency", replay={"first": {}, "second": {}}))
    assert report.changes == () and len(report.skips) == 2
    assert all("past break-even" in s.reason or "rank 0" in s.reason for s in report.skips), report.skips


def test_rounding_never_passes_break_even(parsed: Parsed, planted: Planted, in_context: InContext) -> None:
    """Ranks 17x17 of 24x24 gain a little, and nothing once they are rounded up."""
    text = "g (float[N,24,8,8] x) => (float[N,24,6,6] y) { [conv] y = Conv(x, w) }"
    weight = planted((24, 24, 3, 3), 17, 17)
    exact = Tucker2(energy=1.0).run(parsed(text, w=weight), in_context())
    assert _ranks(_one(exact, "conv")) == (17, 17)
    rounded = Tucker2(energy=1.0).run(parsed(text, w=weight), in_context(objective="latency", replay={"conv": {}}))
    reason = "no gain: to keep 100 % of the weight's energy takes ranks past break-even"
    assert rounded.skips == (Skip("conv", reason),)


def test_a_layer_has_its_own_options(net: ir.Model, in_context: InContext) -> None:
    overrides = (Override("Conv", {"ranks": "8x8"}), Override("sec*", {"ranks": "12x12"}), Override("*d", None))
    for count, expected in ((1, [(8, 8), (8, 8)]), (2, [(8, 8), (12, 12)]), (3, [(8, 8)])):
        report = Tucker2(ranks="20x20").run(net.clone(), in_context(overrides=overrides[:count]))
        assert [_ranks(c) for c in report.changes] == expected
    assert report.skips == (Skip("second", "left alone by the recipe"),)
    lone = Tucker2(ranks="20x20").run(net.clone(), in_context(overrides=(Override("ConvTranspose", None),)))
    assert [_ranks(c) for c in lone.changes] == [(20, 20), (20, 20)]


@pytest.mark.parametrize("base", [Tucker2(keep=0.5), Tucker2(ranks="20x20"), Tucker2(rank="weakened")])
def test_a_layers_rule_replaces_the_passs(net: ir.Model, in_context: InContext, base: Tucker2) -> None:
    vbmf = base.run(net.clone(), in_context(overrides=(Override("first", {"rank": "vbmf"}),)))
    assert _ranks(_one(vbmf)) == (9, 11)
    ranks = base.run(net.clone(), in_context(overrides=(Override("first", {"ranks": "8x8"}),)))
    assert _ranks(_one(ranks)) == (8, 8)
    keep = base.run(net.clone(), in_context(objective="macs", overrides=(Override("first", {"keep": 0.2}),)))
    before, after = _one(keep).before.macs, _one(keep).after.macs
    assert before is not None and after is not None and 0.15 * before < after <= 0.2 * before


@pytest.mark.parametrize("options", [{"keep": 0.3}, {"rank": "vbmf"}, {"energy": 0.9}, {"ranks": "10x12"}])
@pytest.mark.parametrize("data", [False, True])
def test_replayed_choices_give_the_same_bytes(
    net: ir.Model, in_context: InContext, options: dict[str, Any], data: bool
) -> None:
    rng = np.random.default_rng(4)
    feeds = open_feeds({"x": rng.standard_normal((16, 48, 12, 12)).astype(np.float32)}, net) if data else None
    first, second = net.clone(), net.clone()
    report = Tucker2(**options).run(first, in_context(data=feeds))
    choices = {c.site: c.choice for c in report.changes}
    assert choices
    replayed = Tucker2(**options).run(second, in_context(data=feeds, replay=choices))
    assert [c.choice for c in replayed.changes] == [c.choice for c in report.changes]
    assert _bytes(first) == _bytes(second)


@pytest.mark.parametrize("text", ["32", "32x", "x64", "0x4", "32X64", "32x64x2", "-1x4", "ax4", "03x4"])
def test_ranks_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="not of the form INxOUT, such as 32x64"):
        Tucker2(ranks=text)


def test_keep_and_ranks_exclude_each_other() -> None:
    with pytest.raises(OptionError, match="ranks and keep exclude each other; give one"):
        build_pipeline("tucker2(keep=0.5, ranks=8x8)")


@pytest.mark.parametrize("spec", ["keep=0", "keep=1", "energy=0", "energy=1.5", "weaken=-0.1", "rank=low", "fit=both"])
def test_values_out_of_range_are_refused(spec: str) -> None:
    with pytest.raises(OptionError, match=spec.split("=")[0]):
        build_pipeline(f"tucker2({spec})")


def _macs(full: tuple[int, int], ranks: tuple[int, int], positions: tuple[int, int] = (144, 144)) -> int:
    """Of the chain on 3x3 kernels: input and output channels, ranks, input and output positions."""
    first = 0 if ranks[0] == full[0] else full[0] * ranks[0] * positions[0]
    last = 0 if ranks[1] == full[1] else full[1] * ranks[1] * positions[1]
    return first + 9 * ranks[0] * ranks[1] * positions[1] + last


def _white(out: int, into: int) -> Weight:
    return np.random.default_rng(out + into).standard_normal((out, into, 3, 3)).astype(np.float32)


def _bytes(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)
