"""How far class probabilities are from others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["divergences"]

_SUM_TOLERANCE = 1e-3


def divergences(wanted: NDArray[np.floating], got: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the Kullback-Leibler divergence of each row from the row that was wanted, in nats.

    That is sum_c p_c (ln p_c - ln q_c), p the probabilities of `wanted`, q those of `got`. Rows that are probabilities
    already (`wanted` nowhere negative, each sum 1 to within 0.001) count as they are, anything else as logits, of which
    the softmax is taken. A probability below the smallest normal float32 counts as that.

    Args:
        wanted: Scores or probabilities, [N, classes].
        got: The same of the other model.

    Returns:
        [N], float64, 0 where rows agree; never negative but for rounding.
    """
    p, q = wanted.astype(np.float64), got.astype(np.float64)
    if (p >= 0).all() and (np.abs(p.sum(axis=1) - 1) < _SUM_TOLERANCE).all():
        least = float(np.finfo(np.float32).tiny)
        log_p, log_q = np.log(np.maximum(p, least)), np.log(np.maximum(q, least))
    else:
        log_p, log_q = _log_softmax(p), _log_softmax(q)
        p = np.exp(log_p)
    result: NDArray[np.float64] = np.sum(p * (log_p - log_q), axis=1)
    return result


def _log_softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = scores - scores.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
