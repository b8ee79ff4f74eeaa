"""ReLU-aware refinement of a low-rank fit: match the layer's output after its ReLU (Zhang et al. 2016, section 3.2).

Minimise E|relu(y) - relu(W x + b)|^2 over chains of given ranks. With auxiliary targets z for the pre-activations and
the penalty lambda |z - (W x + b)|^2 the problem splits: the chain is a reduced-rank regression of z, and z has a closed
form entry by entry. The nonlinearity needs the patches themselves, not only their moments.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numeric.leastsquares import cholesky, reduced_rank

__all__ = ["ReluFit", "relu_aware", "relu_error"]

Float = NDArray[np.float64]

# Penalty and number of alternations, from He et al.'s released code for Zhang's method.
_SCHEDULE = ((0.1, 30), (1.0, 20))
# One sample in so many judges the result instead of shaping it.
_HELD_OUT = 4


def relu_error(y: NDArray[np.floating], approximation: NDArray[np.floating]) -> float:
    """E|relu(y) - relu(approximation)|^2 relative to the variance of relu(y); both (n, Co) pre-activations."""
    wanted = np.maximum(np.asarray(y, np.float64), 0.0)
    distance = float(np.square(wanted - np.maximum(approximation, 0.0)).sum())
    energy = float(np.square(wanted - wanted.mean(axis=0)).sum())
    if energy == 0.0:
        return 0.0 if distance == 0.0 else float("inf")
    return distance / energy


class ReluFit(NamedTuple):
    """A last dense map fitted to what the ReLU leaves.

    Attributes:
        core: (r, m); (Co, m) where the map is not factored.
        last: (Co, r) with orthonormal columns; None where the map is not factored.
        bias: (Co,).
        error: `relu_error` on samples that the fit has not seen.
    """

    core: Float
    last: Float | None
    bias: Float
    error: float


def relu_aware(
    features: NDArray[np.floating],
    targets: NDArray[np.floating],
    linear: NDArray[np.floating],
    bias: NDArray[np.floating],
    rank: int | None,
    *,
    damping: float = 1e-2,
    schedule: tuple[tuple[float, int], ...] = _SCHEDULE,
) -> ReluFit | None:
    """Refine the last dense map of a chain and its bias for a ReLU that follows; what comes before stays.

    Args:
        features: What the map reads, (n, m).
        targets: Pre-activations to approximate, (n, Co).
        linear: The map to start from, (Co, m).
        bias: Its bias, (Co,).
        rank: Rank of the map; None for any.
        damping: Pull towards the starting point, relative to the mean variance of the features.
        schedule: Penalties lambda and the number of alternations with each.

    Returns:
        The best map met, or None where none is better than the start on samples that were held out.

    Raises:
        ValueError: Fewer than eight samples.
    """
    if len(features) < 2 * _HELD_OUT:
        raise ValueError(f"{len(features)} samples are too few for a fit")
    z_all, y_all = np.asarray(features, np.float64), np.asarray(targets, np.float64)
    held = np.arange(len(z_all)) % _HELD_OUT == 0
    start = np.asarray(linear, np.float64)
    least = relu_error(y_all[held], z_all[held] @ start.T + bias)
    best: ReluFit | None = None
    problem = _Problem(z_all[~held], start, rank, damping)
    z = y_all[~held]
    wanted = np.maximum(z, 0.0)
    for penalty, count in schedule:
        for _ in range(count):
            z = _closest(problem.fit(z), wanted, penalty)
        problem.fit(z)
        error = relu_error(y_all[held], z_all[held] @ problem.linear.T + problem.bias)
        if error < least:
            least, best = error, ReluFit(problem.core, problem.last, problem.bias, error)
    return best


class _Problem:
    """Damped reduced-rank regression on fixed features; only the targets change, so the Gram is factored once."""

    def __init__(self, features: Float, start: Float, rank: int | None, damping: float) -> None:
        self._mean = features.mean(axis=0)
        self._centred = features - self._mean
        gram = self._centred.T @ self._centred / len(features)
        pull = damping * float(np.trace(gram)) / len(gram)
        self._lower = cholesky(gram + pull * np.eye(len(gram)))
        self._pull = pull * start
        self._rank = rank
        self.core, self.last, self.bias = start, None, np.zeros(len(start))

    core: Float
    last: Float | None
    bias: Float

    def fit(self, z: Float) -> Float:
        """Fit the chain to targets (n, Co), set core, last and bias, and return its responses."""
        offset = z.mean(axis=0)
        cross = (z - offset).T @ self._centred / len(z) + self._pull
        self.core, self.last = reduced_rank(self._lower, cross, self._rank)
        linear = self.linear
        self.bias = offset - linear @ self._mean
        response: Float = self._centred @ linear.T + offset
        return response

    @property
    def linear(self) -> Float:
        """Core and output factor as one matrix, (Co, features)."""
        return self.core if self.last is None else self.last @ self.core


def _closest(response: Float, target: Float, penalty: float) -> Float:
    """Minimise (relu(z) - target)^2 + penalty (z - response)^2 entry by entry: the better of both signs' optima."""
    negative = np.minimum(response, 0.0)
    positive = np.maximum((penalty * response + target) / (penalty + 1.0), 0.0)
    cost_negative = target**2 + penalty * (negative - response) ** 2
    cost_positive = (positive - target) ** 2 + penalty * (positive - response) ** 2
    return np.where(cost_negative <= cost_positive, negative, positive)
