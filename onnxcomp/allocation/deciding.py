"""From menus to picks: the least loss for a target, or the most gain for a loss."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import onnx_ir as ir

from onnxcomp.allocation.menu import SiteMenu
from onnxcomp.allocation.targets import Resource, Table, Totals
from onnxcomp.contract import Context
from onnxcomp.graph.edit import replace_by_chain
from onnxcomp.graph.fold.shapes import infer_shapes
from onnxcomp.pipeline import time_models

__all__ = ["Aim", "Decision", "Picking", "decide", "settle"]

# Models of the right shapes that are timed to meet a target of speed, which the times of single sites only estimate.
_TRIALS = 6
_CLOSE = 0.02


@dataclass(frozen=True, slots=True)
class Aim:
    """What to reach.

    Attributes:
        resource: What is to be saved.
        part: Share of the whole model's that may be left; None: as little as `loss` allows.
        loss: Relative squared error of the worst output that is allowed, where there is no `part`.
    """

    resource: Resource
    part: float | None
    loss: float


@dataclass(frozen=True)
class Decision:
    """A pick for every site, as an index into its menu.

    Attributes:
        picks: One a site.
        table: What the picks were made from.
        note: What the user should know; empty for nothing.
    """

    picks: tuple[int, ...]
    table: Table
    note: str = ""

    def without(self, sites: Collection[int]) -> Decision:
        """The same but for some sites, by number, that stay as they are."""
        return replace(self, picks=tuple(0 if site in sites else pick for site, pick in enumerate(self.picks)))


class Picking(Protocol):
    """What picks are made from: the options of a model as costs and losses, for one resource."""

    @property
    def resource(self) -> Resource:
        """What is scarce."""
        ...

    @property
    def whole(self) -> float:
        """What the model takes of it."""
        ...

    def within(self, budget: float) -> list[int] | None:
        """The picks that lose least and bring the whole model to `budget` or less; None where none do."""
        ...

    def losing(self, allowed: float) -> list[int]:
        """The picks that take least and are expected to lose `allowed` at most."""
        ...

    def least(self) -> list[int]:
        """The picks that take least, whatever they lose."""
        ...

    def total(self, picks: Sequence[int]) -> float:
        """What the whole model takes with these picks."""
        ...

    def loss(self, picks: Sequence[int]) -> float:
        """The relative squared error that is expected of the worst output."""
        ...


def decide(model: ir.Model, menus: Sequence[SiteMenu], aim: Aim, totals: Totals, context: Context) -> Decision:
    """Pick a form for every site.

    Args:
        model: The original.
        menus: One a site; may be empty.
        aim: What to reach.
        totals: What the model takes.
        context: The run's context.
    """
    resource = totals.countable(aim.resource)
    table = Table(menus, resource, totals.of(resource), totals.saving(resource))
    picks, note = settle(table, aim, lambda own: _measured(model, menus, own, context), context)
    return Decision(picks if picks is not None else (0,) * len(menus), table, note)


def settle(
    table: Picking, aim: Aim, measured: Callable[[Sequence[int]], float | None], context: Context
) -> tuple[tuple[int, ...] | None, str]:
    """The picks for an aim, and what the user should know; None: nothing is to be changed.

    Args:
        table: For the aim's resource, or what stands for it.
        aim: What to reach.
        measured: The time of the model with some picks, relative to the original's; None where nothing is timed.
        context: The run's context.
    """
    if aim.part is None:
        return tuple(table.losing(aim.loss)), ""
    if aim.resource == "ms" and table.resource != "ms":
        return None, "no layer could be timed, so that none was changed for speed"
    if aim.resource == "ms":
        return _fast_enough(table, aim.part, measured, context)
    picks = table.within(aim.part * table.whole)
    if picks is None:
        return _missed(table, aim.part)
    counted = (
        ""
        if table.resource == aim.resource
        else "MACs are not known, with dynamic shapes: weights were counted instead"
    )
    return tuple(picks), counted


def _fast_enough(
    table: Picking, part: float, measured: Callable[[Sequence[int]], float | None], context: Context
) -> tuple[tuple[int, ...], str]:
    """Meet a target of speed: times of whole models, with arbitrary weights, correct the sums of their sites' times."""
    tried: dict[tuple[int, ...], float] = {}
    # What was estimated and what was measured, of the slowest picks that are fast enough and the fastest that are not.
    slow, fast = (table.whole, 1.0), None
    budget = part * table.whole
    for _ in range(_TRIALS):
        found = table.within(budget)
        picks = tuple(table.least() if found is None else found)
        if picks in tried:
            break
        reached = measured(picks)
        if reached is None:
            return picks, ""
        tried[picks] = reached
        close = part * (1 - 4 * _CLOSE) <= reached <= part * (1 + _CLOSE)
        if close or (found is None and reached > part):
            break
        estimate = table.total(picks)
        slow, fast = (slow, (estimate, reached)) if reached <= part else ((estimate, reached), fast)
        budget = budget * part / reached if fast is None else _between(fast, slow, part)
    enough = [picks for picks, reached in tried.items() if reached <= part * (1 + _CLOSE)]
    if enough:
        return min(enough, key=table.loss), ""
    fastest = min(tried, key=lambda picks: tried[picks])
    after = f" (with {', '.join(item.name for item in context.followers)} after)" if context.followers else ""
    left = f"{tried[fastest]:.3g} of the original's time{after} is left, {part:.3g} was asked for"
    return fastest, f"the target is out of reach: {left}"


def _between(fast: tuple[float, float], slow: tuple[float, float], part: float) -> float:
    """The estimate at which a part of the time is expected, by what was estimated and measured around it."""
    (low, below), (high, above) = fast, slow
    return low + (high - low) * (part - below) / (above - below) if above > below else (low + high) / 2


def _missed(table: Picking, part: float) -> tuple[tuple[int, ...], str]:
    picks = table.least()
    left = table.total(picks) / table.whole if table.whole else 1.0
    note = (
        f"the target is out of reach: at least {left:.3g} of the original's {_WORDS[table.resource]} is left, "
        f"{part:.3g} was asked for"
    )
    return tuple(picks), note


_WORDS: dict[Resource, str] = {"macs": "MACs", "parameters": "weights", "bytes": "bytes", "ms": "time"}


def _measured(model: ir.Model, menus: Sequence[SiteMenu], picks: Sequence[int], context: Context) -> float | None:
    """Time of the model with these picks / time of the original, both as the later passes leave them."""
    trial = model.clone()
    by_output = {node.outputs[0].name: node for node in trial.graph if node.outputs}
    for menu, pick in zip(menus, picks, strict=True):
        scored = menu.choices[pick].scored
        if scored is not None:
            node = by_output[menu.site.node.outputs[0].name]
            replace_by_chain(node, scored.form.blank(menu.site, scored.setting), "trial")
    infer_shapes(trial)
    speedup = time_models(context.rehearsed(model), context.rehearsed(trial), context)
    return None if speedup is None else 1.0 / speedup.ratio
