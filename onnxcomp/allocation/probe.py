"""Probes of a layer: the same layer with some of its output's variance lost, to see what that does to the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcomp.allocation.problem import Problem
from onnxcomp.numeric.moments import Moments, predicted_error
from onnxcomp.numeric.tucker import leading_vectors, relative_error

__all__ = ["Probe", "make_probes", "probed_weight"]

Float = NDArray[np.float64]

# Shares of the variance to lose, about a factor apart. What reaches the outputs need not be in proportion: a Relu hides
# small errors, and a few directions can hold all that the next layers look at.
_LEVELS = (0.05, 0.01, 0.002)


@dataclass(frozen=True, eq=False, slots=True)
class Probe:
    """A layer that loses a little: its output projected on a few directions.

    Attributes:
        bases: The directions of each group, (Co, r), orthonormal.
        bias: Output bias (Co,), all groups together; None to keep the layer's own.
        error: Relative squared error of the layer's output.
    """

    bases: tuple[Float, ...]
    bias: Float | None
    error: float


def probed_weight(weights: Sequence[Float], probe: Probe) -> list[Float]:
    """The weights of a probe from those of the layer, one (Co, Ci, *kernel) a group."""
    return [
        (basis @ (basis.T @ weight.reshape(len(weight), -1))).reshape(weight.shape)
        for weight, basis in zip(weights, probe.bases, strict=True)
    ]


def make_probes(problems: Sequence[Problem]) -> tuple[Probe, ...]:
    """Project the output on its leading directions, such that about 5, 1 and 0.2 % of its variance are lost.

    Fewer where the layer has not so many directions, none where it has but one.
    """
    spectra = [_spectrum(problem) for problem in problems]
    found: dict[tuple[int, ...], Probe] = {}
    for level in _LEVELS:
        ranks = tuple(_rank(values, level) for _, values in spectra)
        if 0 not in ranks and ranks not in found:
            found[ranks] = _probe(problems, [gram for gram, _ in spectra], ranks)
    return tuple(probe for probe in found.values() if probe.error > 0.0)


def _spectrum(problem: Problem) -> tuple[Float, Float]:
    """The covariance of the output (of the weight's rows without data) and its eigenvalues, descending."""
    flat = problem.weight.reshape(len(problem.weight), -1)
    gram = flat @ flat.T if problem.moments is None else flat @ problem.moments.centred().xx @ flat.T
    return gram, np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)


def _rank(values: Float, level: float) -> int:
    """The least rank that loses no more than the level, short of the full one; 0 where there is none."""
    if values.sum() <= 0.0 or len(values) < 2:
        return 0
    tails = 1.0 - np.cumsum(values) / values.sum()
    return max(1, min(len(values) - 1, int(np.argmax(tails <= level)) + 1))


def _probe(problems: Sequence[Problem], grams: Sequence[Float], ranks: Sequence[int]) -> Probe:
    bases = [leading_vectors(gram, rank) for gram, rank in zip(grams, ranks, strict=True)]
    biases: list[Float] = []
    errors: list[float] = []
    for problem, basis in zip(problems, bases, strict=True):
        flat = problem.weight.reshape(len(problem.weight), -1)
        fitted = basis @ (basis.T @ flat)
        if problem.moments is None:
            errors.append(relative_error(flat, fitted))
            continue
        bias = _bias(fitted, problem.moments)
        biases.append(bias)
        errors.append(predicted_error(fitted, bias, problem.moments))
    return Probe(tuple(bases), np.concatenate(biases) if biases else None, float(np.mean(errors)))


def _bias(fitted: Float, moments: Moments) -> Float:
    assert moments.mean_y is not None  # problems_of has supplied targets
    return moments.mean_y - fitted @ moments.mean_x
