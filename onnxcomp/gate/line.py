"""One line of the gate's verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["VERDICTS", "Line", "Outcome", "listed", "skipped"]

Outcome = Literal["pass", "fail", "inconclusive", "skipped"]
VERDICTS: tuple[Outcome, ...] = ("fail", "skipped", "inconclusive", "pass")
"""In the order in which lines are shown."""


@dataclass(frozen=True, slots=True)
class Line:
    """A limit, what was found, and the verdict.

    Attributes:
        name: What the limit is called in a budget file, such as ``max_size``.
        limit: What is asked for, in words.
        value: What was found, in words.
        verdict: ``inconclusive``: kept as far as can be told, but the measurement leaves a doubt; ``skipped``: it could
            not be looked at, which no gate lets pass.
        why: What is behind the verdict; empty where there is nothing to add.
        where: Names of the nodes, inputs, outputs or keys that are at fault, or that matter.
        figures: The numbers for machines, in the unit of the limit (docs/check.md): ``limit``, ``value``, and ``low``
            and ``high`` of a 95 % interval where there is one.
    """

    name: str
    limit: str
    value: str
    verdict: Outcome
    why: str = ""
    where: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def passed(self) -> bool:
        """Whether the gate lets it pass."""
        return self.verdict in ("pass", "inconclusive")


def skipped(name: str, limit: str, why: str) -> Line:
    """Return the line of a limit that could not be looked at."""
    return Line(name, limit, "-", "skipped", why)


def listed(names: Sequence[str], few: int = 3) -> str:
    """Name the first few, each once, and say how many more there are."""
    own = list(dict.fromkeys(names))
    more = f" and {len(own) - few} more" if len(own) > few else ""
    return ", ".join(own[:few]) + more
