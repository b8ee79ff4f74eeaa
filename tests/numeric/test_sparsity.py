"""Patterns of zeros, supports, and the fit of what stays."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.numeric.rounding import integer_levels, round_rows
from onnxcomp.numeric.sparsity import Pattern, fit_support, loss_of, prune

Float = NDArray[np.float64]

PATTERNS = {
    "single": Pattern(0.6, taps=3),
    "2:4": Pattern(0.5, group=4, taps=3),
    "1:4": Pattern(0.75, group=4, taps=3),
    "blocks": Pattern(0.5, block=(2, 2), taps=3),
}
seeds = st.integers(0, 2**32 - 1)
names = st.sampled_from(sorted(PATTERNS))


def _problem(seed: int, rows: int = 6, d: int = 24) -> tuple[Float, Float]:
    """A weight, and the Gram of correlated inputs of very different power."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * d, d)) * np.exp(rng.normal(0, 1, d)) + 2 * rng.standard_normal((4 * d, 1))
    return rng.standard_normal((rows, d)), x.T @ x / len(x) + 0.01 * np.eye(d)


@given(seeds, names)
@settings(max_examples=20, deadline=None)
def test_a_mask_has_the_zeros_asked_for_and_keeps_the_largest(seed: int, name: str) -> None:
    pattern = PATTERNS[name]
    scores = np.random.default_rng(seed).integers(0, 4, (6, 24)).astype(float)  # many are equal
    mask = pattern.mask(scores)
    assert mask.sum() == round((1 - pattern.amount) * mask.size)
    if pattern.group:
        kept = mask.reshape(6, -1, pattern.group, 3).sum(axis=2)
        assert (kept == round((1 - pattern.amount) * pattern.group)).all()
        groups, own = (np.moveaxis(a.reshape(6, -1, pattern.group, 3), 2, -1) for a in (scores, mask))
        assert (np.where(own, groups, np.inf).min(-1) >= np.where(own, -np.inf, groups).max(-1)).all()
    if pattern.block != (1, 1):
        blocks = mask.reshape(3, 2, 4, 2, 3)
        assert (blocks == blocks[:, :1, :, :1]).all()


@given(seeds, names)
@settings(max_examples=20, deadline=None)
def test_fitting_what_stays_never_loses_more_and_ends_at_least_squares(seed: int, name: str) -> None:
    target, gram = _problem(seed)
    mask = PATTERNS[name].mask(np.square(target))
    cross = target @ gram
    losses = [loss_of(fit_support(target, mask, gram, cross, steps), gram, cross) for steps in (0, 1, 3, 10, 200)]
    assert (np.diff(losses) <= 1e-9 * abs(losses[0])).all()
    found = fit_support(target, mask, gram, cross, 200)
    assert not found[~mask].any()
    for row, kept, wanted in zip(found, mask, cross, strict=True):
        if kept.any():
            np.testing.assert_allclose(row[kept], np.linalg.solve(gram[np.ix_(kept, kept)], wanted[kept]), atol=1e-4)


@given(seeds, names)
@settings(max_examples=20, deadline=None)
def test_a_pruned_weight_has_its_pattern_and_beats_magnitude(seed: int, name: str) -> None:
    target, gram = _problem(seed)
    pattern = PATTERNS[name]
    found, cross = prune(target, gram, pattern), target @ gram
    assert np.count_nonzero(found) <= round((1 - pattern.amount) * found.size)
    np.testing.assert_array_equal(pattern.mask(np.square(found)) | (found == 0), True)
    plain = target * pattern.mask(np.square(target))
    assert loss_of(found, gram, cross) <= loss_of(plain, gram, cross) * (
        1 - 1e-6 * np.sign(loss_of(plain, gram, cross))
    )


def test_two_of_four_come_close_to_the_best_of_all_supports() -> None:
    worse: list[float] = []
    for seed in range(5):
        target, gram = _problem(seed, rows=1, d=12)
        cross = target @ gram
        whole = -loss_of(target, gram, cross)
        best = np.inf
        pairs = list(combinations(range(4), 2))
        for a in pairs:
            for b in pairs:
                for c in pairs:
                    kept = [*a, *(4 + i for i in b), *(8 + i for i in c)]
                    x = np.linalg.solve(gram[np.ix_(kept, kept)], cross[0, kept])
                    best = min(best, -float(cross[0, kept] @ x))
        worse.append((loss_of(prune(target, gram, Pattern(0.5, group=4)), gram, cross) - best) / whole)
    assert np.mean(worse) < 0.02


def test_rounding_keeps_zeros_zero() -> None:
    target, gram = _problem(3)
    free = PATTERNS["2:4"].mask(np.square(target))
    codes, scales = round_rows(target * free, gram, integer_levels(8), free=free)
    assert not codes[~free].any()
    assert np.count_nonzero(codes) > 0.8 * free.sum() and (scales > 0).all()


def test_a_mask_without_nonzeros() -> None:
    assert not Pattern(0.99).mask(np.ones((2, 3))).any()


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_dead_inputs_do_no_harm(name: str) -> None:
    target, gram = _problem(0)
    gram[:, 3:6] = gram[3:6] = 0
    gram[np.diag_indices(24)] += 1e-3
    assert np.isfinite(prune(target, gram, PATTERNS[name])).all()
