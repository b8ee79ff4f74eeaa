"""The pass ``compress``: for each layer, whichever pays: fewer channels, a decomposition, or no block at all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from onnxcomp.allocation.allocator import Allocator, Family, menus_of
from onnxcomp.allocation.assigned import Assigned
from onnxcomp.allocation.menu import SiteMenu
from onnxcomp.allocation.sensitivity import Response
from onnxcomp.allocation.targeted import Targeted
from onnxcomp.channels.applying import layers_of
from onnxcomp.channels.planning import Planner
from onnxcomp.channels.structural import Refusal, Structural
from onnxcomp.contract import Context
from onnxcomp.decomposition.base import Decomposition
from onnxcomp.errors import DataError

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Compress"]

_STRUCTURAL = ("prune", "drop_blocks")


@dataclass(frozen=True)
class Compress(Structural):
    """Prune channels, drop residual blocks and decompose layers, whichever pays, at the least loss together.

    Every form of every layer (as decompose scores and times them), every number of channels of every group (as prune
    does) and every residual block (as drop_blocks does) is on offer. Errors are weighed by what they do to the outputs
    of the model, measured, and add up; costs are those of the layers with the channels that are left. Lagrangian
    coordinate descent with exchanges picks among them (Everett 1963). Channels and blocks then go, and in network order
    each layer gets its form, or its own weight anew, fitted to what the original computed there.

    Without a target it takes as little time (MACs, bytes: see --objective) as an expected loss of `loss` allows; an
    accuracy budget (--max-drop, --min-sqnr) turns that loss up and down until it just holds.

    Attributes:
        macs: Share of the model's MACs to keep at most.
        speedup: How many times as fast the model is to be, by measured latency.
        size: Share of the model's bytes to keep at most.
        loss: Relative squared error that is expected of the worst output, where no target is given; 0.01 unless given.
        forms: The passes to choose from, with colons between, such as prune:tucker2; prune, drop_blocks and all
            decompositions unless given.
        fit: Whether layers follow their weights, the data, or the data where there are any (auto).
    """

    name: ClassVar[str] = "compress"
    alternatives: ClassVar[tuple[frozenset[str], ...]] = (frozenset(Targeted.targets),)

    forms: str | None = None
    fit: Literal["auto", "weights", "data"] = "auto"

    def requires(self, model: ir.Model, context: Context) -> None:
        """Raise where there are no data to follow, or a speed is asked for that cannot be measured."""
        if context.data is None and self.fit == "data":
            raise DataError("compress(fit=data) needs calibration data: give --data, or use fit=auto")
        super().requires(model, context)

    def planner(self, refuse: Refusal) -> Planner:
        """All that `forms` names."""
        names = None if self.forms is None else [name for name in re.split(r"[\s:,+]+", self.forms) if name]
        others = None if names is None else [name for name in names if name not in _STRUCTURAL]
        allocator = Allocator(_FAMILY, None if others is None else ":".join(others), self.fit)
        forms = [] if others == [] else allocator.forms()

        def menus(model: ir.Model, context: Context) -> tuple[Sequence[SiteMenu], Mapping[str, Response]]:
            sites = [site for node, site in layers_of(model).items() if not refuse.asked(node)]
            return menus_of(model, sites, forms, context)

        asked = _STRUCTURAL if names is None else names
        return Planner(
            "auto", refuse, "prune" in asked, "drop_blocks" in asked, menus if forms else None, self.refits()
        )

    def refits(self) -> bool:
        """Unless the weights are to be followed."""
        return self.fit != "weights"


@dataclass(frozen=True)
class _Decided(Assigned):
    """Gives each layer its decomposition."""

    name: ClassVar[str] = "compress"


_FAMILY = Family(Decomposition, "decomposition", "spatial(rank=32)", _Decided)
