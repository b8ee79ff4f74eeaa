from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.calibration.gram import PatchGram
from onnxcomp.errors import DataError
from onnxcomp.graph.geometry import Geometry
from onnxcomp.numeric.moments import Moments
from onnxcomp.numeric.patches import patches

Array = NDArray[np.float32]


def _geometry(*kernel: int, stride: int = 1, group: int = 1, **changes: Any) -> Geometry:
    rank = len(kernel)
    return Geometry(
        kernel,
        changes.pop("strides", (stride,) * rank),
        changes.pop("dilations", (1,) * rank),
        changes.pop("pads", (1,) * rank + (0,) * rank),
        group,
        **changes,
    )


def _unfold(x: Array, g: Geometry) -> NDArray[np.float64]:
    """All patches of a batch, (n, Ci * taps)."""
    return patches(x, g.kernel, g.strides, g.dilations, g.pads).reshape(-1, x.shape[1] * prod(g.kernel)).astype(float)


def _batch(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) + 0.5


def _assert_moments(moments: Moments, rows: NDArray[np.float64], targets: NDArray[np.float64] | None = None) -> None:
    n = len(rows)
    assert moments.count == n
    assert moments.xx.dtype == np.float64
    np.testing.assert_allclose(moments.xx, rows.T @ rows / n, atol=1e-5)
    np.testing.assert_allclose(moments.mean_x, rows.mean(0), atol=1e-6)
    assert moments.has_targets == (targets is not None)
    if targets is not None:
        assert moments.yx is not None
        assert moments.mean_y is not None
        assert moments.yy is not None
        np.testing.assert_allclose(moments.yx, targets.T @ rows / n, atol=1e-5)
        np.testing.assert_allclose(moments.mean_y, targets.mean(0), atol=1e-6)
        np.testing.assert_allclose(moments.yy, (targets**2).mean(0), atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    kernel=st.sampled_from([(3,), (3, 3), (1, 1), (2, 3), (2, 2, 2)]), stride=st.integers(1, 2), seed=st.integers(0, 9)
)
def test_all_patches_over_several_batches(kernel: tuple[int, ...], stride: int, seed: int) -> None:
    g = _geometry(*kernel, stride=stride)
    spatial = (6, 5, 4)[: len(kernel)]
    batches = [_batch(seed + i, n, 3, *spatial) for i, n in enumerate((2, 1, 4))]
    gram = PatchGram(g, 3, 5)
    rows, targets = [], []
    for x in batches:
        found = patches(x, g.kernel, g.strides, g.dilations, g.pads)
        out = tuple(-(-(s + 1 - k + 1) // stride) for s, k in zip(spatial, kernel, strict=True))
        y = _batch(seed + 50, len(x), 5, *out)
        gram.update(x, y)
        rows.append(found.reshape(-1, found.shape[2]).astype(float))
        targets.append(np.moveaxis(y, 1, -1).reshape(-1, 5).astype(float))
    (moments,) = gram.moments()
    _assert_moments(moments, np.concatenate(rows), np.concatenate(targets))


def test_groups_have_moments_of_their_own() -> None:
    g = _geometry(3, 3, group=2)
    x, y = _batch(0, 3, 4, 5, 5), _batch(1, 3, 6, 4, 4)
    gram = PatchGram(g, 4, 6)
    gram.update(x, y)
    targets = np.moveaxis(y, 1, -1).reshape(-1, 6).astype(float)
    for i, moments in enumerate(gram.moments()):
        _assert_moments(moments, _unfold(x[:, 2 * i : 2 * i + 2], g), targets[:, 3 * i : 3 * i + 3])


def test_small_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.calibration.gram._BLOCK_BYTES", 500)
    g = _geometry(3, 3)
    x, y = _batch(0, 3, 4, 5, 5), _batch(1, 3, 6, 4, 4)
    gram = PatchGram(g, 4, 6)
    gram.update(x, y)
    _assert_moments(gram.moments()[0], _unfold(x, g), np.moveaxis(y, 1, -1).reshape(-1, 6).astype(float))


def test_sampling_is_deterministic_and_representative() -> None:
    g = _geometry(3, 3)
    x = _batch(2, 400, 2, 8, 8)

    def sampled(seed: int) -> Moments:
        gram = PatchGram(g, 2, 2, max_positions_per_image=10, seed=seed)
        for part in np.split(x, 8):
            gram.update(part)
        return gram.moments()[0]

    one, again, other = sampled(1), sampled(1), sampled(2)
    assert one.count == 4000
    np.testing.assert_array_equal(one.xx, again.xx)
    assert not np.array_equal(one.xx, other.xx)
    every = PatchGram(g, 2, 2)
    every.update(x)
    np.testing.assert_allclose(one.xx, every.moments()[0].xx, atol=0.12)


def test_max_total_spreads_over_the_samples_or_stops() -> None:
    x = _batch(3, 10, 2, 6, 6)
    spread = PatchGram(_geometry(1, 1, pads=(0, 0, 0, 0)), 2, 2, max_total=30, samples=10)
    stopped = PatchGram(_geometry(1, 1, pads=(0, 0, 0, 0)), 2, 2, max_total=30)
    assert [spread.full, stopped.full] == [False, False]
    for gram in (spread, stopped):
        for part in np.split(x, 10):
            gram.update(part)
        assert gram.full
        assert gram.count == 30
    _assert_moments(stopped.moments()[0], x[0].reshape(2, -1).T[:30].astype(float))
    assert abs(spread.moments()[0].mean_x - x.mean((0, 2, 3))).max() < 0.6


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
def test_same_padding_is_resolved_from_the_batch(auto_pad: str) -> None:
    g = _geometry(2, 2, stride=1, pads=(0, 0, 0, 0), auto_pad=auto_pad)
    x = _batch(4, 2, 3, 4, 4)
    gram = PatchGram(g, 3, 3)
    gram.update(x)
    pads = (0, 0, 1, 1) if auto_pad == "SAME_UPPER" else (1, 1, 0, 0)
    _assert_moments(gram.moments()[0], _unfold(x, _geometry(2, 2, pads=pads)))


def test_transposed_gives_the_channel_gram() -> None:
    gram = PatchGram(_geometry(3, 3, transposed=True), 4, 6)
    x = _batch(6, 3, 4, 5, 5)
    gram.update(x)
    _assert_moments(gram.moments()[0], np.moveaxis(x, 1, -1).reshape(-1, 4).astype(float))
    with pytest.raises(ValueError, match="ConvTranspose"):
        gram.update(x, _batch(7, 3, 6, 5, 5))


def test_kept_patches_are_a_uniform_sample() -> None:
    x = np.arange(2000.0, dtype=np.float32).reshape(500, 1, 2, 2)
    gram = PatchGram(_geometry(1, 1, pads=(0, 0, 0, 0)), 1, 1, keep=400)
    for part in np.split(x, 10):
        gram.update(part, -part)
    (kept,) = gram.kept()
    assert kept.y is not None
    assert kept.x.shape == (400, 1)
    np.testing.assert_array_equal(kept.y, -kept.x)
    assert len(np.unique(kept.x)) == 400
    assert kept.x.mean() == pytest.approx(1000, abs=100)  # standard deviation of the mean: 29
    few = PatchGram(_geometry(1, 1, pads=(0, 0, 0, 0)), 1, 1, keep=400)
    few.update(x[:3])
    np.testing.assert_array_equal(few.kept()[0].x.ravel(), np.arange(12))
    assert few.kept()[0].y is None


def test_half_precision_input() -> None:
    g = _geometry(3, 3)
    x = _batch(8, 3, 2, 5, 5).astype(np.float16)
    gram = PatchGram(g, 2, 2)
    gram.update(x)
    _assert_moments(gram.moments()[0], _unfold(x.astype(np.float32), g))


def test_no_data_and_bad_data() -> None:
    gram = PatchGram(_geometry(3, 3), 2, 2)
    with pytest.raises(DataError, match="no calibration sample"):
        gram.moments()
    x = _batch(9, 1, 2, 5, 5)
    x[0, 0, 2, 2] = np.inf
    gram.update(x)
    with pytest.raises(DataError, match="NaN or Inf"):
        gram.moments()


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ((1, 3, 5, 5), None, "channels"),
        ((1, 2, 5), None, "channels"),
        ((1, 2, 5, 5), (1, 3, 4, 4), "targets"),
        ((2, 2, 5, 5), (1, 2, 4, 4), "targets"),
        ((1, 2, 5, 5), (1, 2, 5, 5), "the convolution gives"),
        ((1, 2, 1, 1), None, "does not fit"),
    ],
)
def test_refuses_what_does_not_fit(x: tuple[int, ...], y: tuple[int, ...] | None, message: str) -> None:
    gram = PatchGram(_geometry(3, 3), 2, 2)
    with pytest.raises(ValueError, match=message):
        gram.update(_batch(0, *x), None if y is None else _batch(1, *y))


def test_targets_come_always_or_never() -> None:
    gram = PatchGram(_geometry(3, 3), 2, 2)
    gram.update(_batch(0, 1, 2, 5, 5))
    with pytest.raises(ValueError, match="every batch or with none"):
        gram.update(_batch(0, 1, 2, 5, 5), _batch(1, 1, 2, 4, 4))
