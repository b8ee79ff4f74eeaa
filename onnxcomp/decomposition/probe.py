"""A probe of a layer: the same layer with some of its output's variance lost, to see what that does to the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcomp.decomposition.problem import Problem
from onnxcomp.numeric.leastsquares import cholesky
from onnxcomp.numeric.moments import Moments, predicted_error
from onnxcomp.numeric.tucker import leading_vectors, relative_error

__all__ = ["Probe", "make_probe"]

Float = NDArray[np.float64]

# Large enough to stand out of rounding, small enough for its effect to be in proportion.
_WANTED = 0.02


@dataclass(frozen=True, eq=False, slots=True)
class Probe:
    """A layer that loses a little.

    Attributes:
        weight: One array a group, (Co, Ci, *kernel).
        bias: Output bias (Co,), all groups together; None to keep the layer's own.
        error: Relative squared error of the layer's output.
    """

    weight: tuple[Float, ...]
    bias: Float | None
    error: float


def make_probe(problems: Sequence[Problem]) -> Probe | None:
    """Project the output on its leading directions, such that about 2 % of its variance is lost.

    None where no direction can be left out.
    """
    weights: list[Float] = []
    biases: list[Float] = []
    errors: list[float] = []
    for problem in problems:
        weight, bias, error = _truncated(problem.weight, problem.moments)
        weights.append(weight)
        errors.append(error)
        if bias is not None:
            biases.append(bias)
    error = float(np.mean(errors))
    return Probe(tuple(weights), np.concatenate(biases) if biases else None, error) if error > 0.0 else None


def _truncated(weight: Float, moments: Moments | None) -> tuple[Float, Float | None, float]:
    flat = weight.reshape(len(weight), -1)
    response = flat if moments is None else flat @ cholesky(moments.centred().xx)
    gram = response @ response.T
    values = np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)
    if values.sum() <= 0.0 or len(flat) < 2:
        return weight, None if moments is None else moments.mean_y, 0.0
    tails = 1.0 - np.cumsum(values) / values.sum()
    rank = max(1, min(len(flat) - 1, int(np.argmax(tails <= _WANTED))))
    basis = leading_vectors(gram, rank)
    fitted = basis @ (basis.T @ flat)
    shaped = fitted.reshape(weight.shape)
    if moments is None or moments.mean_y is None:
        return shaped, None, relative_error(weight, shaped)
    bias = moments.mean_y - fitted @ moments.mean_x
    return shaped, bias, predicted_error(fitted, bias, moments)
