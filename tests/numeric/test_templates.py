"""Templates: k-lines whatever the sign, what they hold exactly, the grids of coefficients, and what the Gram gains."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.numeric.blockwise import damped, loss
from onnxcomp.numeric.templates import Coefficients, Linear, coefficient_ratio, find_templates, fit_linear

Float = NDArray[np.float64]

seeds = st.integers(0, 2**32 - 1)
COEFFICIENTS: tuple[Coefficients, ...] = ("fp32", "fp16", "int8", "int4")


def _lines(rng: np.random.Generator, count: int, taps: int = 9) -> Float:
    """Directions of mean 0 and norm 1, far from each other."""
    basis = np.linalg.qr(np.concatenate([np.ones((taps, 1)), rng.standard_normal((taps, taps - 1))], axis=1))[0]
    return np.asarray(basis[:, 1 : count + 1].T, np.float64)


def _planted(seed: int, count: int, kernels: int = 120) -> tuple[Float, Float]:
    """Kernels a T + b of a few templates T, of both signs."""
    rng = np.random.default_rng(seed)
    lines = _lines(rng, count)
    a = rng.uniform(0.5, 2.0, kernels) * rng.choice([-1.0, 1.0], kernels)
    own = np.concatenate([np.arange(count), rng.integers(0, count, kernels - count)])
    return a[:, None] * lines[own] + rng.normal(0, 1, (kernels, 1)), lines


def _problem(seed: int, groups: int = 1, rows: int = 12, channels: int = 4) -> tuple[Float, Float]:
    """Kernels of 3x3, smooth as trained ones are, and Grams of correlated inputs."""
    rng = np.random.default_rng(seed)
    d = 9 * channels
    smooth = np.exp(-np.square(np.arange(9)[:, None] - np.arange(9)) / 2)
    target = (rng.standard_normal((groups, rows * channels, 9)) @ smooth).reshape(groups, rows, d)
    power = np.exp(rng.normal(0, 1, (groups, 1, d)))
    x = power * (rng.standard_normal((groups, 4 * d, d)) + 2 * rng.standard_normal((groups, 4 * d, 1)))
    return target, np.swapaxes(x, 1, 2) @ x / (4 * d)


def _templates(target: Float, count: int) -> Float:
    return find_templates([target.reshape(-1, 9)], count)


def _error(coder: Linear, target: Float, gram: Float | None) -> float:
    return float(loss(coder.values(), target, gram).sum() / loss(np.zeros_like(target), target, gram).sum())


@given(seeds, st.integers(1, 6))
@settings(max_examples=15)
def test_templates_have_mean_zero_and_norm_one(seed: int, count: int) -> None:
    kernels = np.random.default_rng(seed).standard_normal((60, 9)) + 3.0
    found = find_templates([kernels], count, seed=seed)
    assert found.shape == (count, 9)
    np.testing.assert_allclose(found.mean(axis=1), 0.0, atol=1e-12)
    np.testing.assert_allclose(np.square(found).sum(axis=1), 1.0)


@given(seeds, st.integers(1, 6))
@settings(max_examples=15)
def test_kernels_of_few_shapes_are_held_exactly(seed: int, count: int) -> None:
    kernels, lines = _planted(seed, count)
    found = find_templates([kernels], count, seed=seed)
    np.testing.assert_allclose(np.abs(found @ lines.T).max(axis=0), 1.0, atol=1e-9)
    target = kernels.reshape(1, 10, -1)
    coder = fit_linear(target, None, found, "fp32")
    np.testing.assert_allclose(coder.values(), target, atol=1e-5)


@given(seeds)
@settings(max_examples=10)
def test_signs_and_planes_change_nothing(seed: int) -> None:
    """Pearson correlation does not hear of them."""
    rng = np.random.default_rng(seed)
    kernels = rng.standard_normal((80, 9))
    turned = kernels * rng.choice([-1.0, 1.0], (80, 1)) + rng.normal(0, 5, (80, 1))
    one, other = (find_templates([own], 6, seed=1) for own in (kernels, turned))
    np.testing.assert_allclose(np.abs(one @ other.T).max(axis=1), 1.0, atol=1e-6)


def test_layers_count_alike_and_kernels_by_their_energy() -> None:
    first, second = _planted(0, 1, 40)[0], _planted(1, 1, 40)[0]
    lines = [_planted(seed, 1, 40)[1][0] for seed in (0, 1)]
    (both,) = find_templates([1000 * first, first[:0], second], 1)
    alone = np.abs([both @ line for line in lines])
    assert abs(alone[0] - alone[1]) < 0.5 * max(alone)
    (strong,) = find_templates([np.concatenate([1000 * first, second])], 1)
    assert abs(strong @ lines[0]) > 1 - 1e-5


def test_fewer_kernels_than_templates() -> None:
    kernels, _ = _planted(2, 2, 3)
    found = find_templates([kernels], 8)
    assert (np.square(found).sum(axis=1) > 0).sum() == 3
    np.testing.assert_allclose(fit_linear(kernels[None], None, found, "fp32").values(), kernels[None], atol=1e-5)
    assert not find_templates([np.ones((5, 9))], 4).any()


def test_a_seed_decides_all_of_it() -> None:
    kernels = np.random.default_rng(0).standard_normal((3000, 9))
    first, again, other = (find_templates([kernels], 4, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@given(seeds, st.sampled_from(COEFFICIENTS), st.booleans())
@settings(max_examples=16)
def test_coefficients_lie_on_their_grid(seed: int, kind: Coefficients, blind: bool) -> None:
    target, gram = _problem(seed, groups=2, rows=4)
    ratio = coefficient_ratio([target.reshape(-1, 9)])
    coder = fit_linear(target, None if blind else gram, _templates(target, 8), kind, ratio=ratio)
    kernels = coder.a[..., None] * coder.templates[coder.index] + coder.b[..., None]
    np.testing.assert_allclose(coder.values(), kernels.reshape(target.shape), atol=1e-12)
    if kind in ("fp32", "fp16"):
        dtype = np.float32 if kind == "fp32" else np.float16
        for own in (coder.a, coder.b):
            np.testing.assert_array_equal(own, own.astype(dtype))
        return
    a, b = coder.whole()
    top = 127 if kind == "int8" else 7
    assert max(np.abs(a).max(), np.abs(b).max()) <= top
    assert max(np.abs(a).max(), np.abs(b).max()) > 0.8 * top
    assert coder.steps.shape == (2, 4) and (coder.steps > 0).all()
    np.testing.assert_allclose(a * coder.ratio * coder.steps[..., None], coder.a, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(b * coder.steps[..., None], coder.b, rtol=1e-9, atol=1e-12)


def test_finer_coefficients_and_more_templates_err_less() -> None:
    target, gram = _problem(3)
    by_kind = [_error(fit_linear(target, gram, _templates(target, 8), kind), target, gram) for kind in COEFFICIENTS]
    assert by_kind[0] <= 1.001 * by_kind[1] <= 1.002 * by_kind[2] < 0.9 * by_kind[3]
    by_count = [_error(fit_linear(target, gram, _templates(target, m), "int8"), target, gram) for m in (32, 8, 2)]
    assert by_count == sorted(by_count) and by_count[0] < 0.3 * by_count[2]


def test_constant_kernels_have_no_shape() -> None:
    target, gram = _problem(4, rows=4)
    target[0, 1] = np.repeat([1.0, -2.0, 0.5, 0.0], 9)
    for kind in COEFFICIENTS:
        coder = fit_linear(target, None, _templates(target, 8), kind)
        assert np.abs(coder.a[0, 1]).max() < 1e-9
        np.testing.assert_allclose(coder.b[0, 1], [1.0, -2.0, 0.5, 0.0], atol=0.2)
    plain = np.full((1, 2, 18), 0.7)
    for own in (None, gram[:, :18, :18]):
        coder = fit_linear(plain, own, np.zeros((4, 9)), "fp32")
        assert not coder.a.any()
        np.testing.assert_allclose(coder.values(), plain, rtol=1e-5)


@given(seeds, st.sampled_from(COEFFICIENTS))
@settings(max_examples=10)
def test_templates_of_most_correlation_stay(seed: int, kind: Coefficients) -> None:
    target, gram = _problem(seed)
    templates = _templates(target, 8)
    coder = fit_linear(target, gram, templates, kind, correlated=True)
    kernels = target.reshape(1, 12, 4, 9)
    centred = kernels - kernels.mean(axis=3, keepdims=True)
    np.testing.assert_array_equal(coder.index, np.abs(centred @ templates.T).argmax(axis=3))
    free = fit_linear(target, gram, templates, kind)
    assert (free.index != coder.index).any()


@pytest.mark.parametrize("kind", COEFFICIENTS)
def test_the_outputs_gain_by_the_gram(kind: Coefficients) -> None:
    """Most where the data choose the templates as well."""
    errors = np.zeros(3)
    for seed in range(4):
        target, gram = _problem(seed)
        templates, fitted = _templates(target, 8), damped(gram, 0.0)
        made = (
            fit_linear(target, gram, templates, kind),
            fit_linear(target, gram, templates, kind, correlated=True),
            fit_linear(target, None, templates, kind),
        )
        errors += [_error(coder, target, fitted) for coder in made]
    assert errors[0] < 0.9 * errors[1] and errors[1] < 0.8 * errors[2], errors


@pytest.mark.parametrize("channels", [1, 2])
def test_each_group_has_its_gram(channels: int) -> None:
    """Depthwise: one kernel a group."""
    target, gram = _problem(5, groups=16, rows=1, channels=channels)
    coders = [fit_linear(target, own, _templates(target, 6), "int8") for own in (gram, None)]
    errors = [_error(coder, target, gram) for coder in coders]
    assert coders[0].index.shape == (16, 1, channels) and errors[0] < 0.8 * errors[1]


def test_dead_inputs_and_kernels_do_no_harm() -> None:
    target, gram = _problem(6, groups=2, rows=4)
    target[0, 1] = 0.0
    gram[1], gram[0, :9], gram[0, :, :9] = 0.0, 0.0, 0.0
    for kind in COEFFICIENTS:
        coder = fit_linear(target, gram, _templates(target, 8), kind)
        assert np.isfinite(coder.values()).all() and _error(coder, target, damped(gram, 0.0)) < 1


def test_one_ratio_for_layers_of_all_sizes() -> None:
    kernels = np.concatenate([_planted(7, 2, 50)[0], np.zeros((1, 9))])
    assert coefficient_ratio([kernels]) == pytest.approx(coefficient_ratio([1000 * kernels, 0.01 * kernels]))
    both = coefficient_ratio([np.array([[0.0, 4.0, -4.0]]) + 0.5])
    assert both == pytest.approx(32**0.5 / 0.5)
    assert coefficient_ratio([]) == 1.0
