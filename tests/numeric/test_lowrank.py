from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.numeric import lowrank
from onnxcomp.numeric.leastsquares import cholesky, reduced_rank
from onnxcomp.numeric.lowrank import RankErrors, fit_tucker2
from onnxcomp.numeric.moments import Moments, predicted_error, project_gram, regularised, squared_residual
from onnxcomp.numeric.tucker import compose, hooi

Float = NDArray[np.float64]
CI, CO, TAPS = 8, 12, 3
SIDES = [(3, 5), (None, 4), (3, None), (None, None), (CI, CO)]


def _moments(x: Float, y: Float | None = None) -> Moments:
    """Moments of rows of patches and targets."""
    n = len(x)
    if y is None:
        return Moments(x.T @ x / n, x.mean(0), n)
    return Moments(x.T @ x / n, x.mean(0), n, y.T @ x / n, y.mean(0), (y**2).mean(0))


def _problem(seed: int, n: int = 400, noise: float = 0.0) -> tuple[Float, Float, Float, Float]:
    """A weight, a bias, correlated non-negative patches (n, d) as after a ReLU, and targets (n, Co)."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((CO, CI, TAPS))
    bias = rng.standard_normal(CO)
    mixing = rng.standard_normal((CI * TAPS, CI * TAPS)) * np.arange(1, CI * TAPS + 1) ** -0.8
    x = np.maximum(rng.standard_normal((n, CI * TAPS)) @ mixing.T + 0.3, 0.0)
    y = x @ weight.reshape(CO, -1).T + bias
    return weight, bias, x, y + noise * y.std() * rng.standard_normal(y.shape)


def _measured(weight: Float, bias: Float, x: Float, y: Float) -> float:
    rest = y - x @ weight.reshape(len(weight), -1).T - bias
    return float((rest**2).sum() / ((y - y.mean(0)) ** 2).sum())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), ranks=st.sampled_from(SIDES))
def test_reported_error_is_the_measured_one(seed: int, ranks: tuple[int | None, int | None]) -> None:
    weight, bias, x, y = _problem(seed, noise=0.1)
    fit = fit_tucker2(weight, bias, _moments(x, y), *ranks)
    assert fit.error == pytest.approx(_measured(compose(fit.factors), fit.bias, x, y), rel=1e-6, abs=1e-12)
    w = compose(fit.factors)
    assert fit.factors.error == pytest.approx(((w - weight) ** 2).sum() / (weight**2).sum(), rel=1e-9, abs=1e-14)
    assert (fit.factors.first is None, fit.factors.last is None) == (ranks[0] is None, ranks[1] is None)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), damping=st.sampled_from([0.0, 1e-2, 1.0]))
def test_symmetric_full_rank_gives_the_weight_back(seed: int, damping: float) -> None:
    weight, bias, x, _ = _problem(seed)
    for full in [(CI, CO), (None, CO), (CI, None), (None, None)]:
        fit = fit_tucker2(weight, bias, _moments(x), *full, damping=damping)
        np.testing.assert_allclose(compose(fit.factors), weight, atol=1e-6)
        np.testing.assert_allclose(fit.bias, bias, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), ranks=st.sampled_from(SIDES[:3]))
def test_beats_the_weights_only_fit_with_its_bias_repaired(seed: int, ranks: tuple[int | None, int | None]) -> None:
    weight, _, x, y = _problem(seed)
    plain = compose(hooi(weight, *ranks))
    repaired = y.mean(0) - plain.reshape(CO, -1) @ x.mean(0)
    fit = fit_tucker2(weight, None, _moments(x, y), *ranks, damping=0.0)
    assert fit.error <= _measured(plain, repaired, x, y) + 1e-9


@pytest.mark.parametrize("direct", [True, False])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), ranks=st.tuples(st.integers(1, CI), st.none() | st.integers(1, CO)))
def test_sweeps_only_lower_the_objective(direct: bool, seed: int, ranks: tuple[int, int | None]) -> None:
    weight, bias, x, y = _problem(seed, noise=0.2)
    moments = _moments(x, y)
    objective = regularised(moments.centred(), weight.reshape(CO, -1), 0.05)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowrank, "_DIRECT_UNKNOWNS", 10**9 if direct else 0)
        fits = [fit_tucker2(weight, bias, moments, *ranks, sweeps=s, damping=0.05) for s in range(4)]
    values = [squared_residual(compose(f.factors).reshape(CO, -1), objective) for f in fits]
    assert (np.diff(values) <= 1e-8 * objective.yy.sum()).all()


def test_conjugate_gradients_reach_the_direct_solution() -> None:
    weight, bias, x, y = _problem(3)
    moments = _moments(x, y)
    errors = []
    for limit in (10**9, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lowrank, "_DIRECT_UNKNOWNS", limit)
            errors.append(fit_tucker2(weight, bias, moments, 3, 5, sweeps=1).error)
    assert errors[1] == pytest.approx(errors[0], rel=1e-2)


def test_one_tap_reaches_the_optimum_of_reduced_rank_regression() -> None:
    """With one tap a chain of two 1x1 is plain RRR, whose optimum the SVD of W L gives (methods 0.4)."""
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((CO, CI, 1))
    x = rng.standard_normal((500, CI)) @ rng.standard_normal((CI, CI))
    centred = x - x.mean(0)
    lower = np.linalg.cholesky(centred.T @ centred / len(x))
    s = np.linalg.svd(weight[:, :, 0] @ lower, compute_uv=False)
    optimum = (s[4:] ** 2).sum() / (s**2).sum()
    for ranks in [(None, 4), (4, None), (4, 4)]:
        fit = fit_tucker2(weight, None, _moments(x), *ranks, damping=0.0)
        assert fit.error == pytest.approx(optimum, rel=1e-6)


def test_asymmetric_form_makes_up_for_a_distorted_input() -> None:
    weight, bias, x, y = _problem(6, n=3000)
    rng = np.random.default_rng(7)
    distorted = x * rng.uniform(0.5, 1.5, x.shape[1]) + 0.2
    blind = fit_tucker2(weight, bias, _moments(x), 6, 10)
    aware = fit_tucker2(weight, bias, _moments(distorted, y), 6, 10)
    assert aware.error < 0.5 * _measured(compose(blind.factors), blind.bias, distorted, y)


@pytest.mark.parametrize("ranks", [(4, 6), (None, 6), (4, None)])
def test_damping_generalises_from_few_patches(ranks: tuple[int | None, int | None]) -> None:
    """30 noisy patches in 24 dimensions: plain fits chase the noise, damped ones beat weights-only on new data."""
    held_out: dict[str, list[float]] = {"weights": [], "plain": [], "damped": []}
    for seed in range(8):
        weight, bias, x, y = _problem(seed, n=4030, noise=0.3)
        few, test = _moments(x[:30], y[:30]), (x[30:], y[30:])
        held_out["weights"].append(_measured(compose(hooi(weight, *ranks)), bias, *test))
        for name, damping in (("plain", 0.0), ("damped", 0.1)):
            fit = fit_tucker2(weight, bias, few, *ranks, damping=damping)
            held_out[name].append(_measured(compose(fit.factors), fit.bias, *test))
    means = {name: np.mean(errors) for name, errors in held_out.items()}
    assert means["damped"] < means["plain"]
    assert means["damped"] < means["weights"]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), rank_in=st.integers(1, CI), rank_out=st.integers(1, CO))
def test_rank_errors_are_those_of_the_fit_before_sweeps(seed: int, rank_in: int, rank_out: int) -> None:
    weight, bias, x, _ = _problem(seed)
    errors = RankErrors(weight, _moments(x), damping=0.0)
    for ranks in [(rank_in, rank_out), (None, rank_out), (rank_in, None), (None, None)]:
        fit = fit_tucker2(weight, bias, _moments(x), *ranks, sweeps=0, damping=0.0)
        assert errors(*ranks) == pytest.approx(fit.error, rel=1e-4, abs=1e-8)
    sides = errors(rank_in, None), errors(None, rank_out)
    assert max(sides) - 1e-8 <= errors(rank_in, rank_out) <= sum(sides) + 1e-8  # of the jitter
    few = RankErrors(weight, _moments(x), rank_in, damping=0.0)
    assert few(rank_in, None) == pytest.approx(errors(rank_in, None), abs=1e-8)
    if rank_in < CI:
        with pytest.raises(ValueError, match=f"input rank {rank_in + 1} is more than the {rank_in} asked for"):
            few(rank_in + 1, None)
    assert RankErrors(np.zeros_like(weight), _moments(x))(rank_in, rank_out) == 0.0


def test_dead_and_duplicate_inputs_and_a_zero_weight() -> None:
    weight, bias, x, _ = _problem(8)
    x[:, 3 * TAPS : 4 * TAPS] = 0.0
    x[:, 4 * TAPS : 5 * TAPS] = x[:, :TAPS]
    for damping in (0.0, 1e-2):
        fit = fit_tucker2(weight, bias, _moments(x), CI - 2, CO, damping=damping)
        assert np.isfinite(compose(fit.factors)).all()
        assert fit.error < 0.05
        nothing = fit_tucker2(np.zeros_like(weight), bias, _moments(x), 3, 4, damping=damping)
        assert np.abs(compose(nothing.factors)).max() < 1e-6
        np.testing.assert_allclose(nothing.bias, bias, atol=1e-6)
    constant = fit_tucker2(weight, bias, _moments(np.ones_like(x)), 3, 4)
    assert np.isfinite(compose(constant.factors)).all()
    np.testing.assert_allclose(
        compose(constant.factors).reshape(CO, -1).sum(1) + constant.bias,
        weight.reshape(CO, -1).sum(1) + bias,
        atol=1e-6,
    )


def test_projected_gram_is_the_dense_one() -> None:
    rng = np.random.default_rng(9)
    first = rng.standard_normal((3, CI))
    gram = rng.standard_normal((CI * TAPS, 50))
    gram = gram @ gram.T
    dense = np.kron(first, np.eye(TAPS))
    np.testing.assert_allclose(project_gram(gram, first), dense @ gram @ dense.T)
    assert project_gram(gram, None) is gram


def test_reduced_rank_is_orthonormal_and_least_squares_at_full_rank() -> None:
    _, _, x, y = _problem(10, noise=0.2)
    lower = cholesky(x.T @ x)
    core, last = reduced_rank(lower, y.T @ x, 5)
    assert last is not None
    np.testing.assert_allclose(last.T @ last, np.eye(5), atol=1e-10)
    free, none = reduced_rank(lower, y.T @ x, None)
    assert none is None
    np.testing.assert_allclose(free, np.linalg.lstsq(x, y, rcond=None)[0].T, atol=1e-6)
    np.testing.assert_allclose(core, last.T @ free, atol=1e-8)


def test_cholesky_refuses_an_indefinite_matrix() -> None:
    with pytest.raises(ValueError, match="semidefinite"):
        cholesky(np.diag([2.0, -1.0]))


def test_refuses_what_does_not_fit() -> None:
    weight, bias, x, _ = _problem(11)
    with pytest.raises(ValueError, match="input rank 9"):
        fit_tucker2(weight, bias, _moments(x), 9, 4)
    with pytest.raises(ValueError, match="output rank 0"):
        fit_tucker2(weight, bias, _moments(x), 3, 0)
    with pytest.raises(ValueError, match="do not fit"):
        fit_tucker2(weight[:, :-1], bias, _moments(x), 3, 4)
    with pytest.raises(ValueError, match="damping"):
        fit_tucker2(weight, bias, _moments(x), 3, 4, damping=-1.0)


def test_prediction_needs_no_samples() -> None:
    weight, bias, x, y = _problem(12, noise=0.1)
    other = weight + 0.1
    assert predicted_error(other, bias, _moments(x, y)) == pytest.approx(_measured(other, bias, x, y))
