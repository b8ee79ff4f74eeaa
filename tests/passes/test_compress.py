"""compress from the outside: channels, blocks and forms of layers beside each other, replays and budgets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import onnxcomp
from onnxcomp.api import Result
from onnxcomp.channels.joint import Joint
from onnxcomp.errors import DataError, OptionError, UnknownPassError
from onnxcomp.pipeline import Step

Parsed = Callable[..., ir.Model]
Planted = Callable[..., NDArray[np.float32]]

C3 = "Conv<pads=[1,1,1,1]>"
# Three blocks behind a stem; the second one does little.
NET = f"""g (float[N,3,8,8] x) => (float[N,5] y) {{
  [stem] u = {C3}(x, ws, bs) a = Relu(u)
  [a1] a1 = {C3}(a, wa, ca) a2 = Relu(a1) [a2] a3 = {C3}(a2, va, da) [one] a4 = Add(a3, a) b = Relu(a4)
  [b1] b1 = {C3}(b, wb, cb) b2 = Relu(b1) [b2] b3 = {C3}(b2, vb, db) [two] b4 = Add(b3, b) d = Relu(b4)
  [c1] c1 = {C3}(d, wc, cc) c2 = Relu(c1) [c2] c3 = {C3}(c2, vc, dc) [three] c4 = Add(c3, d) e = Relu(c4)
  p = GlobalAveragePool(e) f = Flatten(p) [head] y = Gemm<transB=1>(f, wh, bh) }}"""
X: dict[str, NDArray[Any]] = {"x": np.random.default_rng(3).standard_normal((64, 3, 8, 8)).astype(np.float32)}
FORMS = "forms=prune:drop_blocks:tucker2"


@pytest.fixture(scope="module")
def net(parsed: Parsed, fading: Planted) -> ir.Model:
    scales = {"wa": 1.0, "va": 0.7, "wb": 1.0, "vb": 0.05, "wc": 1.0, "vc": 0.7}
    made = {name: scale * fading((16, 16, 3, 3), seed) for seed, (name, scale) in enumerate(scales.items())}
    made |= {"ws": fading((16, 3, 3, 3), 9), "wh": fading((5, 16), 10)}
    made |= {"bs": np.full(16, 0.1), "bh": np.full(5, 0.1)}
    made |= {first + last: np.full(16, 0.05) for first in "cd" for last in "abc"}
    return parsed(NET, **{name: array.astype(np.float32) for name, array in made.items()})


@pytest.fixture
def compressed(net: ir.Model) -> Callable[..., Result]:
    """Run a pipeline on the net with its samples; by MACs, so that nothing is timed."""

    def run(passes: str = "compress", **options: Any) -> Result:
        given: dict[str, Any] = {"objective": "macs", "data": X}
        return onnxcomp.optimize(net, passes, **(given | options))

    return run


def _step(result: Result, index: int = 0) -> Step:
    return result.report.steps[index]


def _graph(result: Result) -> bytes:
    return ir.to_proto(result.model).graph.SerializeToString(deterministic=True)


def _share(result: Result) -> float:
    step = _step(result)
    assert step.after.macs is not None and step.before.macs is not None
    return step.after.macs / step.before.macs


def _sqnr(result: Result) -> float:
    quality = result.report.after.quality
    assert quality is not None
    return min(quality.sqnr.values())


def _choices(result: Result) -> dict[str, set[str]]:
    """The layers with each kind of choice."""
    found: dict[str, set[str]] = {"outputs": set(), "dropped": set(), "use": set()}
    for site, own in result.report.choices[0].items():
        for key in own:
            found[key].add(site)
    return found


@pytest.mark.parametrize("aim", ["macs=0.5", "size=0.6", "loss=0.05"])
def test_channels_alone_are_pruned_as_prune_does(compressed: Callable[..., Result], aim: str) -> None:
    one, other = (compressed(spec) for spec in (f"compress({aim},forms=prune)", f"prune({aim})"))
    assert one.report.choices == other.report.choices and one.report.choices[0]
    before, after = (
        [value.const_value.numpy() for value in r.model.graph.initializers.values() if value.const_value is not None]
        for r in (one, other)
    )
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_mixture_is_found_and_replayed(compressed: Callable[..., Result]) -> None:
    result = compressed(f"compress(macs=0.45,{FORMS})")
    assert 0.38 < _share(result) <= 0.45
    kinds = _choices(result)
    assert kinds["dropped"] == {"b1", "b2"} and (kinds["use"] or kinds["outputs"])
    again = compressed("compress", replay=result.report.choices)
    assert _graph(again) == _graph(result)
    assert _graph(compressed(f"compress(macs=0.45,{FORMS})")) == _graph(result)
    names = {*(change.site for change in _step(result).report.changes), *(s.site for s in _step(result).report.skips)}
    assert names == {"stem", "a1", "a2", "b1", "b2", "c1", "c2", "head"}


def test_all_together_are_thought_to_lose_no_more_than_each(
    compressed: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: dict[str, float] = {}
    within = Joint.within

    def noted(self: Joint, budget: float) -> list[int] | None:
        picks = within(self, budget)
        losses[forms] = np.inf if picks is None else self.loss(picks)
        return picks

    monkeypatch.setattr(Joint, "within", noted)
    for forms in ("prune", "spatial", "drop_blocks", "prune:drop_blocks:spatial"):
        compressed(f"compress(macs=0.55,forms={forms})")
    every = losses.pop("prune:drop_blocks:spatial")
    assert 0 < every <= min(losses.values()) * (1 + 1e-9)
    assert np.isfinite([losses["prune"], losses["spatial"]]).all()


def test_forms_have_to_be_decompositions(compressed: Callable[..., Result]) -> None:
    with pytest.raises(OptionError, match=r"compress\.forms: int8 is no decomposition; it may not be chosen from"):
        compressed("compress(forms=prune:int8)")
    with pytest.raises(UnknownPassError, match=r"compress\.forms: there is no pass 'tuker2'; did you mean 'tucker2'"):
        compressed("compress(forms=tuker2)")
    with pytest.raises(DataError, match=r"compress\(fit=data\) needs calibration data"):
        compressed("compress(fit=data)", data=None)
    with pytest.raises(OptionError, match="macs and loss exclude each other"):
        compressed("compress(macs=0.5,loss=0.1)")


def test_excluded_layers_and_their_blocks_stay(compressed: Callable[..., Result], net: ir.Model) -> None:
    result = compressed(f"compress(macs=0.7,{FORMS})", exclude=["b1", "stem"])
    kinds = _choices(result)
    assert not kinds["dropped"] & {"b1", "b2"}
    kept = {value.name: value.const_value for value in result.model.graph.initializers.values()}
    for name in ("ws", "wb"):
        before, after = net.graph.initializers[name].const_value, kept[name]
        assert before is not None and after is not None and before.tobytes() == after.tobytes()
    reasons = {skip.site: skip.reason for skip in _step(result).report.skips}
    assert {"b1", "stem"} <= set(reasons) and "excluded by the user" in reasons["b1"]


def test_weights_are_followed_without_data_and_where_asked(compressed: Callable[..., Result]) -> None:
    without = compressed(f"compress(macs=0.5,{FORMS})", data=None)
    assert _share(without) <= 0.5 and not any("refitted" in c.summary for c in _step(without).report.changes)
    asked, fitted = (compressed(f"compress(macs=0.5,{FORMS}{fit})") for fit in (",fit=weights", ""))
    assert not any("refitted" in change.summary for change in _step(asked).report.changes)
    assert _sqnr(fitted) > _sqnr(asked)


def test_a_budget_turns_the_loss(compressed: Callable[..., Result]) -> None:
    shares: list[float] = []
    for limit in (8.0, 24.0):
        result = compressed(f"compress({FORMS})", min_sqnr=limit)
        assert result.report.failures == () and limit <= _sqnr(result)
        shares.append(_share(result))
    assert shares[0] < shares[1]


def test_before_int8(compressed: Callable[..., Result]) -> None:
    passes = f"compress(macs=0.6,{FORMS}),int8"
    result = compressed(passes)
    assert all(step.kept and step.report.changes for step in result.report.steps) and _sqnr(result) > 8
    assert _graph(compressed(passes, replay=result.report.choices)) == _graph(result)
