"""Coding a weight block by block: what descent keeps, what the Gram gains, and how near the best codes come."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.numeric.blockwise import Coder, damped, descend, loss, plain, sequential
from onnxcomp.numeric.palette import Palette
from onnxcomp.numeric.rounding import integer_levels, output_error, round_rows
from onnxcomp.numeric.templates import Linear

Float = NDArray[np.float64]

KINDS = ("single", "vectors", "several tables", "zeros", "templates", "templates in int4")
kinds = st.sampled_from(KINDS)
seeds = st.integers(0, 2**32 - 1)


def _problem(seed: int, groups: int = 2, rows: int = 4, d: int = 24) -> tuple[Float, Float]:
    """Weights and Grams of groups, (G, R, d) and (G, d, d), the inputs correlated and of very different power."""
    rng = np.random.default_rng(seed)
    power = np.exp(rng.normal(0, 1, (groups, 1, d)))
    x = power * (rng.standard_normal((groups, 4 * d, d)) + 2 * rng.standard_normal((groups, 4 * d, 1)))
    return rng.standard_normal((groups, rows, d)), np.swapaxes(x, 1, 2) @ x / (4 * d)


def _coder(kind: str, target: Float, seed: int = 0) -> Coder:
    """A scheme of its kind with numbers at random."""
    rng, shape = np.random.default_rng(seed), target.shape
    if kind.startswith("templates"):
        templates = rng.standard_normal((5, 4))
        templates -= templates.mean(axis=1, keepdims=True)
        coder = Linear(shape, templates, "int4" if kind.endswith("int4") else "fp32")
        coder.steps[:] = 0.3
        return coder
    width, tables = 3 if kind == "vectors" else 1, 2 if kind == "several tables" else 1
    table_of = rng.integers(0, tables, shape[:2])
    keep = rng.random(shape) > 0.5 if kind == "zeros" else None
    return Palette(shape, rng.standard_normal((tables, 8, width)), rng.uniform(0.5, 2.0, shape[:2]), table_of, keep)


def _slack(target: Float, gram: Float) -> Float:
    return 1e-9 * loss(np.zeros_like(target), target, gram)


def test_the_loss_is_that_of_the_outputs() -> None:
    rng = np.random.default_rng(0)
    target, values, x = rng.standard_normal((3, 4, 5)), rng.standard_normal((3, 4, 5)), rng.standard_normal((3, 50, 5))
    outputs = np.square((values - target) @ np.swapaxes(x, 1, 2)).sum(axis=2)
    np.testing.assert_allclose(loss(values, target, np.swapaxes(x, 1, 2) @ x), outputs)
    np.testing.assert_allclose(loss(values, target, None), np.square(values - target).sum(axis=2))


def test_dead_inputs_count_as_independent_ones() -> None:
    _, gram = _problem(0)
    gram[0, :, :6] = gram[0, :6] = 0.0
    gram[1] = 0.0
    strong = damped(gram)
    assert np.linalg.eigvalsh(strong).min() > 0
    mean = np.trace(gram[0]) / 24
    np.testing.assert_allclose(strong[0, :6, :6], mean * np.eye(6))
    np.testing.assert_allclose(strong[1], np.eye(24))
    np.testing.assert_allclose(damped(gram, 0.0)[0, 6:, 6:], gram[0, 6:, 6:], rtol=1e-6)


def test_blocks_divide_the_columns() -> None:
    with pytest.raises(ValueError, match="24 columns do not fall into blocks of 5"):
        Palette((1, 2, 24), np.zeros((1, 2, 5)), np.ones((1, 2)))


@given(kinds, seeds)
@settings(max_examples=24)
def test_what_is_returned_is_what_is_remembered(kind: str, seed: int) -> None:
    target, gram = _problem(seed)
    coder = _coder(kind, target, seed)
    for made in (plain(target, coder), sequential(target, damped(gram), coder)):
        assert made.shape == target.shape
    np.testing.assert_allclose(made, coder.values(), atol=1e-12)
    after = descend(made, target, damped(gram, 0.0), coder, sweeps=3)
    np.testing.assert_allclose(after, coder.values(), atol=1e-12)


@given(kinds, seeds)
@settings(max_examples=24)
def test_descent_raises_the_loss_of_no_row_and_ends(kind: str, seed: int) -> None:
    target, gram = _problem(seed)
    gram = damped(gram, 0.0)
    coder = _coder(kind, target, seed)
    values = plain(target, coder)
    losses = [loss(values, target, gram)]
    for _ in range(30):
        before, values = values, descend(values, target, gram, coder, sweeps=1)
        losses.append(loss(values, target, gram))
        if (before == values).all():
            break
    assert (np.diff(losses, axis=0) <= _slack(target, gram)).all()
    if kind != "templates":  # coefficients that are not rounded may move forever, by less and less
        np.testing.assert_array_equal(descend(values, target, gram, coder), values)


@given(kinds, seeds)
@settings(max_examples=12)
def test_without_correlation_every_block_is_coded_by_itself(kind: str, seed: int) -> None:
    """Under a Gram that is a multiple of the identity there is nothing to pass on."""
    target, _ = _problem(seed)
    alone, passed = _coder(kind, target, seed), _coder(kind, target, seed)
    gram = np.broadcast_to(3.0 * np.eye(24), (2, 24, 24))
    np.testing.assert_allclose(sequential(target, gram, passed), plain(target, alone), atol=1e-9)
    np.testing.assert_allclose(descend(alone.values(), target, gram, alone), passed.values(), atol=1e-9)


@given(seeds)
@settings(max_examples=10)
def test_stripes_are_of_no_consequence(seed: int) -> None:
    """More columns than are worked on at a time: the codes are those of the textbook's loop over all of them."""
    target, gram = _problem(seed, groups=1, rows=2, d=150)
    gram = damped(gram)
    coder = _coder("single", target, seed)
    order = np.argsort(-np.diagonal(gram[0]), kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(gram[0][np.ix_(order, order)])).T
    left, wanted = target[0][:, order].copy(), np.empty((2, 150))
    assert isinstance(coder, Palette)
    table, scales = coder.tables[0, :, 0], coder.scales[0]
    for j in range(150):
        grid = scales[:, None] * table
        wanted[:, j] = np.take_along_axis(grid, np.abs(grid - left[:, j, None]).argmin(1)[:, None], 1)[:, 0]
        left[:, j:] -= np.outer((left[:, j] - wanted[:, j]) / upper[j, j], upper[j, j:])
    found = sequential(target, gram, coder)[0][:, order]
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_groups_are_coded_each_by_its_own_gram() -> None:
    target, gram = _problem(1)
    gram = damped(gram, 0.0)
    both = _coder("vectors", target)
    assert isinstance(both, Palette)
    together = descend(plain(target, both), target, gram, both)
    for g in range(2):
        one = Palette((1, 4, 24), both.tables, both.scales[g : g + 1])
        own = target[g : g + 1]
        np.testing.assert_allclose(descend(plain(own, one), own, gram[g : g + 1], one)[0], together[g], atol=1e-12)


@pytest.mark.parametrize(("kind", "share"), [(kind, 0.6 if "templates" in kind else 0.5) for kind in KINDS])
def test_outputs_come_closer_than_by_the_nearest_codes(kind: str, share: float) -> None:
    ratios: list[float] = []
    for seed in range(5):
        target, gram = _problem(seed)
        coder = _coder(kind, target, seed)
        if isinstance(coder, Palette) and coder.keep is not None:
            target = np.where(coder.keep, target, 0.0)
        fitted = damped(gram, 0.0)
        blind = loss(plain(target, coder), target, fitted).sum()
        ordered = sequential(target, damped(gram), coder)
        ratios.append(float(loss(descend(ordered, target, fitted, coder), target, fitted).sum() / blind))
    assert np.mean(ratios) < share, ratios


def test_single_columns_on_a_grid_are_rounded_as_well_as_by_gptq() -> None:
    levels = integer_levels(3)
    ratios: list[float] = []
    for seed in range(8):
        target, gram = _problem(seed, groups=1, rows=16)
        codes, scales = round_rows(target[0], gram[0], levels, rounds=0, sweeps=4)
        wanted = output_error(codes, scales, target[0], gram[0]).sum()
        coder = Palette(target.shape, levels[None, :, None], scales[None])
        ordered = sequential(target, damped(gram), coder)
        found = descend(ordered, target, damped(gram, 0.0), coder, sweeps=4)
        ratios.append(float(loss(found, target, gram).sum() / wanted))
    assert np.mean(ratios) < 1.02 and max(ratios) < 1.1, ratios


def test_codes_are_near_the_best_of_all() -> None:
    worse: list[float] = []
    for seed in range(6):
        target, gram = _problem(seed, groups=1, rows=1, d=8)
        gram = damped(gram, 0.0)
        coder = Palette(target.shape, np.array([[[-1.5], [-0.5], [0.5], [1.5]]]), np.ones((1, 1)))
        found = descend(sequential(target, damped(gram), coder), target, gram, coder, sweeps=4)
        every = np.array(list(product(coder.tables[0, :, 0], repeat=8)))
        rest = every - target[0]
        best = np.einsum("nd,nd->n", rest @ gram[0], rest).min()
        worse.append(float(loss(found, target, gram)[0, 0] / best))
    assert min(worse) >= 1 - 1e-9 and np.mean(worse) < 2.0, worse
