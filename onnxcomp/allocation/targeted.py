"""What passes that allocate are asked for: a share of MACs or bytes, a speed, or a loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from onnxcomp.allocation.deciding import Aim
from onnxcomp.contract import Context, Pass, Saves
from onnxcomp.errors import OptionError
from onnxcomp.options import Bounds

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Part", "Targeted", "rounded"]

_LOSS = 0.01
_MOST = 0.9
Part = Annotated[float, Bounds(0, 1, open_low=True, open_high=True)]


@dataclass(frozen=True)
class Targeted(Pass):
    """A pass with a target, of which one at most is given; without one, an expected loss bounds what it does.

    Attributes:
        macs: Share of the model's MACs to keep at most.
        speedup: How many times as fast the model is to be, by measured latency.
        size: Share of the model's bytes to keep at most.
        loss: Relative squared error that is expected of the worst output, where no target is given; 0.01 unless given.
    """

    saves: ClassVar[Saves] = "latency"
    # Fields of which one at most is given; those that are no shares come first.
    targets: ClassVar[tuple[str, ...]] = ("loss", "speedup", "macs", "size")

    macs: Part | None = None
    speedup: Annotated[float, Bounds(1, open_low=True)] | None = None
    size: Part | None = None
    loss: Part | None = None

    def __post_init__(self) -> None:
        """Refuse targets that exclude each other."""
        given = [name for name in self._named() if getattr(self, name) is not None]
        if len(given) > 1:
            raise OptionError(f"{self.name}: {given[0]} and {given[1]} exclude each other; give one")

    def requires(self, model: ir.Model, context: Context) -> None:
        """Raise where a speed is asked for that cannot be measured."""
        del model
        if self.speedup is not None and (context.objective != "latency" or not context.target.host):
            raise OptionError(
                f"{self.name}(speedup=...) needs timing: objective latency and a target that runs here, not "
                f"{context.objective} for {context.target.name}; give macs= or size="
            )

    def explicit(self) -> bool:
        """Whether the user named an amount."""
        return any(getattr(self, name) is not None for name in self.targets)

    def eased(self, amount: float) -> Pass | None:
        """Ask for another loss, or for less of a target."""
        given = next((name for name in self.targets if getattr(self, name) is not None), "loss")
        if given == "loss":
            return replace(self, loss=rounded(min((self.loss or _LOSS) * amount, _MOST)))
        less, asked = min(amount, 1.0), float(getattr(self, given))
        eased = 1.0 + (asked - 1.0) * less if given == "speedup" else 1.0 - (1.0 - asked) * less
        return replace(self, **{given: rounded(eased)})

    def aim(self, context: Context) -> Aim:
        """What the allocation is to reach."""
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

    def _named(self) -> list[str]:
        """The targets in the order in which the pass lists them."""
        return [name for name in self.__dataclass_fields__ if name in self.targets]


def rounded(value: float) -> float:
    """As many digits as are worth reading: the amount stands in the report."""
    return float(f"{value:.6g}")
