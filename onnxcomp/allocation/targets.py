"""What an allocation is to reach, and the picks that reach it at the least loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxcomp.allocation.menu import Choice, SiteMenu
from onnxcomp.cost import Cost
from onnxcomp.numeric.allocation import allocate, cheapest
from onnxcomp.numeric.hull import descent

__all__ = ["Resource", "Table", "Totals"]

Resource = Literal["macs", "parameters", "bytes", "ms"]
Float = NDArray[np.float64]

_NOTHING = Cost(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Totals:
    """What the whole model takes.

    Attributes:
        cost: Its static cost.
        ms: Its time, milliseconds; None where it was not timed.
        saved: What layers whose forms were given by the user will take less.
    """

    cost: Cost
    ms: float | None
    saved: Cost = _NOTHING

    def of(self, resource: Resource) -> float:
        """One of them; NaN where it is not known."""
        cost = self.cost
        known = {"macs": cost.macs, "parameters": cost.parameters, "bytes": cost.bytes, "ms": self.ms}[resource]
        return float("nan") if known is None else float(known)

    def saving(self, resource: Resource) -> float:
        """What given forms save of a resource; their time is not known."""
        return {"macs": self.saved.macs or 0, "parameters": self.saved.parameters, "bytes": self.saved.bytes, "ms": 0}[
            resource
        ]

    def countable(self, resource: Resource) -> Resource:
        """The resource, or what stands for it where it is not known: MACs for time, parameters for MACs."""
        if resource == "ms" and self.ms is None:
            resource = "macs"
        return "parameters" if resource == "macs" and self.cost.macs is None else resource


class Table:
    """The menus as arrays, for one resource.

    Args:
        menus: One a site.
        resource: What is scarce.
        whole: What the model takes of it.
        saved: What is saved elsewhere.
    """

    def __init__(self, menus: Sequence[SiteMenu], resource: Resource, whole: float, saved: float = 0.0) -> None:
        self.resource: Resource = resource
        own = [np.array([_amount(menu, choice, resource) for choice in menu.choices]) for menu in menus]
        sites = float(sum(costs[0] for costs in own))
        # Sites alone can take longer than together: caches and threads are their own. They share the model's time.
        self._scale = whole / sites if resource == "ms" and sites > whole > 0.0 else 1.0
        self.costs: list[Float] = [costs * self._scale for costs in own]
        self.losses: list[Float] = [np.array([inf if c.why else c.loss for c in menu.choices]) for menu in menus]
        self.fixed = whole - saved - sites * self._scale
        self.whole = whole

    def within(self, budget: float) -> list[int] | None:
        """The picks that lose least and bring the whole model to `budget` or less; None where none do."""
        return allocate(self.costs, self.losses, budget - self.fixed)

    def losing(self, allowed: float) -> list[int]:
        """The picks that take least and are expected to lose `allowed` at most."""
        return cheapest(self.costs, self.losses, allowed)

    def least(self) -> list[int]:
        """The picks that take least, whatever they lose."""
        *_, last = descent(self.costs, self.losses)
        return last

    def total(self, picks: Sequence[int]) -> float:
        """What the whole model takes with these picks."""
        return self.fixed + float(sum(costs[i] for costs, i in zip(self.costs, picks, strict=True)))

    def loss(self, picks: Sequence[int]) -> float:
        """The relative squared error that is expected of the worst output."""
        return float(sum(losses[i] for losses, i in zip(self.losses, picks, strict=True)))


def _amount(menu: SiteMenu, choice: Choice, resource: Resource) -> float:
    if resource == "bytes":
        return float(choice.cost.bytes)
    if resource == "ms":
        return 0.0 if choice.time is None or menu.site_ms is None else choice.time * menu.site_ms
    return float(choice.cost.parameters if resource == "parameters" else choice.cost.macs or 0)
