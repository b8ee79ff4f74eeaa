"""Conv, ConvTranspose and Gemm take over the per-channel scale and shift of the node that reads them.

With ``y = W x + b`` and ``z = s y + t`` the node becomes ``z = (s W) x + (s b + t)``, computed in float64 and rounded
once to the weight's type. onnxscript's rules of the same purpose are not used: they lose the node's name and metadata,
work in the weight's own type, and take NaN and overflow as they come.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.cost import Cost
from onnxcomp.graph.edit import add_initializer, origin_of, unique_name
from onnxcomp.graph.fold.affine import Affine, read_affine
from onnxcomp.graph.fold.log import Log, Refusal, Rewrite
from onnxcomp.graph.fold.precision import rounded
from onnxcomp.graph.fold.values import bypass, constant, is_constant, is_op, sole_consumer, title

__all__ = ["absorb_affine"]

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


@dataclass(frozen=True, eq=False, slots=True)
class _Host:
    """A weighted node that may absorb: its constant weight, and its bias where it has one."""

    node: ir.Node
    weight: ir.Value
    tensor: ir.TensorProtocol
    bias: ir.Value | None
    channels: int
    rank: int

    @property
    def output(self) -> ir.Value:
        return self.node.outputs[0]

    @property
    def array(self) -> NDArray[np.generic]:
        """The weight's data; read only where there is something to absorb."""
        array: NDArray[np.generic] = self.tensor.numpy()
        return array


def absorb_affine(graph: ir.Graph, version: int, taken: set[str], log: Log) -> None:
    """Fold inference BatchNormalization and Add, Sub, Mul, Div by a constant into the Conv, ConvTranspose or Gemm
    before them.

    The node keeps its name, its weight's name and its metadata; its output takes the name of the last node it absorbed.
    Nothing is done where the intermediate value has another reader or is a graph output; a refusal is recorded where
    the weight is shared, can be overridden by a caller, holds NaN or Inf, or where the product does not fit the
    weight's type.

    Args:
        graph: The main graph or a body.
        version: Opset version of the ONNX domain.
        taken: Every name in the model; updated.
        log: Where rewrites and refusals go.
    """
    for node in graph:
        if not is_op(node, "Conv", "ConvTranspose", "Gemm") or not node.outputs:
            continue
        while (reader := sole_consumer(node.outputs[0])) is not None:
            host = _host(node)
            if host is None:
                break
            affine = read_affine(reader, host.output, host.channels, host.rank, version)
            if affine is None:
                break
            reason = _refusal(host) or _absorb(graph, host, reader, affine, taken, log)
            if reason:
                log.refusals.append(Refusal(origin_of(node), f"cannot absorb {title(reader)}: {reason}"))
                break


def _host(node: ir.Node) -> _Host | None:
    """The node with its constant weight; None where the weight is computed, not floating-point, or malformed."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or weight.const_value is None or not weight.is_initializer():
        return None
    if weight.const_value.dtype not in _FLOATS:
        return None
    shape = tuple(int(d) for d in weight.const_value.shape.numpy())
    if is_op(node, "Gemm"):
        if len(shape) != 2:
            return None
        channels = shape[0] if node.attributes.get_int("transB", 0) else shape[1]
    else:
        group = node.attributes.get_int("group", 1)
        if len(shape) < 3 or group < 1 or shape[0] % group:
            return None
        channels = shape[1] * group if is_op(node, "ConvTranspose") else shape[0]
    if 0 in shape:
        return None
    return _Host(node, weight, weight.const_value, bias, channels, len(shape))


def _refusal(host: _Host) -> str | None:
    for what, value in (("weight", host.weight), ("bias", host.bias)):
        if value is None:
            continue
        if value.is_graph_input():
            return f"the {what} {value.name!r} can be overridden by a graph input"
        array = constant(value)
        if array is None:
            return f"the {what} {value.name!r} is not a constant"
        if not np.isfinite(array.astype(np.float64)).all():
            return f"the {what} {value.name!r} holds NaN or Inf"
    if len(host.weight.uses()) > 1 or host.weight.is_graph_output():
        others = sorted({origin_of(u.node) for u in host.weight.uses() if u.node is not host.node})
        return f"the weight is shared with {', '.join(others[:3]) or 'a graph output'}"
    if is_op(host.node, "Gemm") and host.bias is not None:
        array = constant(host.bias)
        if array is not None and array.shape not in ((), (1,), (host.channels,), (1, 1), (1, host.channels)):
            return f"the bias has shape {list(array.shape)}"
    return None


def _absorb(graph: ir.Graph, host: _Host, reader: ir.Node, affine: Affine, taken: set[str], log: Log) -> str | None:
    with np.errstate(invalid="ignore", over="ignore"):
        weight = _scaled(host, affine.scale)
        bias = affine.scale * _bias(host) + affine.shift
    own, own_bias = rounded(weight, host.array.dtype), rounded(bias, host.array.dtype)
    if own is None or own_bias is None:
        return f"the product does not fit {host.array.dtype}"
    before = _cost([v for v in (host.weight, host.bias, *reader.inputs) if is_constant(v)])
    summary = f"absorbed {title(reader)}"
    host.weight.const_value = ir.tensor(own, name=host.weight.name)
    if host.bias is not None or bias.any():
        _set_bias(graph, host, own_bias, taken)
    if is_op(host.node, "Gemm"):
        host.node.attributes.pop("beta", None)
    bypass(reader, reader.outputs[0], host.output, take_name=True)
    after = _cost([v for v in host.node.inputs[1:] if v is not None])
    log.rewrites.append(Rewrite(origin_of(host.node), summary, before, after))
    return None


def _scaled(host: _Host, scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weight in float64 with every output channel multiplied by its scale."""
    array = host.array.astype(np.float64)
    if is_op(host.node, "Gemm"):
        return array * (scale[:, None] if host.node.attributes.get_int("transB", 0) else scale)
    if is_op(host.node, "Conv"):
        return array * scale.reshape(-1, *(1,) * (array.ndim - 1))
    # ConvTranspose stores (Ci, Co/group, *kernel): block g of the input channels writes block g of the output channels.
    group = host.node.attributes.get_int("group", 1)
    blocks = array.reshape(group, array.shape[0] // group, *array.shape[1:])
    return (blocks * scale.reshape(group, 1, -1, *(1,) * (array.ndim - 2))).reshape(array.shape)


def _bias(host: _Host) -> NDArray[np.float64]:
    array = constant(host.bias)
    if array is None:
        return np.zeros(host.channels)
    beta = host.node.attributes.get_float("beta", 1.0) if is_op(host.node, "Gemm") else 1.0
    return np.broadcast_to(beta * array.astype(np.float64).reshape(-1), (host.channels,))


def _set_bias(graph: ir.Graph, host: _Host, array: NDArray[np.generic], taken: set[str]) -> None:
    """Write the bias in place, or under a new name where there was none, it has other readers, or its shape changes."""
    old = host.bias
    if old is not None and len(old.uses()) == 1 and not old.is_graph_output() and old.graph is graph:
        old.const_value = ir.tensor(array, name=old.name)
        old.shape = ir.Shape(array.shape)
        return
    owner = host.weight.graph
    new = add_initializer(
        owner if owner is not None else graph,
        unique_name(graph, f"{host.node.name or host.output.name}.bias", taken),
        array,
    )
    if len(host.node.inputs) < 3:
        host.node.resize_inputs(3)
    host.node.replace_input_with(2, new)


def _cost(values: list[ir.Value | None]) -> Cost:
    tensors = [v.const_value for v in values if v is not None and v.const_value is not None]
    return Cost(sum(t.size for t in tensors), None, sum(t.nbytes for t in tensors))
