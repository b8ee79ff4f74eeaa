"""Scales, zero points, int8 weights, int32 biases and bias correction: arrays in, arrays out."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.graph.geometry import Geometry
from onnxcomp.quantize.correction import conv_shift, product_shift
from onnxcomp.quantize.parameters import Limits, affine, as_run_here, parameters_for, symmetric, uncut
from onnxcomp.quantize.weights import bias_floors, quantize_bias, quantize_weight
from onnxcomp.targets.target import load_target

finite = st.floats(-1e6, 1e6, width=32)


@given(finite, finite)
def test_the_range_is_covered_to_within_half_a_step(a: float, b: float) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    parameters = affine(low, high, Limits())
    assert 0 <= parameters.zero_point <= 255
    assert parameters.low <= low + 0.51 * parameters.scale
    assert parameters.high >= high - 0.51 * parameters.scale


@given(finite, finite, st.sampled_from([Limits(0.0, inf), Limits(0.0, 6.0), Limits(-1.0, 1.0), Limits(-0.3, 7.1)]))
def test_limits_saturate_the_type(a: float, b: float, limits: Limits) -> None:
    parameters = affine(min(a, b), max(a, b), limits)
    for limit, level in ((limits.low, 0), (limits.high, 255)):
        if np.isfinite(limit):
            stored = np.clip(round(limit / parameters.scale) + parameters.zero_point, 0, 255)
            assert stored == level


def test_relu_has_zero_point_0_and_relu6_a_scale_of_at_most_6_over_255() -> None:
    assert affine(-0.1, 3.0, Limits(low=0.0)).zero_point == 0
    clipped = affine(0.0, 100.0, Limits(0.0, 6.0))
    assert clipped.zero_point == 0
    assert clipped.scale == pytest.approx(6 / 255)
    assert affine(0.0, 0.0, Limits()).scale == pytest.approx(1 / 255)
    with pytest.raises(ValueError, match="not finite"):
        affine(0.0, inf, Limits())


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [7, 8])
def test_weights_are_within_half_a_step_of_the_original(axis: int, bits: int) -> None:
    weight = np.random.default_rng(0).standard_normal((6, 5, 3)).astype(np.float32)
    quantized = quantize_weight(weight, axis, bits=bits, method="minmax")
    assert quantized.values.dtype == np.int8
    assert np.abs(quantized.values).max() == 2 ** (bits - 1) - 1
    step = np.expand_dims(quantized.scales, [k for k in range(3) if k != axis])
    assert (np.abs(quantized.restored() - weight) <= 0.501 * step).all()


def test_least_squares_scales_are_no_worse_and_better_with_outliers() -> None:
    weight = np.random.default_rng(1).standard_t(3, (16, 400)).astype(np.float32)
    errors = [
        np.square(quantize_weight(weight, 0, bits=7, method=m).restored() - weight).sum(axis=1)
        for m in ("mse", "minmax")
    ]
    assert (errors[0] <= errors[1] * (1 + 1e-6)).all()
    assert errors[0].sum() < 0.99 * errors[1].sum()


def test_weights_on_a_grid_are_exact() -> None:
    levels = np.random.default_rng(2).integers(-90, 91, (8, 16, 3, 3))
    levels[0] = 0
    weight = (levels * 0.0123).astype(np.float32)
    assert np.allclose(quantize_weight(weight, 0).restored(), weight, rtol=1e-5, atol=0)
    assert not np.allclose(quantize_weight(weight, 0, method="minmax").restored(), weight, rtol=1e-3, atol=0)


@given(st.floats(1e-30, 1.0), st.floats(-100, 100), st.floats(1e-6, 10))
def test_no_bias_overflows_the_accumulator(weight: float, bias: float, input_scale: float) -> None:
    w, b = np.full((1, 4), weight, np.float32), np.array([bias], np.float32)
    quantized = quantize_weight(w, 0, floors=bias_floors(b, input_scale))
    stored = quantize_bias(b, input_scale, quantized.scales)
    assert abs(int(stored.values[0])) <= 2**30 * 1.01
    restored = stored.values[0] * np.float64(stored.scales[0])
    assert restored == pytest.approx(b[0], rel=1e-6, abs=1.01 * float(stored.scales[0]))


@pytest.mark.parametrize("group", [1, 2])
def test_conv_shift_is_the_mean_of_the_error_for_an_input_of_its_means(group: int) -> None:
    rng = np.random.default_rng(3)
    error = rng.standard_normal((4, 6 // group, 3, 3)).astype(np.float32)
    means = rng.standard_normal(6)
    geometry = Geometry((3, 3), (2, 1), (1, 2), (1, 0, 1, 2), group)
    padded = np.pad(np.broadcast_to(means[:, None, None], (6, 7, 8)), ((0, 0), (1, 1), (0, 2)))
    rows, columns = (7 + 2 - 3) // 2 + 1, 8 + 2 - 4
    expected = np.zeros(4)
    for o in range(4):
        inputs = slice((o // (4 // group)) * (6 // group), (o // (4 // group) + 1) * (6 // group))
        for i in range(rows):
            for j in range(columns):
                expected[o] += (error[o] * padded[inputs, 2 * i : 2 * i + 3, j : j + 5 : 2]).sum()
    shift = conv_shift(error, means, geometry, (7, 8))
    assert shift == pytest.approx(expected / (rows * columns), rel=1e-4)


def test_shifts_without_a_known_size_and_of_products() -> None:
    error = np.arange(6, dtype=np.float32).reshape(2, 3, 1)
    geometry = Geometry((1,), (1,), (1,), (0, 0))
    assert conv_shift(error, np.ones(3), geometry, (None,)).tolist() == [3.0, 12.0]
    assert product_shift(error[..., 0], np.ones(3), 0).tolist() == [3.0, 12.0]
    assert product_shift(error[..., 0].T, np.ones(3), 1).tolist() == [3.0, 12.0]


@given(finite, finite)
def test_symmetric_parameters_cover_the_range_and_are_positive(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    parameters = symmetric(low, high)
    assert (parameters.zero_point, parameters.dtype) == (0, "int8")
    assert parameters.scale > 0
    assert 127 * parameters.scale >= max(-low, high, 0.0) * (1 - 1e-6)


@given(finite, finite, st.sampled_from([Limits(), Limits(0.0, inf), Limits(0.0, 6.0)]))
def test_int8_and_uint8_are_one_grid(a: float, b: float, limits: Limits) -> None:
    unsigned = affine(min(a, b), max(a, b), limits)
    signed = unsigned.signed()
    assert (signed.scale, signed.zero_point, signed.dtype) == (unsigned.scale, unsigned.zero_point - 128, "int8")
    assert signed.unsigned() == unsigned == unsigned.unsigned()
    assert signed.signed() == signed
    assert (signed.low, signed.high) == (unsigned.low, unsigned.high)
    values = np.linspace(1.2 * unsigned.low, 1.2 * unsigned.high, 50, dtype=np.float32)
    assert np.array_equal(uncut(values, signed), uncut(values, unsigned))


def test_the_scheme_decides_on_the_parameters() -> None:
    schemes = [load_target(name).scheme for name in ("ort-x86", "ort-arm", "tensorrt")]
    found = [parameters_for(scheme, -1.0, 3.0, Limits(low=0.0)) for scheme in schemes if scheme is not None]
    unsigned = affine(0.0, 3.0, Limits(low=0.0))
    assert found == [unsigned, unsigned.signed(), symmetric(-1.0, 3.0)]
    tried = [as_run_here(s, {"t": p})["t"] for s, p in zip(schemes, found, strict=True) if s is not None]
    assert tried == [unsigned, unsigned, symmetric(-1.0, 3.0)]
    assert symmetric(0.0, 0.0).scale == pytest.approx(1 / 127)
    with pytest.raises(ValueError, match="not finite"):
        symmetric(-inf, 0.0)
