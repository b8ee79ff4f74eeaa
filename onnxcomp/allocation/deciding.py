"""From menus to picks: the least loss for a target, or the most gain for a loss."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxcomp.allocation.menu import SiteMenu
from onnxcomp.allocation.targets import Resource, Table, Totals
from onnxcomp.contract import Context
from onnxcomp.graph.edit import replace_by_chain
from onnxcomp.graph.fold.shapes import infer_shapes
from onnxcomp.pipeline import time_models

__all__ = ["Aim", "Decision", "decide"]

# Models of the right shapes that are timed to meet a target of speed, which the times of single sites only estimate.
_TRIALS = 4
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
    if aim.part is None:
        return Decision(tuple(table.losing(aim.loss)), table)
    if aim.resource == "ms" and resource != "ms":
        return Decision((0,) * len(menus), table, "no layer could be timed, so that none was changed for speed")
    if aim.resource == "ms":
        return _fast_enough(model, menus, table, aim.part, context)
    picks = table.within(aim.part * table.whole)
    if picks is None:
        return _missed(table, aim.part)
    counted = (
        "" if resource == aim.resource else "MACs are not known, with dynamic shapes: weights were counted instead"
    )
    return Decision(tuple(picks), table, counted)


def _fast_enough(model: ir.Model, menus: Sequence[SiteMenu], table: Table, part: float, context: Context) -> Decision:
    """Meet a target of speed: the time of the whole model, with arbitrary weights, corrects the sum of its sites'."""
    budget = part * table.whole
    tried: dict[tuple[int, ...], float] = {}
    for _ in range(_TRIALS):
        found = table.within(budget)
        picks = tuple(table.least() if found is None else found)
        if picks not in tried:
            reached = _measured(model, menus, picks, context)
            if reached is None:
                return Decision(picks, table)
            tried[picks] = reached
        if found is None or part * (1 - 4 * _CLOSE) <= tried[picks] <= part * (1 + _CLOSE):
            break
        budget *= (part / tried[picks]) ** (1.0 if tried[picks] > part else 0.5)
    enough = [picks for picks, reached in tried.items() if reached <= part * (1 + _CLOSE)]
    if enough:
        return Decision(min(enough, key=table.loss), table)
    fastest = min(tried, key=lambda picks: tried[picks])
    after = f" (with {', '.join(item.name for item in context.followers)} after)" if context.followers else ""
    left = f"{tried[fastest]:.3g} of the original's time{after} is left, {part:.3g} was asked for"
    return Decision(fastest, table, f"the target is out of reach: {left}")


def _missed(table: Table, part: float) -> Decision:
    picks = table.least()
    left = table.total(picks) / table.whole if table.whole else 1.0
    return Decision(
        tuple(picks),
        table,
        f"the target is out of reach: at least {left:.3g} of the original's {_WORDS[table.resource]} is left, "
        f"{part:.3g} was asked for",
    )


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
