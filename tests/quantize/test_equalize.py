"""Equalization on models: exact in floating point, closer in int8, and refused with a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp import modelio
from onnxcomp.data import Feeds, open_feeds, synthetic_feeds
from onnxcomp.errors import DataError
from onnxcomp.graph.fold import fold
from onnxcomp.quantize.equalize import Rule, equalize
from onnxcomp.runtime.session import open_session, run

Builder = Callable[..., ir.Model]
RULES: tuple[Rule, ...] = ("weights", "smooth", "activations")
C3 = "<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"
RESIDUAL = (
    f"g (float[N, 3, 8, 8] x) => (float[N, 2, 8, 8] y) {{ a = Conv {C3} (x, w, b)  r = Relu (a)  c = Conv {C3} (r, v)"
    f" d = Relu (c)  e = Conv <group = 6, kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (d, k)  f = Conv (e, u)"
    f" s = Add (f, r)  t = Relu (s)  q = ConvTranspose <group = 2> (t, p)  y = Conv {C3} (q, z) }}"
)
SHAPES = {
    "w": (4, 3, 3, 3),
    "b": (4,),
    "v": (6, 4, 3, 3),
    "k": (6, 1, 3, 3),
    "u": (4, 6, 1, 1),
    "p": (4, 3, 1, 1),
    "z": (2, 6, 3, 3),
}
TOKENS = (
    "g (float[N, 5, 8] x) => (float[N, 5, 3] y) { n = LayerNormalization (x, s, b)  m = MatMul (n, w)  r = Relu (m)"
    " h = MatMul (r, v)  a = Add (h, c)  y = MatMul (a, u) }"
)


def _samples(path: Path, model: ir.Model, count: int = 32) -> Feeds:
    shape = model.graph.inputs[0].shape
    assert shape is not None
    sizes = tuple(d for d in shape[1:] if isinstance(d, int))
    data = np.random.default_rng(7).standard_normal((count, *sizes)).astype(np.float32)
    np.savez(path / "data.npz", x=data)
    return open_feeds(path / "data.npz", model)


def _uneven(model: ir.Model, name: str, spread: float) -> None:
    """Make the rows of a weight, its output channels, differ in size by up to `spread` either way."""
    value = model.graph.initializers[name]
    assert value.const_value is not None
    array = value.const_value.numpy()
    sizes = np.geomspace(1 / spread, spread, array.shape[0]).astype(np.float32)
    value.const_value = ir.tensor(array * sizes.reshape(-1, *(1,) * (array.ndim - 1)), name=name)


def _outputs(model: ir.Model, feeds: Feeds) -> NDArray[Any]:
    session = open_session(model)
    return np.concatenate([run(session, feed)[0] for feed in feeds.batches()])


def _error(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("rule", RULES)
def test_the_function_stays(build: Builder, tmp_path: Path, rule: Rule) -> None:
    model = build(RESIDUAL, SHAPES)
    _uneven(model, "w", 4.0)
    feeds = _samples(tmp_path, model)
    wanted = _outputs(model, feeds)
    done = equalize(model, feeds, rule)
    assert set(done.nodes) == {"a", "c", "e", "f", "q", "y"}
    assert 1 / 8 <= done.lowest < 1 < done.highest <= 8
    assert len(done.lines) == 1
    assert "factors" in done.lines[0]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert _error(_outputs(model, feeds), wanted) < 1e-5


@pytest.mark.parametrize("rule", ["smooth", "activations"])
def test_transformer_layers_take_the_factors_of_their_inputs(build: Builder, tmp_path: Path, rule: Rule) -> None:
    """What LayerNormalization writes, MatMul reads: SmoothQuant's own case; the bias grows to one value a channel."""
    model = build(TOKENS, {"s": (8,), "b": (8,), "w": (8, 6), "v": (6, 4), "c": (1,), "u": (4, 3)})
    _uneven(model, "s", 8.0)
    feeds = _samples(tmp_path, model)
    wanted = _outputs(model, feeds)
    scale = model.graph.initializers["s"].const_value
    assert scale is not None
    before = scale.numpy()
    done = equalize(model, feeds, rule)
    after = model.graph.initializers["s"].const_value
    assert after is not None
    assert np.ptp(np.log(np.abs(after.numpy()))) < np.ptp(np.log(np.abs(before)))
    assert set(done.nodes) == {"m", "h", "y"}
    assert _error(_outputs(model, feeds), wanted) < 1e-5


@pytest.mark.parametrize("rule", ["smooth", "activations"])
def test_uneven_channels_lose_less_in_int8(
    build: Builder, quantize: Callable[..., tuple[ir.Model, Any]], tmp_path: Path, rule: Rule
) -> None:
    model = build(RESIDUAL, SHAPES)
    _uneven(model, "w", 8.0)
    feeds = _samples(tmp_path, model, 64)
    wanted = _outputs(model, feeds)
    plain = _error(_outputs(quantize(model)[0], feeds), wanted)
    equalize(model, feeds, rule)
    assert _error(_outputs(quantize(model)[0], feeds), wanted) < plain


def test_off_changes_nothing(build: Builder) -> None:
    model = build(RESIDUAL, SHAPES)
    before = ir.to_proto(model).SerializeToString()
    assert equalize(model, None, "off").nodes == ()
    assert ir.to_proto(model).SerializeToString() == before


def test_equal_weights_need_no_data(build: Builder) -> None:
    assert equalize(build(RESIDUAL, SHAPES), None, "weights").nodes


@pytest.mark.parametrize("rule", ["smooth", "activations"])
def test_other_rules_need_data(build: Builder, rule: Rule) -> None:
    with pytest.raises(DataError, match="give --data, or equalize=weights"):
        equalize(build(RESIDUAL, SHAPES), None, rule)


def test_nothing_to_equalize(build: Builder) -> None:
    model = build("g (float[N, 3, 8, 8] x) => (float[N, 2, 8, 8] y) { y = Conv (x, w) }", {"w": (2, 3, 1, 1)})
    done = equalize(model, None, "weights")
    assert done.nodes == ()
    assert done.lines == ("nothing to equalize: no channel can be scaled",)
    assert {skip.site for skip in done.skips} == {"y"}


@pytest.mark.parametrize("rule", RULES)
def test_silent_channels(build: Builder, tmp_path: Path, rule: Rule) -> None:
    """A channel that is always 0 has no range on either side."""
    model = build(RESIDUAL, SHAPES)
    for name, index in (("w", 1), ("b", 1), ("v", 2)):
        value = model.graph.initializers[name]
        assert value.const_value is not None
        array = value.const_value.numpy().copy()
        array[index] = 0.0
        value.const_value = ir.tensor(array, name=name)
    feeds = _samples(tmp_path, model)
    wanted = _outputs(model, feeds)
    equalize(model, feeds, rule)
    assert _error(_outputs(model, feeds), wanted) < 1e-5


def test_a_factor_that_overflows_changes_nothing(build: Builder) -> None:
    """The writing weights are small and want factors of 1/8, with which the bias leaves float32."""
    graph = "g (float[N, 2] x) => (float[N, 2] y) { a = Gemm (x, w, b)  r = Relu (a)  y = Gemm (r, v) }"
    model = build(graph, {"w": (2, 3), "b": (3,), "v": (3, 2)})
    for name, value in (("w", np.full((2, 3), 1e-3)), ("b", np.full(3, 1e38))):
        model.graph.initializers[name].const_value = ir.tensor(value.astype(np.float32), name=name)
    before = ir.to_proto(model).SerializeToString()
    done = equalize(model, None, "weights")
    assert done.nodes == ()
    assert done.lines == ("not equalized: a constant of a times its factor does not fit float32",)
    assert ir.to_proto(model).SerializeToString() == before


def test_data_that_are_not_finite_are_named(build: Builder, tmp_path: Path) -> None:
    model = build(RESIDUAL, SHAPES)
    feeds = _samples(tmp_path, model)
    value = model.graph.initializers["b"]
    value.const_value = ir.tensor(np.full(4, 3e38, np.float32), name="b")
    with pytest.raises(DataError, match="is not finite on the calibration data"):
        equalize(model, feeds, "activations")


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["resnet20_cifar10", "fastestdet_coco", "unet_sed", "vit_pgd_2_3_16_cifar10"])
def test_real_models_compute_what_they_did(name: str) -> None:
    """Option-A shortcuts, channel shuffles, ConvTranspose, attention; with made-up inputs."""
    path = Path(__file__).resolve().parents[3] / "shared" / "models" / f"{name}.onnx"
    if not path.exists():
        pytest.skip("../shared is not there: the real models are not part of the repository")
    model = modelio.load(path)
    fold(model)
    feeds = synthetic_feeds(model, 0)
    feed = feeds.first(2)
    wanted = run(open_session(model), feed)
    assert equalize(model, feeds, "activations", samples=4).nodes
    for got, exact in zip(run(open_session(model), feed), wanted, strict=True):
        assert _error(got, exact) < 2e-5
