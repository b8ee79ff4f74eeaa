"""What a fold did and what it refused, as records and as lines."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnxcomp.cost import Cost

__all__ = ["Log", "Refusal", "Rewrite"]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One node that took over the work of another one.

    Attributes:
        site: Name of the node in the user's own model.
        summary: What happened to it, in words.
        before: Parameters and bytes of the node and of what it took over, before; MACs are not counted.
        after: The same, after.
    """

    site: str
    summary: str
    before: Cost
    after: Cost

    def __str__(self) -> str:
        return f"{self.site}: {self.summary}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A fold that would have applied to `site`, and why it was not done."""

    site: str
    reason: str


@dataclass(slots=True)
class Log:
    """Everything one canonicalisation did.

    Attributes:
        general: Changes that belong to no single site, one line each.
        rewrites: Changes of single nodes, in graph order.
        refusals: Folds not done, in graph order.
        remarks: What the user should know though nothing changed (an opset that could not be raised).
    """

    general: list[str] = field(default_factory=list[str])
    rewrites: list[Rewrite] = field(default_factory=list[Rewrite])
    refusals: list[Refusal] = field(default_factory=list[Refusal])
    remarks: list[str] = field(default_factory=list[str])

    @property
    def lines(self) -> tuple[str, ...]:
        """One line for each thing that changed; empty where the model was canonical already."""
        return (*self.general, *map(str, self.rewrites))
