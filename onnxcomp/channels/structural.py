"""What passes that change the structure of a model share: decide, carry out, account for every layer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from onnxcomp.allocation.targeted import Targeted
from onnxcomp.channels.applying import Decided, carry_out, decided_by, unfit_layers
from onnxcomp.channels.planning import Planner
from onnxcomp.contract import Context, PassReport
from onnxcomp.errors import OptionError
from onnxcomp.graph.edit import origin_of

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Refusal", "Structural"]


@dataclass(frozen=True)
class Refusal:
    """Why a layer's channels must stay: the user says so, in the call or in a recipe, or it is not fit for it.

    Attributes:
        context: The run's context.
        unfit: Why weighted nodes are not, by the name of their output.
    """

    context: Context
    unfit: Mapping[str, str] = field(default_factory=dict[str, str])

    def __call__(self, node: ir.Node) -> str | None:
        """The reason for a node, or None."""
        reason = self.unfit.get(node.outputs[0].name or "")
        return self.asked(node) if reason is None else f"{origin_of(node)}: {reason}"

    def asked(self, node: ir.Node) -> str | None:
        """What the user says of a node, or None."""
        name = origin_of(node)
        for own in self.context.overrides:
            if own.options is None and (fnmatchcase(name, own.match) or own.match == node.op_type):
                return f"{name} is left alone by the recipe"
        excluded = replace(self.context, given_back=frozenset()).excluded(name)
        return None if excluded is None else f"{name} is {excluded}"


@dataclass(frozen=True)
class Structural(Targeted):
    """A pass that removes parts of a model and fits what is left."""

    @abstractmethod
    def planner(self, refuse: Refusal) -> Planner:
        """What the pass decides with."""

    @abstractmethod
    def refits(self) -> bool:
        """Whether layers are fitted to data where there are any."""

    def requires(self, model: ir.Model, context: Context) -> None:
        """Raise where a speed is asked for that cannot be measured, or layers are given options."""
        super().requires(model, context)
        if any(own.options for own in context.overrides):
            raise OptionError(f"{self.name}: a layer takes no options of its own; write null to leave it alone")

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Decide what goes, remove it, and fit the rest."""
        refuse = Refusal(context, unfit_layers(model))
        if context.replay is not None:
            decided, note = decided_by(model, context.replay, refuse), ""
        else:
            # Layers that are given back keep their part of the decision: the others would else make up for them.
            everywhere = replace(context, given_back=frozenset())
            decided, note = self.decided(model, self.planner(refuse), everywhere)
            decided = decided.without(model, refuse, context.given_back)
        report = carry_out(model, decided, refuse, self.name, context, refit=self.refits())
        return replace(report, notes=(*report.notes, note) if note else report.notes)

    def decided(self, model: ir.Model, planner: Planner, context: Context) -> tuple[Decided, str]:
        """What to do, and what the user should know."""
        return planner.decided(model, self.aim(context), context)
