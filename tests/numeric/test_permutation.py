"""Orders of channels of which an N:M pattern keeps more."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.numeric import permutation
from onnxcomp.numeric.permutation import best_order, kept
from onnxcomp.numeric.sparsity import Pattern

seeds = st.integers(0, 2**32 - 1)
patterns = st.sampled_from([(2, 4), (1, 4), (3, 4), (1, 2), (4, 8)])


@given(seeds, patterns, st.integers(1, 6), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_an_order_is_a_permutation_and_keeps_no_less(
    seed: int, pattern: tuple[int, int], groups: int, rows: int
) -> None:
    count, group = pattern
    rng = np.random.default_rng(seed)
    scores = np.square(rng.standard_normal((rows, groups * group))) * rng.choice([0.0, 1.0], groups * group)
    order = best_order(scores, count, group)
    assert sorted(order) == list(range(groups * group))
    assert kept(scores[:, order], count, group) >= (1 - 1e-12) * kept(scores, count, group)
    mask = Pattern(1 - count / group, group=group).mask(scores)
    assert kept(scores, count, group) == pytest.approx(float((scores * mask).sum()))


@given(seeds, patterns, st.integers(2, 6))
@settings(max_examples=40, deadline=None)
def test_channels_of_which_few_matter_are_spread_so_that_nothing_is_lost(
    seed: int, pattern: tuple[int, int], groups: int
) -> None:
    count, group = pattern
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.1, 1, (8, groups * group))
    scores[:, rng.permutation(groups * group)[groups * count :]] = 0
    order = best_order(scores, count, group)
    assert kept(scores[:, order], count, group) == pytest.approx(float(scores.sum()))


def test_no_exchange_of_two_channels_is_left_that_gains() -> None:
    rng = np.random.default_rng(0)
    scores = np.square(rng.standard_normal((30, 16)))
    found = scores[:, best_order(scores, 2, 4)]
    best = kept(found, 2, 4)
    assert best > 1.01 * kept(scores, 2, 4)
    for a, b in combinations(range(16), 2):
        other = found.copy()
        other[:, [a, b]] = found[:, [b, a]]
        assert kept(other, 2, 4) <= best * (1 + 1e-5)


def test_many_channels_are_searched_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permutation, "_CHANNELS", 16)
    monkeypatch.setattr(permutation, "_ROWS", 20)
    scores = np.square(np.random.default_rng(1).standard_normal((50, 44))) * np.repeat([1.0, 0.1], 22)
    order = best_order(scores, 2, 4)
    assert sorted(order) == list(range(44))
    assert kept(scores[:, order], 2, 4) > 1.02 * kept(scores, 2, 4)


def test_what_is_kept_already_stays_in_its_order() -> None:
    scores = np.tile([1.0, 1.0, 0.0, 0.0], (3, 4))
    np.testing.assert_array_equal(best_order(scores, 2, 4), np.arange(16))
