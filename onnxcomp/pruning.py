"""What the pass ``sparsity`` does to one layer: choose what stays, fit it, write it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxcomp.allocation.problem import Problem, Setting
from onnxcomp.graph.edit import Link
from onnxcomp.graph.sites import Site
from onnxcomp.numeric.leastsquares import cholesky, solve
from onnxcomp.numeric.moments import predicted_error
from onnxcomp.numeric.sparsity import Pattern, fit_support, prune
from onnxcomp.quantize.layout import Layout, is_product

__all__ = [
    "Pruned",
    "amount_of",
    "by_magnitude",
    "described",
    "fitted",
    "numbers_in",
    "rough_error",
    "share",
    "written",
]

Float = NDArray[np.float64]

# Shares of weights kept, the first rank of a setting, are whole parts of a million.
_PARTS = 10**6
# Pull towards the original weight, in units of the mean power of an input.
_RIDGE = 0.03
# Rows and steps with which a setting is scored.
_SCORED_ROWS, _SCORED_STEPS = 64, 4


class Pruned(NamedTuple):
    """A layer with zeros: its rows (Co, d), its bias (Co,) and the relative squared error of its output."""

    rows: Float
    bias: NDArray[np.float32] | None
    error: float


def share(amount: float, block: str = "") -> Setting:
    """The setting that has this share of zeros, in blocks such as 4x1."""
    return Setting((round((1 - amount) * _PARTS),), block)


def amount_of(setting: Setting) -> float:
    """The share of zeros of a setting."""
    return (_PARTS - setting.ranks[0]) / _PARTS


def numbers_in(text: str) -> tuple[int, int]:
    """The two numbers of a pattern such as 2:4, or of a block such as 4x1."""
    first, second = re.split("[:x]", text)
    return int(first), int(second)


def described(setting: Setting) -> str:
    """A setting in words."""
    if ":" in setting.order:
        return f"{setting.order} of the input channels kept"
    blocks = f", in blocks of {setting.order}" if setting.order else ""
    return f"{amount_of(setting):.1%} zeros{blocks}"


def by_magnitude(site: Site, setting: Setting) -> Pruned:
    """The layer with its smallest weights at zero; the error is that of the weights."""
    pattern = _pattern(setting, site.weight.shape)
    groups = np.split(Layout(site).rows(), site.geometry.group)
    found = [rows * pattern.mask(np.square(rows)) for rows in groups]
    lost = [_part(own - rows, rows) for own, rows in zip(found, groups, strict=True)]
    return Pruned(np.concatenate(found), site.bias, float(np.mean(lost)))


def fitted(site: Site, setting: Setting, problems: Sequence[Problem]) -> Pruned:
    """The layer whose output comes closest to its targets; each problem has moments.

    The fit is that of ridge regression towards the layer's own weight, so that few patches are not overfitted.
    """
    rows: list[Float] = []
    biases: list[Float] = []
    errors: list[float] = []
    for problem in problems:
        weight, moments = problem.weight.reshape(len(problem.weight), -1), problem.moments
        assert moments is not None and moments.mean_y is not None, "there is a Gram"
        if site.kind == "MatMul":  # no bias takes up the means
            zero = np.zeros_like
            moments = replace(moments, mean_x=zero(moments.mean_x), mean_y=zero(moments.mean_y))
        covariance = moments.damped(weight, _RIDGE)
        target = solve(cholesky(covariance.xx), covariance.yx.T).T
        found = prune(target, covariance.xx, _pattern(setting, problem.weight.shape))
        assert moments.mean_y is not None
        bias = moments.mean_y - found @ moments.mean_x
        rows.append(found)
        biases.append(bias)
        errors.append(predicted_error(found, bias, moments))
    bias32 = None if site.kind == "MatMul" else np.concatenate(biases).astype(np.float32)
    return Pruned(np.concatenate(rows), bias32, float(np.mean(errors)))


def rough_error(problem: Problem, setting: Setting) -> float:
    """Relative squared error of a setting, on some rows and roughly fitted: to compare settings takes no more."""
    pattern = _pattern(setting, problem.weight.shape)
    weight = problem.weight.reshape(len(problem.weight), -1)
    blocks = weight.reshape(-1, pattern.block[0], weight.shape[1])
    weight = blocks[:: max(1, len(weight) // _SCORED_ROWS)].reshape(-1, weight.shape[1])
    if problem.moments is None:
        return _part(weight * ~pattern.mask(np.square(weight)), weight)
    gram = problem.moments.damped(problem.weight, _RIDGE).xx
    output = weight @ gram
    mask = pattern.mask(np.square(weight) * np.diagonal(gram))
    missed = weight - fit_support(weight, mask, gram, output, _SCORED_STEPS)
    power = float(np.vdot(output, weight))
    return float(np.vdot(missed @ gram, missed)) / power if power > 0.0 else 0.0


def written(site: Site, rows: Float, bias: NDArray[np.float32] | None, role: str = "sparse") -> tuple[Link, ...]:
    """The layer's own operator with another weight, given as rows (Co, d); the role ends its name."""
    layout = Layout(site)
    weight = layout.stored(rows).reshape(layout.weight_shape).astype(np.float32)
    attributes = {} if is_product(site) else site.geometry.attributes()
    return (Link(role, site.kind, (weight, *(() if bias is None else (bias,))), attributes),)


def _pattern(setting: Setting, shape: tuple[int, ...]) -> Pattern:
    """The pattern of a setting for a weight of this shape, spatial axes last."""
    taps, amount = prod(shape[2:]), amount_of(setting)
    if ":" in setting.order:
        return Pattern(amount, group=numbers_in(setting.order)[1], taps=taps)
    return Pattern(amount, block=numbers_in(setting.order) if setting.order else (1, 1), taps=taps)


def _part(lost: Float, whole: Float) -> float:
    """Energy that is lost, relative to the whole."""
    energy = float(np.square(whole).sum())
    return float(np.square(lost).sum()) / energy if energy > 0.0 else 0.0
