"""Gemm without its scalars: ``alpha * A B + beta * C`` becomes ``A B' + C'`` where B and C are constants.

Integer kernels know neither alpha nor beta, and take one bias value an output.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.cost import Cost
from onnxcomp.graph.edit import add_initializer, drop_unused, origin_of, unique_name
from onnxcomp.graph.fold.log import Log, Refusal, Rewrite
from onnxcomp.graph.fold.precision import rounded
from onnxcomp.graph.fold.values import constant, is_op

__all__ = ["plain_gemms"]

# Before, Gemm broadcast by an attribute or could not do without a bias.
_OLDEST = 11
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def plain_gemms(graph: ir.Graph, version: int, taken: set[str], log: Log) -> None:
    """Fold alpha into the weight and beta into the bias of every Gemm; a bias that is one number, or one row, gets
    shape (N,); one that counts for nothing (beta 0) goes.

    Refused, and recorded where there is an alpha or a beta: weights that are shared, not constant or not finite,
    products that do not fit the type.

    Args:
        graph: The main graph or a body.
        version: Opset version of the ONNX domain.
        taken: Every name in the model; updated.
        log: Where rewrites and refusals go.
    """
    if version < _OLDEST:
        return
    for node in graph:
        if not is_op(node, "Gemm") or len(node.inputs) < 2:
            continue
        before = _cost(node)
        steps: list[str] = []
        for attribute, step in (("alpha", _fold_alpha), ("beta", _fold_beta)):
            if node.attributes.get_float(attribute, 1.0) == 1.0:
                continue
            reason = step(graph, node, taken)
            if reason is None:
                node.attributes.pop(attribute, None)
                steps.append(attribute)
            else:
                log.refusals.append(Refusal(origin_of(node), f"cannot fold {attribute}: {reason}"))
        if _flatten_bias(graph, node, taken):
            steps.append("a bias for each output")
        if steps:
            log.rewrites.append(Rewrite(origin_of(node), f"took over {', '.join(steps)}", before, _cost(node)))


def _fold_alpha(graph: ir.Graph, node: ir.Node, taken: set[str]) -> str | None:
    del graph, taken
    weight = node.inputs[1]
    array = _floats(weight)
    if weight is None or array is None:
        return "the weight is not a constant of a floating-point type"
    if not np.isfinite(array.astype(np.float64)).all():
        return "the weight holds NaN or Inf"
    if len(weight.uses()) > 1 or weight.is_graph_output():
        return "the weight is shared"
    product = rounded(array.astype(np.float64) * node.attributes.get_float("alpha", 1.0), array.dtype)
    if product is None:
        return f"the product does not fit {array.dtype}"
    weight.const_value = ir.tensor(product, name=weight.name)
    return None


def _fold_beta(graph: ir.Graph, node: ir.Node, taken: set[str]) -> str | None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return None
    beta = node.attributes.get_float("beta", 1.0)
    array = _floats(bias)
    if array is None:
        return "the bias is not a constant of a floating-point type"
    if not np.isfinite(array.astype(np.float64)).all():
        return "the bias holds NaN or Inf"
    if beta == 0.0:
        node.resize_inputs(2)
        drop_unused(graph, [bias])
        return None
    product = rounded(array.astype(np.float64) * beta, array.dtype)
    if product is None:
        return f"the product does not fit {array.dtype}"
    _replace_bias(graph, node, bias, product, taken)
    return None


def _flatten_bias(graph: ir.Graph, node: ir.Node, taken: set[str]) -> bool:
    """Give a bias that is one number or one row the shape (N,); return whether it changed."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    array, weight = _floats(bias), _floats(node.inputs[1])
    if bias is None or array is None or weight is None or weight.ndim != 2:
        return False
    outputs = weight.shape[0 if node.attributes.get_int("transB", 0) else 1]
    if array.shape not in ((), (1,), (1, 1), (1, outputs)) or array.shape == (outputs,):
        return False
    _replace_bias(graph, node, bias, np.broadcast_to(array.reshape(-1), (outputs,)).copy(), taken)
    return True


def _floats(value: ir.Value | None) -> NDArray[np.generic] | None:
    array = constant(value)
    if array is None or value is None or value.const_value is None or value.const_value.dtype not in _FLOATS:
        return None
    return array


def _replace_bias(graph: ir.Graph, node: ir.Node, old: ir.Value, array: NDArray[np.generic], taken: set[str]) -> None:
    """Write a bias in place, or under a new name where somebody else reads the old one."""
    if len(old.uses()) == 1 and not old.is_graph_output():
        old.const_value = ir.tensor(array, name=old.name)
        old.shape = ir.Shape(array.shape)
        return
    owner = old.graph if old.graph is not None else graph
    name = unique_name(graph, f"{node.name or node.outputs[0].name}.bias", taken)
    node.replace_input_with(2, add_initializer(owner, name, array))


def _cost(node: ir.Node) -> Cost:
    tensors = [v.const_value for v in node.inputs[1:] if v is not None and v.const_value is not None]
    return Cost(sum(t.size for t in tensors), None, sum(t.nbytes for t in tensors))
