"""The pass ``channel``: a k x k convolution becomes a k x k one with fewer outputs and a 1x1 one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxcomp.allocation.problem import Factors, Setting, joined
from onnxcomp.decomposition.chains import constants, pointwise
from onnxcomp.decomposition.tuckerform import TuckerForm
from onnxcomp.graph.edit import Link
from onnxcomp.graph.sites import Site
from onnxcomp.numeric.tucker import unfold_out
from onnxcomp.numeric.vbmf import evbmf_rank

__all__ = ["Channel"]

Float = NDArray[np.float64]

_TINY = 8


@dataclass(frozen=True)
class Channel(TuckerForm):
    """Replace a k x k convolution by a k x k one with fewer outputs and a 1x1 one (channel decomposition).

    K[o,i,p,q] ~ sum_r last[o,r] core[r,i,p,q] (Zhang et al. 2016, section 3.1). The k x k node keeps strides, dilations
    and pads, the 1x1 one carries the bias. Grouped convolutions are factored group by group with equal ranks.

    With calibration data the pair is the reduced-rank regression of the layer's output, exact for its rank, given the
    inputs that the already compressed layers before it produce.

    Left alone: kernels of one tap (see lowrank), depthwise and narrow convolutions, ConvTranspose, and what tucker2
    leaves alone as well.
    """

    name: ClassVar[str] = "channel"

    def refuse(self, site: Site) -> str | None:
        """Say why a site has no channel decomposition."""
        per_in, per_out = site.channels_in // site.geometry.group, site.channels_out // site.geometry.group
        if site.geometry.pointwise:
            return "the kernel is 1x1"
        if site.geometry.transposed:
            return "a ConvTranspose"
        if site.geometry.group > 1 and min(per_in, per_out) == 1:
            return "depthwise"
        if per_out < 2 * _TINY:
            return f"too few channels: {per_out} out" + (" a group" if site.geometry.group > 1 else "")
        return None

    def full(self, shape: tuple[int, ...], order: str) -> tuple[int, ...]:
        """(Co,)."""
        del order
        return (shape[0],)

    def sides(self, shape: tuple[int, ...], setting: Setting) -> tuple[int | None, int | None]:
        """The output side alone."""
        return None, None if setting.ranks[0] >= shape[0] else setting.ranks[0]

    def vbmf(self, weight: Float, order: str) -> tuple[int, ...]:
        """EVBMF on the output unfolding."""
        del order
        return (evbmf_rank(unfold_out(weight)).rank,)

    def links(
        self, site: Site, setting: Setting, groups: Sequence[Factors], bias: NDArray[np.float32] | None
    ) -> tuple[Link, ...]:
        """k x k, 1x1."""
        del setting
        last = pointwise(joined(groups, "last"), site.geometry.rank)
        return (
            Link("core", "Conv", (joined(groups, "core"),), site.geometry.attributes()),
            Link("last", "Conv", (last, *constants(bias)), site.geometry.pointlike().attributes()),
        )
