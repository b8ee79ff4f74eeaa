"""The pass ``pack``: every way to store weights in codes, one of them for each layer, at the least loss together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from onnxcomp.allocation.allocator import Allocator, Family
from onnxcomp.allocation.assigned import Assigned
from onnxcomp.allocation.deciding import Aim
from onnxcomp.allocation.offering import Fit
from onnxcomp.contract import Context, Pass, PassReport, Saves
from onnxcomp.errors import DataError, OptionError
from onnxcomp.options import Bounds
from onnxcomp.registry import build_pipeline
from onnxcomp.storage.base import Storage, refuse_target, with_types

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Pack"]

_LOSS = 0.01
_MOST = 0.9
Part = Annotated[float, Bounds(0, 1, open_low=True, open_high=True)]


@dataclass(frozen=True)
class Pack(Pass):
    """Store the weights of each layer in the codes that suit it best: palettes, vectors or templates, of any size.

    Every setting of the passes that store weights is a candidate: scored on the patch statistics of the original model
    and weighed by what the layer's error does to the outputs (measured). A multiple-choice knapsack picks one for each
    layer; layers of which none is smaller stay as they are. What was picked is then fitted in network order to the
    inputs that the already packed layers before it produce. ONNX Runtime turns codes into weights once, at load.

    Without a target it takes as few bytes as an expected loss of `loss` allows; an accuracy budget (--max-drop,
    --min-sqnr) turns that loss up and down until it just holds.

    Attributes:
        size: Share of the model's bytes to keep at most.
        loss: Relative squared error that is expected of the worst output, where no size is given; 0.01 unless given.
        forms: The passes to choose from, with colons between, such as palettize:cluster; all unless given.
        fit: Whether codes follow the weights, the data, or the data where there are any (auto).
        use: The form of every layer, such as "palettize(bits=4)"; how a replay and a recipe's layers say what is taken.
    """

    name: ClassVar[str] = "pack"
    saves: ClassVar[Saves] = "bytes"
    alternatives: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"size", "loss", "use"}),)

    size: Part | None = None
    loss: Part | None = None
    forms: str | None = None
    fit: Fit = "auto"
    use: str | None = None

    def __post_init__(self) -> None:
        """Refuse targets that exclude each other."""
        given = [name for name in ("size", "loss", "use") if getattr(self, name) is not None]
        if len(given) > 1:
            raise OptionError(f"pack: {given[0]} and {given[1]} exclude each other; give one")

    def requires(self, model: ir.Model, context: Context) -> None:
        """Raise where there are no data to fit to, or the target would not decode at load."""
        del model
        if self.fit == "data" and context.data is None:
            raise DataError("pack(fit=data) needs calibration data: give --data, or use fit=auto")
        refuse_target(self.name, context)

    def explicit(self) -> bool:
        """Whether the user named an amount."""
        return any(value is not None for value in (self.size, self.loss, self.use))

    def eased(self, amount: float) -> Pass | None:
        """Ask for another loss, or for a larger size."""
        if self.use is not None:
            return None
        if self.size is not None:
            return replace(self, size=_rounded(1.0 - (1.0 - self.size) * min(amount, 1.0)))
        return replace(self, loss=_rounded(min((self.loss or _LOSS) * amount, _MOST)))

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Score, choose, fit."""
        allocator = Allocator(_FAMILY, self.forms, self.fit)
        aim = Aim("bytes", self.size, 0.0 if self.size is not None else self.loss or _LOSS)

        def rewrite() -> PassReport:
            if context.replay is not None:
                return allocator.replay(model, context.replay, context)
            return allocator.run(model, aim, self.use, context)

        return with_types(model, self._bits(context), self.name, Assigned.kinds, rewrite)

    def _bits(self, context: Context) -> int:
        """Bits of the narrowest type that may be stored: 4, unless a form that was given has fewer."""
        texts = [self.use, *(o.options.get("use") for o in context.overrides if o.options is not None)]
        texts += [use for choice in (context.replay or {}).values() for use in choice.values()]
        forms = [form for text in texts if text is not None for form in build_pipeline(str(text))]
        return min((form.least_bits for form in forms if isinstance(form, Storage)), default=4)


@dataclass(frozen=True)
class _Decided(Assigned):
    """Gives each layer its codes."""

    name: ClassVar[str] = "pack"
    saves: ClassVar[Saves] = "bytes"


_FAMILY = Family(Storage, "storage", "palettize(bits=4)", _Decided)


def _rounded(value: float) -> float:
    """As many digits as are worth reading: the amount stands in the report."""
    return float(f"{value:.6g}")
