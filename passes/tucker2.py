"""The pass ``tucker2``: a k x k convolution becomes 1x1, k x k and 1x1 ones on fewer channels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxcomp.allocation.problem import Factors, Setting, few_channels, joined
from onnxcomp.contract import Value
from onnxcomp.decomposition.chains import constants, pointwise, roles
from onnxcomp.decomposition.tuckerform import TuckerForm
from onnxcomp.errors import OptionError
from onnxcomp.graph.edit import Link
from onnxcomp.graph.sites import Site
from onnxcomp.numeric.tucker import unfold_in, unfold_out
from onnxcomp.numeric.vbmf import evbmf_rank

__all__ = ["Tucker2"]

Float = NDArray[np.float64]

# A side of fewer channels is not factored (methods, 3.2); a convolution with fewer than _TINY on a side, such as the
# first one of an image network, has no low rank at all.
_NARROW = 16
_TINY = 8


@dataclass(frozen=True)
class Tucker2(TuckerForm):
    """Replace a k x k convolution by 1x1, k x k and 1x1 ones on fewer channels (Tucker-2).

    K[o,i,p,q] ~ sum_ab last[o,a] core[a,b,p,q] first[b,i] (Kim et al. 2016, eq. 5). The first 1x1 maps Ci to the input
    rank, the core keeps kernel, strides, dilations and pads, the last 1x1 maps the output rank to Co and carries the
    bias. A side whose rank is full has no 1x1 of its own (Tucker-1). Grouped convolutions are factored group by group
    with equal ranks.

    With calibration data the factors minimise the error of the layer's output instead of its weight, given the inputs
    that the already compressed layers before it produce (reduced-rank regression; Zhang et al. 2016, section 3.3),
    with a new bias. ConvTranspose is always fitted to its weight.

    Left alone, with the reason in the report: kernels of one tap, depthwise and narrow convolutions, weights that are
    shared, not constant or not finite, ranks without gain, and, under the latency objective, sites that do not run
    faster.

    Attributes:
        ranks: Explicit ranks, input x output, such as 32x64; `rank` gives both sides the same.
    """

    name: ClassVar[str] = "tucker2"
    alternatives: ClassVar[tuple[frozenset[str], ...]] = (
        frozenset({"rank", "energy", "weaken", "keep", "ratio", "ranks"}),
    )

    ranks: str | None = None

    def __post_init__(self) -> None:
        """Refuse options that exclude each other or cannot be read."""
        super().__post_init__()
        if self.ranks is None:
            return
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", self.ranks):
            raise OptionError(f"tucker2.ranks: {self.ranks!r} is not of the form INxOUT, such as 32x64")
        for name in ("rank", "energy", "weaken", "keep", "ratio"):
            if getattr(self, name) is not None:
                raise OptionError(f"tucker2: ranks and {name} exclude each other; give one")

    @property
    def named(self) -> bool:
        """Whether the ranks themselves were given."""
        return self.ranks is not None or super().named

    def explicit(self) -> bool:
        """Whether the ranks follow from anything but the defaults."""
        return self.ranks is not None or super().explicit()

    def refuse(self, site: Site) -> str | None:
        """Say why a site has no Tucker-2 form worth trying."""
        per_in, per_out = site.channels_in // site.geometry.group, site.channels_out // site.geometry.group
        if site.geometry.pointwise:
            return "the kernel is 1x1"
        if site.geometry.group > 1 and min(per_in, per_out) == 1:
            return "depthwise"
        if max(per_in, per_out) <= _NARROW or min(per_in, per_out) < _TINY:
            return few_channels(site)
        return None

    def asked(self, site: Site) -> list[Setting] | None:
        """The ranks that the user gave."""
        return super().asked(site) if self.ranks is None else [self.setting(site, {"ranks": self.ranks})]

    def full(self, shape: tuple[int, ...], order: str) -> tuple[int, ...]:
        """(Ci, Co)."""
        del order
        return shape[1], shape[0]

    def grid(self, full: int, step: int) -> Sequence[int]:
        """Ranks of a side; narrow ones stay whole."""
        return (full,) if full <= _NARROW else super().grid(full, step)

    def sides(self, shape: tuple[int, ...], setting: Setting) -> tuple[int | None, int | None]:
        """A rank that reaches the full one leaves its side whole."""
        first, last = setting.ranks
        return None if first >= shape[1] else first, None if last >= shape[0] else last

    def vbmf(self, weight: Float, order: str) -> tuple[int, ...]:
        """EVBMF on both unfoldings (Kim et al. 2016, section 3.2); a narrow side stays whole."""
        del order
        sides = (weight.shape[1], unfold_in(weight)), (weight.shape[0], unfold_out(weight))
        return tuple(full if full <= _NARROW else evbmf_rank(unfolded).rank for full, unfolded in sides)

    def choice(self, setting: Setting) -> dict[str, Value]:
        """The ranks as text."""
        return {"ranks": "x".join(map(str, setting.ranks))}

    def setting(self, site: Site, choice: Mapping[str, Value]) -> Setting:
        """Read "INxOUT"; no rank is above the full one."""
        group = site.geometry.group
        first, last = (int(rank) for rank in str(choice["ranks"]).split("x"))
        return Setting((min(first, site.channels_in // group), min(last, site.channels_out // group)))

    def links(
        self, site: Site, setting: Setting, groups: Sequence[Factors], bias: NDArray[np.float32] | None
    ) -> tuple[Link, ...]:
        """1x1, core, 1x1; without the ends that are whole."""
        geometry = site.geometry
        point = {k: v for k, v in geometry.pointlike().attributes().items() if k != "auto_pad"}
        made = roles(groups)
        core = [{"core": np.swapaxes(f["core"], 0, 1)} for f in groups] if geometry.transposed else groups
        links: list[Link] = []
        if "first" in made:
            links.append(Link("first", "Conv", (joined(groups, "first"),), point))
        tail = constants(bias)
        weight = joined(core, "core")
        links.append(Link("core", site.kind, (weight, *(() if "last" in made else tail)), geometry.attributes()))
        if "last" in made:
            links.append(Link("last", "Conv", (pointwise(joined(groups, "last"), geometry.rank), *tail), point))
        return tuple(links)
