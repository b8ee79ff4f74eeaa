"""Walk through a model site by site while it is being rewritten, with the activations at the cut kept.

The sweep advances a frontier: the tensors that cross the cut between what has run and what has not. To reach the next
site only the nodes since the last one run, so the whole walk costs about one forward pass of the original and one of
the rewritten model, whatever the depth (design, decision 5). Activations past a memory limit are spilled to the work
directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.data import Feeds
from onnxcomp.graph.sites import Site
from onnxcomp.runtime.session import input_names, open_session, run

__all__ = ["Sweep"]

Array = NDArray[np.generic]
Batch = NDArray[Any]


@dataclass
class _Store:
    """Batches of one tensor, in memory while the shared allowance lasts and in files after that."""

    folder: Path
    allowance: list[int]
    batches: list[Array | Path] = field(default_factory=list["Array | Path"])

    def append(self, batch: Array) -> None:
        if batch.nbytes <= self.allowance[0]:
            self.allowance[0] -= batch.nbytes
            self.batches.append(batch)
            return
        path = self.folder / f"{id(self):x}-{len(self.batches)}.npy"
        np.save(path, batch, allow_pickle=False)
        self.batches.append(path)

    def get(self, index: int) -> Array:
        batch = self.batches[index]
        return np.load(batch, allow_pickle=False) if isinstance(batch, Path) else batch

    def free(self) -> None:
        for batch in self.batches:
            if isinstance(batch, Path):
                batch.unlink(missing_ok=True)
            else:
                self.allowance[0] += batch.nbytes
        self.batches.clear()


class Sweep:
    """Inputs of each site in the original model and in the model as rewritten so far, over all calibration batches.

    Sites must be asked for in topological order, and may be rewritten only after they were asked for.

    Args:
        original: The model as it was; never modified.
        current: The model that is being rewritten; values outside rewritten sites keep their names.
        feeds: Calibration feeds.
        workdir: Where activations are spilled.
        memory: Bytes of activations kept in memory before spilling.
        kinds: The operators that are sites.
    """

    def __init__(
        self,
        original: ir.Model,
        current: ir.Model,
        feeds: Feeds,
        workdir: Path,
        memory: int = 1 << 30,
        *,
        kinds: Sequence[str] = ("Conv", "ConvTranspose"),
    ) -> None:
        self._original, self._current = original, current
        self._feeds, self._workdir, self._allowance = feeds, workdir, [memory]
        # An initializer that is listed as an input has its own value in every feed.
        self._inputs = [v.name or "" for v in original.graph.inputs if not v.is_initializer()]
        self._lifetime = _lifetimes(original.graph, kinds)
        self._order = {id(node): index for index, node in enumerate(original.graph)}
        self._by_output = {(node.outputs[0].name or ""): node for node in original.graph if node.outputs}
        self._kept: list[dict[str, _Store]] = [{}, {}]
        self._started = False
        self._diverged = False

    def mark_changed(self) -> None:
        """Tell the sweep that a site was rewritten: from here on the two models have activations of their own."""
        self._diverged = True

    def advance(self, site: Site) -> None:
        """Run both models up to the input of `site`."""
        node = self._twin(site)
        position = self._order[id(node)]
        source = node.inputs[0]
        wanted = {name for name, (born, last) in self._lifetime.items() if born < position <= last}
        if source is not None and source.name and source.name not in self._inputs:
            wanted.add(source.name)
        if self._diverged:
            if not self._kept[1]:
                self._kept[1] = dict(self._kept[0])
            later = self._step(self._current, self._kept[1], wanted)
            now = self._step(self._original, self._kept[0], wanted)
            self._replace([now, later])
        else:
            self._replace([self._step(self._original, self._kept[0], wanted), {}])
        self._started = True

    def batches(self, site: Site) -> Iterator[tuple[Batch, Batch, Batch]]:
        """Yield (input in the original, input in the rewritten prefix, output in the original) a batch at a time.

        The first two are one array as long as nothing was rewritten before the site.
        """
        session = open_session(_alone(self._original, self._twin(site)), threads=os.cpu_count() or 1)
        name = _data_input(site.node)
        if name in self._inputs:
            for feed in self._feeds.batches():
                yield feed[name], feed[name], run(session, {name: feed[name]})[0]
            return
        before, after = self._kept[0][name], self._kept[1].get(name)
        for index in range(len(before.batches)):
            x = before.get(index)
            yield x, (x if after is None else after.get(index)), run(session, {name: x})[0]

    def _twin(self, site: Site) -> ir.Node:
        """The site's node in the original model."""
        return self._by_output[site.node.outputs[0].name or ""]

    def close(self) -> None:
        """Free every activation and spill."""
        self._replace([{}, {}])

    def _replace(self, new: list[dict[str, _Store]]) -> None:
        alive = {id(s) for stores in new for s in stores.values()}
        for stores in self._kept:
            for store in stores.values():
                if id(store) not in alive:
                    store.free()
        self._kept = new

    def _step(self, model: ir.Model, have: dict[str, _Store], wanted: set[str]) -> dict[str, _Store]:
        missing = sorted(wanted - set(have))
        out = {name: store for name, store in have.items() if name in wanted}
        if not missing:
            return out
        made = {name: _Store(self._workdir, self._allowance) for name in missing}
        sources = [*self._inputs, *have]
        session = open_session(_segment(model, sources, missing, have), threads=os.cpu_count() or 1)
        names = input_names(session)
        for index, feed in enumerate(self._feeds.batches()):
            values = run(session, {n: feed[n] if n in feed else have[n].get(index) for n in names}, missing)
            for name, value in zip(missing, values, strict=True):
                made[name].append(np.asarray(value))
        return {**out, **made}


def _segment(model: ir.Model, sources: Sequence[str], outputs: Sequence[str], have: dict[str, _Store]) -> ir.Model:
    """The part of the model between `sources` and `outputs`, as a model of its own."""
    graph = ir.convenience.extract(model.graph, [s for s in sources if s not in outputs], list(outputs))
    used = {v.name for node in graph.all_nodes() for v in node.inputs if v is not None}
    for value in list(graph.inputs):
        if value.name not in used:
            graph.inputs.remove(value)
        elif value.type is None and value.name in have:
            value.type = ir.TensorType(ir.DataType.from_numpy(have[value.name].get(0).dtype))
    return ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))


def _alone(model: ir.Model, node: ir.Node) -> ir.Model:
    """A model that holds one node of `model`, reading that node's data input."""
    graph = ir.convenience.extract(model.graph, [_data_input(node)], [node.outputs[0].name or ""])
    if graph.inputs[0].type is None:
        graph.inputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return ir.Model(graph, ir_version=model.ir_version)


def _data_input(node: ir.Node) -> str:
    value = node.inputs[0]
    assert value is not None and value.name, "a site has a named data input"
    return value.name


def _lifetimes(graph: ir.Graph, kinds: Sequence[str]) -> dict[str, tuple[int, int]]:
    """For each value made by a node: the position of its producer and of its last user that leads to a site."""
    nodes = list(graph)
    position = {id(inner): index for index, node in enumerate(nodes) for inner in _with_bodies(node)}
    leads = [False] * len(nodes)
    lifetime: dict[str, tuple[int, int]] = {}
    for index in range(len(nodes) - 1, -1, -1):
        node = nodes[index]
        leads[index] = node.op_type in kinds
        for value in node.outputs:
            live = [user for user in (position[id(consumer)] for consumer, _ in value.uses()) if leads[user]]
            if live and value.name:
                lifetime[value.name] = (index, max(live))
                leads[index] = True
    return lifetime


def _with_bodies(node: ir.Node) -> Iterator[ir.Node]:
    """The node and every node inside its If, Loop or Scan bodies."""
    yield node
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph().all_nodes()
        elif attribute.type == ir.AttributeType.GRAPHS:
            for body in attribute.as_graphs():
                yield from body.all_nodes()
