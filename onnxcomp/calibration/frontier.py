"""A walk through one model with the activations at the cut kept: to reach the next node, only what lies between runs.

The frontier is the set of tensors that cross the cut between what has run and what has not. A walk through the whole
model costs about one forward pass, whatever the number of stops. Activations past a memory limit are spilled to the
work directory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp import progress
from onnxcomp.data import Feeds
from onnxcomp.runtime.session import input_names, open_session, run

__all__ = ["Frontier", "Lifetimes", "Store", "data_input", "lifetimes"]

Array = NDArray[np.generic]
# For each value made by a node: the position of its producer and of its last user that counts.
Lifetimes = Mapping[str, tuple[int, int]]


@dataclass
class Store:
    """Batches of one tensor, in memory while the shared allowance lasts and in files after that."""

    folder: Path
    allowance: list[int]
    batches: list[Array | Path] = field(default_factory=list["Array | Path"])
    holders: int = 1

    def append(self, batch: Array) -> None:
        """Add the next batch."""
        if batch.nbytes <= self.allowance[0]:
            self.allowance[0] -= batch.nbytes
            self.batches.append(batch)
            return
        path = self.folder / f"{id(self):x}-{len(self.batches)}.npy"
        np.save(path, batch, allow_pickle=False)
        self.batches.append(path)

    def get(self, index: int) -> Array:
        """Return one batch."""
        batch = self.batches[index]
        return np.load(batch, allow_pickle=False) if isinstance(batch, Path) else batch

    def drop(self) -> None:
        """One frontier less that holds the tensor; without any, it is freed."""
        self.holders -= 1
        if self.holders:
            return
        for batch in self.batches:
            if isinstance(batch, Path):
                batch.unlink(missing_ok=True)
            else:
                self.allowance[0] += batch.nbytes
        self.batches.clear()


class Frontier:
    """The tensors at a cut through a model, over all batches of the data.

    Args:
        model: The model; behind the cut it may be rewritten, as long as the values that cross it keep their names.
        alive: How long each value is needed.
        feeds: The data.
        workdir: Where activations are spilled.
        allowance: Bytes of activations kept in memory before spilling, in a list that frontiers may share.
        limit: At most that many samples.
    """

    def __init__(
        self,
        model: ir.Model,
        alive: Lifetimes,
        feeds: Feeds,
        workdir: Path,
        allowance: list[int],
        *,
        limit: int | None = None,
    ) -> None:
        self._model, self._alive, self._feeds, self._limit = model, alive, feeds, limit
        self._workdir, self._allowance = workdir, allowance
        # An initializer that is listed as an input has its own value in every feed.
        self.inputs = [v.name or "" for v in model.graph.inputs if not v.is_initializer()]
        self._kept: dict[str, Store] = {}

    def advance(self, position: int, needed: Sequence[str] = ()) -> None:
        """Run the model up to the node at `position`, so that all it reads and the `needed` values are at hand."""
        wanted = {name for name, (born, last) in self._alive.items() if born < position <= last}
        wanted.update(name for name in needed if name not in self.inputs)
        made = self._made(sorted(wanted - set(self._kept)))
        for name in set(self._kept) - wanted:
            self._kept.pop(name).drop()
        self._kept.update(made)

    def fork(self, model: ir.Model) -> Frontier:
        """A frontier of another model whose tensors at the cut are those of this one."""
        twin = Frontier(model, self._alive, self._feeds, self._workdir, self._allowance, limit=self._limit)
        twin._kept = dict(self._kept)
        for store in self._kept.values():
            store.holders += 1
        return twin

    def values(self, name: str) -> Iterator[NDArray[Any]]:
        """Yield a value at the cut, or an input of the model, a batch at a time."""
        if name in self.inputs:
            for feed in self._feeds.batches(self._limit):
                yield feed[name]
            return
        store = self._kept[name]
        for index in range(len(store.batches)):
            yield store.get(index)

    def _made(self, missing: list[str]) -> dict[str, Store]:
        """The tensors of that name, run from those at the cut."""
        if not missing:
            return {}
        made = {name: Store(self._workdir, self._allowance) for name in missing}
        segment = _segment(self._model, [*self.inputs, *self._kept], missing, self._kept)
        session = open_session(segment, threads=os.cpu_count() or 1)
        names = input_names(session)
        for feed in self._feed_parts(names):
            values = run(session, feed, missing)
            for name, value in zip(missing, values, strict=True):
                made[name].append(np.asarray(value))
        return made

    def _feed_parts(self, names: Sequence[str]) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the named values a batch at a time; the data are read only where one of their inputs is among them."""
        stores = {name: self._kept[name] for name in names if name not in self.inputs}
        if stores and len(stores) == len(names):
            for index in progress.each(range(len(next(iter(stores.values())).batches)), "run"):
                yield {name: store.get(index) for name, store in stores.items()}
            return
        for index, feed in enumerate(self._feeds.watched("run", self._limit)):
            yield {name: stores[name].get(index) if name in stores else feed[name] for name in names}

    def close(self) -> None:
        """Free every activation and spill."""
        for store in self._kept.values():
            store.drop()
        self._kept = {}


def _segment(model: ir.Model, sources: Sequence[str], outputs: Sequence[str], have: Mapping[str, Store]) -> ir.Model:
    """The part of the model between `sources` and `outputs`, as a model of its own."""
    graph = ir.convenience.extract(model.graph, [s for s in sources if s not in outputs], list(outputs))
    used = {v.name for node in graph.all_nodes() for v in node.inputs if v is not None}
    for value in list(graph.inputs):
        if value.name not in used:
            graph.inputs.remove(value)
        elif value.type is None and value.name and value.name in have:
            value.type = ir.TensorType(ir.DataType.from_numpy(have[value.name].get(0).dtype))
    return ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))


def data_input(node: ir.Node) -> str:
    """Name of the first input of a node that is walked to."""
    value = node.inputs[0]
    assert value is not None and value.name, "a site has a named data input"
    return value.name


def lifetimes(graph: ir.Graph, stops: Callable[[ir.Node], bool]) -> dict[str, tuple[int, int]]:
    """For each value made by a node: the position of its producer and of its last user that leads to a stop.

    What is computed from constants alone, such as a dequantized weight, is not kept: it may be replaced on the way.
    """
    nodes = list(graph)
    varying = _varying(graph)
    position = {id(inner): index for index, node in enumerate(nodes) for inner in _with_bodies(node)}
    leads = [False] * len(nodes)
    lifetime: dict[str, tuple[int, int]] = {}
    for index in range(len(nodes) - 1, -1, -1):
        node = nodes[index]
        leads[index] = stops(node)
        for value in node.outputs:
            live = [user for user in (position[id(consumer)] for consumer, _ in value.uses()) if leads[user]]
            if live and value.name and node in varying:
                lifetime[value.name] = (index, max(live))
                leads[index] = True
    return lifetime


def _varying(graph: ir.Graph) -> set[ir.Node]:
    """The nodes whose results depend on an input of the graph."""
    values = {value for value in graph.inputs if not value.is_initializer()}
    found: set[ir.Node] = set()
    for node in graph:
        if any(value in values for inner in _with_bodies(node) for value in inner.inputs):
            found.add(node)
            values.update(node.outputs)
    return found


def _with_bodies(node: ir.Node) -> Iterator[ir.Node]:
    """The node and every node inside its If, Loop or Scan bodies."""
    yield node
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph().all_nodes()
        elif attribute.type == ir.AttributeType.GRAPHS:
            for body in attribute.as_graphs():
                yield from body.all_nodes()
