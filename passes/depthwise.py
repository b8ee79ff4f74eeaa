"""The pass ``depthwise``: a convolution becomes a sum of depthwise-separable blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from onnxcomp.allocation.problem import Factors, Setting, few_channels, joined
from onnxcomp.decomposition.base import Decomposition
from onnxcomp.decomposition.chains import constants, pointwise
from onnxcomp.decomposition.form import Tail
from onnxcomp.graph.edit import Link
from onnxcomp.graph.sites import Site
from onnxcomp.numeric.depthwise import (
    DepthwiseErrors,
    balance_depthwise,
    compose_depthwise,
    depthwise_features,
    fit_depthwise,
    split_depthwise,
)
from onnxcomp.numeric.moments import Moments
from onnxcomp.numeric.pointwise import (
    PointwiseErrors,
    balance_pointwise,
    compose_pointwise,
    fit_pointwise,
    split_pointwise,
)
from onnxcomp.numeric.taps import full_blocks, tap_gram, tap_tails
from onnxcomp.numeric.vbmf import evbmf_rank

__all__ = ["Depthwise"]

Float = NDArray[np.float64]

_TINY = 8
# No number of blocks above it has been seen to pay.
_BLOCKS = 12
# Channels whose ranks stand for all in the rule vbmf.
_SAMPLED = 32


@dataclass(frozen=True)
class Depthwise(Decomposition):
    """Replace a k x k convolution by a sum of depthwise k x k and 1x1 ones (depthwise-separable blocks).

    K[o,i,p,q] ~ sum_r pointwise[o,r,i] depthwise[i,r,p,q] (Guo et al. 2018), or with the 1x1 first,
    sum_r pointwise[o,r,i] depthwise[o,r,p,q] (Jang et al. 2019). Each block is a branch of its own: the runtime has no
    fast kernel for depthwise convolutions with a channel multiplier. One block of n x n kernels and N outputs has
    1/n^2 + 1/N of the weights. The depthwise node keeps strides, dilations and pads; the last node of one branch
    carries the bias. Grouped convolutions are split group by group.

    With calibration data filters and 1x1 weights are least squares in turns on the layer's output, given the inputs
    that the already compressed layers before it produce.

    Left alone: kernels of one tap, depthwise and narrow convolutions, ConvTranspose, numbers of blocks past break-even,
    and what tucker2 leaves alone as well.

    Attributes:
        order: dw: depthwise first; pw: 1x1 first. Unless given, both are tried, and dw alone where there are strides:
            the 1x1 before them costs as many times more.
    """

    name: ClassVar[str] = "depthwise"

    order: Literal["dw", "pw"] | None = None

    def refuse(self, site: Site) -> str | None:
        """Say why a site cannot be split."""
        per_in, per_out = site.channels_in // site.geometry.group, site.channels_out // site.geometry.group
        if site.geometry.pointwise:
            return "the kernel is 1x1"
        if site.geometry.transposed:
            return "a ConvTranspose"
        if site.geometry.group > 1 and min(per_in, per_out) == 1:
            return "depthwise already"
        if min(per_in, per_out) < _TINY:
            return few_channels(site)
        return None

    def orders(self, site: Site) -> tuple[str, ...]:
        """Depthwise and pointwise first; with strides the latter takes several times the work for as much error."""
        if self.order is not None:
            return (self.order,)
        return ("dw",) if prod(site.geometry.strides) > 1 else ("dw", "pw")

    def full(self, shape: tuple[int, ...], order: str) -> tuple[int, ...]:
        """The number of blocks with which nothing is lost."""
        return (full_blocks(shape[0 if order == "dw" else 1], prod(shape[2:])),)

    def grid(self, full: int, step: int) -> Sequence[int]:
        """A few blocks; their number is no number of channels, so that `step` is no matter."""
        del step
        return [*range(1, min(full, _BLOCKS + 1)), full]

    def whole(self, shape: tuple[int, ...], setting: Setting) -> bool:
        """All blocks, which cost more than the layer."""
        return setting.ranks >= self.full(shape, setting.order)

    def scores(self, weight: Float, moments: Moments | None) -> Callable[[Setting], float]:
        """Errors after a sweep or two, in the order pw of at most 64 outputs; without moments, squared tails."""
        found: dict[str, Callable[[int], float]] = {}

        def score(setting: Setting) -> float:
            if setting.order not in found:
                found[setting.order] = _errors(weight, moments, setting.order)
            return found[setting.order](setting.ranks[0])

        return score

    def factor(self, weight: Float, moments: Moments | None, setting: Setting) -> Factors:
        """Truncated SVD of each channel, or alternating least squares on the output."""
        (rank,) = setting.ranks
        if setting.order == "dw":
            filters, last = split_depthwise(weight, rank) if moments is None else fit_depthwise(weight, moments, rank)
            return {"depthwise": filters, "last": last}
        first, filters = split_pointwise(weight, rank) if moments is None else fit_pointwise(weight, moments, rank)
        return {"first": first, "depthwise": filters}

    def compose(self, factors: Factors) -> Float:
        """The weight that the factors stand for."""
        if "first" in factors:
            return compose_pointwise(factors["first"], factors["depthwise"])
        return compose_depthwise(factors["depthwise"], factors["last"])

    def balanced(self, factors: Factors, xx: Float | None) -> Factors:
        """Channels between the factors of equal root mean square."""
        if "first" in factors:
            first, filters = balance_pointwise(factors["first"], factors["depthwise"], xx)
            return {"first": first, "depthwise": filters}
        filters, last = balance_depthwise(factors["depthwise"], factors["last"], xx)
        return {"depthwise": filters, "last": last}

    def vbmf(self, weight: Float, order: str) -> tuple[int, ...]:
        """The mean EVBMF rank of the channels, rounded up; of many channels some stand for all."""
        slices = np.moveaxis(weight, 1, 0) if order == "dw" else weight
        chosen = slices[:: -(-len(slices) // _SAMPLED)]
        return (ceil(np.mean([evbmf_rank(s.reshape(len(s), -1)).rank for s in chosen])),)

    def shapes(self, shape: tuple[int, ...], setting: Setting) -> Mapping[str, tuple[int, ...]]:
        """The shapes of both factors."""
        outs, ins, *kernel = shape
        (rank,) = setting.ranks
        if setting.order == "dw":
            return {"depthwise": (ins, rank, *kernel), "last": (outs, rank, ins)}
        return {"first": (outs, rank, ins), "depthwise": (outs, rank, *kernel)}

    def links(
        self, site: Site, setting: Setting, groups: Sequence[Factors], bias: NDArray[np.float32] | None
    ) -> tuple[Link, ...]:
        """One branch a block, added up; the first one has the bias."""
        geometry = site.geometry
        depthwise_first = setting.order == "dw"
        filters = joined(groups, "depthwise")
        points = joined(groups, "last" if depthwise_first else "first")
        own = replace(geometry, group=len(filters)).attributes()
        links: list[Link] = []
        before = ""
        for r in range(setting.ranks[0]):
            tail = constants(bias) if r == 0 else ()
            filtered, mixed = filters[:, r : r + 1], pointwise(points[:, r], geometry.rank)
            if depthwise_first:
                links.append(Link(f"depthwise{r}", "Conv", (filtered,), own, ("",)))
                links.append(Link(f"last{r}", "Conv", (mixed, *tail), geometry.pointlike().attributes()))
            else:
                links.append(Link(f"first{r}", "Conv", (mixed,), geometry.pointlike().attributes(), ("",)))
                links.append(Link(f"depthwise{r}", "Conv", (filtered, *tail), own))
            if r > 0:
                links.append(Link(f"sum{r}", "Add", inputs=(before, links[-1].role)))
            before = links[-1].role
        return tuple(links)

    def tail(self, factors: Factors) -> Tail | None:
        """The 1x1 weights of all blocks; with the 1x1 first there is no dense map at the end."""
        if "first" in factors:
            return None
        last = factors["last"]
        return Tail(
            last.reshape(len(last), -1),
            None,
            lambda x: depthwise_features(factors["depthwise"], x),
            lambda core, _: {**factors, "last": core.reshape(last.shape)},
        )


def _errors(weight: Float, moments: Moments | None, order: str) -> Callable[[int], float]:
    if moments is not None:
        return DepthwiseErrors(weight, moments) if order == "dw" else PointwiseErrors(weight, moments)
    slices = weight.reshape(*weight.shape[:2], -1)
    tails = tap_tails(tap_gram(slices.transpose(1, 0, 2) if order == "dw" else slices))
    return lambda rank: float(tails[rank])
