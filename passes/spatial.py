"""The pass ``spatial``: a kh x kw convolution becomes a kh x 1 and a 1 x kw one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from onnxcomp.decomposition.chains import constants
from onnxcomp.decomposition.problem import Factors, Setting, joined
from onnxcomp.decomposition.tuckerform import TuckerForm
from onnxcomp.graph.edit import Link
from onnxcomp.graph.geometry import Geometry
from onnxcomp.graph.sites import Site
from onnxcomp.numeric.vbmf import evbmf_rank

__all__ = ["Spatial"]

Float = NDArray[np.float64]

_TINY = 8


@dataclass(frozen=True)
class Spatial(TuckerForm):
    """Replace a kh x kw convolution by a kh x 1 and a 1 x kw one with fewer channels between (spatial SVD).

    K[o,i,p,q] ~ sum_r horizontal[o,r,q] vertical[r,i,p] (Jaderberg et al. 2014, scheme 2). With n x n kernels and as
    many channels between as there are outside it has 2/n of the weights. Each node takes strides, dilations and pads of
    its own axis; the second one carries the bias. Both orders are tried and the better one is kept. Of three axes, the
    first one is split from the other two.

    With calibration data the first node projects on what the output depends on most, and the second one is the least
    squares fit behind it, given the inputs that the already compressed layers before it produce.

    Left alone: kernels with a single axis over 1, depthwise and narrow convolutions, ConvTranspose, and what tucker2
    leaves alone as well.

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
        if site.geometry.group > 1 and min(per_in, per_out) == 1:
            return "depthwise"
        if per_out < _TINY or per_in < 2:
            return f"too few channels: {per_in} in, {per_out} out" + (" a group" if site.geometry.group > 1 else "")
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
        """The first axis, or all but it."""
        return (0,) if order == "vh" else tuple(range(1, len(kernel)))

    def sides(self, shape: tuple[int, ...], setting: Setting) -> tuple[int | None, int | None]:
        """The channels between are the input rank of the view; no rank is above the full one."""
        del shape
        return setting.ranks[0], None

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
        return (
            Link("first", "Conv", (first,), _along(site.geometry, axes).attributes()),
            Link("second", "Conv", (second, *constants(bias)), _along(site.geometry, others).attributes()),
        )


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
