from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxcomp.data import synthetic_feeds
from onnxcomp.data.synthetic import noise_image
from onnxcomp.errors import DataError

ModelOf = Callable[..., ir.Model]


def parsed(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}'))


def values(model: ir.Model, seed: int = 0, count: int = 64) -> np.ndarray:
    name = model.graph.inputs[0].name
    assert name is not None
    return np.concatenate([b[name] for b in synthetic_feeds(model, seed, count).batches()])


def test_same_seed_same_samples_whatever_the_batch(model_of: ModelOf) -> None:
    free, fixed = model_of(x=["N", 3, 16, 16]), model_of(x=[5, 3, 16, 16])
    x = values(free)
    np.testing.assert_array_equal(x, values(free))
    np.testing.assert_array_equal(x, values(fixed)[:64])
    assert (x != values(free, seed=1)).any()


def test_feeds_say_that_they_are_made_up(model_of: ModelOf) -> None:
    feeds = synthetic_feeds(model_of(x=[5, 3, 16, 16]), 7)
    assert feeds.synthetic and feeds.labels is None
    assert len(feeds) == 65 and sum(len(b["x"]) for b in feeds.batches()) == 65
    assert feeds.describe() == "65 synthetic samples from seed 7 (x float32[5,3,16,16])"


def test_images_look_normalised_by_default(model_of: ModelOf) -> None:
    x = values(model_of(x=["N", 3, 32, 32]))
    assert x.dtype == np.float32 and np.abs(x).max() <= np.float32(2.7)
    assert abs(float(x.mean())) < 0.3 and 0.7 < float(x.std()) < 1.3
    flat = x[7::8].reshape(-1, 32 * 32)
    assert np.ptp(flat, axis=1).max() == 0
    assert np.ptp(x[:7].reshape(7, -1), axis=1).min() > 0.5


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 3, 16]), st.integers(4, 40), st.integers(4, 40))
def test_noise_images_are_standardised_and_finite(seed: int, channels: int, height: int, width: int) -> None:
    image = noise_image(np.random.default_rng(seed), channels, height, width)
    assert image.shape == (channels, height, width) and np.isfinite(image).all()
    np.testing.assert_allclose([image.mean(), image.std()], [0, 1], atol=1e-9)


def test_noise_spectrum_falls_with_frequency() -> None:
    rng = np.random.default_rng(0)
    power = sum(np.abs(np.fft.fft2(noise_image(rng, 1, 64, 64)[0])) ** 2 for _ in range(20))
    low, high = np.asarray(power)[0, 1:4].mean(), np.asarray(power)[0, 24:32].mean()
    assert 30 < low / high < 3000  # 1/f amplitude: about (28 / 2) ** 2 = 196 in power


@pytest.mark.parametrize(
    ("body", "low", "high"),
    [
        (
            "c = Constant <value = float {0.5}> () d = Constant <value = float {0.25}> () a = Sub(x, c) y = Div(a, d)",
            0,
            1,
        ),
        ("c = Constant <value = float {127.0}> () a = Sub(x, c) y = Relu(a)", 0, 255),
        ("c = Constant <value = float {0.00392}> () a = Mul(c, x) y = Relu(a)", 0, 255),
        ("c = Constant <value = float {255.0}> () t = Transpose <perm = [0, 2, 3, 1]> (x) y = Div(t, c)", 0, 255),
        ("y = Relu(x)", -2.7, 2.7),
        ("c = Constant <value = float {1.0}> () y = Add(x, c)", -2.7, 2.7),
        ("y = Add(x, x)", -2.7, 2.7),
    ],
)
def test_the_span_follows_the_models_own_normalisation(body: str, low: float, high: float) -> None:
    x = values(parsed(f"g (float[N, 3, 16, 16] x) => (float[A, B, C, D] y) {{ {body} }}"))
    assert x.min() >= np.float32(low) and x.max() <= np.float32(high)
    assert np.ptp(x) > 0.7 * (high - low)


def test_the_span_follows_a_leading_batch_norm() -> None:
    stats = (
        "float[3] g = {1, 1, 1}, float[3] b = {0, 0, 0}, float[3] m = {120, 110, 100}, float[3] v = {3600, 3600, 3600}"
    )
    text = f"g (float[N, 3, 16, 16] x) => (float[A, B, C, D] y) <{stats}> {{ y = BatchNormalization(x, g, b, m, v) }}"
    x = values(parsed(text))
    assert x.min() >= 0 and x.max() <= 255 and x.max() > 200


@pytest.mark.parametrize(
    ("zero", "low", "high"),
    [("uint8 z = {128}", -12.8, 12.7), ("int8 z = {0}", -12.8, 12.7), ("uint8 z = {0}", 0, 25.5)],
)
def test_the_span_follows_a_quantized_input(zero: str, low: float, high: float) -> None:
    kind = zero.split()[0]
    signature = f"g (float[N, 3, 16, 16] x) => ({kind}[N, 3, 16, 16] y)"
    x = values(parsed(f"{signature} <float s = {{0.1}}, {zero}> {{ y = QuantizeLinear(x, s, z) }}"))
    assert x.min() >= low - 1e-5 and x.max() <= high + 1e-5 and np.ptp(x) > 0.7 * (high - low)


@pytest.mark.parametrize(
    ("shape", "kind", "low", "high"),
    [
        (["N", 3, 8, 8], TensorProto.UINT8, 0, 255),
        (["N", 8, 8, 3], TensorProto.UINT8, 0, 255),
        (["N", 3, 8, 8], TensorProto.INT8, 0, 127),
        (["N", 7], TensorProto.INT64, 0, 1),
        (["N", 7], TensorProto.BOOL, 0, 1),
        (["N", 1, 8, 8], TensorProto.BOOL, 0, 1),
    ],
)
def test_integer_inputs(model_of: ModelOf, shape: list[int | str], kind: int, low: int, high: int) -> None:
    x = values(model_of(x=(shape, kind)))
    assert x.dtype == helper.tensor_dtype_to_np_dtype(kind)
    assert x.min() >= low and x.max() <= high and x.max() > (low + high) // 2


def test_indices_stay_within_the_table() -> None:
    table = "float[5, 2] t = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}"
    x = values(parsed(f"g (int64[N, 9] x) => (float[N, 9, 2] y) <{table}> {{ y = Gather(t, x) }}"))
    assert x.shape == (64, 9) and set(np.unique(x)) == {0, 1, 2, 3, 4}


def test_other_ranks_get_standard_normal_values(model_of: ModelOf) -> None:
    feeds = synthetic_feeds(model_of(x=["N", 200], t=[], v=([3, 4], TensorProto.FLOAT16)), 0)
    batches = list(feeds.batches())
    assert [b["v"].shape for b in batches] == [(3, 4)] * len(batches)
    assert all(b["t"].shape == () and b["v"].dtype == np.float16 for b in batches)
    assert abs(float(np.std(np.concatenate([b["x"] for b in batches]).astype(np.float64))) - 1) < 0.1


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        (["N", 3, "H", "W"], TensorProto.FLOAT, r"not only its batch is free; give --shapes x:1x3x\.\.\.x\.\.\."),
        (["N", None], TensorProto.FLOAT, "give --shapes"),
        ([2, "N", 128], TensorProto.FLOAT, r"give --shapes x:2x\.\.\.x128"),
        (None, TensorProto.FLOAT, "has no shape in the model; give --shapes or data"),
        (["N", 3], TensorProto.STRING, "is text"),
        (["N", 0], TensorProto.FLOAT, "axis of 0"),
        ([0, 3], TensorProto.FLOAT, "axis of 0"),
    ],
)
def test_inputs_that_cannot_be_made_up(
    model_of: ModelOf, shape: list[int | str | None] | None, kind: int, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        synthetic_feeds(model_of(x=(shape, kind)), 0)
    assert caught.value.exit_code == 2


def test_given_shapes_settle_free_axes(model_of: ModelOf) -> None:
    feeds = synthetic_feeds(model_of(x=["N", 3, "H", "W"]), 0, 4, shapes={"x": (2, 3, 10, 12)})
    assert [b["x"].shape for b in feeds.batches()] == [(2, 3, 10, 12)] * 2


@pytest.mark.parametrize(("seed", "count"), [(-1, 4), (0, 0)])
def test_bad_seed_or_count(model_of: ModelOf, seed: int, count: int) -> None:
    with pytest.raises(DataError, match="at least"):
        synthetic_feeds(model_of(x=["N", 3]), seed, count)
