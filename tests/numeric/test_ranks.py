from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.numeric.ranks import (
    break_even,
    energy_rank,
    keep_ranks,
    round_rank,
    tail_energy,
    tucker2_macs,
    tucker2_parameters,
    weakened,
)


@pytest.mark.parametrize(("energy", "rank"), [(0.5, 1), (0.64, 1), (0.65, 2), (0.99, 2), (1.0, 2)])
def test_energy_rank(energy: float, rank: int) -> None:
    assert energy_rank(np.array([8.0, 6.0, 0.0]), energy) == rank


def test_energy_rank_of_nothing() -> None:
    assert energy_rank(np.zeros(5), 0.9) == 0
    assert energy_rank(np.zeros(0), 0.9) == 0


@given(s=st.lists(st.floats(0, 1e3), min_size=1, max_size=30), energy=st.floats(0.01, 1.0))
def test_energy_rank_is_the_smallest_that_holds(s: list[float], energy: float) -> None:
    squares = np.square(s)
    rank = energy_rank(np.array(s), energy)
    assert squares[:rank].sum() >= energy * squares.sum() * (1 - 1e-12)
    if rank:
        assert squares[: rank - 1].sum() < energy * squares.sum() * (1 + 1e-12)


@pytest.mark.parametrize("energy", [0.0, -0.1, 1.01])
def test_energy_out_of_range(energy: float) -> None:
    with pytest.raises(ValueError, match="energy"):
        energy_rank(np.ones(3), energy)


def test_weakened() -> None:
    assert weakened(20, 100, 0.0) == 100
    assert weakened(20, 100, 1.0) == 20
    assert weakened(20, 100, 0.7) == 44
    assert weakened(0, 100, 0.7) == 100
    with pytest.raises(ValueError, match="weaken"):
        weakened(20, 100, 1.5)


@pytest.mark.parametrize(
    ("rank", "multiple", "full", "up", "expected"),
    [
        (17, 16, 64, True, 32),
        (17, 16, 64, False, 16),
        (32, 16, 64, True, 32),
        (3, 16, 64, False, 16),
        (63, 16, 60, True, 60),
        (5, 16, 12, True, 12),
        (5, 16, 12, False, 12),
        (0, 1, 8, False, 1),
    ],
)
def test_round_rank(rank: int, multiple: int, full: int, up: bool, expected: int) -> None:
    assert round_rank(rank, multiple, full, up) == expected


def test_costs() -> None:
    # 64 -> 128 channels, 3x3 with stride 2: 16x16 in, 8x8 out.
    assert tucker2_macs(64, 128, (3, 3), None, None, 256, 64) == 64 * 128 * 9 * 64
    assert tucker2_macs(64, 128, (3, 3), 16, 32, 256, 64) == 64 * 16 * 256 + 16 * 32 * 9 * 64 + 32 * 128 * 64
    assert tucker2_macs(64, 128, (3, 3), None, 32, 256, 64) == 64 * 32 * 9 * 64 + 32 * 128 * 64
    transposed = tucker2_macs(64, 128, (3, 3), 16, 32, 64, 256, transposed=True)
    assert transposed == 64 * 16 * 64 + 16 * 32 * 9 * 64 + 32 * 128 * 256
    assert tucker2_parameters(64, 128, (3, 3), 16, 32) == 64 * 16 + 16 * 32 * 9 + 32 * 128


@given(st.integers(8, 512), st.integers(8, 512), st.integers(1, 64), st.integers(1, 64))
def test_break_even(into: int, out: int, in_positions: int, out_positions: int) -> None:
    f = break_even(into, out, (3, 3), in_positions, out_positions)
    assert 0 < f < 1
    core = f * f * into * out * 9 * out_positions
    assert core + f * (into**2 * in_positions + out**2 * out_positions) == pytest.approx(into * out * 9 * out_positions)


def test_tail_energy() -> None:
    np.testing.assert_allclose(tail_energy(np.array([8.0, 6.0])), [1.0, 0.36, 0.0])
    assert not tail_energy(np.zeros(3)).any()


@settings(max_examples=60, deadline=None)
@given(
    channels=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    keep=st.floats(0.02, 1.0),
    multiple=st.sampled_from([1, 4, 16]),
    positions=st.sampled_from([(16, 16), (64, 16), (1, 1)]),
    one_sided=st.booleans(),
    seed=st.integers(0, 9),
)
def test_keep_ranks_is_the_best_of_all_that_fit(
    channels: tuple[int, int], keep: float, multiple: int, positions: tuple[int, int], one_sided: bool, seed: int
) -> None:
    into, out = channels
    rng = np.random.default_rng(seed)
    spectra = np.sort(rng.random(into))[::-1], np.sort(rng.random(out))[::-1]
    tails = tail_energy(spectra[0]), tail_energy(spectra[1])
    found = keep_ranks(into, out, (3, 3), *positions, keep, multiple, spectra, one_sided=one_sided)
    budget = keep * tucker2_macs(into, out, (3, 3), None, None, *positions)
    best = inf
    for i in [None] * one_sided + list(range(multiple, into, multiple)):
        for o in [None] * one_sided + list(range(multiple, out, multiple)):
            if (i, o) != (None, None) and tucker2_macs(into, out, (3, 3), i, o, *positions) <= budget:
                best = min(best, (0.0 if i is None else tails[0][i]) + (0.0 if o is None else tails[1][o]))
    if found is None:
        assert best == inf
        return
    assert tucker2_macs(into, out, (3, 3), *found, *positions) <= budget
    assert all(r is None or r % multiple == 0 for r in found)
    chosen = (0.0 if found[0] is None else tails[0][found[0]]) + (0.0 if found[1] is None else tails[1][found[1]])
    assert chosen == pytest.approx(best)


def test_keep_ranks_with_an_error_function() -> None:
    asked: list[tuple[int | None, int | None]] = []

    def error(rank_in: int | None, rank_out: int | None) -> float:
        asked.append((rank_in, rank_out))
        return abs((rank_in or 64) - 32)

    found = keep_ranks(64, 64, (3, 3), 100, 100, 0.4, 16, error=error, one_sided=False)
    assert found == (32, 32)
    assert all(i is not None and o is not None for i, o in asked)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), keep=st.floats(0.1, 0.9))
def test_pruning_by_the_spectra_finds_the_same_pair(seed: int, keep: float) -> None:
    rng = np.random.default_rng(seed)
    spectra = np.sort(rng.random(24))[::-1] ** 3, np.sort(rng.random(30))[::-1] ** 3
    tails = tail_energy(spectra[0]), tail_energy(spectra[1])
    asked: list[tuple[int | None, int | None]] = []

    def error(rank_in: int | None, rank_out: int | None) -> float:
        asked.append((rank_in, rank_out))
        lost = 0.0 if rank_in is None else tails[0][rank_in], 0.0 if rank_out is None else tails[1][rank_out]
        return float(max(lost) + 0.3 * min(lost))

    everything = keep_ranks(24, 30, (3, 3), 9, 9, keep, 1, error=error)
    evaluations = len(asked)
    pruned = keep_ranks(24, 30, (3, 3), 9, 9, keep, 1, spectra, error=error)
    assert len(asked) - evaluations <= evaluations
    if everything is None:
        assert pruned is None
        return
    assert pruned is not None
    assert error(*pruned) == error(*everything)


def test_keep_ranks_refuses() -> None:
    spectra = np.ones(8), np.ones(8)
    with pytest.raises(ValueError, match="give spectra"):
        keep_ranks(8, 8, (3, 3), 1, 1, 0.5, 1)
    with pytest.raises(ValueError, match="keep"):
        keep_ranks(8, 8, (3, 3), 1, 1, 0.0, 1, spectra)
    with pytest.raises(ValueError, match="multiple"):
        keep_ranks(8, 8, (3, 3), 1, 1, 0.5, 0, spectra)
