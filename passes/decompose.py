"""The pass ``decompose``: every low-rank and separable form, one of them for each layer, at the least loss together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from onnxcomp.allocation.allocator import Allocator, Family
from onnxcomp.allocation.assigned import Assigned
from onnxcomp.allocation.deciding import Aim
from onnxcomp.contract import Context, Pass, PassReport, Saves
from onnxcomp.decomposition.base import Decomposition
from onnxcomp.errors import DataError, OptionError
from onnxcomp.options import Bounds

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Decompose"]

_LOSS = 0.01
_MOST = 0.9
Part = Annotated[float, Bounds(0, 1, open_low=True, open_high=True)]


@dataclass(frozen=True)
class Decompose(Pass):
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
    saves: ClassVar[Saves] = "latency"
    alternatives: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"macs", "speedup", "size", "loss", "use"}),)

    macs: Part | None = None
    speedup: Annotated[float, Bounds(1, open_low=True)] | None = None
    size: Part | None = None
    loss: Part | None = None
    forms: str | None = None
    fit: Literal["auto", "weights", "data"] = "auto"
    relu: bool = False
    use: str | None = None

    def __post_init__(self) -> None:
        """Refuse targets that exclude each other."""
        given = [name for name in ("macs", "speedup", "size", "loss", "use") if getattr(self, name) is not None]
        if len(given) > 1:
            raise OptionError(f"decompose: {given[0]} and {given[1]} exclude each other; give one")

    def requires(self, model: ir.Model, context: Context) -> None:
        """Raise where there are no data to fit to, or a speed is asked for that cannot be measured."""
        if self.fit == "data" and context.data is None:
            raise DataError("decompose(fit=data) needs calibration data: give --data, or use fit=auto")
        if self.speedup is not None and (context.objective != "latency" or not context.target.host):
            raise OptionError(
                f"decompose(speedup=...) needs timing: objective latency and a target that runs here, not "
                f"{context.objective} for {context.target.name}; give macs= or size="
            )

    def explicit(self) -> bool:
        """Whether the user named an amount."""
        return any(value is not None for value in (self.macs, self.speedup, self.size, self.loss, self.use))

    def eased(self, amount: float) -> Pass | None:
        """Ask for another loss, or for less of a target."""
        if self.use is not None:
            return None
        if not self.explicit() or self.loss is not None:
            return replace(self, loss=_rounded(min((self.loss or _LOSS) * amount, _MOST)))
        less = min(amount, 1.0)
        if self.speedup is not None:
            return replace(self, speedup=_rounded(1.0 + (self.speedup - 1.0) * less))
        if self.macs is not None:
            return replace(self, macs=_rounded(1.0 - (1.0 - self.macs) * less))
        assert self.size is not None  # the last of the targets
        return replace(self, size=_rounded(1.0 - (1.0 - self.size) * less))

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Score, time, choose, fit."""
        allocator = Allocator(_FAMILY, self.forms, self.fit, relu=self.relu)
        if context.replay is not None:
            return allocator.replay(model, context.replay, context)
        return allocator.run(model, self._aim(context), self.use, context)

    def _aim(self, context: Context) -> Aim:
        if self.macs is not None:
            return Aim("macs", self.macs, 0.0)
        if self.size is not None:
            return Aim("bytes", self.size, 0.0)
        if self.speedup is not None:
            return Aim("ms", 1.0 / self.speedup, 0.0)
        loss = self.loss or _LOSS
        if context.objective == "size":
            return Aim("bytes", None, loss)
        timed = context.objective == "latency" and context.target.host
        return Aim("ms" if timed else "macs", None, loss)


@dataclass(frozen=True)
class _Decided(Assigned):
    """Gives each layer its decomposition."""

    name: ClassVar[str] = "decompose"


_FAMILY = Family(Decomposition, "decomposition", "spatial(rank=32)", _Decided)


def _rounded(value: float) -> float:
    """As many digits as are worth reading: the amount stands in the report."""
    return float(f"{value:.6g}")
