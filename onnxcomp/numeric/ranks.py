"""What a rank loses by a spectrum, and a rank between EVBMF's and the full one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["tail_energy", "weakened"]


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


def tail_energy(singular_values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Relative squared energy past each rank: entry r is what rank r loses, r = 0 .. n; zeros for a zero spectrum."""
    squares = np.asarray(singular_values, np.float64) ** 2
    tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
    return tails / tails[0] if tails[0] > 0.0 else tails
