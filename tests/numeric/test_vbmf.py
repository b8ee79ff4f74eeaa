from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.numeric.vbmf import evbmf_from_singular_values, evbmf_rank


def _planted(seed: int, rows: int, cols: int, rank: int, noise: float) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, cols)) / np.sqrt(cols)
    noisy: NDArray[np.float64] = signal + noise * rng.standard_normal((rows, cols))
    return noisy


@pytest.mark.parametrize(("rows", "cols", "rank"), [(64, 576, 8), (256, 2304, 40), (96, 100, 5), (300, 40, 3)])
def test_recovers_a_planted_rank_and_the_noise(rows: int, cols: int, rank: int) -> None:
    result = evbmf_rank(_planted(1, rows, cols, rank, 0.02))
    assert result.rank == rank
    assert result.noise_variance == pytest.approx(0.02**2, rel=0.05)


def test_pure_noise_has_rank_zero() -> None:
    result = evbmf_rank(_planted(2, 64, 576, 0, 1.0))
    assert result.rank == 0
    assert result.noise_variance == pytest.approx(1.0, rel=0.05)


def test_noiseless_low_rank_is_found_exactly() -> None:
    assert evbmf_rank(_planted(3, 40, 90, 7, 0.0)).rank == 7


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 5), (3, 50)])
def test_zero_matrix(shape: tuple[int, int]) -> None:
    result = evbmf_rank(np.zeros(shape, np.float32))
    assert (result.rank, result.noise_variance, result.threshold) == (0, 0.0, 0.0)


@pytest.mark.parametrize("matrix", [np.ones((1, 1)), np.ones((1, 9)), np.eye(4), np.full((6, 3), 1e-200)])
def test_degenerate_matrices_give_finite_results(matrix: NDArray[np.float64]) -> None:
    result = evbmf_rank(matrix)
    assert 0 <= result.rank <= min(matrix.shape)
    assert np.isfinite([result.noise_variance, result.threshold]).all()


def test_huge_values_do_not_overflow() -> None:
    s = np.array([3e200, 1e190, 1e190, 1e190])
    assert evbmf_from_singular_values(s, 4, 40).rank == 1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-6, 0.3, 7.0, 1e5]), rank=st.integers(0, 6))
def test_rank_ignores_scale_and_orientation(seed: int, scale: float, rank: int) -> None:
    y = _planted(seed, 24, 80, rank, 0.05)
    result = evbmf_rank(y)
    turned = evbmf_rank(scale * y.T)
    assert turned.rank == result.rank
    assert turned.noise_variance == pytest.approx(scale**2 * result.noise_variance, rel=1e-4)


def test_threshold_separates_the_singular_values() -> None:
    y = _planted(5, 64, 256, 6, 0.05)
    s = np.linalg.svd(y, compute_uv=False)
    result = evbmf_from_singular_values(s, 64, 256)
    assert s[result.rank - 1] > result.threshold >= s[result.rank]
    assert result == evbmf_from_singular_values(s[::-1], 256, 64)


def test_noise_variance_is_the_global_minimum_of_the_free_energy() -> None:
    """Nakajima et al. 2013, equations 31-33, written out here a second time and scanned densely."""
    rows, cols = 30, 90
    s = np.linalg.svd(_planted(6, rows, cols, 4, 0.1), compute_uv=False)
    alpha = rows / cols
    result = evbmf_from_singular_values(s, rows, cols)
    x_bar = result.threshold**2 / (cols * result.noise_variance)

    def free_energy(variance: float) -> float:
        total = 0.0
        for x in s**2 / (cols * variance):
            total += x - np.log(x)
            if x > x_bar:
                tau = 0.5 * (x - (1 + alpha) + np.sqrt((x - (1 + alpha)) ** 2 - 4 * alpha))
                total += np.log(tau + 1) + alpha * np.log(tau / alpha + 1) - tau
        return total

    lowest = min(free_energy(v) for v in np.geomspace(0.2, 3.0, 400) * result.noise_variance)
    assert free_energy(result.noise_variance) <= lowest + 1e-6


def test_detection_edge_is_exact() -> None:
    # alpha = 1: tau-bar is 2.5129 (Nakajima et al.), so x-bar = 3.5129 (1 + 1 / 2.5129).
    result = evbmf_from_singular_values(np.ones(50), 50, 50)
    x_bar = result.threshold**2 / (50 * result.noise_variance)
    assert x_bar == pytest.approx(3.5129 * (1 + 1 / 2.5129), rel=1e-4)


@pytest.mark.parametrize("matrix", [np.zeros(3), np.zeros((0, 3)), np.array([[np.nan]]), np.array([[np.inf, 1.0]])])
def test_refuses_what_is_no_finite_matrix(matrix: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match=r"matrix"):
        evbmf_rank(matrix)


def test_refuses_bad_singular_values() -> None:
    with pytest.raises(ValueError, match="not negative"):
        evbmf_from_singular_values(np.array([-1.0]), 2, 2)
    with pytest.raises(ValueError, match="shape"):
        evbmf_from_singular_values(np.array([1.0]), 0, 2)
