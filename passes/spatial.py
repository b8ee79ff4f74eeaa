"""The pass ``spatial``: a kh x kw convolution becomes a kh x 1 and a 1 x kw one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from onnxcomp.allocation.problem import Factors, Setting, few_channels, joined
from onnxcomp.decomposition.chains import constants
from onnxcomp.decomposition.tuckerform import TuckerForm
from onnxcomp.graph.edit import Link
from onnxcomp.graph.geometry import Geometry
from onnxcomp.graph.sites import Site
from onnxcomp.numeric.vbmf import evbmf_rank

__all__ = ["Spatial"]

Float = NDArray[np.float64]

_TINY = 8
# A depthwise kernel of 3x3 has 9 weights, two nodes have 6: nothing that pays for a second one.
_WIDE = 5

Attributes = Mapping[str, int | float | str | tuple[int, ...]]


@dataclass(frozen=True)
class Spatial(TuckerForm):
    """Replace a kh x kw convolution by a kh x 1 and a 1 x kw one with fewer channels between (spatial SVD).

    K[o,i,p,q] ~ sum_r horizontal[o,r,q] vertical[r,i,p] (Jaderberg et al. 2014, scheme 2). With n x n kernels and as
    many channels between as there are outside it has 2/n of the weights. Each node takes strides, dilations and pads of
    its own axis; the second one carries the bias. Both orders are tried and the better one is kept. Of three axes, the
    first one over 1 is split from the others.

    A depthwise convolution of kernels of 5 or more stays depthwise: a sum of such pairs, each a branch of its own.

    With calibration data the first node projects on what the output depends on most, and the second one is the least
    squares fit behind it, given the inputs that the already compressed layers before it produce.

    Left alone: kernels with a single axis over 1, narrow convolutions, depthwise ones with a channel multiplier or
    smaller kernels, ConvTranspose, and what tucker2 leaves alone as well.

    Attributes:
        order: vh: kh x 1 first; hv: 1 x kw first. Both are tried unless given.
    """

    name: ClassVar[str] = "spatial"

    order: Literal["vh", "hv"] | None = None

    def refuse(self, site: Site) -> str | None:
        """Say why a site cannot be split."""
        per_in, per_out = site.channels_in // site.geometry.group, site.channels_out // site.geometry.group
        if site.geometry.pointwise:
            return "the kernel is 1x1"
        if sum(k > 1 for k in site.geometry.kernel) < 2:
            return "the kernel has one axis over 1 only"
        if site.geometry.transposed:
            return "a ConvTranspose"
        if _depthwise(site.geometry.group, per_in, per_out):
            return None if min(k for k in site.geometry.kernel if k > 1) >= _WIDE else "depthwise, of a small kernel"
        if site.geometry.group > 1 and min(per_in, per_out) == 1:
            return "depthwise, with a channel multiplier"
        if per_out < _TINY or per_in < 2:
            return few_channels(site)
        return None

    def orders(self, site: Site) -> tuple[str, ...]:
        """Vertical and horizontal first."""
        del site
        return ("vh", "hv") if self.order is None else (self.order,)

    def full(self, shape: tuple[int, ...], order: str) -> tuple[int, ...]:
        """The rank with which nothing is lost."""
        axes = self.first_axes(shape[2:], order)
        taps = prod(shape[2 + a] for a in axes)
        return (min(shape[1] * taps, shape[0] * (prod(shape[2:]) // taps)),)

    def first_axes(self, kernel: tuple[int, ...], order: str) -> tuple[int, ...]:
        """The first axis over 1, or all but it."""
        lead = next((a for a, k in enumerate(kernel) if k > 1), 0)
        return (lead,) if order == "vh" else tuple(a for a in range(len(kernel)) if a != lead)

    def sides(self, shape: tuple[int, ...], setting: Setting) -> tuple[int | None, int | None]:
        """The channels between are the input rank of the view; no rank is above the full one."""
        del shape
        return setting.ranks[0], None

    def settings(self, site: Site, step: int) -> list[Setting]:
        """Few ranks in steps of 1 for a depthwise convolution, whose channels stay as many as they are."""
        group = site.geometry.group
        alone = _depthwise(group, site.channels_in // group, site.channels_out // group)
        return super().settings(site, 1 if alone else step)

    def vbmf(self, weight: Float, order: str) -> tuple[int, ...]:
        """EVBMF on the matrix (Ci * kh, Co * kw)."""
        axes = self.first_axes(weight.shape[2:], order)
        others = [a for a in range(weight.ndim - 2) if a not in axes]
        taps = prod(weight.shape[2 + a] for a in axes)
        seen = weight.transpose(1, *(2 + a for a in axes), 0, *(2 + a for a in others))
        return (evbmf_rank(seen.reshape(weight.shape[1] * taps, -1)).rank,)

    def links(
        self, site: Site, setting: Setting, groups: Sequence[Factors], bias: NDArray[np.float32] | None
    ) -> tuple[Link, ...]:
        """Two convolutions, each with the attributes of its own axes."""
        axes = self.first_axes(site.geometry.kernel, setting.order)
        others = tuple(a for a in range(site.geometry.rank) if a not in axes)
        first, second = joined(groups, "first"), joined(groups, "core")
        ends = _along(site.geometry, axes).attributes(), _along(site.geometry, others).attributes()
        if len(groups) > 1 and setting.ranks[0] > 1 and first.shape[1] == 1 and len(second) == len(groups):
            return _branches(first, second, ends, bias)
        return (
            Link("first", "Conv", (first,), ends[0]),
            Link("second", "Conv", (second, *constants(bias)), ends[1]),
        )


def _depthwise(group: int, per_in: int, per_out: int) -> bool:
    """Whether every channel has a kernel of its own, and one output."""
    return group > 1 and per_in == per_out == 1


def _branches(
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    ends: tuple[Attributes, Attributes],
    bias: NDArray[np.float32] | None,
) -> tuple[Link, ...]:
    """Depthwise pairs, added up: the runtime has no fast kernel for a depthwise convolution with a multiplier.

    Args:
        first: (C * rank, 1, *kernel), the ranks of a channel in a row.
        second: (C, rank, *kernel).
        ends: The attributes of the nodes of a pair.
        bias: For the first pair.
    """
    rank = second.shape[1]
    links: list[Link] = []
    before = ""
    for r in range(rank):
        tail = constants(bias) if r == 0 else ()
        links.append(Link(f"first{r}", "Conv", (first[r::rank],), ends[0], ("",)))
        links.append(Link(f"second{r}", "Conv", (second[:, r : r + 1], *tail), ends[1]))
        if r > 0:
            links.append(Link(f"sum{r}", "Add", inputs=(before, links[-1].role)))
        before = links[-1].role
    return tuple(links)


def _along(geometry: Geometry, axes: tuple[int, ...]) -> Geometry:
    """The geometry on some axes, nothing on the others; padding SAME stays, as it adds nothing to a kernel of 1."""

    def kept(values: tuple[int, ...], rest: int) -> tuple[int, ...]:
        return tuple(v if a % geometry.rank in axes else rest for a, v in enumerate(values))

    return replace(
        geometry,
        kernel=kept(geometry.kernel, 1),
        strides=kept(geometry.strides, 1),
        dilations=kept(geometry.dilations, 1),
        pads=kept(geometry.pads, 0),
    )
