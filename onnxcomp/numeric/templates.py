"""Kernels as multiples of a few templates: K ~ a Kt + b.

Each k x k kernel is a coefficient a times one of M template kernels Kt plus a constant plane b (Chen, Chen and Su, Deep
convolutional neural networks compression method based on linear representation of kernels, 2018). Templates have mean 0
and norm 1: then 1 - rho^2, with rho the Pearson correlation of kernel and template, is the share of the kernel's energy
about its mean that is lost, whatever the sign of a. Clusters are k-lines: the best template of some kernels is the
leading right singular vector of the stack of them. In place of the paper's retraining of a and b, they follow from the
layer's outputs in closed form (:mod:`onnxcomp.numeric.blockwise`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numeric.blockwise import Coder, damped, descend, plain, sequential
from onnxcomp.numeric.rounding import integer_levels, search_scale

__all__ = ["Coefficients", "Linear", "coefficient_ratio", "find_templates", "fit_linear"]

Float = NDArray[np.float64]
Index = NDArray[np.intp]
Coefficients = Literal["fp32", "fp16", "int8", "int4"]

_BITS: dict[str, int] = {"int8": 8, "int4": 4}
# Kernels a template from which on more of them change little.
_KERNELS = 192
_ITERATIONS = 12
# Of many templates one in so many is drawn at the same time as others, before what they leave is known.
_AT_ONCE = 16


def find_templates(kernels: Sequence[Float], count: int, *, seed: int = 0) -> Float:
    """Cluster kernels by Pearson correlation, sign-free and weighted by their energy (k-lines, k-means++ start).

    Args:
        kernels: Of each layer, (n, v); layers count alike, whatever the scale of their weights.
        count: M, templates.
        seed: Of the start, and of the sample that is taken where there are very many kernels.

    Returns:
        (M, v), v = k k, each of mean 0 and norm 1; zeros where there are fewer different kernels.
    """
    rng = np.random.default_rng(seed)
    centred = np.concatenate([_normalised(own) for own in kernels])
    centred = centred[np.square(centred).sum(axis=1) > 0.0]
    if len(centred) > _KERNELS * count:
        centred = centred[np.sort(rng.choice(len(centred), _KERNELS * count, replace=False))]
    found = np.zeros((count, kernels[0].shape[1]))
    if not len(centred):
        return found
    lines = _start(centred, min(count, len(centred)), rng)
    for _ in range(_ITERATIONS):
        lines = _leading(centred, _closest(centred, lines), lines)
    found[: len(lines)] = lines
    return found


def coefficient_ratio(kernels: Sequence[Float]) -> float:
    """How many times as large the coefficients a are as b, in the middle of some layers' (n, v)."""
    tops = [
        (np.linalg.norm(k - k.mean(axis=1, keepdims=True), axis=1).max(), np.abs(k.mean(axis=1)).max()) for k in kernels
    ]
    ratios = [a / b for a, b in tops if a > 0.0 and b > 0.0]
    return float(np.median(ratios)) if ratios else 1.0


class Linear(Coder):
    """Kernels as a Kt + b.

    Args:
        shape: (G, R, d) of the weight, d = channels x taps.
        templates: (M, taps), each of mean 0 and norm 1.
        coefficients: How a and b are rounded.
        ratio: What the steps of a are in units of those of b, where they are rounded to integers.
    """

    def __init__(
        self, shape: tuple[int, ...], templates: Float, coefficients: Coefficients = "fp32", ratio: float = 1.0
    ) -> None:
        super().__init__(shape, templates.shape[1])
        self.templates = templates
        self.coefficients: Coefficients = coefficients
        self.ratio = ratio
        self.fixed = False
        self.index: Index = np.zeros((*shape[:2], self.blocks), np.intp)
        self.a: Float = np.zeros(self.index.shape)
        self.b: Float = np.zeros(self.index.shape)
        self.steps: Float = np.ones(shape[:2])

    @property
    def numbers(self) -> tuple[Index, Float, Float]:
        """Template, a and b of each kernel."""
        return self.index, self.a, self.b

    def nearest(self, block: int, wanted: Float, factor: Float) -> tuple[Float, tuple[Index, Float, Float]]:
        """The template that is left with least error once a and b are fitted; b makes up for the rounding of a.

        Where templates are fixed it is the one that the kernel has.
        """
        x, u, plane = wanted @ factor, self.templates @ factor, np.ones(self.width) @ factor
        level = np.einsum("gv,gv->g", plane, plane)[:, None]
        x_level = np.einsum("grv,gv->gr", x, plane) / level
        u_level = np.einsum("gmv,gv->gm", u, plane) / level
        rest = u - u_level[..., None] * plane[:, None]
        power = np.einsum("gmv,gmv->gm", rest, rest)
        shape = x - x_level[..., None] * plane[:, None]
        usable = power > 1e-12 * np.maximum(level, np.finfo(np.float64).tiny)
        inverse = np.where(usable, 1.0 / np.where(usable, power, 1.0), 0.0)
        index = self.index[:, :, block] if self.fixed else _along(shape, rest * np.sqrt(inverse)[..., None])
        at = np.arange(len(index))[:, None], index
        a = self._rounded(np.einsum("grv,grv->gr", shape, rest[at]) * inverse[at], self.ratio)
        b = self._rounded(x_level - a * np.take_along_axis(u_level, index, axis=1), 1.0)
        return a[..., None] * self.templates[index] + b[..., None], (index, a, b)

    def values(self) -> Float:
        """a Kt + b."""
        kernels = self.a[..., None] * self.templates[self.index] + self.b[..., None]
        return kernels.reshape(*self.index.shape[:2], -1)

    def settle_steps(self) -> None:
        """Choose one step a row for a and b from the coefficients as they are, such that their rounding errs least."""
        bits = _BITS.get(self.coefficients)
        if bits is None:
            return
        both = np.concatenate([self.a / self.ratio, self.b], axis=2)
        rows = both.reshape(-1, both.shape[2])
        self.steps = search_scale(rows, integer_levels(bits)).reshape(self.steps.shape)

    def whole(self) -> tuple[Float, Float]:
        """a and b in units of their steps, where they are rounded to integers."""
        return np.rint(self.a / (self.ratio * self.steps[..., None])), np.rint(self.b / self.steps[..., None])

    def _rounded(self, values: Float, ratio: float) -> Float:
        if self.coefficients == "fp32":
            return values.astype(np.float32).astype(np.float64)
        if self.coefficients == "fp16":
            return values.astype(np.float16).astype(np.float64)
        top = 2 ** (_BITS[self.coefficients] - 1) - 1
        step = ratio * self.steps
        return np.clip(np.rint(values / step), -top, top) * step


def _along(x: Float, directions: Float) -> Index:
    """The direction, of (G, M, width), along which most of each row of x lies, (G, R, width)."""
    # Single precision: of two that hold as much either will do.
    pairs = zip(x.astype(np.float32), directions.astype(np.float32), strict=True)
    return np.stack([np.abs(own @ lines.T).argmax(axis=1) for own, lines in pairs])


def fit_linear(
    target: Float,
    gram: Float | None,
    templates: Float,
    coefficients: Coefficients,
    *,
    ratio: float = 1.0,
    correlated: bool = False,
    sweeps: int = 3,
) -> Linear:
    """Choose template, a and b of every kernel of a weight.

    Args:
        target: m, (G, R, d): the weight, or what would reach the layer's outputs best.
        gram: S, (G, d, d); None: the weights' own error counts.
        templates: (M, taps), each of mean 0 and norm 1.
        coefficients: How a and b are stored.
        ratio: As in :class:`Linear`.
        correlated: Whether a kernel's template is the one it correlates most with, in place of that of least loss.
        sweeps: Passes of coordinate descent over all kernels.

    Returns:
        The coder.
    """
    coder = Linear(target.shape, templates, coefficients, ratio)
    coder.coefficients = "fp32"
    plain(target, coder)
    coder.fixed, coder.coefficients = correlated, coefficients
    coder.settle_steps()
    if gram is None:
        plain(target, coder)
    else:
        values = sequential(target, damped(gram), coder)
        descend(values, target, damped(gram, 0.0), coder, sweeps=sweeps)
    return coder


def _normalised(kernels: Float) -> Float:
    """Kernels without their means, of energy 1 on average."""
    centred = kernels - kernels.mean(axis=1, keepdims=True)
    energy = float(np.square(centred).sum()) / max(len(centred), 1)
    return np.asarray(centred / energy**0.5 if energy > 0.0 else centred, np.float64)


def _start(x: Float, count: int, rng: np.random.Generator) -> Float:
    """Kernels one by one, each drawn with the probability of what those before it leave of it."""
    energy = np.square(x).sum(axis=1)
    directions = x / np.sqrt(energy)[:, None]
    rest = energy
    chosen: list[int] = []
    while len(chosen) < count:
        odds = np.where(rest > 1e-9 * energy, rest, 0.0)
        size = min(max(1, len(chosen) // _AT_ONCE), count - len(chosen), int(np.count_nonzero(odds)))
        if not size:
            chosen += chosen[:1] * (count - len(chosen))
            break
        drawn = rng.choice(len(x), size, replace=False, p=odds / odds.sum())
        lines = directions[drawn]
        held = [np.square(x[i : i + 8192] @ lines.T).max(axis=1) for i in range(0, len(x), 8192)]
        rest = np.minimum(rest, energy - np.concatenate(held))
        chosen += drawn.tolist()
    found: Float = directions[chosen]
    return found


def _closest(x: Float, lines: Float) -> Index:
    """The line that holds most of each kernel."""
    found: Index = np.concatenate([np.abs(x[i : i + 4096] @ lines.T).argmax(axis=1) for i in range(0, len(x), 4096)])
    return found


def _leading(x: Float, nearest: Index, lines: Float) -> Float:
    """The direction of most energy of each cluster; empty ones keep theirs."""
    outer = (x[:, :, None] * x[:, None]).reshape(len(x), -1)
    sums = np.stack([np.bincount(nearest, column, len(lines)) for column in outer.T], axis=1)
    scatter = sums.reshape(len(lines), x.shape[1], x.shape[1])
    found = np.linalg.eigh(scatter)[1][..., -1]
    filled = np.trace(scatter, axis1=1, axis2=2) > 0.0
    kept: Float = np.where(filled[:, None], found, lines)
    return kept
