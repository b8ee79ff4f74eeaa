"""Run a pass written for onnx-graphsurgeon, without losing what graphsurgeon does not carry.

graphsurgeon 0.6 drops annotations and metadata of every kind, copies outer-scope weights into each branch that reads
them, and crashes on, or corrupts, several types. What it drops is restored from the model it was made from; what it
would damage is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_graphsurgeon as gs
import onnx_ir as ir
from onnx_graphsurgeon.logger import G_LOGGER

from onnxcomp import modelio
from onnxcomp.contract import Change, Context, Pass, PassReport
from onnxcomp.cost import Cost, node_macs
from onnxcomp.errors import ModelError
from onnxcomp.graph.edit import origin_of
from onnxcomp.interop.hazards import hazards
from onnxcomp.interop.restore import node_key, restore
from onnxcomp.wire import skeleton

__all__ = ["GraphSurgeonPass", "from_graphsurgeon", "hazards", "to_graphsurgeon"]


@dataclass(frozen=True)
class GraphSurgeonPass(Pass):
    """Run a function on the graph as onnx-graphsurgeon sees it.

    The function edits the graph that it is given and returns None, or returns another one. Names, types, annotations
    and tensors of what it leaves alone are kept.
    """

    name: ClassVar[str] = "graphsurgeon"
    function: Callable[[gs.Graph], gs.Graph | None] = field(metadata={"option": False})

    def requires(self, model: ir.Model, context: Context) -> None:
        """Raise ModelError where graphsurgeon would damage the model."""
        del context
        _refuse(model)

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Convert, run the function, convert back, and report each node that went, came or changed."""
        del context
        graph = to_graphsurgeon(model)
        with _quiet():
            result = self.function(graph)
        rebuilt = from_graphsurgeon(graph if result is None else result, like=model)
        changes = tuple(_changes(model, rebuilt))
        if not changes:
            return PassReport(notes=("the function changed nothing",))
        model.graph, model.ir_version = rebuilt.graph, rebuilt.ir_version
        model.functions.clear()
        model.functions.update(rebuilt.functions)
        return PassReport(changes)


def to_graphsurgeon(model: ir.Model) -> gs.Graph:
    """Return a graphsurgeon graph of `model`; the two share nothing.

    Raises:
        ModelError: graphsurgeon would damage the model; the message says how (see `hazards`).
    """
    _refuse(model)
    with _quiet():
        return gs.import_onnx(skeleton(model, {}))


def from_graphsurgeon(graph: gs.Graph, like: ir.Model) -> ir.Model:
    """Return the model of a graphsurgeon graph, with what graphsurgeon dropped restored from `like`.

    Args:
        graph: The graph; not changed.
        like: The model that `graph` was made from; not changed.

    Raises:
        ModelError: The graph does not export, or not to a model that can be carried.
    """
    with _quiet():
        try:
            proto = gs.export_onnx(graph)
        except (gs.OnnxGraphSurgeonException, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the graph that the graphsurgeon function left does not export: {error}") from error
    model = modelio.from_proto(proto)
    restore(model, like, GraphSurgeonPass.name)
    return model


def _refuse(model: ir.Model) -> None:
    reasons = hazards(model)
    if reasons:
        raise ModelError(f"onnx-graphsurgeon would damage this model: {'; '.join(reasons)}. Write the pass on onnx-ir")


@contextmanager
def _quiet() -> Generator[None]:
    # graphsurgeon talks on stdout, which belongs to the result
    with G_LOGGER.suppress(G_LOGGER.ERROR):
        yield


def _changes(before: ir.Model, after: ir.Model) -> Iterator[Change]:
    old = {node_key(node): node for node in before.graph}
    new = {node_key(node): node for node in after.graph}
    for key, node in old.items():
        if key not in new:
            yield Change(origin_of(node), f"{node.op_type} removed", _cost(node), Cost(0, 0, 0))
        elif _print(node) != _print(new[key]):
            summary = f"{node.op_type} became {new[key].op_type}" if node.op_type != new[key].op_type else "rewritten"
            yield Change(origin_of(node), summary, _cost(node), _cost(new[key]))
    for key, node in new.items():
        if key not in old:
            yield Change(origin_of(node), f"{node.op_type} added", Cost(0, 0, 0), _cost(node))


def _print(node: ir.Node) -> tuple[bytes, tuple[int, ...]]:
    """What tells two states of a node apart; unchanged constants are the very same tensors."""
    constants = (value.const_value for value in node.inputs if value is not None)
    bare = ir.to_proto(node)
    bare.ClearField("metadata_props")
    return bare.SerializeToString(), tuple(id(tensor) for tensor in constants if tensor is not None)


def _cost(node: ir.Node) -> Cost:
    tensors = [value.const_value for value in node.inputs if value is not None and value.const_value is not None]
    return Cost(sum(tensor.size for tensor in tensors), node_macs(node), sum(tensor.nbytes for tensor in tensors))
