from __future__ import annotations

from math import prod

import numpy as np
import pytest
import tensorly.decomposition as tensorly
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.numeric.tucker import Tucker2, balance, compose, hooi, hosvd, mode_spectra

Float = NDArray[np.float64]
KERNELS = [(), (3,), (3, 3), (1, 5), (2, 3, 2)]


def _weight(seed: int, shape: tuple[int, ...], decay: float = 0.7) -> Float:
    """A weight whose two unfoldings have power-law spectra."""
    rng = np.random.default_rng(seed)
    k = rng.standard_normal(shape)
    for axis in (0, 1):
        n = shape[axis]
        mix = np.linalg.qr(rng.standard_normal((n, n)))[0] * np.arange(1, n + 1) ** -decay
        k = np.moveaxis(np.tensordot(mix, k, (1, axis)), 0, axis)
    return k


def _measured(weight: NDArray[np.floating], factors: Tucker2) -> float:
    w = np.asarray(weight, np.float64)
    return float(((w - compose(factors)) ** 2).sum() / (w**2).sum())


@settings(max_examples=40, deadline=None)
@given(data=st.data(), kernel=st.sampled_from(KERNELS), seed=st.integers(0, 99), dtype=st.sampled_from("efd"))
def test_error_is_the_measured_one_and_factors_are_orthonormal(
    data: st.DataObject, kernel: tuple[int, ...], seed: int, dtype: str
) -> None:
    out, into = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    weight = _weight(seed, (out, into, *kernel)).astype(dtype)
    rank_in = data.draw(st.none() | st.integers(1, into))
    rank_out = data.draw(st.none() | st.integers(1, out))
    factors = hooi(weight, rank_in, rank_out)
    assert compose(factors).dtype == np.float64
    assert factors.error == pytest.approx(_measured(weight, factors), abs=1e-14)
    assert factors.core.shape == (rank_out or out, rank_in or into, *kernel)
    assert (factors.first is None, factors.last is None) == (rank_in is None, rank_out is None)
    if factors.first is not None:
        np.testing.assert_allclose(factors.first @ factors.first.T, np.eye(len(factors.first)), atol=1e-10)
    if factors.last is not None:
        np.testing.assert_allclose(factors.last.T @ factors.last, np.eye(factors.last.shape[1]), atol=1e-10)


@pytest.mark.parametrize("kernel", KERNELS)
def test_full_rank_is_exact(kernel: tuple[int, ...]) -> None:
    weight = _weight(0, (7, 5, *kernel))
    for ranks in [(5, 7), (None, 7), (5, None), (None, None)]:
        factors = hooi(weight, *ranks)
        np.testing.assert_allclose(compose(factors), weight, atol=1e-12)
        assert factors.error < 1e-24


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99))
def test_error_falls_with_either_rank(seed: int) -> None:
    weight = _weight(seed, (12, 10, 3, 3))
    errors = np.array([[hooi(weight, i, o).error for o in range(2, 13, 2)] for i in range(2, 11, 2)])
    assert (np.diff(errors, axis=0) < 1e-12).all()
    assert (np.diff(errors, axis=1) < 1e-12).all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), ranks=st.tuples(st.integers(1, 10), st.integers(1, 12)))
def test_hooi_is_between_the_lower_bound_and_hosvd_and_hosvd_below_the_tails(seed: int, ranks: tuple[int, int]) -> None:
    weight = _weight(seed, (12, 10, 3, 3))
    spectra = mode_spectra(weight)
    tails = [float((s[r:] ** 2).sum() / (s**2).sum()) for s, r in zip(spectra, ranks, strict=True)]
    one, four, start = hooi(weight, *ranks, iterations=1), hooi(weight, *ranks), hosvd(weight, *ranks)
    assert max(tails) - 1e-12 <= four.error <= one.error + 1e-12 <= start.error + 2e-12
    assert start.error <= sum(tails) + 1e-12


def test_tucker1_is_the_truncated_svd() -> None:
    weight = _weight(3, (16, 8, 3, 3))
    for ranks, unfolded in [((None, 5), weight.reshape(16, -1)), ((5, None), np.moveaxis(weight, 1, 0).reshape(8, -1))]:
        s = np.linalg.svd(unfolded, compute_uv=False)
        assert hooi(weight, *ranks).error == pytest.approx((s[5:] ** 2).sum() / (s**2).sum(), rel=1e-10)


def test_agrees_with_tensorly() -> None:
    weight = _weight(4, (20, 16, 3, 3))
    (core, factors), _ = tensorly.partial_tucker(weight, rank=[9, 7], modes=[0, 1], n_iter_max=200, tol=1e-12)
    theirs = np.einsum("abkl,oa,ib->oikl", core, *factors)
    ours = hooi(weight, 7, 9, iterations=50)
    assert ours.error == pytest.approx(float(((weight - theirs) ** 2).sum() / (weight**2).sum()), rel=1e-5)
    np.testing.assert_allclose(compose(ours), theirs, atol=2e-3 * np.abs(weight).max())


def test_spectra_are_the_singular_values() -> None:
    weight = _weight(5, (14, 6, 2))
    into, out = mode_spectra(weight)
    np.testing.assert_allclose(into, np.linalg.svd(np.moveaxis(weight, 1, 0).reshape(6, -1), compute_uv=False))
    exact = np.linalg.svd(weight.reshape(14, -1), compute_uv=False)
    assert out.shape == (14,)
    np.testing.assert_allclose(out[:12], exact, atol=1e-7)
    assert (out[12:] < 1e-7).all()


def test_zero_weight_gives_zero_factors() -> None:
    factors = balance(hooi(np.zeros((6, 4, 3, 3), np.float32), 2, 3))
    assert factors.error == 0.0
    assert not compose(factors).any()
    assert np.isfinite(factors.core).all()


def test_rank_deficient_weight_is_exact_at_its_rank() -> None:
    rng = np.random.default_rng(6)
    weight = np.einsum("oa,abk,bi->oik", *(rng.standard_normal(s) for s in [(12, 3), (3, 2, 5), (2, 9)]))
    assert hooi(weight, 2, 3).error < 1e-14
    assert hooi(weight, 6, 8).error < 1e-14


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), kernel=st.sampled_from(KERNELS), sides=st.sampled_from(["both", "in", "out", "none"]))
def test_balance_keeps_the_product_and_evens_the_inner_channels(seed: int, kernel: tuple[int, ...], sides: str) -> None:
    rng = np.random.default_rng(seed)
    weight = _weight(seed, (8, 6, *kernel), decay=1.5)
    factors = hooi(weight, 4 if sides in ("both", "in") else None, 5 if sides in ("both", "out") else None)
    mixing = rng.standard_normal((6 * prod(kernel), 40))
    for gram in (None, mixing @ mixing.T / 40):
        even = balance(factors, gram)
        np.testing.assert_allclose(compose(even), compose(factors), atol=1e-12)
        assert even.error == factors.error
        x = np.eye(6 * prod(kernel)) * np.sqrt(6 * prod(kernel)) if gram is None else mixing.T
        z = x.reshape(len(x), 6, -1)
        if even.first is not None:
            z = np.einsum("nik,ri->nrk", z, even.first)
            _assert_even(z.transpose(0, 2, 1).reshape(-1, len(even.first)))
        if even.last is not None:
            _assert_even(z.reshape(len(z), -1) @ even.core.reshape(len(even.core), -1).T)


def _assert_even(responses: Float) -> None:
    rms = np.sqrt((responses**2).mean(axis=0))
    np.testing.assert_allclose(rms, rms.mean(), rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-6, 1e3])
def test_balance_leaves_the_magnitude_to_the_last_factor(scale: float) -> None:
    """The groups of a layer share tensors: whatever the size of their weights, inner channels are as loud."""
    loud = balance(hooi(scale * _weight(7, (8, 6, 3, 3)), 4, 5))
    plain = balance(hooi(_weight(7, (8, 6, 3, 3)), 4, 5))
    assert loud.first is not None and plain.first is not None and loud.last is not None and plain.last is not None
    np.testing.assert_allclose(np.abs(loud.first), np.abs(plain.first), rtol=1e-6)
    np.testing.assert_allclose(np.abs(loud.core), np.abs(plain.core), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(np.abs(loud.last), scale * np.abs(plain.last), rtol=1e-6, atol=1e-9 * scale)


def test_parameters_and_ranks() -> None:
    factors = hooi(_weight(8, (8, 6, 3, 3)), 4, 5)
    assert factors.ranks == (4, 5)
    assert factors.parameters == 6 * 4 + 4 * 5 * 9 + 5 * 8
    assert hooi(_weight(8, (8, 6, 3, 3)), None, 5).parameters == 6 * 5 * 9 + 5 * 8


@pytest.mark.parametrize(
    ("ranks", "side"), [((0, 2), "input"), ((7, 2), "input"), ((2, 9), "output"), ((2, -1), "output")]
)
def test_refuses_ranks_out_of_range(ranks: tuple[int, int], side: str) -> None:
    with pytest.raises(ValueError, match=side):
        hooi(_weight(9, (8, 6, 3, 3)), *ranks)


@pytest.mark.parametrize("weight", [np.ones(3), np.ones((0, 2, 3)), np.full((2, 2, 3), np.nan)])
def test_refuses_weights_that_are_none(weight: Float) -> None:
    with pytest.raises(ValueError, match="weight"):
        hosvd(weight, 1, 1)
