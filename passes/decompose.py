"""The pass ``decompose``: every low-rank and separable form, one of them for each layer, at the least loss together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from onnxcomp.allocation.allocator import Allocator, Family
from onnxcomp.allocation.assigned import Assigned
from onnxcomp.allocation.targeted import Targeted
from onnxcomp.contract import Context, Pass, PassReport
from onnxcomp.decomposition.base import Decomposition
from onnxcomp.errors import DataError

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Decompose"]


@dataclass(frozen=True)
class Decompose(Targeted):
    """Replace each layer by the decomposition, of all passes that decompose, that suits it best.

    Every form at several ranks is a candidate: scored on the patch statistics of the original model, weighed by what
    the layer's error does to the outputs (measured), and timed where latency counts. A multiple-choice knapsack picks
    one for each layer; layers of which no form pays stay as they are. The chosen forms are then fitted in network order
    to the inputs that the already compressed layers before them produce.

    Without a target it takes as little time (MACs, bytes: see --objective) as an expected loss of `loss` allows; an
    accuracy budget (--max-drop, --min-sqnr) turns that loss up and down until it just holds.

    Attributes:
        macs: Share of the model's MACs to keep at most.
        speedup: How many times as fast the model is to be, by measured latency.
        size: Share of the model's bytes to keep at most.
        loss: Relative squared error that is expected of the worst output, where no target is given; 0.01 unless given.
        forms: The passes to choose from, with colons between, such as tucker2:spatial; all unless given.
        fit: Whether factors follow the weights, the data, or the data where there are any (auto).
        relu: With data, fit what a Relu behind a layer leaves (slower).
        use: The form of every layer, such as "spatial(rank=32)"; how a replay and a recipe's layers say what is taken.
    """

    name: ClassVar[str] = "decompose"
    targets: ClassVar[tuple[str, ...]] = (*Targeted.targets, "use")
    alternatives: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"macs", "speedup", "size", "loss", "use"}),)

    forms: str | None = None
    fit: Literal["auto", "weights", "data"] = "auto"
    relu: bool = False
    use: str | None = None

    def requires(self, model: ir.Model, context: Context) -> None:
        """Raise where there are no data to fit to, or a speed is asked for that cannot be measured."""
        if self.fit == "data" and context.data is None:
            raise DataError("decompose(fit=data) needs calibration data: give --data, or use fit=auto")
        super().requires(model, context)

    def eased(self, amount: float) -> Pass | None:
        """Ask for another loss, or for less of a target."""
        return None if self.use is not None else super().eased(amount)

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Score, time, choose, fit."""
        allocator = Allocator(_FAMILY, self.forms, self.fit, relu=self.relu)
        if context.replay is not None:
            return allocator.replay(model, context.replay, context)
        return allocator.run(model, self.aim(context), self.use, context)


@dataclass(frozen=True)
class _Decided(Assigned):
    """Gives each layer its decomposition."""

    name: ClassVar[str] = "decompose"


_FAMILY = Family(Decomposition, "decomposition", "spatial(rank=32)", _Decided)
