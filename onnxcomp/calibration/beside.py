"""Walk through a model that has lost channels or blocks, beside the original that its layers are to imitate.

Values correspond by name: a value of the rewritten model stands for the original's value of that name, or for some of
its channels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.calibration.frontier import Frontier, data_input, lifetimes
from onnxcomp.data import Feeds
from onnxcomp.graph.alike import same_operation, same_values
from onnxcomp.graph.sites import Site, is_default_domain

__all__ = ["Beside", "Kept"]

Batch = NDArray[Any]

Kept = Mapping[str, tuple[int, NDArray[np.int64]]]
"""By the name of a value: the axis along which it lost channels, and the places in the original of those left."""


@dataclass(frozen=True, slots=True)
class _Goal:
    """What a layer is to reach.

    Attributes:
        wanted: Name of the original's value.
        other: Name of the rewritten model's value that is added to the layer's output; empty: none.
    """

    wanted: str
    other: str = ""


class Beside:
    """Inputs of each layer of a rewritten model and the outputs that it should have, over all calibration batches.

    Where a layer's output is only added to a value that is there before it, as at the end of a residual block, the sum
    is to be the original's: the layer makes up for what the other branch has lost (He, Zhang and Sun 2017, section
    3.2).

    Args:
        original: The model as it was; never modified.
        current: The rewritten model; its layers may be replaced after they were asked for, in topological order.
        kept: What is left of values that lost channels.
        feeds: Calibration feeds.
        workdir: Where activations are spilled.
        memory: Bytes of activations kept in memory before spilling.
        kinds: The operators that are sites.
        rewritten: Names of the outputs of layers that are about to be replaced, whatever they read.
    """

    def __init__(
        self,
        original: ir.Model,
        current: ir.Model,
        kept: Kept,
        feeds: Feeds,
        workdir: Path,
        memory: int = 1 << 30,
        *,
        kinds: Sequence[str] = ("Conv", "ConvTranspose"),
        rewritten: Collection[str] = (),
    ) -> None:
        allowance = [memory]
        self._kept = kept
        self._order, self._goals = _planned(current, original, kinds)
        self._same = same_values(original.graph, current.graph, rewritten)
        self._makers = {value.name: node for node in original.graph for value in node.outputs}
        self._places = {v.name or "": i for i, node in enumerate(original.graph) for v in node.outputs}
        needed = {goal.wanted for goal in self._goals.values()}
        made = {name for name in needed if name in self._places}
        stops = {self._places[name] for name in made}
        nodes = {node: i for i, node in enumerate(original.graph)}
        self._before = Frontier(
            original, lifetimes(original.graph, lambda n: nodes[n] in stops), feeds, workdir, allowance
        )
        alive = lifetimes(current.graph, lambda node: node.op_type in kinds)
        self._after = Frontier(current, alive, feeds, workdir, allowance)
        self._reached = 0

    def repeats(self, site: Site) -> bool:
        """Whether a layer reads what it did in the original and is to give what it gave there, or some channels of it.

        Then there is nothing to make up for. As of the time at which the walk began, but for `rewritten`.
        """
        goal = self._goals[site.node.outputs[0].name or ""]
        if data_input(site.node) not in self._same or (goal.other and goal.other not in self._same):
            return False
        made = [site.node, *(user for user, _ in site.node.outputs[0].uses() if goal.other)]
        twins = (self._makers.get(node.outputs[0].name) for node in made)
        return all(twin is not None and same_operation(node, twin) for node, twin in zip(made, twins, strict=True))

    def advance(self, site: Site) -> None:
        """Run both models up to where the site is."""
        output, source = site.node.outputs[0].name or "", data_input(site.node)
        goal = self._goals[output]
        self._after.advance(self._order[output], [source, *([goal.other] if goal.other else [])])
        self._reached = max(self._reached, self._places[goal.wanted])
        self._before.advance(self._reached, [goal.wanted])

    def batches(self, site: Site) -> Iterator[tuple[Batch, Batch]]:
        """Yield (input in the rewritten model, wanted output) a batch at a time."""
        goal = self._goals[site.node.outputs[0].name or ""]
        wanted = self._before.values(goal.wanted)
        others = self._after.values(goal.other) if goal.other else None
        for x, target in zip(self._after.values(data_input(site.node)), wanted, strict=True):
            left = self._left(goal.wanted, target)
            yield x, left if others is None else left - next(others)

    def _left(self, name: str, value: Batch) -> Batch:
        if name not in self._kept:
            return value
        axis, places = self._kept[name]
        return np.take(value, places, axis)

    def close(self) -> None:
        """Free every activation and spill."""
        self._after.close()
        self._before.close()


def _planned(current: ir.Model, original: ir.Model, kinds: Sequence[str]) -> tuple[dict[str, int], dict[str, _Goal]]:
    """The place of each layer of the rewritten model, and what it is to reach, by the name of its output."""
    made = {v.name for node in original.graph for v in node.outputs}
    order: dict[str, int] = {}
    goals: dict[str, _Goal] = {}
    places = {node: index for index, node in enumerate(current.graph)}
    for node, place in places.items():
        if not is_default_domain(node, *kinds):
            continue
        output = node.outputs[0].name or ""
        order[output] = place
        added = _added(node, places)
        if added is not None and added.wanted in made:
            goals[output] = added
        elif output in made:
            goals[output] = _Goal(output)
    return order, goals


def _added(node: ir.Node, places: Mapping[ir.Node, int]) -> _Goal | None:
    """The sum that a layer's output goes into and nothing else, where the other operand is there before the layer."""
    output = node.outputs[0]
    users = {user for user, _ in output.uses()}
    if len(users) != 1 or output.is_graph_output():
        return None
    (user,) = users
    operands = [value for value in user.inputs if value is not output and value is not None]
    if not is_default_domain(user, "Add") or len(operands) != 1 or user not in places:
        return None
    (other,) = operands
    producer = other.producer()
    earlier = other.is_graph_input() if producer is None else places.get(producer, len(places)) < places[node]
    if not earlier or other.is_initializer() or output.shape is None or other.shape != output.shape:
        return None
    return _Goal(user.outputs[0].name or "", other.name or "")
