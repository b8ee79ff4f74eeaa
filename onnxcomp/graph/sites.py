"""Sites: the nodes that a pass may rewrite, with their constant weight and explicit geometry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.contract import Skip
from onnxcomp.cost import Cost
from onnxcomp.graph.earlier import earlier_reason
from onnxcomp.graph.edit import origin_of
from onnxcomp.graph.geometry import Geometry, same_pads

__all__ = [
    "Kind",
    "Site",
    "conv_site",
    "conv_sites",
    "geometry_of",
    "is_default_domain",
    "sites_in_bodies",
    "sites_in_functions",
    "static_shape",
]

Kind = Literal["Conv", "ConvTranspose", "Gemm", "MatMul"]
Shape = tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class Site:
    """A convolution that a pass may rewrite, or a matrix product seen as one (:mod:`onnxcomp.graph.products`).

    Attributes:
        name: Name of the node in the user's model (its provenance, if an earlier pass made it).
        node: The node itself; its first input is the data.
        kind: Operator.
        weight: The constant weight, shape (Co, Ci/group, *kernel) for Conv and (Ci, Co/group, *kernel) for
            ConvTranspose.
        bias: The constant bias, shape (Co,), or None.
        geometry: Explicit kernel, strides, dilations, pads, groups.
        input_shape: Shape of the data input, None where symbolic or unknown; () where the rank is unknown.
        output_shape: Shape of the output, likewise.
    """

    name: str
    node: ir.Node
    kind: Kind
    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    geometry: Geometry
    input_shape: Shape
    output_shape: Shape

    @property
    def channels_in(self) -> int:
        """Number of input channels, all groups together."""
        return int(self.weight.shape[0] if self.geometry.transposed else self.weight.shape[1] * self.geometry.group)

    @property
    def channels_out(self) -> int:
        """Number of output channels, all groups together."""
        return int(self.weight.shape[1] * self.geometry.group if self.geometry.transposed else self.weight.shape[0])

    @property
    def cost(self) -> Cost:
        """Parameters, MACs at batch 1 and bytes of the node as it is."""
        parameters = self.weight.size + (0 if self.bias is None else self.bias.size)
        positions = self.input_positions if self.geometry.transposed else self.output_positions
        return Cost(parameters, None if positions is None else self.weight.size * positions, 4 * parameters)

    @property
    def input_positions(self) -> int | None:
        """Spatial positions of the input, None where a dimension is unknown."""
        return _positions(self.input_shape)

    @property
    def output_positions(self) -> int | None:
        """Spatial positions of the output, None where a dimension is unknown."""
        return _positions(self.output_shape)


def _positions(shape: Shape) -> int | None:
    dims = shape[2:]
    if not shape or any(d is None for d in dims):
        return None
    return prod(d for d in dims if d is not None)


def is_default_domain(node: ir.Node, *op_types: str) -> bool:
    """Whether the node is one of these operators of the ONNX domain."""
    return node.domain in ("", "ai.onnx") and node.op_type in op_types


def static_shape(value: ir.Value | None) -> Shape:
    """The shape with None for every symbolic dimension; () where even the rank is unknown."""
    if value is None or value.shape is None:
        return ()
    return tuple(d if isinstance(d, int) else None for d in value.shape)


def conv_sites(model: ir.Model, exclude: tuple[str, ...] = ()) -> Iterator[Site | Skip]:
    """Yield every Conv and ConvTranspose, in topological order, as a Site or the reason why it cannot be one.

    Convolutions inside If/Loop bodies and functions are yielded as a Skip.
    """
    for node in model.graph:
        if is_default_domain(node, "Conv", "ConvTranspose"):
            name = origin_of(node)
            if any(fnmatchcase(name, glob) for glob in exclude):
                yield Skip(name, "excluded by the user")
                continue
            yield conv_site(node)
        yield from sites_in_bodies(node, "Conv", "ConvTranspose")
    yield from sites_in_functions(model, "Conv", "ConvTranspose")


def conv_site(node: ir.Node) -> Site | Skip:
    """A Conv or ConvTranspose as a Site, or the reason why it cannot be one."""
    reason = _refusal(node)
    return Skip(origin_of(node), reason) if reason else _site(node, origin_of(node))


def sites_in_bodies(node: ir.Node, *op_types: str) -> Iterator[Skip]:
    """Yield the nodes of these types inside the If, Loop or Scan body of a node, which no pass rewrites."""
    for attribute in node.attributes.values():
        yield from _nested(attribute, op_types)


def sites_in_functions(model: ir.Model, *op_types: str) -> Iterator[Skip]:
    """Yield the nodes of these types inside the functions of a model, which no pass rewrites."""
    for function in model.functions.values():
        for node in function.all_nodes():
            if is_default_domain(node, *op_types):
                yield Skip(origin_of(node), f"inside the function {function.name}")


def _nested(attribute: ir.Attr, op_types: tuple[str, ...]) -> Iterator[Skip]:
    graphs: list[ir.Graph] = []
    if attribute.type == ir.AttributeType.GRAPH:
        graphs = [attribute.as_graph()]
    elif attribute.type == ir.AttributeType.GRAPHS:
        graphs = list(attribute.as_graphs())
    for graph in graphs:
        for node in graph.all_nodes():
            if is_default_domain(node, *op_types):
                yield Skip(origin_of(node), "inside a subgraph (If, Loop or Scan body)")


def _refusal(node: ir.Node) -> str | None:
    if len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
        return "an input is missing"
    if "output_shape" in node.attributes:
        return "its pads follow from output_shape"
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    for what, value in (("weight", weight), ("bias", bias)):
        if value is None:
            continue
        if value.is_graph_input():
            return f"the {what} {value.name!r} can be overridden by a graph input"
        if value.const_value is None or not value.is_initializer():
            return earlier_reason(node, value, what) or f"the {what} {value.name!r} is not a constant"
    assert weight.const_value is not None
    if weight.const_value.dtype != ir.DataType.FLOAT:
        return f"the weight is {weight.const_value.dtype.name.lower()}, not float32"
    if len(weight.uses()) > 1:
        others = sorted({origin_of(user) for user, _ in weight.uses() if user is not node})
        return f"the weight is shared with {', '.join(others[:3]) or 'another input of the same node'}"
    if len(weight.const_value.shape) < 3:
        return "the weight has no spatial axis"
    if 0 in weight.const_value.shape.numpy():
        return "the weight has a dimension of 0"
    if not np.isfinite(weight.const_value.numpy()).all():
        return "the weight holds NaN or Inf"
    if bias is not None and bias.const_value is not None and not np.isfinite(bias.const_value.numpy()).all():
        return "the bias holds NaN or Inf"
    return None


def _site(node: ir.Node, name: str) -> Site:
    weight = node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    assert weight is not None and weight.const_value is not None
    return Site(
        name=name,
        node=node,
        kind="ConvTranspose" if node.op_type == "ConvTranspose" else "Conv",
        weight=weight.const_value.numpy(),
        bias=None if bias is None or bias.const_value is None else bias.const_value.numpy(),
        geometry=geometry_of(
            node, tuple(int(d) for d in weight.const_value.shape.numpy()), static_shape(node.inputs[0])
        ),
        input_shape=static_shape(node.inputs[0]),
        output_shape=static_shape(node.outputs[0]),
    )


def geometry_of(node: ir.Node, weight_shape: tuple[int, ...], input_shape: Shape) -> Geometry:
    """Read the geometry of a Conv or ConvTranspose, with auto_pad made explicit where the input size allows it."""
    attributes = node.attributes
    rank = len(weight_shape) - 2
    ones = (1,) * rank
    kernel = weight_shape[2:]
    strides = tuple(attributes.get_ints("strides", ones))
    dilations = tuple(attributes.get_ints("dilations", ones))
    transposed = node.op_type == "ConvTranspose"
    auto_pad = attributes.get_string("auto_pad", "NOTSET")
    pads = tuple(attributes.get_ints("pads", (0,) * (2 * rank)))
    if auto_pad == "VALID":
        auto_pad, pads = "NOTSET", (0,) * (2 * rank)
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        pads = (0,) * (2 * rank)
        sizes = input_shape[2:]
        if not transposed and len(sizes) == rank and all(s is not None for s in sizes):
            known = [s for s in sizes if s is not None]
            pads = same_pads(known, kernel, strides, dilations, upper=auto_pad == "SAME_UPPER")
            auto_pad = "NOTSET"
    output_padding = tuple(attributes.get_ints("output_padding", (0,) * rank)) if transposed else ()
    return Geometry(
        kernel, strides, dilations, pads, attributes.get_int("group", 1), output_padding, auto_pad, transposed
    )
