"""The pass ``lowrank``: a matrix product or 1x1 convolution becomes two thinner ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxcomp.allocation.problem import Factors, Setting, few_channels, joined
from onnxcomp.decomposition.chains import constants, pointwise
from onnxcomp.decomposition.tuckerform import TuckerForm
from onnxcomp.graph.edit import Link
from onnxcomp.graph.sites import Site
from onnxcomp.numeric.tucker import unfold_out
from onnxcomp.numeric.vbmf import evbmf_rank

__all__ = ["Lowrank"]

Float = NDArray[np.float64]

_TINY = 4


@dataclass(frozen=True)
class Lowrank(TuckerForm):
    """Replace a matrix product (Gemm, MatMul, 1x1 convolution) by two with a thin tensor between (low rank).

    W ~ last core with r (Ci + Co) weights instead of Ci Co. A 1x1 convolution keeps strides and pads on its first node;
    the second one carries the bias.

    With calibration data the pair is the reduced-rank regression of the layer's output (Izenman 1975), exact for its
    rank, given the inputs that the already compressed layers before it produce.

    Left alone: larger kernels (see tucker2, channel, spatial), depthwise and narrow ones, products of two activations,
    and weights that are shared, not constant or not finite.
    """

    name: ClassVar[str] = "lowrank"
    kinds: ClassVar[tuple[str, ...]] = ("Conv", "Gemm", "MatMul")

    def refuse(self, site: Site) -> str | None:
        """Say why a site has no low-rank form."""
        per_in, per_out = site.channels_in // site.geometry.group, site.channels_out // site.geometry.group
        if not site.geometry.pointwise:
            return f"the kernel is {'x'.join(map(str, site.geometry.kernel))}"
        if site.geometry.group > 1 and min(per_in, per_out) == 1:
            return "depthwise"
        if min(per_in, per_out) < _TINY:
            return few_channels(site)
        return None

    def full(self, shape: tuple[int, ...], order: str) -> tuple[int, ...]:
        """The rank with which nothing is lost."""
        del order
        return (min(shape[:2]),)

    def sides(self, shape: tuple[int, ...], setting: Setting) -> tuple[int | None, int | None]:
        """The output side alone."""
        return None, None if setting.ranks[0] >= min(shape[:2]) else setting.ranks[0]

    def vbmf(self, weight: Float, order: str) -> tuple[int, ...]:
        """EVBMF on the matrix."""
        del order
        return (evbmf_rank(unfold_out(weight)).rank,)

    def links(
        self, site: Site, setting: Setting, groups: Sequence[Factors], bias: NDArray[np.float32] | None
    ) -> tuple[Link, ...]:
        """Two nodes of the site's own operator."""
        del setting
        core, last = joined(groups, "core"), joined(groups, "last")
        if site.kind in ("Gemm", "MatMul"):
            return _products(core[..., 0], last, site, bias)
        geometry = site.geometry
        return (
            Link("core", "Conv", (core,), geometry.attributes()),
            Link("last", "Conv", (pointwise(last, geometry.rank), *constants(bias)), geometry.pointlike().attributes()),
        )


def _products(
    core: NDArray[np.float32], last: NDArray[np.float32], site: Site, bias: NDArray[np.float32] | None
) -> tuple[Link, ...]:
    """Two products; a MatMul has no place for a bias, so that one takes an Add."""
    if site.kind == "Gemm":
        transposed = {"transB": 1}
        return Link("core", "Gemm", (core,), transposed), Link("last", "Gemm", (last, *constants(bias)), transposed)
    links = (
        Link("core", "MatMul", (np.ascontiguousarray(core.T),)),
        Link("last", "MatMul", (np.ascontiguousarray(last.T),)),
    )
    return links if bias is None else (*links, Link("bias", "Add", constants(bias)))
