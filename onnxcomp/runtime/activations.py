"""Values of inner tensors, a batch at a time: what calibration and comparison read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.errors import ModelError
from onnxcomp.runtime.session import input_names, open_session, run

if TYPE_CHECKING:
    from onnxcomp.data import Feeds

__all__ = ["Tap", "expose", "stream"]


def stream(
    model: ir.Model, names: Sequence[str], feeds: Feeds, *, limit: int | None = None, threads: int = 1
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the values of the named tensors, one batch of `feeds` at a time.

    Only the part of the graph that the tensors depend on runs, and no batch is kept. The model is not modified.

    Args:
        model: The model.
        names: Tensors of the main graph: inputs, outputs, inner tensors or initializers.
        feeds: The data.
        limit: At most that many samples.
        threads: Intra-op threads.

    Yields:
        Name to array, for every name asked for. Graph inputs are the feed's own arrays.

    Raises:
        ModelError: There is no such tensor in the main graph, or ORT cannot run the model.
        DataError: The data do not fit the model.
    """
    tap = Tap(model, names, threads=threads)
    for feed in feeds.watched("read tensors", limit):
        yield tap.read(feed)


class Tap:
    """A session that reads inner tensors of a model; :func:`stream` for callers that cut their own batches."""

    def __init__(self, model: ir.Model, names: Sequence[str], *, threads: int = 1, arena: bool = True) -> None:
        wanted = list(dict.fromkeys(names))
        values = _values(model)
        unknown = [name for name in wanted if name not in values]
        if unknown:
            raise ModelError(f"the model's main graph has no tensor '{unknown[0]}'")
        constants = {name: tensor for name in wanted if (tensor := values[name].const_value) is not None}
        self._constants = {name: tensor.numpy() for name, tensor in constants.items()}
        self._computed = [name for name in wanted if name not in constants and values[name].producer() is not None]
        self._inputs = [name for name in wanted if name not in constants and values[name].producer() is None]
        self._session = (
            open_session(expose(model, self._computed), threads=threads, arena=arena) if self._computed else None
        )

    @property
    def needs(self) -> frozenset[str]:
        """Names of the inputs of the model that the tensors depend on."""
        return frozenset([*self._inputs, *(input_names(self._session) if self._session is not None else ())])

    def read(self, feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the values of all the tensors for one feed (raises as :func:`onnxcomp.runtime.session.run`)."""
        result = dict(self._constants)
        result.update({name: feed[name] for name in self._inputs})
        if self._session is not None:
            result.update(zip(self._computed, run(self._session, feed, self._computed), strict=True))
        return result


def expose(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Return a model whose outputs are exactly the named tensors and that holds only what they depend on.

    The constants are shared with `model`, which stays as it is. The type of an output may be unknown: ORT infers it.

    Args:
        model: The model.
        names: Tensors that nodes of the main graph compute.
    """
    clone = model.clone()
    graph = clone.graph
    values = _values(clone)
    graph.outputs.clear()
    graph.outputs.extend(values[name] for name in names)
    needed = _ancestors(values[name] for name in names)
    dead = [node for node in graph if node not in needed]
    for node in dead:
        _detach_bodies(node)
    graph.remove(dead, safe=True)
    for name in [name for name, value in graph.initializers.items() if not _in_use(value)]:
        del graph.initializers[name]
    for value in [value for value in graph.inputs if not _in_use(value)]:
        graph.inputs.remove(value)
    return clone


def _values(model: ir.Model) -> dict[str, ir.Value]:
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    return {value.name: value for value in values if value.name}


def _ancestors(values: Iterable[ir.Value]) -> set[ir.Node]:
    """Return the nodes of the main graph that the values depend on, those whose bodies read outer values included."""
    needed: set[ir.Node] = set()
    pending = [node for value in values if (node := value.producer()) is not None]
    while pending:
        node = pending.pop()
        if node in needed:
            continue
        needed.add(node)
        pending.extend(producer for value in _reads(node) if (producer := value.producer()) is not None)
    return needed


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    yield from (value for value in node.inputs if value is not None)
    for body in _bodies(node):
        for inner in body.all_nodes():
            yield from (value for value in inner.inputs if value is not None)
        yield from body.outputs


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _detach_bodies(node: ir.Node) -> None:
    """Make the bodies of a node that is about to go stop using values of the main graph."""
    for body in _bodies(node):
        body.outputs.clear()
        for inner in body.all_nodes():
            for index in range(len(inner.inputs)):
                inner.replace_input_with(index, None)


def _in_use(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()
