"""Group OBS against brute force, and against the orders that know less."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.numeric.elimination import Consumer, Path, eliminate, path_of
from onnxcomp.numeric.selection import contributions, order_of, taylor_scores, thinet_order

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]
seeds = st.integers(0, 2**32 - 1)
DAMPING = 1e-3


def _consumer(rng: np.random.Generator, n: int = 6, rows: int = 4, most: int = 3, fixed: int = 2) -> Consumer:
    """Classes of 0 to `most` columns in any order, among `fixed` ones of no class; inputs that are correlated."""
    labels = np.concatenate([np.full(fixed, -1), np.repeat(np.arange(n), rng.integers(0, most + 1, n))])
    rng.shuffle(labels)
    d = len(labels)
    x = rng.standard_normal((2 * d + 5, d)) * np.exp(rng.normal(0, 1, d)) + rng.standard_normal((2 * d + 5, 1))
    return Consumer(rng.standard_normal((rows, d)), x.T @ x / len(x), labels, float(np.exp(rng.normal())))


def _error(consumer: Consumer, kept: Mask, damping: float = DAMPING) -> float:
    """Of the least-squares fit to the columns that are kept, with noise; not relative."""
    w, s = consumer.weight, consumer.gram + damping * np.trace(consumer.gram) / len(consumer.gram) * np.eye(len(kept))
    cross = w @ s[:, kept]
    explained = np.sum(cross * np.linalg.solve(s[np.ix_(kept, kept)], cross.T).T) if kept.any() else 0.0
    return float(np.sum(w @ s * w) - explained)


def _total(consumers: list[Consumer], gone: list[int]) -> float:
    return sum(c.importance * _error(c, ~np.isin(c.labels, gone)) for c in consumers)


@given(seeds, st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_each_removal_is_the_best_one_and_errors_are_those_of_least_squares(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    consumers = [_consumer(rng) for _ in range(count)]
    path = eliminate(consumers, 6, damping=DAMPING, keep_at_least=0)
    assert sorted(path.order.tolist()) == list(range(6))
    scale = _total(consumers, list(range(6)))
    for step in range(6):
        gone = path.order[:step].tolist()
        best = min(_total(consumers, [*gone, k]) for k in range(6) if k not in gone)
        assert _total(consumers, [*gone, int(path.order[step])]) <= best + 1e-8 * scale
        for errors, c in zip(path.errors, consumers, strict=True):
            energy = _error(c, np.zeros(len(c.labels), np.bool_))
            assert errors[step] * energy == pytest.approx(
                _error(c, ~np.isin(c.labels, gone)), rel=1e-6, abs=1e-9 * energy
            )


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_errors_start_at_zero_never_fall_and_end_at_what_fixed_columns_leave(seed: int) -> None:
    rng = np.random.default_rng(seed)
    fixed = int(rng.integers(0, 3))
    path = eliminate([_consumer(rng, fixed=fixed), _consumer(rng, fixed=0)], 6, keep_at_least=0)
    assert (path.errors[:, 0] == 0).all() and (np.diff(path.errors) >= 0).all()
    assert path.errors[1, -1] in (0.0, pytest.approx(1.0))
    if not fixed:
        assert path.errors[0, -1] in (0.0, pytest.approx(1.0))


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_what_adds_nothing_goes_first_and_for_free(seed: int) -> None:
    rng = np.random.default_rng(seed)
    c = _consumer(rng, n=6, most=3)
    silent, unread = rng.permutation(6)[:2].tolist()
    live = (c.labels != silent).astype(float)
    weight = np.where(c.labels == unread, 0.0, c.weight)
    path = eliminate([Consumer(weight, c.gram * np.outer(live, live), c.labels)], 6, keep_at_least=0)
    free = {silent, unread} | (set(range(6)) - set(c.labels.tolist()))
    assert set(path.order[: len(free)].tolist()) == free
    np.testing.assert_array_equal(path.errors[0, : len(free) + 1], 0.0)


def test_of_two_that_are_alike_one_goes_for_free() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 8))
    x[:, 5] = -2 * x[:, 2]
    path = eliminate([Consumer(rng.standard_normal((6, 8)), x.T @ x / 400, np.arange(8))], 8, damping=1e-9)
    assert path.order[0] in (2, 5)
    assert path.errors[0, 1] < 1e-6 < 1e-3 < path.errors[0, 2]
    assert {2, 5} - {path.order[0]} <= set(path.order[2:].tolist()) | {*range(8)} - set(path.order.tolist())


@given(seeds, st.floats(1e-6, 1e6))
@settings(max_examples=15, deadline=None)
def test_neither_the_scale_of_the_inputs_nor_the_order_of_columns_matters(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    c = _consumer(rng, n=8)
    path = eliminate([c], 8)
    turned = rng.permutation(len(c.labels))
    other = Consumer(c.weight[:, turned], scale * c.gram[np.ix_(turned, turned)], c.labels[turned], c.importance)
    found = eliminate([other], 8)
    np.testing.assert_array_equal(found.order, path.order)
    np.testing.assert_allclose(found.errors, path.errors, rtol=1e-6, atol=1e-12)


@given(seeds)
@settings(max_examples=15, deadline=None)
def test_consumers_of_the_same_inputs_are_one_that_is_taller(seed: int) -> None:
    rng = np.random.default_rng(seed)
    c = _consumer(rng, n=8, rows=6)
    parts = [Consumer(c.weight[some], c.gram, c.labels) for some in (slice(0, 2), slice(2, 6))]
    both, whole = eliminate(parts, 8), eliminate([Consumer(c.weight, c.gram, c.labels)], 8)
    np.testing.assert_array_equal(both.order, whole.order)
    powers = [_error(part, np.zeros(len(c.labels), np.bool_)) for part in parts]
    np.testing.assert_allclose(powers @ both.errors / sum(powers), whole.errors[0], rtol=1e-9, atol=1e-12)


def _wide(seed: int, n: int = 96, taps: int = 2) -> Consumer:
    """Channels that can be told from one another in part, of very different use."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((800, n // 4)) @ rng.standard_normal((n // 4, n * taps)) / 4
    x = (x + 0.3 * rng.standard_normal(x.shape)) * np.exp(rng.normal(0, 0.5, n)).repeat(taps)
    weight = rng.standard_normal((20, n * taps)) * np.exp(rng.normal(0, 0.5, n)).repeat(taps)
    return Consumer(weight, x.T @ x / len(x), np.arange(n).repeat(taps))


def test_it_loses_less_than_orders_that_do_not_know_of_the_fit() -> None:
    lost = np.zeros(4)
    for seed in range(4):
        c = _wide(seed)
        matrix = contributions(c.weight, c.gram, c.labels, 96)
        size = np.abs(c.weight).sum(axis=0).reshape(96, -1).sum(axis=1)
        orders = [thinet_order(matrix), order_of(taylor_scores(matrix)), order_of(size)]
        paths = [eliminate([c], 96), *(path_of(order, [c]) for order in orders)]
        lost += [path.errors[0, [24, 48, 72]].sum() for path in paths]
    assert (lost[0] < 0.99 * lost[1:]).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_batches_lose_next_to_nothing(seed: int) -> None:
    c, single = _wide(seed), []
    for batch in (0.0, 0.1):
        path = eliminate([c, Consumer(c.weight[:7], c.gram, c.labels)], 96, batch=batch, keep_at_least=10)
        assert sorted({*path.order.tolist()}) == sorted(path.order.tolist()) and len(path.order) == 86
        single.append(path.errors[0])
    np.testing.assert_allclose(single[1], single[0], rtol=0.05, atol=1e-9)


@given(seeds)
@settings(max_examples=15, deadline=None)
def test_without_a_fit_the_error_is_what_the_removed_ones_contributed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    c = _consumer(rng)
    order = rng.permutation(6)[:4]
    plain, fitted = (path_of(order, [c], without_refit=flag) for flag in (True, False))
    energy = _error(c, np.zeros(len(c.labels), np.bool_))
    for step in range(5):
        gone = np.isin(c.labels, order[:step])
        loss = np.sum(c.weight[:, gone] @ c.gram[np.ix_(gone, gone)] * c.weight[:, gone])
        assert plain.errors[0, step] * energy == pytest.approx(loss, rel=1e-9, abs=1e-12 * energy)
    # The fit also pays for the noise of the weights that it keeps.
    assert (fitted.errors <= plain.errors + DAMPING * np.trace(c.gram) * np.sum(c.weight**2) / energy).all()


def test_an_output_that_never_changes_loses_nothing() -> None:
    still = Consumer(np.ones((2, 3)), np.zeros((3, 3)), np.arange(3))
    path = eliminate([still], 3)
    assert isinstance(path, Path)
    np.testing.assert_array_equal(path.errors, np.zeros((1, 3)))


def test_what_makes_no_sense_is_refused() -> None:
    gram, labels = np.eye(3), np.arange(3)
    good = Consumer(np.ones((2, 3)), gram, labels)
    with pytest.raises(ValueError, match="weight"):
        Consumer(np.ones((2, 4)), gram, labels)
    with pytest.raises(ValueError, match="labels"):
        Consumer(np.ones((2, 3)), gram, labels[:2])
    with pytest.raises(ValueError, match="importance"):
        Consumer(np.ones((2, 3)), gram, labels, -1.0)
    with pytest.raises(ValueError, match="of 2 classes"):
        eliminate([good], 2)
    with pytest.raises(ValueError, match="cannot stay"):
        eliminate([good], 3, keep_at_least=4)
    with pytest.raises(ValueError, match="twice"):
        path_of(np.array([1, 1]), [good])
    with pytest.raises(ValueError, match="semidefinite"):
        eliminate([Consumer(np.ones((2, 3)), np.diag([9.0, 9.0, -5.0]) * 1e9 - 8e9, labels)], 3)
