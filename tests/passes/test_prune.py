"""prune from the outside: targets, criteria, budgets, replays, what stays as it is and what the report says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import onnxcomp
from onnxcomp.api import Result
from onnxcomp.contract import Override
from onnxcomp.cost import model_cost
from onnxcomp.data import synthetic_feeds
from onnxcomp.errors import DataError, OptionError
from onnxcomp.graph.sites import Site
from onnxcomp.passes.prune import Prune
from onnxcomp.pipeline import Step
from onnxcomp.runtime.sitebench import SiteTiming
from onnxcomp.runtime.timing import Speedup

Arrays = Mapping[str, NDArray[Any]]
Pruned = Callable[..., Result]
SITES = ["a", "b", "c", "head"]


@pytest.fixture
def pruned(stack: ir.Model, samples: Arrays) -> Pruned:
    """Run a pipeline on the stack with its samples; by MACs, so that nothing is timed."""

    def run(passes: str = "prune", **options: Any) -> Result:
        given: dict[str, Any] = {"objective": "macs", "data": samples}
        return onnxcomp.optimize(stack, passes, **(given | options))

    return run


def _step(result: Result, index: int = 0) -> Step:
    return result.report.steps[index]


def _graph(result: Result) -> bytes:
    return ir.to_proto(result.model).graph.SerializeToString(deterministic=True)


def _share(result: Result, what: str = "macs") -> float:
    step = _step(result)
    return float(getattr(step.after, what) / getattr(step.before, what))


def _skipped(result: Result) -> dict[str, str]:
    return {skip.site: skip.reason for skip in _step(result).report.skips}


def _sqnr(result: Result) -> float:
    quality = result.report.after.quality
    assert quality is not None
    return min(quality.sqnr.values())


def _weights(model: ir.Model) -> dict[str, NDArray[Any]]:
    """The weights of layers, by the name of their output."""
    found: dict[str, NDArray[Any]] = {}
    for node in model.graph:
        if node.op_type in ("Conv", "Gemm"):
            assert node.inputs[1] is not None and node.inputs[1].const_value is not None
            found[str(node.outputs[0].name)] = node.inputs[1].const_value.numpy()
    return found


def _outputs(result: Result) -> dict[str, int]:
    """Numbers of channels of the convolutions."""
    return {name: len(weight) for name, weight in _weights(result.model).items() if name != "y"}


# Targets.


@pytest.mark.parametrize("name", ["macs", "keep"])
@pytest.mark.parametrize("share", [0.7, 0.3])
def test_macs_are_met_and_not_by_far(pruned: Pruned, name: str, share: float) -> None:
    result = pruned(f"prune({name}={share})")
    assert 0.85 * share < _share(result) <= share
    assert _step(result).report.notes == ()
    assert {*(c.site for c in _step(result).report.changes), *_skipped(result)} == set(SITES)


def test_bytes_and_channels_are_met(pruned: Pruned) -> None:
    assert 0.4 < _share(pruned("prune(size=0.5)", objective="size"), "bytes") <= 0.5
    assert _outputs(pruned("prune(channels=0.5)")) == {"a1": 12, "b1": 16, "c1": 16}
    assert _outputs(pruned("prune(channels=0.001)")) == {"a1": 1, "b1": 1, "c1": 1}


def test_a_loss_is_about_what_the_outputs_lose(pruned: Pruned) -> None:
    noise: list[float] = []
    for loss in (0.05, 0.005):
        noise.append(-_sqnr(pruned(f"prune(loss={loss})")))
        assert noise[-1] < 10 * np.log10(loss) + 6
    assert noise[0] > noise[1] + 3
    assert _graph(pruned("prune(loss=0.01)")) == _graph(pruned("prune"))


def test_a_target_out_of_reach_takes_the_least_and_says_so(pruned: Pruned) -> None:
    result = pruned("prune(macs=0.0001,criterion=l2)", data=None)
    (note,) = _step(result).report.notes
    assert note.startswith("the target is out of reach: at least 0.") and note.endswith("0.0001 was asked for")
    assert _share(result) == pytest.approx(float(note.split("at least ")[1].split(" of")[0]), rel=0.01)
    (note,) = _step(pruned("prune(keep=0.0001)", data=None)).report.notes
    assert "out of reach: 0.0" in note


def test_a_speed_keeps_whole_blocks_of_channels(
    stack: ir.Model, in_context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine whose time goes with the MACs, and whose blocks have eight channels."""

    def time_of(model: ir.Model) -> float:
        return float(model_cost(model).macs or 0)

    def chains_of(site: Site, *_: object) -> SiteTiming:
        return SiteTiming(float(site.cost.macs or 0), ())

    def times_of(models: Sequence[ir.Model], *_: object, **__: object) -> list[float]:
        return [time_of(own) for own in models]

    def faster(base: ir.Model, other: ir.Model, context: object) -> Speedup:
        return Speedup(time_of(base) / time_of(other), 1.0, 1.0, 1.0, 1.0, 1)

    def block(target: object) -> int:
        return 8

    for name, stand_in in (("time_chains", chains_of), ("time_many", times_of), ("time_models", faster)):
        monkeypatch.setattr(f"onnxcomp.channels.planning.{name}", stand_in)
    monkeypatch.setattr("onnxcomp.decomposition.ranking.rank_block", block)
    context = in_context(objective="latency", stand_in=synthetic_feeds(stack, 0))
    for speed in (2.0, 1000.0):
        model = stack.clone()
        report = Prune(speedup=speed).run(model, context)
        assert all(len(w) % 8 == 0 for name, w in _weights(model).items() if name != "y")
        if speed == 2.0:
            assert report.notes == () and 2.0 / 1.02 <= time_of(stack) / time_of(model) < 3.0
        else:
            (note,) = report.notes
            assert note.startswith("the target is out of reach: 0.") and note.endswith(" is left, 0.001 was asked for")


# Options.


@pytest.mark.parametrize("two", ["macs=0.5,size=0.5", "keep=0.5,channels=0.5", "speedup=2,loss=0.3"])
def test_one_target_at_a_time(two: str, pruned: Pruned) -> None:
    with pytest.raises(OptionError, match="exclude each other; give one"):
        pruned(f"prune({two})")


def test_what_cannot_be_met_is_refused(pruned: Pruned) -> None:
    with pytest.raises(DataError, match=r"prune\(fit=data\) needs calibration data: give --data, or use fit=auto"):
        pruned("prune(fit=data)", data=None)
    with pytest.raises(DataError, match=r"prune\(criterion=thinet\) needs calibration data"):
        pruned("prune(criterion=thinet)", data=None)
    with pytest.raises(OptionError, match="prune: a layer takes no options of its own; write null to leave it alone"):
        pruned("prune", overrides=[[Override("b", {"macs": 0.5})]])
    with pytest.raises(OptionError, match="needs timing"):
        pruned("prune(speedup=2)")
    with pytest.raises(OptionError, match="criterion"):
        pruned("prune(criterion=l3)")


def test_options_ease_the_pass() -> None:
    assert Prune().eased(0.5) == Prune(loss=0.005)
    assert Prune(keep=0.4).eased(0.5) == Prune(keep=0.7) and Prune(channels=0.4).eased(0.5) == Prune(channels=0.7)
    assert Prune(speedup=3.0).eased(0.5) == Prune(speedup=2.0)
    assert Prune(channels=0.5).explicit() and not Prune().explicit()


# Criteria and fits.


def test_fitting_and_exact_ranking_are_worth_it(pruned: Pruned) -> None:
    names = ("obs", "thinet", "he", "taylor", "l1", "l2")
    found = {name: _sqnr(pruned(f"prune(channels=0.7,criterion={name})")) for name in names}
    assert found["obs"] > max(found.values()) - 1.0, found
    plain = {c: _sqnr(pruned(f"prune(channels=0.7,criterion={c},fit=weights)")) for c in ("obs", "l1")}
    assert all(found[c] > plain[c] + 3 for c in plain), (found, plain)
    assert found["obs"] > plain["l1"] + 5


def test_without_data_norms_decide_and_nothing_is_fitted(pruned: Pruned, stack: ir.Model, samples: Arrays) -> None:
    result = pruned("prune(channels=0.5)", data=None)
    before, after = _weights(stack)["a1"], _weights(result.model)["a1"]
    largest = np.sort(np.argsort(-np.square(before).sum((1, 2, 3)) * 1.0)[:12])
    assert len(after) == 12 and all(any((row == own).all() for own in before) for row in after)
    assert all(change.error is None for change in _step(result).report.changes)
    again = pruned("prune(channels=0.5,criterion=l2,fit=weights)")
    assert _graph(again) == _graph(result) and largest.shape == (12,)


# The same again.


def test_replays_and_second_runs_give_the_same_bytes(pruned: Pruned) -> None:
    first = pruned("prune(macs=0.4)", exclude=["c"])
    assert _graph(pruned("prune(macs=0.4)", exclude=["c"])) == _graph(first)
    assert _graph(pruned("prune", replay=first.report.choices, exclude=["c"])) == _graph(first)
    assert _graph(pruned("prune(macs=0.4)")) != _graph(first)
    keys = {key for choice in first.report.choices[0].values() for key in choice}
    assert keys == {"outputs"}


# Budgets and layers that stay.


def test_budgets_hold(pruned: Pruned) -> None:
    shares: list[float] = []
    for limit in (10.0, 25.0):
        result = pruned("prune", min_sqnr=limit)
        assert result.report.failures == () and limit <= _sqnr(result) < limit + 6
        shares.append(_share(result))
    assert shares == sorted(shares)
    eased = pruned("prune(macs=0.1)", min_sqnr=20.0)
    assert eased.report.failures == () and _sqnr(eased) >= 20 and 0.1 < _share(eased) < 1
    out = pruned("prune(macs=0.1)", min_sqnr=150.0)
    assert _step(out).report.changes == () and out.report.failures == ()


def test_layers_that_are_given_back_are_not_made_up_for(pruned: Pruned, stack: ir.Model, in_context: Any) -> None:
    context = in_context(objective="macs")
    for given in ("b", "a"):
        model, plain = stack.clone(), stack.clone()
        report = Prune(channels=0.5).run(model, replace(context, given_back=frozenset([given])))
        Prune(channels=0.5).run(plain, context)
        sizes, before = ({k: w.shape[:2] for k, w in _weights(own).items()} for own in (model, plain))
        assert sizes[f"{given}1"] == _weights(stack)[f"{given}1"].shape[:2]
        assert sizes["c1"][0] == before["c1"][0] and report.changes


def test_excluded_layers_stay_byte_by_byte(pruned: Pruned, stack: ir.Model) -> None:
    for options in ({"exclude": ["b"]}, {"overrides": [[Override("b", None)]]}):
        result = pruned("prune(macs=0.7)", **options)
        before, after = _weights(stack), _weights(result.model)
        assert after["b1"].tobytes() == before["b1"].tobytes() and len(after["c1"]) < 32
        assert after["a1"].tobytes() == before["a1"].tobytes()
        assert _skipped(result)["b"].startswith("b is ") and _skipped(result)["a"].startswith("b is ")


def test_a_drop_of_accuracy_is_held(pruned: Pruned, stack: ir.Model, samples: Arrays, outputs_of: Any) -> None:
    scored = {**samples, "labels": outputs_of(stack, samples)["y"].argmax(1)}
    result = pruned("prune", eval=scored, max_drop=5.0)
    before, after = result.report.before.quality, result.report.after.quality
    assert before is not None and after is not None and before.top1 == 1.0 and after.top1 is not None
    assert 0.95 <= after.top1 <= 1.0 and _step(result).report.changes and result.report.failures == ()


def test_a_trained_network_keeps_its_accuracy() -> None:
    """Half of the work of a trained ResNet is spared at next to no loss; norms without a fit ruin it."""
    data, scored = (np.load(f"models/digits_{name}.npz") for name in ("calibration", "eval"))
    model = ir.load("models/digits_resnet.onnx")
    options: dict[str, Any] = {"objective": "macs", "data": {"input": data["input"][:48]}}
    options["eval"] = {name: scored[name][:96] for name in scored}
    result = onnxcomp.optimize(model, "prune(channels=0.7)", **options)
    plain = onnxcomp.optimize(model, "prune(channels=0.7,criterion=l1,fit=weights)", **options)
    tops = [own.report.after.quality.top1 for own in (result, plain) if own.report.after.quality]
    assert _share(result) <= 0.5 and tops[0] is not None and tops[1] is not None
    assert tops[0] > 0.98 and tops[0] > tops[1] + 0.05


# In a pipeline, and what the model says.


@pytest.mark.parametrize("passes", ["tucker2(rank=8),prune(macs=0.7)", "prune(macs=0.7),tucker2(rank=8)", "fold,prune"])
def test_beside_other_passes(pruned: Pruned, passes: str) -> None:
    result = pruned(passes)
    assert all(step.kept for step in result.report.steps) and _sqnr(result) > 3
    assert _graph(pruned(passes, replay=result.report.choices)) == _graph(result)


def test_before_and_after_int8(pruned: Pruned) -> None:
    result = pruned("prune(macs=0.6),int8")
    assert [bool(step.report.changes) for step in result.report.steps] == [True, True] and _sqnr(result) > 10
    late = pruned("int8,prune(macs=0.6)")
    reason = "already quantized by int8: put this pass before int8"
    assert {skip.reason for skip in _step(late, 1).report.skips if skip.site != "head"} == {reason}
    assert _step(late, 1).report.changes == ()
    assert any("write prune before int8" in warning for warning in late.report.warnings)


def test_nodes_say_where_they_are_from(pruned: Pruned, stack: ir.Model) -> None:
    result = pruned("prune(macs=0.5)")
    changed = {change.site for change in _step(result).report.changes}
    for node in result.model.graph:
        if node.op_type in ("Conv", "Gemm"):
            origin = node.metadata_props.get("onnxcomp.origin")
            assert (origin in changed) == (node.metadata_props.get("onnxcomp.pass") == "prune"), node.name
    assert {node.metadata_props.get("onnxcomp.origin") for node in result.model.graph} >= changed
    assert result.model.opset_imports == stack.opset_imports
    for side in ("inputs", "outputs"):
        pairs = zip(getattr(result.model.graph, side), getattr(stack.graph, side), strict=True)
        assert all((a.name, a.shape, a.dtype) == (b.name, b.shape, b.dtype) for a, b in pairs)
