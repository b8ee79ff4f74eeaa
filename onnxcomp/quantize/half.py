"""Half-precision storage: float16 initializers behind a Cast, which the runtime computes at load."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.contract import Change, Context, PassReport, Skip
from onnxcomp.cost import Cost
from onnxcomp.graph.edit import ORIGIN, PASS, add_initializer, names_of, origin_of, unique_name

__all__ = ["LARGEST", "QUANTIZED", "halve_weights", "halved_tensor", "unfit"]

LARGEST = float(np.finfo(np.float16).max)
"""65504, the largest finite half."""

QUANTIZED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
)
"""Operators that a model has once it is quantized."""

# Fewer elements save less than the Cast takes.
_FEWEST = 256


def unfit(array: NDArray[np.float32]) -> str | None:
    """Why an array cannot be float16; None where it can."""
    if not np.isfinite(array).all():
        return "holds NaN or Inf"
    peak = float(np.abs(array).max(initial=0.0))
    return f"reaches {peak:.3g}, over {LARGEST:g}, the largest half" if peak > LARGEST else None


def halved_tensor(array: NDArray[np.float32]) -> NDArray[np.float16]:
    """The nearest halves; `array` must fit."""
    return array.astype(np.float16)


def halve_weights(model: ir.Model, context: Context) -> PassReport:
    """Store every float32 initializer of the main graph of 256 elements or more as float16, in place.

    The Cast feeds whoever read the initializer, bodies of If and Loop included; a shared weight is stored once.
    """
    graph = model.graph
    names = names_of(graph)
    changes: list[Change] = []
    skips: list[Skip] = []
    casts: list[ir.Node] = []
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or not value.uses():
            continue
        reader = next(user for user, _ in value.uses())
        site = origin_of(reader)
        array = tensor.numpy()
        reason = _refusal(value, array, context, site)
        if reason == "":
            continue
        if reason:
            skips.append(Skip(site, reason))
            continue
        casts.append(_store(graph, value, array, site, names))
        small = casts[-1].inputs[0]
        assert small is not None and small.const_value is not None
        difference = small.const_value.numpy().astype(np.float64) - array
        energy = float(np.square(array, dtype=np.float64).sum())
        error = float(np.square(difference).sum()) / energy if energy else 0.0
        before, after = Cost(array.size, None, 4 * array.size), Cost(array.size, None, 2 * array.size)
        changes.append(Change(site, f"{value.name}: float16", before, after, error=error))
    first = next(iter(graph), None)
    if first is not None:
        graph.insert_before(first, casts)
    return PassReport(tuple(changes), tuple(skips))


def _refusal(value: ir.Value, array: NDArray[np.float32], context: Context, site: str) -> str | None:
    """Why an initializer stays float32; empty where it is too small to be mentioned."""
    if array.size < _FEWEST:
        return ""
    if any(user.op_type in QUANTIZED or user.domain == "com.microsoft" for user, _ in value.uses()):
        return "already quantized"
    if value.is_graph_input():
        return f"{value.name!r} can be overridden by a graph input"
    if value.is_graph_output():
        return f"{value.name!r} is an output of the model"
    excluded = context.excluded(site)
    if excluded:
        return excluded
    if context.replay is not None and site not in context.replay:
        return "not rewritten in the replayed run"
    reason = unfit(array)
    return f"{value.name!r} {reason}" if reason else None


def _store(graph: ir.Graph, value: ir.Value, array: NDArray[np.float32], site: str, names: set[str]) -> ir.Node:
    """Put a half in place of an initializer; return the Cast that gives the float back."""
    name = value.name or ""
    small = add_initializer(graph, unique_name(graph, f"{name}.half", names), halved_tensor(array))
    node = ir.node("Cast", [small], {"to": int(ir.DataType.FLOAT)}, name=unique_name(graph, f"{name}.float", names))
    output = node.outputs[0]
    output.name, output.type, output.shape = unique_name(graph, f"{name}.floats", names), value.type, value.shape
    node.metadata_props.update({ORIGIN: site, PASS: "fp16"})
    value.replace_all_uses_with(output)
    del graph.initializers[name]
    return node
