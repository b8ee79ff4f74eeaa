"""Matrix products with a constant right operand as sites: a Gemm or MatMul is a 1x1 convolution over its rows."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.contract import Skip
from onnxcomp.graph.decoding import is_decoded
from onnxcomp.graph.earlier import earlier_reason
from onnxcomp.graph.edit import origin_of
from onnxcomp.graph.foreign import foreign_reason
from onnxcomp.graph.geometry import Geometry
from onnxcomp.graph.sites import (
    Site,
    conv_site,
    is_default_domain,
    sites_in_bodies,
    sites_in_functions,
    static_shape,
)

__all__ = ["product_site", "rows_of", "weighted_sites"]

Shape = tuple[int | None, ...]

# One axis, one tap: the rows of a product are its positions.
_POINT = Geometry(kernel=(1,), strides=(1,), dilations=(1,), pads=(0, 0))


def weighted_sites(model: ir.Model, kinds: tuple[str, ...]) -> Iterator[Site | Skip]:
    """Yield the nodes of these kinds in topological order, each as a Site or as the reason why it cannot be one.

    Nodes in If, Loop and Scan bodies and in functions are Skips, and so are other operators that do the work of these
    kinds (:mod:`onnxcomp.graph.foreign`). A MatMul of two activations is no site at all.
    """
    for node in model.graph:
        if is_default_domain(node, "MatMul") and is_decoded(node.outputs[0]):
            continue  # a step of decoding a weight
        if is_default_domain(node, *kinds):
            if node.op_type in ("Conv", "ConvTranspose"):
                yield conv_site(node)
            elif node.op_type == "Gemm" or any(v is not None and _is_weight(v) for v in node.inputs):
                yield product_site(node)
        elif reason := foreign_reason(node, *kinds):
            yield Skip(origin_of(node), reason)
        yield from sites_in_bodies(node, *kinds)
    yield from sites_in_functions(model, *kinds)


def product_site(node: ir.Node) -> Site | Skip:
    """A Gemm or MatMul as a Site, or the reason why it cannot be one.

    Its weight is the right operand transposed, times alpha, with an axis of length 1 at the end: (Co, Ci, 1).
    Its bias is beta times the third operand of a Gemm.
    """
    reason = _refusal(node)
    return Skip(origin_of(node), reason) if reason else _site(node)


def rows_of(site: Site, array: NDArray[Any]) -> NDArray[Any]:
    """A site's input or output as a convolution's, (N, C, *spatial); that of a product, (..., C), as (rows, C, 1)."""
    if site.kind in ("Conv", "ConvTranspose"):
        return array
    return array.reshape(-1, array.shape[-1], 1)


def _is_weight(value: ir.Value) -> bool:
    """Whether a value is a constant, or one that is stored in another form."""
    return value.is_initializer() or is_decoded(value)


def _refusal(node: ir.Node) -> str | None:
    if len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
        return "an input is missing"
    if node.inputs[0].is_initializer():
        return "its left operand is the constant"
    if node.attributes.get_int("transA", 0):
        return "its left operand is transposed"
    for value, what in zip(node.inputs[1:], ("weight", "bias"), strict=False):
        reason = None if value is None else _unfit(node, value, what)
        if reason:
            return reason
    weight = node.inputs[1].const_value
    assert weight is not None
    if weight.shape.rank() != 2 or 0 in weight.shape.numpy():
        return f"the weight has shape {tuple(weight.shape.numpy())}, not two axes"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    columns = int(weight.shape.numpy()[0 if node.attributes.get_int("transB", 0) else 1])
    if bias is not None and bias.const_value is not None:
        shape = tuple(int(d) for d in bias.const_value.shape.numpy())
        if prod(shape) not in (1, columns) or (shape and shape[-1] not in (1, columns)):
            return f"a bias of shape {shape} is not one number a column"
    return None


def _unfit(node: ir.Node, value: ir.Value, what: str) -> str | None:
    if value.is_graph_input():
        return f"the {what} {value.name!r} can be overridden by a graph input"
    if value.const_value is None or not value.is_initializer():
        return earlier_reason(node, value, what) or f"the {what} {value.name!r} is not a constant"
    if value.const_value.dtype != ir.DataType.FLOAT:
        return f"the {what} is {value.const_value.dtype.name.lower()}, not float32"
    if what == "weight" and len(value.uses()) > 1:
        others = sorted({origin_of(user) for user, _ in value.uses() if user is not node})
        return f"the weight is shared with {', '.join(others[:3]) or 'another input of the same node'}"
    return None if np.isfinite(value.const_value.numpy()).all() else f"the {what} holds NaN or Inf"


def _site(node: ir.Node) -> Site:
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    assert weight is not None and weight.const_value is not None
    matrix = weight.const_value.numpy()
    matrix = matrix if node.attributes.get_int("transB", 0) else matrix.T
    alpha, beta = (np.float32(node.attributes.get_float(name, 1.0)) for name in ("alpha", "beta"))
    offsets = None
    if bias is not None and bias.const_value is not None:
        offsets = np.broadcast_to(bias.const_value.numpy().reshape(-1) * beta, len(matrix)).astype(np.float32)
    return Site(
        name=origin_of(node),
        node=node,
        kind="Gemm" if node.op_type == "Gemm" else "MatMul",
        weight=np.ascontiguousarray(matrix if alpha == 1 else matrix * alpha)[..., None],
        bias=offsets,
        geometry=_POINT,
        input_shape=_as_convolution(static_shape(node.inputs[0])),
        output_shape=_as_convolution(static_shape(node.outputs[0])),
    )


def _as_convolution(shape: Shape) -> Shape:
    """(N, *rows, C) -> (N, C, number of rows)."""
    if len(shape) < 2:
        return ()
    rows = shape[1:-1]
    return (shape[0], shape[-1], None if None in rows else prod(d for d in rows if d is not None))
