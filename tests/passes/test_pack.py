"""pack: sizes, losses, budgets, forms, layers of their own, replays, and what the report says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import onnxcomp
from onnxcomp.api import Result
from onnxcomp.contract import Override
from onnxcomp.errors import DataError, InputError, OptionError, UnknownPassError
from onnxcomp.passes.pack import Pack
from onnxcomp.pipeline import Step
from onnxcomp.runtime.session import open_session, run

Arrays = Mapping[str, NDArray[Any]]
Packed = Callable[..., Result]
SITES = {"a", "b", "head"}
NET = """g (float[N,8,6,6] x) => (float[N,10] y) {
  [a] a1 = Conv<pads=[1,1,1,1]>(x, wa, ba) a2 = Relu(a1)
  [b] b1 = Conv<pads=[1,1,1,1], strides=[2,2]>(a2, wb) b2 = Relu(b1)
  p = GlobalAveragePool(b2) f = Flatten(p) [head] y = Gemm<transB=1>(f, wh, bh) }"""


@pytest.fixture(scope="module")
def samples() -> Arrays:
    return {"x": np.random.default_rng(9).standard_normal((24, 8, 6, 6)).astype(np.float32)}


@pytest.fixture(scope="module")
def packed(parsed: Callable[..., ir.Model], fading: Callable[..., NDArray[Any]], samples: Arrays) -> Packed:
    """Run a pipeline on a small net with its samples; what was run before is not run again."""
    shapes = {"wa": (16, 8, 3, 3), "wb": (32, 16, 3, 3), "wh": (10, 32)}
    arrays = {name: fading(shape, seed) for seed, (name, shape) in enumerate(shapes.items())}
    net = parsed(NET, **arrays, ba=np.full(16, 0.1, np.float32), bh=np.full(10, 0.1, np.float32))
    known: dict[str, Result] = {}

    def go(passes: str = "pack", **options: Any) -> Result:
        key = f"{passes} {options}"
        given: dict[str, Any] = {"objective": "size", "data": samples}
        if key not in known:
            known[key] = onnxcomp.optimize(net, passes, **(given | options))
        return known[key]

    return go


def _step(result: Result) -> Step:
    return result.report.steps[0]


def _became(result: Result) -> dict[str, str]:
    return {change.site: str(change.choice["use"]) for change in _step(result).report.changes}


def _skipped(result: Result) -> dict[str, str]:
    return {skip.site: skip.reason for skip in _step(result).report.skips}


def _share(result: Result) -> float:
    return result.report.after.bytes / result.report.before.bytes


def _sqnr(result: Result) -> float:
    quality = result.report.after.quality
    assert quality is not None
    return min(quality.sqnr.values())


def _graph(result: Result) -> bytes:
    return ir.to_proto(result.model).graph.SerializeToString(deterministic=True)


# Sizes and losses.


def test_sizes_are_met_and_cost_what_they_must(packed: Packed) -> None:
    """But for the frame of the file, which in a model as small as this takes a few percent."""
    found: list[float] = []
    for size in (0.25, 0.1):
        result = packed(f"pack(size={size})")
        assert 0.6 * size < _share(result) <= size + 0.03
        found.append(_sqnr(result))
    assert found[0] > found[1] + 4


def test_the_choice_beats_one_form_for_all(packed: Packed) -> None:
    chosen, uniform = packed("pack(size=0.18)"), packed("palettize(bits=4)")
    assert chosen.report.after.bytes <= uniform.report.after.bytes * 1.06
    assert _sqnr(chosen) > _sqnr(uniform) - 0.3


def test_a_loss_is_about_what_the_outputs_lose(packed: Packed) -> None:
    losses = (0.03, 0.001)
    results = [packed(f"pack(loss={loss},forms=palettize)") for loss in losses]
    assert results[0].report.after.bytes < results[1].report.after.bytes
    for result, loss in zip(results, losses, strict=True):
        (point,) = [point for point in _step(result).report.frontier if point.chosen]
        assert point.loss <= loss and -_sqnr(result) < 10 * np.log10(loss) + 5


def test_a_size_out_of_reach_takes_the_least_and_says_so(packed: Packed) -> None:
    result = packed("pack(size=0.001,forms=palettize)")
    assert _step(result).kept and result.report.failures == ()
    assert any(n.startswith("the target is out of reach: at least 0.0") for n in _step(result).report.notes)


def test_the_runtime_folds_all_of_it_at_load(packed: Packed, tmp_path: Path) -> None:
    result, plain = packed("pack(size=0.25)"), packed("fold")
    paths = [tmp_path / name for name in ("packed.onnx", "plain.onnx")]
    for own, path in zip((result, plain), paths, strict=True):
        open_session(own.model, dump=path)
    ops = [[node.op_type for node in onnx.load(path).graph.node] for path in paths]
    assert ops[0] == ops[1]
    result.save(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_size == result.report.after.bytes


def test_int8_behind_computes_on_integers(packed: Packed, samples: Arrays) -> None:
    result = packed("pack(size=0.3,forms=cluster),int8", objective="macs")
    assert all(fate.integer for fate in result.report.fates if fate.op_type == "Conv")
    for count in (1, 5):  # the batch is as free as before
        assert run(open_session(result.model), {"x": samples["x"][:count]})[0].shape == (count, 10)


# Budgets.


def test_the_loss_is_turned_to_what_a_budget_bears(packed: Packed) -> None:
    sizes: list[int] = []
    for limit in (20.0, 36.0):
        result = packed("pack(forms=palettize)", min_sqnr=limit)
        assert result.report.failures == () and limit <= _sqnr(result) < limit + 12
        assert not any("given back" in reason for reason in _skipped(result).values())
        sizes.append(result.report.after.bytes)
    assert sizes[0] < sizes[1]


def test_a_size_is_eased_where_the_budget_breaks(packed: Packed) -> None:
    result = packed("pack(size=0.1,forms=palettize)", min_sqnr=22.0)
    assert result.report.failures == () and _sqnr(result) >= 22 and _share(result) > 0.1


def test_what_a_budget_turns() -> None:
    assert Pack().eased(2.0) == Pack(loss=0.02) and Pack(loss=0.5).eased(10.0) == Pack(loss=0.9)
    assert Pack(size=0.2).eased(0.5) == Pack(size=0.6) and Pack(size=0.2).eased(3.0) == Pack(size=0.2)
    assert Pack(use="palettize(bits=4)").eased(0.5) is None
    assert not Pack().explicit() and Pack(size=0.2).explicit() and Pack(loss=0.1).explicit()


# Forms and layers.


def test_forms_limit_the_choice(packed: Packed) -> None:
    every = {"palettize", "cluster"}
    for spec, allowed in (("pack(size=0.001,forms=palettize)", {"palettize"}), ("pack(size=0.25)", every)):
        result = packed(spec)
        assert {offer.form.split("(")[0] for offer in _step(result).report.offers} == allowed
        assert {use.split("(")[0] for use in _became(result).values()} <= allowed


def test_forms_that_do_not_exist_are_refused(packed: Packed) -> None:
    with pytest.raises(UnknownPassError, match="did you mean 'cluster'"):
        packed("pack(forms=clusters)")
    with pytest.raises(OptionError, match=r"pack\.forms: int8 is no storage; it may not be chosen from"):
        packed("pack(forms=palettize:int8)")
    with pytest.raises(OptionError, match=r"pack\.use: 'tucker2\(rank=4\)' is not one storage pass, such as palettize"):
        packed('pack(use="tucker2(rank=4)")')


def test_every_layer_gets_the_form_that_is_given(packed: Packed) -> None:
    """Two bits take a later opset than anything that is chosen."""
    result = packed('pack(use="palettize(bits=2)")')
    assert set(_became(result)) == SITES and result.model.opset_imports[""] == 25
    assert all(use.startswith("palettize(bits=2") for use in _became(result).values())
    chosen = packed("pack(size=0.25)")
    assert chosen.model.opset_imports[""] == 21


def test_layers_of_a_recipe(packed: Packed) -> None:
    layers = [Override("a", None), Override("b", {"use": "cluster(bits=4,scope=layer)"})]
    result = packed("pack(loss=0.01,forms=palettize)", overrides=[layers], exclude=["he*"])
    assert _skipped(result) == {"a": "left alone by the recipe", "head": "excluded by the user"}
    became = _became(result)
    assert set(became) == {"b"} and became["b"].startswith("cluster(bits=4")
    assert {offer.site for offer in _step(result).report.offers} == set()


def test_a_replay_gives_the_same_bytes(packed: Packed) -> None:
    for passes in ("pack(size=0.25)", 'pack(use="palettize(bits=2)")'):
        first = packed(passes)
        again = packed(passes, replay=first.report.choices)
        assert _graph(first) == _graph(again) and _step(again).report.offers == ()


# Refusals.


@pytest.mark.parametrize("two", ["size=0.5,loss=0.1", "size=0.3,use=palettize", "loss=0.1,use=palettize"])
def test_one_target_at_a_time(packed: Packed, two: str) -> None:
    with pytest.raises(OptionError, match="exclude each other; give one"):
        packed(f"pack({two})")


@pytest.mark.parametrize("bad", ["size=0", "size=1", "loss=0", "loss=1", "size=nan", "fit=no"])
def test_options_have_ranges(packed: Packed, bad: str) -> None:
    with pytest.raises(OptionError, match=bad.split("=")[0]):
        packed(f"pack({bad})")


def test_data_are_needed_where_they_are_asked_for(packed: Packed) -> None:
    with pytest.raises(DataError, match=r"pack\(fit=data\) needs calibration data: give --data, or use fit=auto"):
        packed("pack(fit=data)", data=None)


def test_weights_alone(packed: Packed) -> None:
    without = packed("pack(size=0.25,forms=palettize)", data=None)
    assert without.report.synthetic and _share(without) <= 0.28
    assert _sqnr(packed("pack(size=0.25)")) > _sqnr(packed("pack(size=0.25,forms=palettize,fit=weights)")) + 1


@pytest.mark.parametrize("target", ["tensorrt", "coreml"])
def test_targets_that_do_not_decode_at_load_are_refused(packed: Packed, target: str) -> None:
    with pytest.raises(InputError, match=f"pack: {target} does not decode stored weights when it loads a model"):
        packed("pack", target=target)
