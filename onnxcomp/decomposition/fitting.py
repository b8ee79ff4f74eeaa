"""Fit a form to every group of a site: factors, bias, and the error that is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onnxcomp.allocation.problem import Factors, Problem, Setting
from onnxcomp.calibration.gram import Samples
from onnxcomp.graph.sites import Site, is_default_domain
from onnxcomp.numeric.moments import predicted_error
from onnxcomp.numeric.reluaware import relu_aware
from onnxcomp.numeric.tucker import relative_error

if TYPE_CHECKING:
    from onnxcomp.decomposition.form import Form

__all__ = ["Fitted", "fitted", "mean_scores"]

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class Fitted:
    """The factors of all groups of a site.

    Attributes:
        factors: One entry a group.
        bias: Of the last node, (Co,); None where there is none.
        error: Relative squared error of the output (of the weight where no data were followed), mean over the groups.
    """

    factors: tuple[Factors, ...]
    bias: NDArray[np.float32] | None
    error: float


def fitted(
    form: Form, site: Site, problems: Sequence[Problem], setting: Setting, kept: Sequence[Samples] | None
) -> Fitted:
    """Fit a form to every group.

    Args:
        form: The form.
        site: The layer.
        problems: One a group.
        setting: Ranks and order.
        kept: Sampled patches and targets of each group, for a fit to what a Relu behind the site leaves.
    """
    if problems[0].moments is None:
        factors = [form.factor(p.weight, None, setting) for p in problems]
        shares = _shares(problems)
        parts = zip(problems, factors, shares, strict=True)
        error = sum(relative_error(p.weight, form.compose(f)) * share for p, f, share in parts if share)
        return Fitted(tuple(form.balanced(f, None) for f in factors), site.bias, error)
    groups: list[Factors] = []
    biases: list[Float] = []
    errors: list[float] = []
    samples = kept if kept is not None and _only_relu_reads(site) else [None] * len(problems)
    for problem, own in zip(problems, samples, strict=True):
        factors_, bias, error = _one(form, problem, setting, own)
        groups.append(factors_)
        biases.append(bias)
        errors.append(error)
    return Fitted(tuple(groups), np.concatenate(biases).astype(np.float32), float(np.mean(errors)))


def mean_scores(
    scores: Sequence[Callable[[Setting], float]], problems: Sequence[Problem]
) -> Callable[[Setting], float]:
    """The predicted error of a setting over all groups."""

    shares = _shares(problems)

    def score(setting: Setting) -> float:
        return sum(own(setting) * share for own, share in zip(scores, shares, strict=True) if share)

    return score


def _shares(problems: Sequence[Problem]) -> list[float]:
    """What each group counts in a mean: errors of outputs alike, errors of weights by the energy of the group."""
    if problems[0].moments is not None:
        return [1 / len(problems)] * len(problems)
    energy = [float(np.vdot(p.weight, p.weight)) for p in problems]
    return [own / (sum(energy) or 1.0) for own in energy]


def _one(form: Form, problem: Problem, setting: Setting, samples: Samples | None) -> tuple[Factors, Float, float]:
    moments = problem.moments
    assert moments is not None and moments.mean_y is not None  # problems_of has supplied targets
    factors = form.factor(problem.weight, moments, setting)
    dense = form.compose(factors)
    bias = moments.mean_y - dense.reshape(len(dense), -1) @ moments.mean_x
    error = predicted_error(dense, bias, moments)
    if samples is not None and samples.y is not None:
        factors, bias, error = _after_relu(form, factors, bias, error, samples)
    return form.balanced(factors, moments.xx), bias, error


def _after_relu(
    form: Form, factors: Factors, bias: Float, error: float, samples: Samples
) -> tuple[Factors, Float, float]:
    tail = form.tail(factors)
    if tail is None or samples.y is None:
        return factors, bias, error
    features = tail.features(samples.x.astype(np.float64))
    refined = relu_aware(features, samples.y.astype(np.float64), tail.linear, bias, tail.rank)
    if refined is None:
        return factors, bias, error
    return tail.with_map(refined.core, refined.last), refined.bias, refined.error


def _only_relu_reads(site: Site) -> bool:
    output = site.node.outputs[0]
    readers = [node for node, _ in output.uses()]
    return bool(readers) and not output.is_graph_output() and all(is_default_domain(n, "Relu") for n in readers)
