from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tensorly.decomposition import parafac

from onnxcomp.numeric.cp import (
    CP,
    DIVERGED,
    alternate,
    balance,
    compose,
    divergence,
    orthogonal_terms,
    principal_slices,
    shared,
    slice_terms,
)
from onnxcomp.numeric.cpfit import TermErrors, fit_cp
from onnxcomp.numeric.moments import Moments, regularised, squared_residual

Float = NDArray[np.float64]
CO, CI, TAPS = 10, 8, 9
SHAPES = [(10, 8, 9), (6, 12, 3), (16, 16, 5), (9, 9, 1)]


def _weight(seed: int, shape: tuple[int, ...] = (CO, CI, TAPS)) -> Float:
    """A weight whose directions differ in strength, as those of trained kernels do."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(shape)
    for axis, size in enumerate(shape):
        mixing = rng.standard_normal((size, size)) * np.arange(1, size + 1) ** -0.7
        weight = np.moveaxis(np.tensordot(mixing, weight, (1, axis)), 0, axis)
    return weight


def _factors(seed: int, rank: int, shape: tuple[int, int, int] = (CO, CI, TAPS)) -> CP:
    rng = np.random.default_rng(seed)
    return CP(*(rng.standard_normal(s) for s in ((rank, shape[1]), (rank, shape[2]), (shape[0], rank))))


def _lost_by(weight: Float, fitted: Float) -> float:
    return float(((weight - fitted) ** 2).sum() / (weight**2).sum())


def _lost(weight: Float, factors: CP) -> float:
    return _lost_by(weight, compose(factors))


def _moments(seed: int, n: int = 600) -> Moments:
    """Moments of correlated non-negative patches, as behind a ReLU."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((CI * TAPS, CI * TAPS)) * np.arange(1, CI * TAPS + 1) ** -0.8
    x = np.maximum(rng.standard_normal((n, CI * TAPS)) @ mixing.T + 0.3, 0.0)
    return Moments(x.T @ x / n, x.mean(0), n)


def _output_error(weight: Float, fitted: Float, moments: Moments, damping: float = 1e-2) -> float:
    flat = weight.reshape(len(weight), -1)
    covariance = regularised(moments.with_weight(weight).centred(), flat, damping)
    return squared_residual(fitted.reshape(len(weight), -1), covariance) / float(covariance.yy.sum())


@settings(max_examples=20)
@given(seed=st.integers(0, 99), rank=st.integers(1, 12))
def test_factors_are_multiplied_out(seed: int, rank: int) -> None:
    first, middle, last = factors = _factors(seed, rank)
    assert compose(factors) == pytest.approx(np.einsum("or,ri,rs->ois", last, first, middle))
    terms = np.einsum("or,ri,rs->rois", last, first, middle)
    assert divergence(factors) == pytest.approx((terms**2).sum() / (terms.sum(0) ** 2).sum(), rel=1e-6)


@settings(max_examples=20)
@given(seed=st.integers(0, 99), shape=st.sampled_from(SHAPES), rank=st.integers(1, 30))
def test_orthogonal_terms(seed: int, shape: tuple[int, int, int], rank: int) -> None:
    weight = _weight(seed, shape)
    factors = orthogonal_terms(weight, rank)
    assert [len(f) for f in factors] == [rank, rank, shape[0]]
    assert divergence(factors) == pytest.approx(1.0)
    every = slice_terms(weight, weight.size)
    assert len(every.sizes) == min(shape[:2]) * shape[2]
    assert _lost(weight, orthogonal_terms(weight, len(every.sizes))) <= 1e-20
    assert _lost(weight, factors) == pytest.approx((every.sizes[rank:] ** 2).sum() / (weight**2).sum(), abs=1e-12)
    larger = orthogonal_terms(weight, rank + 3)
    assert larger.first[:rank] == pytest.approx(factors.first)  # smaller ranks are a prefix
    assert (principal_slices(weight) ** 2).sum() == pytest.approx((weight**2).sum())


@settings(max_examples=25)
@given(seed=st.integers(0, 999))
def test_two_terms_are_recovered(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames = [np.linalg.qr(rng.standard_normal((size, 2)))[0] for size in (CI, TAPS, CO)]
    skew = np.eye(2) + 0.2 * rng.uniform(-1.0, 1.0, (2, 2))
    weight = compose(CP((frames[0] @ skew).T, (frames[1] @ skew).T, frames[2] @ skew))
    assert _lost(weight, alternate(weight, 2, sweeps=1000)) <= 1e-10


@settings(max_examples=25)
@given(seed=st.integers(0, 999), ranks=st.lists(st.integers(1, 4), min_size=1, max_size=2))
def test_terms_that_share_kernels_are_recovered(seed: int, ranks: list[int]) -> None:
    rng = np.random.default_rng(seed)
    kernels = np.linalg.qr(rng.standard_normal((TAPS, len(ranks))))[0].T
    outs = np.linalg.qr(rng.standard_normal((CO, sum(ranks))))[0]
    kernel_of = np.repeat(np.arange(len(ranks)), ranks)
    factors = CP(
        rng.standard_normal((sum(ranks), CI)), kernels[kernel_of], np.asarray(outs * 0.25**kernel_of, np.float64)
    )
    weight = compose(factors)
    assert _lost(weight, alternate(weight, sum(ranks))) <= 1e-12


@settings(max_examples=25)
@given(seed=st.integers(0, 99), shape=st.sampled_from(SHAPES), rank=st.integers(1, 20))
def test_sweeps_do_not_raise_the_error_and_do_not_diverge(seed: int, shape: tuple[int, int, int], rank: int) -> None:
    weight = _weight(seed, shape)
    start = orthogonal_terms(weight, rank)
    for sweeps in (0, 3, 40):
        fitted = alternate(weight, rank, sweeps=sweeps)
        assert _lost(weight, fitted) <= _lost(weight, start) + 1e-12
        assert divergence(fitted) <= DIVERGED
    assert _lost(1e-6 * weight, alternate(1e-6 * weight, rank)) == pytest.approx(_lost(weight, alternate(weight, rank)))


@pytest.mark.parametrize("sweeps", [1, 5])
def test_a_sweep_is_that_of_tensorly(sweeps: int) -> None:
    weight = _weight(3)
    unit = weight / np.linalg.norm(weight)
    start = orthogonal_terms(unit, 12)
    begin: Any = (None, [start.first.T.copy(), start.middle.T.copy(), start.last.copy()])
    _, (first, middle, last) = parafac(np.moveaxis(unit, 0, 2), 12, init=begin, n_iter_max=sweeps, tol=0)
    theirs = _lost(unit, CP(first.T, middle.T, last))
    assert _lost(unit, alternate(unit, 12, sweeps=sweeps)) == pytest.approx(theirs, rel=1e-5)
    assert theirs < 0.98 * _lost(unit, start)


def _border(n: float) -> CP:
    """Two terms that approach a tensor of rank three as n grows (de Silva and Lim 2008, proposition 4.6)."""
    a, b = np.eye(2)
    grown = a + b / n
    scaled = np.stack([grown, a])
    return CP(scaled, scaled, np.stack([n * grown, -n * a], axis=1))


def test_terms_that_cancel_are_told() -> None:
    assert divergence(_border(2.0)) < DIVERGED < divergence(_border(20.0)) < divergence(_border(200.0))
    assert divergence(CP(np.zeros((2, 3)), np.ones((2, 4)), np.ones((5, 2)))) == 0.0
    cancelling = CP(np.ones((2, 3)), np.ones((2, 4)), np.array([[1.0, -1.0]]))
    assert divergence(cancelling) == float("inf")


@pytest.mark.parametrize("seed", [3, 5])
def test_a_weight_without_a_best_approximation_does_not_diverge(seed: int) -> None:
    a, b = np.eye(2)
    weight = sum(np.einsum("o,i,s->ois", *t) for t in ((a, a, b), (a, b, a), (b, a, a)))
    weight = np.asarray(weight) + 0.2 * np.random.default_rng(seed).standard_normal((2, 2, 2))
    start = orthogonal_terms(weight, 2)
    begin: Any = (None, [start.first.T.copy(), start.middle.T.copy(), start.last.copy()])
    _, (first, middle, last) = parafac(np.moveaxis(weight, 0, 2), 2, init=begin, n_iter_max=2000, tol=0)
    assert divergence(CP(first.T, middle.T, last)) > 5 * DIVERGED
    fitted = alternate(weight, 2, sweeps=2000)
    assert divergence(fitted) <= DIVERGED
    assert _lost(weight, fitted) < 0.1 * _lost(weight, start)


@settings(max_examples=20)
@given(seed=st.integers(0, 99), rank=st.integers(1, 12), data=st.booleans())
def test_balance_gives_inner_channels_one_range(seed: int, rank: int, data: bool) -> None:
    factors = _factors(seed, rank)
    xx = _moments(seed).xx if data else np.eye(CI * TAPS)
    balanced = balance(factors, xx if data else None)
    assert compose(balanced) == pytest.approx(compose(factors))
    inner = np.einsum("ri,isjs,rj->r", balanced.first, xx.reshape(CI, TAPS, CI, TAPS), balanced.first)
    assert inner == pytest.approx(np.full(rank, inner[0]))
    terms = (balanced.first[:, :, None] * balanced.middle[:, None, :]).reshape(rank, -1)
    after = np.einsum("rd,de,re->r", terms, xx, terms)
    assert after == pytest.approx(np.full(rank, after[0]))
    sizes = [np.abs(f).max() for f in balanced]
    assert sizes == pytest.approx([sizes[0]] * 3)


def test_dead_terms_stay_dead() -> None:
    first, middle, last = _factors(0, 4)
    first[1], last[:, 2] = 0.0, 0.0
    for changed in (balance(CP(first, middle, last)), shared(CP(first, middle, last))):
        assert all(np.isfinite(f).all() for f in changed)
        assert compose(changed) == pytest.approx(compose(CP(first, middle, last)))
    assert compose(balance(CP(0 * first, middle, last))) == pytest.approx(np.zeros((CO, CI, TAPS)))


@settings(max_examples=15)
@given(seed=st.integers(0, 99), rank=st.integers(1, 14))
def test_following_the_data_never_loses_more_than_its_start(seed: int, rank: int) -> None:
    weight, moments = _weight(seed), _moments(seed)
    errors = [
        _output_error(weight, compose(fit_cp(weight, moments, rank, rounds=rounds, sweeps=0)), moments)
        for rounds in (0, 1, 3)
    ]
    assert errors[0] == pytest.approx(TermErrors(weight, moments, rank, sweeps=0)(rank), rel=1e-6, abs=1e-10)
    assert max(errors[1:]) <= errors[0] * (1 + 1e-9)
    assert divergence(fit_cp(weight, moments, rank)) <= DIVERGED


def test_data_beat_weights() -> None:
    ratios: list[float] = []
    for seed in range(10):
        weight, moments = _weight(seed), _moments(seed)
        data, weights = (_output_error(weight, compose(fit_cp(weight, seen, 6)), moments) for seen in (moments, None))
        ratios.append(data / weights)
    assert max(ratios) < 1.0 and np.mean(ratios) < 0.6, ratios


@settings(max_examples=10)
@given(seed=st.integers(0, 99))
def test_errors_of_all_ranks_come_from_one_factorisation(seed: int) -> None:
    weight, moments = _weight(seed), _moments(seed)
    errors = TermErrors(weight, moments, 20, sweeps=0)
    assert errors(5) == pytest.approx(TermErrors(weight, moments, 5, sweeps=0)(5), rel=1e-6)
    falling = [errors(rank) for rank in range(21)]
    assert falling[0] == pytest.approx(1.0)
    assert falling == sorted(falling, reverse=True)
    plain = TermErrors(weight, None, 20, sweeps=0)
    assert plain(7) == pytest.approx(_lost(weight, orthogonal_terms(weight, 7)))
    assert plain(0) == pytest.approx(1.0)
    every = TermErrors(weight, moments, CI * TAPS)
    assert every(CI * TAPS) == pytest.approx(0.0, abs=1e-6)
    assert every(10 * CI * TAPS) == every(CI * TAPS)


@settings(max_examples=15)
@given(seed=st.integers(0, 99), data=st.booleans())
def test_an_estimate_is_nearer_to_what_is_reached(seed: int, data: bool) -> None:
    weight, moments = _weight(seed), _moments(seed) if data else None
    bounds, estimates = (TermErrors(weight, moments, 40, sweeps=sweeps) for sweeps in (0, None))
    assert estimates(0) == bounds(0) == pytest.approx(1.0)
    for rank in (6, 10, 20):
        fitted = compose(fit_cp(weight, moments, rank))
        reached = _lost_by(weight, fitted) if moments is None else _output_error(weight, fitted, moments)
        assert 0.4 * reached < estimates(rank) <= bounds(rank)
        if rank == 10:  # where the gain was measured
            assert abs(estimates(rank) - reached) <= abs(bounds(rank) - reached) + 1e-12


def test_kernels_keep_their_axes_and_zeros_their_place() -> None:
    weight, moments = _weight(1), _moments(1)
    square = weight.reshape(CO, CI, 3, 3)
    for one, other in zip(fit_cp(square, moments, 6), fit_cp(weight, moments, 6), strict=True):
        assert np.array_equal(one, other)  # and two fits give the same bits
    nothing = np.zeros_like(weight)
    for seen in (moments, None):
        assert not compose(fit_cp(nothing, seen, 4)).any()
        assert TermErrors(nothing, seen, 4)(2) == 0.0


def test_what_cannot_be_fitted_is_refused() -> None:
    weight = _weight(0)
    for wrong, rank in ((weight, 0), (weight[0], 3), (weight[:0], 3)):
        with pytest.raises(ValueError, match="rank"):
            alternate(wrong, rank)
    weight[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        alternate(weight, 3)
    with pytest.raises(ValueError, match="do not fit"):
        fit_cp(_weight(0, (CO, CI, 5)), _moments(0), 3)
