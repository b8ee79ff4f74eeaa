"""ReLU-aware refinement of a low-rank fit: match the layer's output after its ReLU (Zhang et al. 2016, section 3.2).

Minimise E|relu(y) - relu(W x + b)|^2 over chains of given ranks. With auxiliary targets z for the pre-activations and
the penalty lambda |z - (W x + b)|^2 the problem splits: the chain is a reduced-rank regression of z, and z has a closed
form entry by entry. The nonlinearity needs the patches themselves, not only their moments.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numeric.leastsquares import cholesky, reduced_rank
from onnxcomp.numeric.tucker import Tucker2, compose, relative_error

__all__ = ["relu_aware", "relu_error"]

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


def relu_aware(
    factors: Tucker2,
    bias: NDArray[np.floating],
    weight: NDArray[np.floating],
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    *,
    damping: float = 1e-2,
    schedule: tuple[tuple[float, int], ...] = _SCHEDULE,
) -> tuple[Tucker2, Float, float]:
    """Refine core, output factor and bias of a chain for a ReLU that follows; the input factor stays.

    Args:
        factors: The starting point, as `fit_tucker2` gives it.
        bias: Its output bias, (Co,).
        weight: The original weight (Co, Ci, *kernel), for the factors' `error`.
        x: Sampled patches (n, d), channel-major.
        y: Target pre-activations at the same places, (n, Co).
        damping: Pull towards the starting point, relative to the mean variance of the regressors.
        schedule: Penalties lambda and the number of alternations with each.

    Returns:
        Factors of the same shapes, the bias, and the `relu_error` on the samples - those of the starting point where
        the alternation does not improve on it.

    Raises:
        ValueError: Fewer than eight samples.
    """
    if len(x) < 2 * _HELD_OUT:
        raise ValueError(f"{len(x)} samples are too few for a fit")
    features = _features(np.asarray(x, np.float64), factors)
    targets = np.asarray(y, np.float64)
    held = np.arange(len(x)) % _HELD_OUT == 0
    test_features, test_targets = features[held], targets[held]
    start = _linear(factors)
    best = (factors, np.asarray(bias, np.float64), relu_error(test_targets, test_features @ start.T + bias))
    problem = _Problem(features[~held], start, None if factors.last is None else factors.last.shape[1], damping)
    z = targets[~held]
    wanted = np.maximum(z, 0.0)
    for penalty, count in schedule:
        for _ in range(count):
            z = _closest(problem.fit(z), wanted, penalty)
        problem.fit(z)
        error = relu_error(test_targets, test_features @ problem.linear.T + problem.bias)
        if error < best[2]:
            core = problem.core.reshape(len(problem.core), *factors.core.shape[1:])
            best = (Tucker2(factors.first, core, problem.last, 0.0), problem.bias, error)
    kept = best[0]
    weight_error = relative_error(np.asarray(weight, np.float64), compose(kept))
    return Tucker2(kept.first, kept.core, kept.last, weight_error), best[1], best[2]


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


def _linear(factors: Tucker2) -> Float:
    """Core and output factor as one matrix (Co, r_in * taps)."""
    flat = factors.core.reshape(len(factors.core), -1)
    return flat if factors.last is None else factors.last @ flat


def _features(x: Float, factors: Tucker2) -> Float:
    """What the core reads: the patches after the first 1x1, (n, r_in * taps)."""
    if factors.first is None:
        return x
    channels = factors.first.shape[1]
    features: Float = np.matmul(factors.first, x.reshape(len(x), channels, -1)).reshape(len(x), -1)
    return features
