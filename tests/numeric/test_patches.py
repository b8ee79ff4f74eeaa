from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnxcomp.numeric.patches import output_shape, patches, patches_at, sample_positions

Array = NDArray[np.float32]


def _convolve(x: Array, weight: Array, strides: list[int], dilations: list[int], pads: list[int]) -> Array:
    """ONNX's reference implementation."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=strides, dilations=dilations, pads=pads)
    outputs = ReferenceEvaluator(node).run(None, {"x": x, "w": weight})
    assert isinstance(outputs, list)
    return np.asarray(outputs[0], np.float32)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), rank=st.integers(1, 3), seed=st.integers(0, 99))
def test_patches_times_weight_is_the_convolution(data: st.DataObject, rank: int, seed: int) -> None:
    def draw(low: int, high: int, n: int = rank) -> list[int]:
        return [data.draw(st.integers(low, high)) for _ in range(n)]

    kernel, strides, dilations, pads, spatial = draw(1, 3), draw(1, 3), draw(1, 2), draw(0, 2, 2 * rank), draw(2, 7)
    assume(all(spatial[a] + pads[a] + pads[a + rank] > (kernel[a] - 1) * dilations[a] for a in range(rank)))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, 3, *spatial)).astype(np.float32)
    weight = rng.standard_normal((4, 3, *kernel)).astype(np.float32)
    unfolded = patches(x, kernel, strides, dilations, pads)
    out = output_shape(spatial, kernel, strides, dilations, pads)
    assert unfolded.shape == (2, prod(out), 3 * prod(kernel))
    assert unfolded.dtype == np.float32
    y = (unfolded @ weight.reshape(4, -1).T).transpose(0, 2, 1).reshape(2, 4, *out)
    np.testing.assert_allclose(y, _convolve(x, weight, strides, dilations, pads), atol=1e-4)
    chosen = sample_positions(rng, 2, prod(out), 3)
    some = patches_at(x, kernel, strides, dilations, pads, chosen)
    expected = np.take_along_axis(unfolded, chosen[:, :, None], axis=1)
    np.testing.assert_array_equal(some, expected.reshape(-1, unfolded.shape[2]))


def test_negative_pads_crop() -> None:
    x = np.arange(6.0, dtype=np.float32).reshape(1, 1, 6)
    np.testing.assert_array_equal(patches(x, [1], [1], [1], [-1, -2]).ravel(), [1, 2, 3])
    np.testing.assert_array_equal(patches(x, [2], [1], [1], [-4, 1])[0], [[4, 5], [5, 0]])


def test_sample_positions() -> None:
    rng = np.random.default_rng(0)
    drawn = sample_positions(rng, 500, 20, 4)
    assert drawn.shape == (500, 4)
    assert (np.diff(drawn, axis=1) > 0).all()
    counts = np.bincount(drawn.ravel(), minlength=20)
    assert counts.min() > 60  # 100 expected each, standard deviation 9
    np.testing.assert_array_equal(sample_positions(rng, 2, 3, 5), [[0, 1, 2], [0, 1, 2]])
    np.testing.assert_array_equal(
        sample_positions(np.random.default_rng(7), 3, 9, 2), sample_positions(np.random.default_rng(7), 3, 9, 2)
    )


def test_refuses_what_does_not_fit() -> None:
    x = np.zeros((1, 1, 4), np.float32)
    with pytest.raises(ValueError, match="does not fit"):
        patches(x, [5], [1], [1], [0, 0])
    with pytest.raises(ValueError, match="spatial axes"):
        patches(x, [3, 3], [1, 1], [1, 1], [0, 0])
    with pytest.raises(ValueError, match="spatial axes"):
        patches(x, [3], [1], [1], [0])
