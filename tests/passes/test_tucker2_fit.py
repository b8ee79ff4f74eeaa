"""The data-aware fit: better where it counts, on held-out data, and asymmetric."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.contract import Context, Override
from onnxcomp.data import Feeds, open_feeds
from onnxcomp.errors import DataError
from onnxcomp.passes.tucker2 import Tucker2

Array = NDArray[np.float32]
Parsed = Callable[..., ir.Model]
InContext = Callable[..., Context]
OutputsOf = Callable[[ir.Model, Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]
ONE = """g (float[N,24,8,8] x) => (float[N,32,a,b] y) { [one] y = Conv<pads=[1,0,0,2], strides=[1,2]>(x, w, b) }"""
CHAIN = """g (float[N,24,10,10] x) => (float[N,32,a,b] y, float[N,32,c,d] r2) {
  [one] a1 = Conv<pads=[1,1,1,1]>(x, w1, b1) [act1] r1 = Relu(a1)
  [two] a2 = Conv<pads=[1,1,1,1]>(r1, w2, b2) [act2] r2 = Relu(a2)
  [three] y = Conv<pads=[1,1,1,1]>(r2, w3, b3) }"""


def _weight(seed: int, out: int = 32, into: int = 24) -> Array:
    return np.asarray(np.random.default_rng(seed).standard_normal((out, into, 3, 3)) / np.sqrt(9 * into), np.float32)


def _images(count: int, seed: int, size: int = 8) -> Array:
    """Channels that move together, in space as well, away from zero: the statistics that the weights do not show."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((24, 24)) * np.exp(-np.arange(24) / 3)
    sources = np.cumsum(rng.standard_normal((count, 24, size, size)), axis=2) / np.sqrt(size)
    return np.asarray(np.einsum("cs,nshw->nchw", mixing, sources) + 2, np.float32)


def _feeds(model: ir.Model, size: int = 8) -> Feeds:
    return open_feeds({"x": _images(64, 1, size)}, model)


def _error(before: NDArray[Any], after: NDArray[Any]) -> float:
    centred = before - before.mean((0, 2, 3), keepdims=True)
    return float(np.square(after - before).sum() / np.square(centred).sum())


@pytest.fixture
def one(parsed: Parsed) -> ir.Model:
    """One convolution of full rank."""
    return parsed(ONE, w=_weight(0), b=np.linspace(-1, 1, 32, dtype=np.float32))


def test_data_beat_weights_on_held_out_data(one: ir.Model, in_context: InContext, outputs_of: OutputsOf) -> None:
    held_out = {"x": _images(32, 2)}
    before = outputs_of(one, held_out)["y"]
    errors: dict[str, float] = {}
    for fit in ("weights", "data", "auto"):
        model = one.clone()
        report = Tucker2(ranks="8x8", fit=fit).run(model, in_context(data=_feeds(model)))
        errors[fit] = _error(before, outputs_of(model, held_out)["y"])
        assert [c.choice["ranks"] for c in report.changes] == ["8x8"]
        if fit == "data":
            assert report.changes[0].error == pytest.approx(errors[fit], rel=0.5)
    assert errors["auto"] == errors["data"] < 0.3 * errors["weights"]


def test_the_bias_is_fitted_again(one: ir.Model, in_context: InContext, outputs_of: OutputsOf) -> None:
    """The inputs have a mean, so what the factors lose has one too: the bias takes it up."""
    before = outputs_of(one, {"x": _images(64, 1)})["y"]
    model = one.clone()
    Tucker2(ranks="8x8").run(model, in_context(data=_feeds(one)))
    after = outputs_of(model, {"x": _images(64, 1)})["y"]
    assert not np.array_equal(_array(model, "one.last.bias"), _array(one, "b"))
    drift = np.abs((after - before).mean((0, 2, 3))) / before.std((0, 2, 3))
    assert drift.max() < 1e-3
    plain = one.clone()
    Tucker2(ranks="8x8", fit="weights").run(plain, in_context())
    assert np.array_equal(_array(plain, "one.last.bias"), _array(one, "b"))
    shift = np.abs((outputs_of(plain, {"x": _images(64, 1)})["y"] - before).mean((0, 2, 3))) / before.std((0, 2, 3))
    assert shift.max() > 0.05


def test_inner_activations_are_of_one_magnitude(parsed: Parsed, in_context: InContext, outputs_of: OutputsOf) -> None:
    """A link that int8 quantizes per tensor should not have loud and quiet channels."""
    model = parsed(ONE.replace("<pads=[1,0,0,2], strides=[1,2]>", ""), w=_weight(0), b=np.zeros(32, np.float32))
    Tucker2(ranks="8x8").run(model, in_context(data=_feeds(model)))
    inner = model.graph[0].outputs[0]
    model.graph.outputs.append(inner)
    inner.shape = ir.Shape(["N", 8, 8, 8])
    values = outputs_of(model, {"x": _images(64, 1)})[inner.name or ""]
    loudness = np.sqrt(np.square(values).mean((0, 2, 3)))
    assert loudness.max() < 1.6 * loudness.min(), loudness


def test_a_layer_without_bias_gets_one_from_data(parsed: Parsed, in_context: InContext) -> None:
    text = ONE.replace(", b)", ")")
    model = parsed(text, w=_weight(0))
    Tucker2(ranks="8x8").run(model, in_context(data=_feeds(model)))
    assert [len(n.inputs) for n in model.graph] == [2, 2, 3]
    model = parsed(text, w=_weight(0))
    Tucker2(ranks="8x8").run(model, in_context())
    assert [len(n.inputs) for n in model.graph] == [2, 2, 2]


def test_later_layers_make_up_for_earlier_ones(parsed: Parsed, in_context: InContext, outputs_of: OutputsOf) -> None:
    """On a chain of three, the asymmetric fit beats the fit to weights, and the fit of each layer on its own inputs."""
    arrays = {f"w{i}": _weight(i, 32, 24 if i == 1 else 32) for i in (1, 2, 3)}
    biases = {f"b{i}": np.linspace(-0.5, 0.5, 32, dtype=np.float32) for i in (1, 2, 3)}
    base = parsed(CHAIN, **arrays, **biases)
    held_out = {"x": _images(32, 2, 10)}
    before = outputs_of(base, held_out)["y"]
    asymmetric, weights = base.clone(), base.clone()
    Tucker2(ranks="10x12").run(asymmetric, in_context(data=_feeds(base, 10)))
    Tucker2(ranks="10x12", fit="weights").run(weights, in_context())
    symmetric = base.clone()
    for name in ("three", "two", "one"):  # backwards: every layer still sees the original's activations
        others = tuple({"one", "two", "three"} - {name})
        Tucker2(ranks="10x12").run(symmetric, in_context(data=_feeds(base, 10), exclude=others))
    errors = [_error(before, outputs_of(m, held_out)["y"]) for m in (asymmetric, symmetric, weights)]
    assert errors[0] < 0.97 * errors[1] and errors[1] < 0.5 * errors[2], errors


def test_ranks_follow_the_spectrum_of_the_output(one: ir.Model, in_context: InContext) -> None:
    """The channels move together, so few ranks hold 95 % of the output's variance, whatever the weight says."""
    (change,) = Tucker2(energy=0.95).run(one.clone(), in_context(data=_feeds(one))).changes
    skipped = Tucker2(energy=0.95).run(one.clone(), in_context())
    assert "break-even" in skipped.skips[0].reason
    assert change.before.macs is not None and change.after.macs is not None and change.error is not None
    assert change.after.macs < 0.4 * change.before.macs and change.error < 0.05


def test_a_fit_to_data_needs_data(one: ir.Model, in_context: InContext) -> None:
    with pytest.raises(DataError, match=r"tucker2\(fit=data\) needs calibration data: give --data, or use fit=auto"):
        Tucker2(fit="data").requires(one, in_context(stand_in=_feeds(one)))
    Tucker2(fit="data").requires(one, in_context(data=_feeds(one)))
    Tucker2().requires(one, in_context())


def test_a_layer_has_a_fit_of_its_own(parsed: Parsed, in_context: InContext) -> None:
    arrays = {f"w{i}": _weight(i, 32, 24 if i == 1 else 32) for i in (1, 2, 3)}
    base = parsed(CHAIN, **arrays, **{f"b{i}": np.ones(32, np.float32) for i in (1, 2, 3)})
    data = _feeds(base, 10)
    models: dict[tuple[str, str], ir.Model] = {}
    auto, weights = Tucker2(ranks="8x8"), Tucker2(ranks="8x8", fit="weights")
    for item, own in ((weights, "weights"), (auto, "auto"), (auto, "weights"), (weights, "data")):
        model = models[item.fit, own] = base.clone()
        item.run(model, in_context(data=data, overrides=(Override("one", {"fit": own}),)))
    core = {key: _array(model, "one.core.weight") for key, model in models.items()}
    assert np.array_equal(core["auto", "weights"], core["weights", "weights"])
    assert np.array_equal(core["weights", "data"], core["auto", "auto"])
    assert not np.array_equal(core["auto", "auto"], core["weights", "weights"])
    with pytest.raises(DataError, match="give --data"):
        Tucker2(ranks="8x8").run(base, in_context(overrides=(Override("one", {"fit": "data"}),)))


def test_the_relu_aware_fit_is_better_after_a_relu(
    parsed: Parsed, in_context: InContext, outputs_of: OutputsOf
) -> None:
    text = ONE.replace("y = Conv", "h = Conv").replace("}", "y = Relu(h) }")
    base = parsed(text, w=_weight(0), b=np.full(32, -0.5, np.float32))
    held_out = {"x": _images(32, 2)}
    before = outputs_of(base, held_out)["y"]
    errors: list[float] = []
    for relu in (True, False):
        model = base.clone()
        Tucker2(ranks="5x6", relu=relu).run(model, in_context(data=_feeds(base)))
        errors.append(_error(before, outputs_of(model, held_out)["y"]))
    assert errors[0] < 0.99 * errors[1], errors


def test_a_transposed_convolution_follows_its_weight(parsed: Parsed, in_context: InContext) -> None:
    text = "g (float[N,24,8,8] x) => (float[N,32,a,b] y) { [up] y = ConvTranspose<strides=[2,2]>(x, w) }"
    model = parsed(text, w=np.ascontiguousarray(_weight(0).swapaxes(0, 1)))
    with_data, without = model.clone(), model.clone()
    Tucker2(ranks="8x8").run(with_data, in_context(data=_feeds(model)))
    Tucker2(ranks="8x8").run(without, in_context())
    assert ir.to_proto(with_data) == ir.to_proto(without)


def _array(model: ir.Model, name: str) -> NDArray[Any]:
    value = model.graph.initializers[name].const_value
    assert value is not None
    return value.numpy()
