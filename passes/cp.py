"""The pass ``cp``: a k x k convolution becomes a 1x1, a depthwise k x k and a 1x1 one (CP decomposition)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxcomp.allocation.problem import Factors, Setting, few_channels, group_shape, joined
from onnxcomp.decomposition.base import Decomposition
from onnxcomp.decomposition.chains import constants, pointwise
from onnxcomp.decomposition.form import Tail
from onnxcomp.graph.edit import Link
from onnxcomp.graph.sites import Site
from onnxcomp.numeric.cp import CP, balance, compose, principal_slices
from onnxcomp.numeric.cpfit import TermErrors, fit_cp
from onnxcomp.numeric.moments import Moments
from onnxcomp.numeric.vbmf import evbmf_rank

__all__ = ["Cp"]

Float = NDArray[np.float64]

# As for tucker2: nothing is gained on layers with no side above _NARROW channels or with one below _TINY.
_NARROW = 16
_TINY = 8


@dataclass(frozen=True)
class Cp(Decomposition):
    """Replace a k x k convolution by 1x1 to R channels, a depthwise k x k and 1x1 back (CP decomposition).

    K[o,i,p,q] ~ sum_r last[o,r] middle[r,p,q] first[r,i] (CP-3; Lebedev et al. 2015 split the taps as well, which takes
    a node more and fits worse). The depthwise node keeps kernel, strides, dilations and pads, the last 1x1 carries the
    bias. Grouped convolutions are factored group by group with equal ranks.

    Terms that grow and cancel each other lower the error on paper and ruin int8 and fine-tuning. A fit whose terms hold
    more than ten times the energy of their sum (the measure of Phan et al. 2020) is not taken; the orthogonal terms
    that every fit starts from are always there to fall back on.

    With calibration data the weight is decomposed in a space in which channels and kernel positions are nearly
    uncorrelated, then each factor in turn is fitted to the layer's output, given the inputs that the already compressed
    layers before it produce. Errors are predicted from the start of that fit and are upper bounds; the report gives
    what was reached.

    Left alone, with the reason in the report: kernels of one tap, depthwise and narrow convolutions, ConvTranspose,
    ranks past break-even, and what tucker2 leaves alone as well.
    """

    name: ClassVar[str] = "cp"

    def refuse(self, site: Site) -> str | None:
        """Say why a site has no CP form worth trying."""
        per_out, per_in = group_shape(site)[:2]
        if site.geometry.pointwise:
            return "the kernel is 1x1"
        if site.geometry.transposed:
            return "a ConvTranspose"
        if site.geometry.group > 1 and min(per_in, per_out) == 1:
            return "depthwise"
        if max(per_in, per_out) <= _NARROW or min(per_in, per_out) < _TINY:
            return few_channels(site)
        return None

    def full(self, shape: tuple[int, ...], order: str) -> tuple[int, ...]:
        """The rank from which on the factors have no fewer weights than the layer."""
        del order
        outs, ins, taps = shape[0], shape[1], prod(shape[2:])
        return (-(-outs * ins * taps // (outs + ins + taps)),)

    def whole(self, shape: tuple[int, ...], setting: Setting) -> bool:
        """Ranks past break-even are no gain."""
        return setting.ranks[0] >= self.full(shape, "")[0]

    def asked(self, site: Site) -> list[Setting] | None:
        """The rank that the user gave."""
        return [Setting((self.rank,))] if isinstance(self.rank, int) else None

    def scores(self, weight: Float, moments: Moments | None) -> Callable[[Setting], float]:
        """What orthogonal terms lose at most, from one factorisation; `factor` alternates from there."""
        errors = TermErrors(weight, moments, self.full(weight.shape, "")[0])
        return lambda setting: errors(setting.ranks[0])

    def factor(self, weight: Float, moments: Moments | None, setting: Setting) -> Factors:
        """Alternating least squares."""
        fitted = fit_cp(weight, moments, setting.ranks[0])
        if self.relu and moments is not None:  # its damping asks for inner channels of one magnitude
            fitted = balance(fitted, moments.xx)
        return _factors(fitted, weight.shape[2:])

    def compose(self, factors: Factors) -> Float:
        """The weight that the factors stand for."""
        weight = compose(_cp(factors))
        return weight.reshape(*weight.shape[:2], *factors["middle"].shape[2:])

    def shapes(self, shape: tuple[int, ...], setting: Setting) -> Mapping[str, tuple[int, ...]]:
        """The shapes of first, middle and last."""
        rank = setting.ranks[0]
        return {"first": (rank, shape[1]), "middle": (rank, 1, *shape[2:]), "last": (shape[0], rank)}

    def links(
        self, site: Site, setting: Setting, groups: Sequence[Factors], bias: NDArray[np.float32] | None
    ) -> tuple[Link, ...]:
        """1x1, depthwise, 1x1."""
        geometry = site.geometry
        depthwise = replace(geometry, group=geometry.group * setting.ranks[0])
        first, last = (pointwise(joined(groups, role), geometry.rank) for role in ("first", "last"))
        point = geometry.pointlike().attributes()
        return (
            Link("first", "Conv", (first,), point),
            Link("middle", "Conv", (joined(groups, "middle"),), depthwise.attributes()),
            Link("last", "Conv", (last, *constants(bias)), point),
        )

    def balanced(self, factors: Factors, xx: Float | None) -> Factors:
        """Inner channels of equal root mean square."""
        return _factors(balance(_cp(factors), xx), factors["middle"].shape[2:])

    def vbmf(self, weight: Float, order: str) -> tuple[int, ...]:
        """EVBMF of the weight's slices along the principal directions of its taps, together."""
        del order
        slices = principal_slices(weight.reshape(*weight.shape[:2], -1))
        return (min(sum(evbmf_rank(part).rank for part in slices), *self.full(weight.shape, "")),)

    def tail(self, factors: Factors) -> Tail:
        """The last 1x1, behind the depthwise node."""
        terms = factors["first"][:, :, None] * _cp(factors).middle[:, None, :]
        rows = terms.reshape(len(terms), -1).T
        return Tail(factors["last"], None, lambda x: x @ rows, lambda core, _: {**factors, "last": core})


def _cp(factors: Factors) -> CP:
    return CP(factors["first"], factors["middle"].reshape(len(factors["middle"]), -1), factors["last"])


def _factors(cp: CP, kernel: tuple[int, ...]) -> Factors:
    return {"first": cp.first, "middle": cp.middle.reshape(len(cp.middle), 1, *kernel), "last": cp.last}
