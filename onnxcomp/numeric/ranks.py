"""Choice of Tucker ranks: from a spectrum, from EVBMF, or from a budget of multiply-accumulates.

A rank of None means that the side is not factored (Tucker-1); a rank equal to the full one only adds a node and is
never chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "break_even",
    "energy_rank",
    "keep_ranks",
    "round_rank",
    "tail_energy",
    "tucker2_macs",
    "tucker2_parameters",
    "weakened",
]

Spectrum = NDArray[np.floating]
Ranks = tuple[int | None, int | None]


def energy_rank(singular_values: Spectrum, energy: float) -> int:
    """Smallest rank whose squared singular values hold at least the fraction `energy` of the total; 0 of an all-zero
    spectrum.

    On a whitened spectrum, 1 - energy bounds the relative output error of that side.

    Raises:
        ValueError: `energy` is not in (0, 1].
    """
    if not 0.0 < energy <= 1.0:
        raise ValueError(f"energy {energy} is not in (0, 1]")
    kept = np.cumsum(np.asarray(singular_values, np.float64) ** 2)
    if not kept.size or kept[-1] == 0.0:
        return 0
    # The last sum equals the total exactly, so energy = 1 asks for no more than the last value that counts.
    return int(np.argmax(kept >= energy * kept[-1])) + 1


def weakened(rank_vbmf: int, full: int, weaken: float) -> int:
    """Weakened EVBMF (Gusak et al. 2019): full - weaken (full - rank_vbmf), rounded down; a rank of 0 means no
    reduction.

    Args:
        rank_vbmf: What EVBMF found; 0 where it found nothing but noise, then the full rank stays.
        full: Largest possible rank.
        weaken: 0 keeps the full rank, 1 takes EVBMF's.

    Raises:
        ValueError: `weaken` is not in [0, 1].
    """
    if not 0.0 <= weaken <= 1.0:
        raise ValueError(f"weaken {weaken} is not in [0, 1]")
    if rank_vbmf == 0:
        return full
    return int(full - weaken * (full - rank_vbmf))


def round_rank(rank: int, multiple: int, full: int, up: bool) -> int:
    """Round to a multiple within 1..full.

    Down never goes below the first multiple that fits (or `full` where none does); up stops at `full`.
    """
    rounded = -(-rank // multiple) * multiple if up else rank // multiple * multiple
    return max(1, min(max(rounded, multiple), full))


def tucker2_macs(
    channels_in: int,
    channels_out: int,
    kernel: Sequence[int],
    rank_in: int | None,
    rank_out: int | None,
    in_positions: int,
    out_positions: int,
    *,
    transposed: bool = False,
) -> int:
    """Multiply-accumulates of the chain at batch 1; with both ranks None, of the original layer. One group.

    The first 1x1 runs at the input's positions and the last one at the output's; the core runs once for each output
    position, or each input position if it is a ConvTranspose.
    """
    inner_in, inner_out = rank_in or channels_in, rank_out or channels_out
    first = 0 if rank_in is None else channels_in * rank_in * in_positions
    last = 0 if rank_out is None else channels_out * rank_out * out_positions
    return first + inner_in * inner_out * prod(kernel) * (in_positions if transposed else out_positions) + last


def tucker2_parameters(
    channels_in: int, channels_out: int, kernel: Sequence[int], rank_in: int | None, rank_out: int | None
) -> int:
    """Weights of the chain, without bias; with both ranks None, of the original layer. One group."""
    return tucker2_macs(channels_in, channels_out, kernel, rank_in, rank_out, 1, 1)


def break_even(
    channels_in: int, channels_out: int, kernel: Sequence[int], in_positions: int, out_positions: int
) -> float:
    """The fraction f in (0, 1] of both full ranks at which Tucker-2 costs as many MACs as the original; above it there
    is no gain.

    Solves a f^2 + b f = a for the MACs a of the core at full rank and b of both 1x1 convolutions. With positions 1 and
    1 it is the break-even of parameters.
    """
    a = channels_in * channels_out * prod(kernel) * out_positions
    b = channels_in**2 * in_positions + channels_out**2 * out_positions
    return float((-b + np.sqrt(b * b + 4.0 * a * a)) / (2.0 * a))


def tail_energy(singular_values: Spectrum) -> NDArray[np.float64]:
    """Relative squared energy past each rank: entry r is what rank r loses, r = 0 .. n; zeros for a zero spectrum."""
    squares = np.asarray(singular_values, np.float64) ** 2
    tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
    return tails / tails[0] if tails[0] > 0.0 else tails


def keep_ranks(
    channels_in: int,
    channels_out: int,
    kernel: Sequence[int],
    in_positions: int,
    out_positions: int,
    keep: float,
    multiple: int,
    spectra: tuple[Spectrum, Spectrum] | None = None,
    *,
    error: Callable[[int | None, int | None], float] | None = None,
    one_sided: bool = True,
    transposed: bool = False,
) -> Ranks | None:
    """The ranks of least predicted error that keep at most the fraction `keep` of the original's MACs.

    Args:
        channels_in: Ci of one group.
        channels_out: Co of one group.
        kernel: Kernel size an axis.
        in_positions: Spatial positions of the input.
        out_positions: Spatial positions of the output.
        keep: Fraction of the MACs, over 0.
        multiple: Ranks are multiples of it.
        spectra: Input and output spectrum. Alone, the sum of both squared tails predicts the error (an upper bound for
            HOSVD).
        error: A better prediction in the spectra's units. Where both are given, the larger of both tails must bound it
            from below, so that most pairs need no evaluation; `RankErrors` and its spectra are such.
        one_sided: Whether Tucker-1 forms compete as well.
        transposed: For a ConvTranspose.

    Returns:
        (rank_in, rank_out) with None for a side left whole, or None where no pair fits the budget.

    Raises:
        ValueError: Neither `spectra` nor `error`, or `keep` or `multiple` out of range.
    """
    if spectra is None and error is None:
        raise ValueError("give spectra or an error function")
    if keep <= 0.0 or multiple < 1:
        raise ValueError(f"keep {keep} must be over 0 and multiple {multiple} at least 1")
    layer = _Layer(channels_in, channels_out, tuple(kernel), in_positions, out_positions, transposed)
    pairs = _affordable(layer, keep * layer.macs(None, None), multiple, one_sided)
    if not pairs:
        return None
    if spectra is None:
        assert error is not None  # one of the two was given
        return min(pairs, key=lambda p: (error(*p), layer.macs(*p)))
    tails_in, tails_out = tail_energy(spectra[0]), tail_energy(spectra[1])
    losses = {p: (_lost(tails_in, p[0]), _lost(tails_out, p[1])) for p in pairs}
    if error is None:
        return min(pairs, key=lambda p: (sum(losses[p]), layer.macs(*p)))
    return _bounded_minimum(pairs, error, lambda p: max(losses[p]))


@dataclass(frozen=True, slots=True)
class _Layer:
    channels_in: int
    channels_out: int
    kernel: tuple[int, ...]
    in_positions: int
    out_positions: int
    transposed: bool

    def macs(self, rank_in: int | None, rank_out: int | None) -> int:
        return tucker2_macs(
            self.channels_in,
            self.channels_out,
            self.kernel,
            rank_in,
            rank_out,
            self.in_positions,
            self.out_positions,
            transposed=self.transposed,
        )


def _affordable(layer: _Layer, budget: float, multiple: int, one_sided: bool) -> list[Ranks]:
    """For each input rank the largest output rank within the budget: the error falls with the rank."""
    ins: list[int | None] = list(range(multiple, layer.channels_in, multiple))
    outs: list[int | None] = list(range(multiple, layer.channels_out, multiple))
    pairs: list[Ranks] = []
    for rank_in in [*ins, None] if one_sided else ins:
        options = [None, *reversed(outs)] if one_sided and rank_in is not None else list(reversed(outs))
        out = next((o for o in options if layer.macs(rank_in, o) <= budget), 0)
        if out != 0:
            pairs.append((rank_in, out))
    return pairs


def _lost(tails: NDArray[np.float64], rank: int | None) -> float:
    return 0.0 if rank is None else float(tails[min(rank, len(tails) - 1)])


def _bounded_minimum(
    pairs: Sequence[Ranks], error: Callable[[int | None, int | None], float], bound: Callable[[Ranks], float]
) -> Ranks:
    """The pair of least error, evaluating in order of a lower bound and stopping once that exceeds the best."""
    ordered = sorted(pairs, key=bound)
    best, least = ordered[0], error(*ordered[0])
    for pair in ordered[1:]:
        if bound(pair) >= least:
            break
        value = error(*pair)
        if value < least:
            best, least = pair, value
    return best
