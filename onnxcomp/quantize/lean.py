"""What a file of weights in codes can do without: there, every byte counts.

Of a small network in 4 bits, names and provenance take as much as a fifth of the file. What the user named keeps its
name, and every operator says which layer it stands for and which pass made it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import count, product
from string import ascii_letters

import onnx_ir as ir

from onnxcomp.graph.decoding import is_decoded
from onnxcomp.graph.edit import ORIGIN, PASS, names_of, origin_of

__all__ = ["lean"]

_CONVOLUTIONS = ("Conv", "ConvTranspose")


def lean(model: ir.Model) -> None:
    """Leave out, in place, what nobody needs where passes have stored weights in codes.

    These are: types and shapes of inner values, which whoever reads the file infers again; names and provenance of the
    nodes that decode weights, which the layer behind them has; long names of constants that passes made; attributes of
    generated nodes that say the default.
    """
    generated = {node for node in model.graph if PASS in node.metadata_props}
    if not any(node.op_type != "DequantizeLinear" and is_decoded(node.outputs[0]) for node in generated):
        return
    _forget_shapes(model.graph)
    _shorten(model.graph, generated)
    _rename_operators(model.graph, generated)
    for node in generated:
        for name in list(_defaults(node)):
            del node.attributes[name]


def _forget_shapes(graph: ir.Graph) -> None:
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = value.shape = None


def _shorten(graph: ir.Graph, generated: set[ir.Node]) -> None:
    """Give decoded values and constants that only generated nodes read names of a letter or two; decoders get none."""
    fresh = _fresh_names(names_of(graph))
    decoders = [node for node in graph if node in generated and is_decoded(node.outputs[0])]
    for node in decoders:
        node.name = None
        node.metadata_props.pop(ORIGIN, None)
        node.metadata_props.pop(PASS, None)
    values = [value for node in decoders for value in node.outputs if not value.is_graph_output()]
    for value in graph.initializers.values():
        readers = {user for user, _ in value.uses()}
        if readers and readers <= generated and not (value.is_graph_input() or value.is_graph_output()):
            values.append(value)
    for value in values:
        value.name = next(fresh)


def _fresh_names(taken: set[str]) -> Iterator[str]:
    """a, b ... Z, aa, ab ..., without those that are taken."""
    for length in count(1):
        for letters in product(ascii_letters, repeat=length):
            if (name := "".join(letters)) not in taken:
                yield name


def _rename_operators(graph: ir.Graph, generated: set[ir.Node]) -> None:
    """Call the one node that stands for a layer like the layer, which then needs no record of it."""
    operators = [node for node in generated if node.metadata_props.get(ORIGIN)]
    counts, taken = Counter(origin_of(node) for node in operators), names_of(graph)
    for node in operators:
        origin = origin_of(node)
        if counts[origin] == 1 and origin not in taken and (node.name or "").startswith(f"{origin}."):
            node.name = origin
            del node.metadata_props[ORIGIN]


def _defaults(node: ir.Node) -> Iterator[str]:
    """Names of the attributes of a convolution that say what holds without them."""
    if node.op_type not in _CONVOLUTIONS:
        return
    if node.attributes.get_int("group", 0) == 1:
        yield "group"
    for name, plain in (("strides", 1), ("dilations", 1), ("pads", 0)):
        if name in node.attributes and set(node.attributes.get_ints(name, ())) == {plain}:
            yield name
