"""An order of channels of which an N:M pattern keeps more: channels of different groups change places while it pays.

Which channels share a group of M is free where the layers before can write them in another order. The search is the
greedy one of Pool and Yu, Channel Permutations for N:M Sparsity, 2021: the best exchange between two groups, as long as
there is one. All exchanges are judged at once: a row of a group without its channel i keeps t, and its N-th largest
entry is v; with x in the place of i it keeps t + max(x - v, 0).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["best_order", "kept"]

Float = NDArray[np.float64]
Single = NDArray[np.float32]
Order = NDArray[np.int64]

# Rows that an exchange is judged by, and channels among which it is looked for: the work grows with the square of them.
# 512 channels with 3x3 taps are judged by all rows: a fifth of them foretold five times the gain that there was.
_ROWS, _CHANNELS = 4608, 512
_ROUNDS = 100
# What an exchange must gain, relative to all there is.
_GAIN = 1e-6


def kept(scores: Float, count: int, group: int) -> float:
    """The sum of what an N:M pattern keeps: the `count` largest of each `group` consecutive channels of a row.

    Args:
        scores: At least 0, (R, C); C is a multiple of `group`.
        count: N.
        group: M.
    """
    parts = scores.reshape(len(scores), -1, group)
    return float(np.partition(parts, group - count, axis=2)[:, :, group - count :].sum(dtype=np.float64))


def best_order(scores: Float, count: int, group: int) -> Order:
    """An order of the channels of which an N:M pattern keeps as much as it could find, and no less than of their own.

    Args:
        scores: Importance of the entries, at least 0, (R, C); C is a multiple of `group`.
        count: N, less than M.
        group: M.

    Returns:
        (C,): the channel that comes to each place. Where nothing is gained, 0, 1, 2 ...
    """
    channels = scores.shape[1]
    rows = scores[:: -(-len(scores) // _ROWS)]
    order = np.arange(channels)
    parts = -(-channels // _CHANNELS)
    # Of many channels every n-th group belongs together, so that neighbours, which may be alike, are told apart.
    groups = order.reshape(-1, group)
    for part in range(parts):
        own = groups[part::parts].reshape(-1)
        order[own] = own[_exchanged(rows[:, own], count, group)]
    before, after = kept(scores, count, group), kept(scores[:, order], count, group)
    return order if after > (1 + _GAIN) * before else np.arange(channels)


def _exchanged(scores: Float, count: int, group: int) -> Order:
    """Exchange channels, many pairs of groups at a time, until no exchange gains anything."""
    channels = scores.shape[1]
    values = np.ascontiguousarray(scores.T, np.float32)
    members = np.arange(channels).reshape(-1, group)
    with_other = np.zeros((channels, channels))
    stale = np.arange(len(members))
    least = _GAIN * float(scores.sum(dtype=np.float64))
    for _ in range(_ROUNDS):
        for block in stale:
            _judge(values, members[block], count, with_other)
        pairs = _best_pairs(with_other, members, least)
        if not pairs:
            break
        for (a, i), (b, j) in pairs:
            members[a, i], members[b, j] = members[b, j], members[a, i]
        stale = np.asarray(sorted(block for pair in pairs for block, _ in pair))
    return members.reshape(-1)


def _judge(values: Single, own: Order, count: int, with_other: Float) -> None:
    """What a group keeps with any other channel in the place of one of its own, less what it keeps now.

    Args:
        values: Scores, (C, R).
        own: Channels of the group, (M,).
        count: N.
        with_other: Rows `own` of it, (M, C), are written.
    """
    now = values[own]
    best = np.sort(now, axis=0)[len(own) - count :].sum(dtype=np.float64)
    buffer, ones = np.empty_like(values), np.ones(values.shape[1], np.float32)
    for place, channel in enumerate(own):
        others = np.sort(np.delete(now, place, axis=0), axis=0)[len(own) - 1 - count :]
        np.maximum(values, others[0], out=buffer)
        # t + max(x - v, 0) = (t - v) + max(x, v)
        with_other[channel] = buffer @ ones + others[1:].sum(dtype=np.float64) - best


def _best_pairs(with_other: Float, members: Order, least: float) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The exchanges that gain most, no group in two of them, as (group, place) of both channels."""
    flat = members.reshape(-1)
    count, group = members.shape
    gains = with_other[np.ix_(flat, flat)]
    gains = (gains + gains.T).reshape(count, group, count, group)
    gains[np.arange(count), :, np.arange(count)] = 0.0
    # Of each pair of groups the best exchange alone.
    flat_gains = gains.transpose(0, 2, 1, 3).reshape(count, count, -1)
    places, best = flat_gains.argmax(axis=2), flat_gains.max(axis=2)
    found: list[tuple[tuple[int, int], tuple[int, int]]] = []
    taken = np.zeros(count, np.bool_)
    first, second = np.triu_indices(count, 1)
    order = np.argsort(-best[first, second], kind="stable")
    for a, b in zip(first[order].tolist(), second[order].tolist(), strict=True):
        if best[a, b] <= least:
            break
        if not taken[a] and not taken[b]:
            taken[a] = taken[b] = True
            i, j = divmod(int(places[a, b]), group)
            found.append(((a, i), (b, j)))
    return found
