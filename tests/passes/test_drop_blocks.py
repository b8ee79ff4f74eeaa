"""The pass drop_blocks: the blocks that hurt least go, what is left is fitted, and every layer is accounted for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import onnxcomp
from onnxcomp import modelio
from onnxcomp.contract import Override
from onnxcomp.errors import OptionError
from onnxcomp.passes.drop_blocks import DropBlocks
from onnxcomp.pipeline import Step
from onnxcomp.testing import assert_preserves

Parsed = Callable[..., ir.Model]

C3 = "<pads=[1,1,1,1]>"
# Three blocks: one that matters, one that is nothing, one that matters little.
NET = f"""g (float[N,3,8,8] x) => (float[N,5] y) {{
  [stem] u = Conv{C3}(x, ws, bs) a = Relu(u)
  [a1] a1 = Conv{C3}(a, wa, c) a2 = Relu(a1) [a2] a3 = Conv{C3}(a2, va, c) [much] a4 = Add(a3, a) b = Relu(a4)
  [b1] b1 = Conv{C3}(b, wb, c) b2 = Relu(b1) [b2] b3 = Conv{C3}(b2, vb) [none] b4 = Add(b3, b) d = Relu(b4)
  [c1] c1 = Conv{C3}(d, wc, c) c2 = Relu(c1) [c2] c3 = Conv{C3}(c2, vc, c) [little] c4 = Add(c3, d) e = Relu(c4)
  p = GlobalAveragePool(e) f = Flatten(p) [head] y = Gemm<transB=1>(f, wh, bh) }}"""


@pytest.fixture(scope="module")
def net(parsed: Parsed) -> ir.Model:
    rng = np.random.default_rng(1)
    scales = {"wa": 1.0, "va": 1.0, "wb": 1.0, "vb": 0.0, "wc": 1.0, "vc": 0.15}
    made = {name: scale * rng.standard_normal((8, 8, 3, 3)) / 8 for name, scale in scales.items()}
    made |= {"ws": rng.standard_normal((8, 3, 3, 3)) / 3, "wh": rng.standard_normal((5, 8))}
    made |= {"bs": np.full(8, 0.1), "bh": np.full(5, 0.1), "c": np.full(8, 0.05)}
    return parsed(NET, **{name: array.astype(np.float32) for name, array in made.items()})


DATA: dict[str, NDArray[Any]] = {"x": np.random.default_rng(3).standard_normal((128, 3, 8, 8)).astype(np.float32)}


def dropped(net: ir.Model, passes: str, **options: Any) -> tuple[onnxcomp.Result, Step]:
    given: dict[str, Any] = {"objective": "macs", "data": DATA}
    result = onnxcomp.optimize(net, passes, **(given | options))
    (step,) = result.report.steps
    return result, step


def gone(step: Step) -> set[str]:
    return {str(change.choice["blocks"]) for change in step.report.changes if "blocks" in change.choice}


def test_a_block_that_adds_nothing_goes_first_and_is_not_missed(net: ir.Model) -> None:
    report = assert_preserves(DropBlocks(), net)
    changes = {change.site: change for change in report.changes}
    assert set(changes) == {"b1", "b2"}
    assert changes["b1"].error is not None and changes["b1"].error < 1e-10 and changes["b2"].error is None
    assert all(change.after.bytes == 0 and change.before.macs == 8 * 8 * 9 * 64 for change in changes.values())
    assert changes["b1"].summary == "dropped with its residual block (Add none)"
    reasons = {skip.site: skip.reason for skip in report.skips}
    assert set(reasons) == {"stem", "a1", "a2", "c1", "c2", "head"}
    assert reasons["head"] == "in no residual block that can go"
    assert reasons["a1"].startswith("kept: dropping its residual block (Add much) is expected to lose 0.")
    assert any("lowest first: none " in note for note in report.notes)
    assert any("could not be fitted" in note for note in report.notes)


def test_blocks_go_in_the_order_of_their_scores(net: ir.Model) -> None:
    wanted = [{"none"}, {"none", "little"}, {"none", "little", "much"}]
    found = [dropped(net, f"drop_blocks(count={count})") for count in (1, 2, 7)]
    assert [gone(step) for _, step in found] == wanted
    for result, step in found:
        accounted = [change.site for change in step.report.changes] + [skip.site for skip in step.report.skips]
        assert sorted(accounted) == sorted(["stem", "a1", "a2", "b1", "b2", "c1", "c2", "head"])
        assert modelio.from_proto(ir.to_proto(result.model)).graph.outputs[0].name == "y"
    assert len(list(found[-1][0].model.graph)) == 5


def test_what_stays_is_fitted_where_there_are_data(net: ir.Model) -> None:
    names = "drop_blocks(blocks=much:none)"
    (plain, _), (fitted, step) = (dropped(net, names, data=d, eval=DATA) for d in (None, DATA))
    assert gone(step) == {"much", "none"}
    assert "refitted" in {change.summary for change in step.report.changes}
    sqnr = [result.report.after.quality for result in (plain, fitted)]
    assert sqnr[0] is not None and sqnr[1] is not None
    assert sqnr[1].sqnr["y"] > sqnr[0].sqnr["y"] + 6


def test_the_same_choices_give_the_same_bytes(net: ir.Model) -> None:
    result, step = dropped(net, "drop_blocks(count=2)")
    again, replayed = dropped(net, "drop_blocks(count=2)", replay=result.report.choices)
    named, _ = dropped(net, 'drop_blocks(blocks="none:l?ttle")')
    assert gone(replayed) == gone(step)
    weights = [
        {name: value.const_value.numpy() for name, value in r.model.graph.initializers.items() if value.const_value}
        for r in (result, again, named)
    ]
    for other in weights[1:]:
        assert other.keys() == weights[0].keys()
        assert all((other[name] == array).all() for name, array in weights[0].items())


def test_excluded_layers_keep_their_blocks(net: ir.Model) -> None:
    _, step = dropped(net, "drop_blocks", exclude=("b2",), data=None)
    assert gone(step) == {"little"}
    reasons = {skip.site: skip.reason for skip in step.report.skips}
    assert reasons["b1"] == "b2 in its residual block (Add none) is excluded by the user"
    _, step = dropped(net, "drop_blocks", overrides=[[Override("b1", None)]])
    assert gone(step) == {"little"}


def test_a_budget_gives_blocks_back_the_worst_first(net: ir.Model) -> None:
    _, step = dropped(net, "drop_blocks(count=3)", min_sqnr=24.0)
    assert gone(step) == {"none", "little"}
    _, step = dropped(net, 'drop_blocks(blocks="*")', min_sqnr=90.0)
    assert gone(step) == {"none"}
    assert "given back" in {skip.site: skip.reason for skip in step.report.skips}["a1"]


def test_a_model_without_blocks_stays_as_it_is(stack: ir.Model) -> None:
    result, step = dropped(stack, "drop_blocks(count=4)", data=None)
    assert not step.report.changes
    assert {skip.site for skip in step.report.skips} == {"a", "b", "c", "head"}
    assert step.report.notes == ("the model has no residual block that can go",)
    assert len(list(result.model.graph)) == len(list(stack.graph))


def test_why_a_block_stays_is_told(parsed: Parsed) -> None:
    weights = {name: np.ones((4, 4, 1, 1), np.float32) for name in ("p", "w")}
    graph = "g (float[N,4,8,8] x) => (float[N,8,8,8] y) { a = Conv(x, p) c = Conv(a, w) [s] s = Add(c, a)"
    model = parsed(f"{graph} y = Concat<axis=1>(s, c) }}", **weights)
    _, step = dropped(model, "drop_blocks", data=None)
    assert step.report.notes[-1] == "the block that ends in s stays: its branch is also read elsewhere"
    with pytest.raises(OptionError, match="'s' is no block that can go: its branch is also read elsewhere"):
        dropped(model, "drop_blocks(blocks=s)", data=None)


def test_options_that_cannot_be_met_are_refused(net: ir.Model, parsed: Parsed) -> None:
    with pytest.raises(OptionError, match="count and blocks exclude each other"):
        DropBlocks(count=1, blocks="none")
    with pytest.raises(OptionError, match=r"'litle' is no block that can go; did you mean 'little'\? \(blocks: much,"):
        dropped(net, "drop_blocks(blocks=none:litle)")
    weights = {name: np.ones((4, 4, 1, 1), np.float32) for name in ("p", "w", "v")}
    graph = "g (float[N,4,8,8] x) => (float[N,4,8,8] y) { a = Conv(x, p) c = Conv(a, w) [in] s = Add(c, a)"
    nested = parsed(f"{graph} d = Conv(s, v) [out] y = Add(d, a) }}", **weights)
    with pytest.raises(OptionError, match="'in' and 'out' lie one in the other"):
        dropped(nested, "drop_blocks(blocks=in:out)", data=None)
    assert DropBlocks(count=2).explicit() and DropBlocks(blocks="a").explicit() and not DropBlocks().explicit()
