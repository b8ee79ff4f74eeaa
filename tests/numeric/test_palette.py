"""Palettes: their grid, the closed forms, zeros that stay, and what the Gram gains."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.numeric.blockwise import damped, loss, plain
from onnxcomp.numeric.palette import Effort, Palette, fit_palette

Float = NDArray[np.float64]

seeds = st.integers(0, 2**32 - 1)
widths = st.sampled_from([1, 2, 3])


def _problem(seed: int, groups: int = 1, rows: int = 16, d: int = 24) -> tuple[Float, Float]:
    """Weights whose rows are of very different size, and Grams of correlated inputs."""
    rng = np.random.default_rng(seed)
    power = np.exp(rng.normal(0, 1, (groups, 1, d)))
    x = power * (rng.standard_normal((groups, 4 * d, d)) + 2 * rng.standard_normal((groups, 4 * d, 1)))
    target = rng.standard_normal((groups, rows, d)) * rng.uniform(0.05, 2.0, (groups, rows, 1))
    return target, np.swapaxes(x, 1, 2) @ x / (4 * d)


def _error(coder: Palette, target: Float, gram: Float | None) -> float:
    return float(loss(coder.values(), target, gram).sum() / loss(np.zeros_like(target), target, gram).sum())


@given(seeds, widths, st.sampled_from([1, 2, 8]), st.booleans())
@settings(max_examples=24)
def test_weights_are_whole_numbers_of_a_table_times_a_scale(seed: int, width: int, tables: int, blind: bool) -> None:
    target, gram = _problem(seed, groups=2, rows=4)
    coder = fit_palette(target, None if blind else gram, 8, width, tables=tables, seed=seed)
    assert coder.tables.shape == (tables, 8, width) and coder.index.shape == (2, 4, 24 // width)
    assert coder.scales.shape == (2, 4) and (coder.scales > 0).all()
    np.testing.assert_array_equal(coder.tables, np.rint(coder.tables))
    assert (np.abs(coder.tables).max(axis=(1, 2)) == 127).all()
    np.testing.assert_array_equal(coder.table_of.reshape(-1), np.repeat(np.arange(tables), 8 // tables))
    places = coder.tables[coder.table_of[..., None], coder.index].reshape(2, 4, 24)
    np.testing.assert_allclose(coder.values(), places * coder.scales[..., None])


@given(seeds, widths, st.booleans(), st.booleans())
@settings(max_examples=24)
def test_no_other_entries_lose_less(seed: int, width: int, blind: bool, several: bool) -> None:
    """The normal equations hold: the loss grows with a step of any entry to either side, by the same amount."""
    target, gram = _problem(seed, groups=2, rows=4)
    fitted = None if blind else damped(gram, 0.05)
    rng = np.random.default_rng(seed)
    tables = rng.standard_normal((2 if several else 1, 4, width))
    scales, table_of = rng.uniform(0.5, 2.0, (2, 4)), rng.integers(0, len(tables), (2, 4))
    coder = Palette(target.shape, tables, scales, table_of)
    plain(target, coder)
    before = loss(coder.values(), target, fitted).sum()
    for _ in range(4):
        coder.refit_tables(target, fitted)
    least, best = loss(coder.values(), target, fitted).sum(), coder.tables.copy()
    assert least <= before * (1 + 1e-9)
    for place in np.ndindex(best.shape):
        around: list[float] = []
        for step in (1e-2, -1e-2):
            coder.tables = best.copy()
            coder.tables[place] += step
            around.append(float(loss(coder.values(), target, fitted).sum()))
        assert min(around) >= least * (1 - 1e-9)
        assert abs(around[0] - around[1]) <= 1e-3 * (sum(around) - 2 * least) + 1e-9 * least


@given(seeds, widths, st.booleans())
@settings(max_examples=16)
def test_no_other_scales_lose_less(seed: int, width: int, blind: bool) -> None:
    target, gram = _problem(seed, groups=2, rows=4)
    fitted = None if blind else damped(gram, 0.0)
    coder = Palette(target.shape, np.random.default_rng(seed).standard_normal((1, 8, width)), np.ones((2, 4)))
    plain(target, coder)
    coder.refit_scales(target, fitted)
    least, best = loss(coder.values(), target, fitted), coder.scales
    assert (best > 0).all()
    fits = best != 1.0  # rows whose codes point away keep their scale
    for factor in (0.99, 1.01):
        coder.scales = best * factor
        assert (loss(coder.values(), target, fitted) >= least * (1 - 1e-9))[fits].all()


@given(seeds, st.booleans(), st.sampled_from([1, 4]))
@settings(max_examples=12)
def test_zeros_stay(seed: int, blind: bool, tables: int) -> None:
    target, gram = _problem(seed, groups=2, rows=4)
    keep = np.random.default_rng(seed).random(target.shape) > 0.6
    coder = fit_palette(np.where(keep, target, 0.0), None if blind else gram, 4, 1, tables=tables, keep=keep)
    assert not coder.values()[~keep].any()


def test_zeros_take_no_entry() -> None:
    ratios: list[float] = []
    for seed in range(4):
        target, gram = _problem(seed)
        keep = np.random.default_rng(seed).random(target.shape) > 0.6
        target = np.where(keep, target, 0.0)
        told, left = (fit_palette(target, gram, 4, 1, keep=own) for own in (keep, None))
        ratios.append(_error(told, target, gram) / _error(left, target, gram))
    assert np.mean(ratios) < 0.6, ratios


@given(seeds)
@settings(max_examples=10)
def test_what_lies_on_a_grid_is_held_exactly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = np.array([-127.0, -60.0, 13.0, 100.0])
    places = np.tile(np.arange(24) % 4, (2, 6, 1))  # every row has all entries alike: its own size is known
    target = table[rng.permuted(places, axis=2)] * rng.uniform(0.1, 2.0, (2, 6, 1))
    np.testing.assert_allclose(fit_palette(target, None, 4, 1).values(), target, rtol=1e-6)


def test_rows_of_zeros_do_no_harm() -> None:
    target, gram = _problem(0, groups=2, rows=4)
    target[0, 1] = 0.0
    target[1] = 0.0
    gram[1] = 0.0
    for width, tables in ((1, 1), (3, 1), (1, 8)):
        coder = fit_palette(target, gram, 8, width, tables=tables)
        assert np.isfinite(coder.values()).all() and np.isfinite(coder.scales).all()
        assert np.abs(coder.values()[1]).max() < 0.2
    assert not fit_palette(np.zeros((1, 4, 8)), None, 4, 1).values().any()


@pytest.mark.parametrize(("entries", "width"), [(4, 1), (16, 1), (16, 3)])
def test_the_outputs_gain_by_the_gram_and_by_each_round(entries: int, width: int) -> None:
    blind: list[float] = []
    quick: list[float] = []
    full: list[float] = []
    for seed in range(4):
        target, gram = _problem(seed, rows=48)
        blind.append(_error(fit_palette(target, None, entries, width), target, gram))
        quick.append(_error(fit_palette(target, gram, entries, width, effort=Effort(0, 0)), target, gram))
        full.append(_error(fit_palette(target, gram, entries, width), target, gram))
    assert np.mean(full) < 0.97 * np.mean(quick) and np.mean(quick) < 0.8 * np.mean(blind)


def test_more_entries_and_shorter_vectors_err_less() -> None:
    target, gram = _problem(5, rows=48)
    errors = [_error(fit_palette(target, gram, k, v), target, gram) for k, v in ((64, 1), (16, 1), (16, 2), (16, 4))]
    assert errors == sorted(errors) and errors[0] < 0.05 * errors[-1]


def test_a_table_for_each_channel_errs_less() -> None:
    target, gram = _problem(6, rows=8, d=48)
    target = np.sign(target) * np.abs(target) ** np.linspace(0.3, 3.0, 8)[:, None]
    errors = [_error(fit_palette(target, gram, 4, 1, tables=tables), target, gram) for tables in (8, 4, 1)]
    assert errors[0] < 0.8 * errors[-1] and errors == sorted(errors)


def test_groups_share_a_table_and_each_has_its_gram() -> None:
    """Depthwise: rows of one kernel each."""
    target, gram = _problem(7, groups=24, rows=1, d=9)
    coder = fit_palette(target, gram, 16, 1)
    blind = fit_palette(target, None, 16, 1)
    assert coder.tables.shape == (1, 16, 1) and _error(coder, target, gram) < 0.5 * _error(blind, target, gram)


def test_a_seed_decides_all_of_it() -> None:
    target, gram = _problem(8)
    first, again = (fit_palette(target, gram, 8, 2, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first.values(), again.values())


def test_some_rows_of_a_large_weight_tell_its_entries() -> None:
    target, _ = _problem(9, rows=20_000, d=32)
    coder = Palette(target.shape, np.linspace(-2.0, 2.0, 8)[None, :, None], np.sqrt(np.square(target).mean(axis=2)))
    plain(target, coder)
    blind = float(loss(coder.values(), target, None).sum())
    for _ in range(4):
        coder.refit_tables(target, None)
    found = float(loss(coder.values(), target, None).sum())
    shares = np.broadcast_to(np.square(coder.scales)[..., None], target.shape)
    wanted = target / coder.scales[..., None]
    coder.tables[0, :, 0] = [np.average(wanted[coder.index == k], weights=shares[coder.index == k]) for k in range(8)]
    best = float(loss(coder.values(), target, None).sum())
    assert best <= found < best + 0.01 * (blind - best)
