"""Walk through a model site by site while it is being rewritten, beside the original.

Two frontiers advance together, so that the whole walk costs about one forward pass of the original and one of the
rewritten model, whatever the depth (design, decision 5).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.calibration.frontier import Frontier, data_input, lifetimes
from onnxcomp.data import Feeds
from onnxcomp.graph.sites import Site
from onnxcomp.runtime.session import open_session, run

__all__ = ["Sweep", "alone"]

Batch = NDArray[Any]


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
        self._original = original
        alive, allowance = lifetimes(original.graph, lambda node: node.op_type in kinds), [memory]
        self._before = Frontier(original, alive, feeds, workdir, allowance)
        self._current, self._after = current, self._before
        self._order = {id(node): index for index, node in enumerate(original.graph)}
        self._by_output = {(node.outputs[0].name or ""): node for node in original.graph if node.outputs}
        self._changed = False

    def mark_changed(self) -> None:
        """Tell the sweep that a site was rewritten: from here on the two models have activations of their own."""
        self._changed = True

    def advance(self, site: Site) -> None:
        """Run both models up to the input of `site`."""
        node = self._twin(site)
        position, source = self._order[id(node)], [data_input(node)]
        if self._changed and self._after is self._before:
            self._after = self._before.fork(self._current)
        if self._after is not self._before:
            self._after.advance(position, source)
        self._before.advance(position, source)

    def batches(self, site: Site) -> Iterator[tuple[Batch, Batch, Batch]]:
        """Yield (input in the original, input in the rewritten prefix, output in the original) a batch at a time.

        The first two are one array as long as nothing was rewritten before the site.
        """
        session = open_session(alone(self._original, self._twin(site)), threads=os.cpu_count() or 1)
        name = data_input(site.node)
        if name in self._before.inputs or self._after is self._before:
            for x in self._before.values(name):
                yield x, x, run(session, {name: x})[0]
            return
        for x, later in zip(self._before.values(name), self._after.values(name), strict=True):
            yield x, later, run(session, {name: x})[0]

    def _twin(self, site: Site) -> ir.Node:
        """The site's node in the original model."""
        return self._by_output[site.node.outputs[0].name or ""]

    def close(self) -> None:
        """Free every activation and spill."""
        if self._after is not self._before:
            self._after.close()
        self._before.close()


def alone(model: ir.Model, node: ir.Node) -> ir.Model:
    """A model that holds one node of `model`, reading that node's data input."""
    graph = ir.convenience.extract(model.graph, [data_input(node)], [node.outputs[0].name or ""])
    if graph.inputs[0].type is None:
        graph.inputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return ir.Model(graph, ir_version=model.ir_version)
