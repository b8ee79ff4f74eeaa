"""The pass ``prune``: channels that a model can do without are removed, and what reads them is fitted to the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from onnxcomp.allocation.targeted import Part, Targeted
from onnxcomp.channels.applying import Decided
from onnxcomp.channels.planning import Planner
from onnxcomp.channels.scoring import Criterion
from onnxcomp.channels.structural import Refusal, Structural
from onnxcomp.channels.uniform import same_channels, same_macs
from onnxcomp.contract import Context
from onnxcomp.errors import DataError

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Prune"]

_TARGETS = (*Targeted.targets, "keep", "channels")


@dataclass(frozen=True)
class Prune(Structural):
    """Remove channels from the graph itself: a smaller dense model is left, which every runtime speeds up.

    Channels that go together, through residual sums, gates, concatenations, splits, depthwise and grouped convolutions,
    channel shuffles and flattening, make a class; classes that the same layers hold make a group. With calibration data
    the classes of a group are put in an order of removal by what the layers that read them lose when these are fitted
    to what is left: exact group OBS, greedy and backwards, on the Gram of their inputs (Hassibi and Stork 1993; Frantar
    and Alistarh 2022, section 4). How many go from each group follows from what these errors do to the outputs of the
    model, measured. Then all go at once, and every layer behind is fitted in closed form, in network order, to what the
    original computed (He, Zhang and Sun 2017); biases take up the means of what is gone. Without data the norms of the
    filters decide and nothing is fitted.

    Under latency, channels are kept in multiples of the runtime's blocks (16, or 8 where the CPU has no AVX-512).

    Left alone, with the reason in the report: channels of inputs and outputs of the model, what an operator mixes that
    is not understood, and shared, overridable and quantized weights. Transformers stay as they are.

    Attributes:
        macs: Share of the model's MACs to keep at most, shared out among the layers at the least loss.
        speedup: How many times as fast the model is to be, by measured latency.
        size: Share of the model's bytes to keep at most.
        loss: Relative squared error that is expected of the worst output, where no target is given; 0.01 unless given.
        keep: Share of the model's MACs to keep at most, with the same share of channels in every group.
        channels: Share of the channels to keep at most in every group.
        criterion: What the order of removal follows: exact OBS for groups (obs), ThiNet's greedy sum (thinet), the
            LASSO of He et al. (he), what a channel alone contributes (taylor), or norms of filters (l1, l2); auto: obs
            with data, else l2.
        fit: Whether layers keep the weights of what is left (weights) or are fitted to the data; auto: where there are
            any.
    """

    name: ClassVar[str] = "prune"
    targets: ClassVar[tuple[str, ...]] = _TARGETS
    alternatives: ClassVar[tuple[frozenset[str], ...]] = (frozenset(_TARGETS),)

    keep: Part | None = None
    channels: Part | None = None
    criterion: Criterion = "auto"
    fit: Literal["auto", "weights", "data"] = "auto"

    def requires(self, model: ir.Model, context: Context) -> None:
        """Raise where there are no data to follow, or a speed is asked for that cannot be measured."""
        if context.data is None and self.fit == "data":
            raise DataError("prune(fit=data) needs calibration data: give --data, or use fit=auto")
        if context.data is None and self.criterion not in ("auto", "l1", "l2"):
            raise DataError(f"prune(criterion={self.criterion}) needs calibration data: give --data, or use l1 or l2")
        super().requires(model, context)

    def planner(self, refuse: Refusal) -> Planner:
        """Channels alone may go."""
        return Planner(self.criterion, refuse, refit=self.refits())

    def refits(self) -> bool:
        """Unless the weights are to stay."""
        return self.fit != "weights"

    def decided(self, model: ir.Model, planner: Planner, context: Context) -> tuple[Decided, str]:
        """Shares for all groups alike, or what loses least."""
        if self.channels is not None:
            return same_channels(planner, model, self.channels, context)
        if self.keep is not None:
            return same_macs(planner, model, self.keep, context)
        return super().decided(model, planner, context)
