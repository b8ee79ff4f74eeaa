"""The pass sparsity: amounts, patterns, blocks, what it composes with, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import onnxcomp
from onnxcomp.api import Result
from onnxcomp.contract import Override
from onnxcomp.errors import DataError, OptionError
from onnxcomp.graph.edit import origin_of
from onnxcomp.options import replace_options
from onnxcomp.passes.sparsity import Sparsity
from onnxcomp.runtime.session import open_session, run

Parsed = Callable[..., ir.Model]
Array = NDArray[Any]

NET = """g (float[N,8,8,8] x) => (float[N,12] y) {
    [first] a = Conv<pads=[1,1,1,1]>(x, w, b) ra = Relu(a)
    [middle] c = Conv<pads=[1,1,1,1]>(ra, v, vb) rc = Relu(c)
    [deep] d = Conv<pads=[1,1,1,1], group=2>(rc, u) rd = Relu(d)
    p = GlobalAveragePool(rd) f = Flatten(p) [last] y = Gemm<transB=1>(f, m, mb)
}"""
LAYERS = ("first", "middle", "deep", "last")


@pytest.fixture
def net(parsed: Parsed) -> ir.Model:
    rng = np.random.default_rng(0)
    shapes = {"w": (32, 8, 3, 3), "b": (32,), "v": (32, 32, 3, 3), "vb": (32,), "u": (32, 16, 3, 3), "m": (12, 32)}
    arrays = {n: (rng.standard_normal(s) / np.sqrt(np.prod(s[1:]))).astype(np.float32) for n, s in shapes.items()}
    arrays["u"] **= 3  # a layer with few large weights, which can do without the others
    arrays["u"] *= np.float32(0.1 / arrays["u"].std())
    return parsed(NET, **arrays, mb=np.zeros(12, np.float32))


def _data(count: int = 48, seed: int = 0) -> Mapping[str, Array]:
    """Smooth images, whose neighbouring channels are alike."""
    x = np.random.default_rng(seed).standard_normal((count, 8, 8, 8)).astype(np.float32)
    return {"x": (x + np.roll(x, 1, 1) + np.roll(x, 1, 2) + np.roll(x, 1, 3)).astype(np.float32)}


def _run(net: ir.Model, passes: str | list[Any], **options: Any) -> Result:
    given: dict[str, Any] = {"objective": "macs", "data": _data()}
    return onnxcomp.optimize(net, passes, **(given | options))


def _weights(model: ir.Model) -> dict[str, Array]:
    """What the nodes of a model with dense weights read, rows first."""
    found: dict[str, Array] = {}
    for node in model.graph:
        if node.op_type in ("Conv", "Gemm") and node.inputs[1] is not None:
            assert node.inputs[1].const_value is not None, "weights lie as they are"
            array = node.inputs[1].const_value.numpy()
            found[origin_of(node)] = array if array.ndim > 2 else array.T
    return found


def two_of_four(weight: Array) -> bool:
    """The rule of TensorRT's sparse kernels, for a weight (Co, Ci, *kernel) of any layer."""
    channels = weight.shape[1]
    return channels % 4 == 0 and all(
        np.count_nonzero(row[k : k + 4, tap]) <= 2
        for row in weight.reshape(len(weight), channels, -1)
        for k in range(0, channels, 4)
        for tap in range(row.shape[1])
    )


def _error(model: ir.Model, net: ir.Model) -> float:
    x = dict(_data(64, 1))
    wanted, got = (run(open_session(m), x)[0].astype(np.float64) for m in (net, model))
    return float(np.square(got - wanted).sum() / np.square(wanted - wanted.mean(0)).sum())


def test_two_of_four_as_tensorrt_takes_them(net: ir.Model) -> None:
    result = _run(net, "sparsity(pattern=2:4)", target="tensorrt")
    weights = _weights(result.model)
    assert set(weights) == set(LAYERS)
    assert all(two_of_four(weight) for weight in weights.values())
    assert all(np.count_nonzero(weight) == weight.size // 2 for weight in weights.values())
    (step,) = result.report.steps
    assert any("Ampere" in note for note in step.report.notes) and any("50.0%" in note for note in step.report.notes)


def test_channels_in_another_order_keep_more(net: ir.Model) -> None:
    yes, no = (
        _run(net, f"sparsity(pattern=2:4,method=magnitude,permute={permute})", target="tensorrt")
        for permute in ("true", "false")
    )
    kept, before = (_weights(result.model)["middle"] for result in (yes, no))
    assert two_of_four(kept) and np.square(kept).sum() > 1.01 * np.square(before).sum()
    assert _error(yes.model, net) < _error(no.model, net)
    notes = [note for result in (yes, no) for note in result.report.steps[0].report.notes if "reordered" in note]
    assert len(notes) == 1 and "read by 1 layer: the pattern keeps 86.6% -> 87.9%" in notes[0]


@pytest.mark.parametrize(
    "left",
    [{"exclude": ["first"]}, {"overrides": [(Override("middle", {"permute": False}),)]}, {"exclude": LAYERS}],
)
def test_channels_keep_their_order_where_a_layer_must_stay(net: ir.Model, left: dict[str, Any]) -> None:
    yes, no = (
        _run(net, f"sparsity(pattern=2:4,method=magnitude,store=dense,permute={permute})", **left)
        for permute in ("true", "false")
    )
    assert not any("reordered" in note for note in yes.report.steps[0].report.notes)
    for name, weight in _weights(yes.model).items():
        np.testing.assert_array_equal(weight, _weights(no.model)[name])


def test_data_lose_less_than_magnitude(net: ir.Model) -> None:
    for options in ("amount=0.7", "pattern=2:4", "amount=0.5,block=4x1"):
        by_gram, plain = (
            _error(_run(net, f"sparsity({options},store=dense,method={method})").model, net)
            for method in ("gram", "magnitude")
        )
        assert by_gram < 0.7 * plain, options


def test_blocks_of_output_channels_are_zero_together(net: ir.Model) -> None:
    result = _run(net, "sparsity(amount=0.5,block=4x1,store=dense)")
    for weight in _weights(result.model).values():
        blocks = weight.reshape(len(weight) // 4, 4, -1) != 0
        assert (blocks == blocks[:, :1]).all() and blocks.mean() == 0.5


@pytest.mark.parametrize("allocation", ["global", "sensitivity"])
def test_layers_share_out_the_amount(net: ir.Model, allocation: str) -> None:
    result = _run(net, f"sparsity(amount=0.7,allocation={allocation},store=dense)")
    weights = _weights(result.model)
    zeros = {name: float((weight == 0).mean()) for name, weight in weights.items()}
    total = sum(weight.size for weight in weights.values())
    assert sum(zeros[name] * weights[name].size for name in weights) / total == pytest.approx(0.7, abs=0.002)
    assert zeros["deep"] > zeros["middle"] + 0.05


@pytest.mark.parametrize("options", ["amount=0.7,allocation=global", "pattern=2:4"])
def test_a_replay_gives_the_same_bytes(net: ir.Model, options: str) -> None:
    result = _run(net, f"sparsity({options})")
    again = _run(net, f"sparsity({options})", replay=result.report.choices)
    for one, other in zip(
        result.model.graph.initializers.values(), again.model.graph.initializers.values(), strict=True
    ):
        assert one.name == other.name and one.const_value is not None and other.const_value is not None
        assert one.const_value.tobytes() == other.const_value.tobytes()


def test_the_file_shrinks_for_a_runtime_that_decodes(net: ir.Model) -> None:
    small, dense = (_run(net, f"sparsity(amount=0.9,store={store})").report.after.bytes for store in ("auto", "dense"))
    assert small < 0.5 * dense


def test_int8_keeps_zeros_and_runs_on_integers(net: ir.Model) -> None:
    result = _run(net, "sparsity(amount=0.6,store=dense),int8")
    zeros = [
        float((pair.inputs[0].const_value.numpy() == 0).mean())
        for node in result.model.graph
        if node.op_type == "Conv" and node.inputs[1] is not None and (pair := node.inputs[1].producer()) is not None
        if pair.inputs[0] is not None and pair.inputs[0].const_value is not None
    ]
    assert len(zeros) == 3 and min(zeros) >= 0.599
    assert all(fate.integer for fate in result.report.fates if fate.op_type == "Conv")
    stored = _run(net, "sparsity(amount=0.6),int8")
    dense, small = (run(open_session(r.model), dict(_data(8, 2)))[0] for r in (result, stored))
    np.testing.assert_array_equal(small, dense)


def test_a_layer_has_its_own_amount(net: ir.Model) -> None:
    own = (Override("middle", {"amount": 0.25}), Override("last", None))
    result = _run(net, "sparsity(pattern=2:4,store=dense)", overrides=[own])
    weights = {name: float((weight == 0).mean()) for name, weight in _weights(result.model).items() if name != "last"}
    assert weights == pytest.approx({"first": 0.5, "middle": 0.25, "deep": 0.5}, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"amount": 0.5, "pattern": "2:4"}, "pattern and amount exclude"),
        ({"block": "4x1", "pattern": "2:4"}, "pattern and block exclude"),
        ({"pattern": "2:4", "allocation": "global"}, "shares out an amount"),
        ({"pattern": "2-4"}, "not of the form N:M"),
        ({"pattern": "4:4"}, "N < M"),
        ({"block": "4"}, "not of the form ROWSxCHANNELS"),
        ({"amount": 1.0}, "amount"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        replace_options(Sparsity(), options)


def test_gram_takes_data(net: ir.Model) -> None:
    with pytest.raises(DataError, match="needs calibration data"):
        onnxcomp.optimize(net, "sparsity(method=gram)", objective="macs")


@pytest.mark.parametrize(("options", "refused"), [("pattern=1:3", "groups of 3"), ("block=5x1", "blocks of 5x1")])
def test_channels_that_do_not_fit_are_refused(net: ir.Model, options: str, refused: str) -> None:
    (step,) = _run(net, f"sparsity({options})").report.steps
    assert {skip.site for skip in step.report.skips if refused in skip.reason} == set(LAYERS)


def test_what_a_budget_turns() -> None:
    assert Sparsity().eased(0.5) == Sparsity(amount=0.25)
    assert Sparsity(amount=0.6).eased(2.0) == Sparsity(amount=0.6)
    assert Sparsity(pattern="2:4").eased(0.5) is None
    assert not Sparsity().explicit() and Sparsity(pattern="2:4").explicit()
