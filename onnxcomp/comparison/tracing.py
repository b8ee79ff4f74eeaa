"""Whose noise it is that arrives at the outputs.

At the end of every layer its noise splits into what arrives through its inputs and what it adds (`forced`); both are
measured. What arrives belongs to the layers whose noise the inputs carry. Where several inputs meet, noise is taken to
come from each in proportion to what it is there: its power in a sum or a concatenation, its power over the signal's in
a product.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxcomp.comparison.graphs import reads
from onnxcomp.comparison.sums import Sums

__all__ = ["shares"]

Shares = dict[ir.Value, float]
# Below that a share is dropped, so that the work does not grow with the square of the layers.
_LEAST = 1e-6
_SUMS = frozenset({"Add", "Sub", "Sum", "Mean"})
_JOINED = frozenset({"Concat"})


def shares(model: ir.Model, sums: Mapping[str, Sums], ends: set[ir.Value], rounding: float) -> dict[str, float]:
    """Which share of the noise at the outputs each layer adds, by the tensor that ends the layer; they add up to 1.

    Several outputs count by their noise over their signal.

    Args:
        model: The base.
        sums: By tensor of the base.
        ends: Tensors at which layers end.
        rounding: Noise over signal up to which a difference counts as none.

    Returns:
        By tensor name; empty where no noise arrives.
    """
    found: dict[ir.Value, Shares] = {}
    for node in model.graph:
        arriving = _mixed(node, found, sums, ends)
        for value in node.outputs:
            own = sums.get(value.name or "")
            if own is None or value not in ends:
                found[value] = arriving
                continue
            local = own.local if own.added > rounding else 0.0
            total = own.carried + local
            if total <= 0:
                found[value] = {}
                continue
            kept = own.carried / total if arriving else 0.0
            mixed = {source: share * kept for source, share in arriving.items() if share * kept > _LEAST}
            if local > 0:
                mixed[value] = mixed.get(value, 0.0) + (1.0 - kept)
            found[value] = mixed
    return _at_outputs(model, found, sums, ends)


def _mixed(node: ir.Node, found: Mapping[ir.Value, Shares], sums: Mapping[str, Sums], ends: set[ir.Value]) -> Shares:
    """Whose noise the inputs of a node carry, together."""
    inputs = [value for value in dict.fromkeys(reads(node)) if found.get(value)]
    if len(inputs) == 1:
        return found[inputs[0]]
    weights = [_weight(node, value, sums, ends) for value in inputs]
    return _weighted([found[value] for value in inputs], weights)


def _weighted(parts: list[Shares], weights: list[float]) -> Shares:
    total = sum(weights)
    mixed: Shares = {}
    if total <= 0:
        return mixed
    for part, weight in zip(parts, weights, strict=True):
        for source, share in part.items():
            mixed[source] = mixed.get(source, 0.0) + share * weight / total
    return {source: share for source, share in mixed.items() if share > _LEAST}


def _weight(node: ir.Node, value: ir.Value, sums: Mapping[str, Sums], ends: set[ir.Value]) -> float:
    """How much noise comes in with a value, in a unit that all inputs of the node share; unknown: 1."""
    own = sums.get(value.name or "")
    if own is None or own.signal <= 0 or own.count == 0:
        return 1.0
    noise = own.noise if value in ends else own.carried
    if node.op_type in _SUMS:
        return noise / own.count
    return noise if node.op_type in _JOINED else noise / own.signal


def _at_outputs(
    model: ir.Model, found: Mapping[ir.Value, Shares], sums: Mapping[str, Sums], ends: set[ir.Value]
) -> dict[str, float]:
    outputs = [value for value in model.graph.outputs if found.get(value)]
    weights: list[float] = []
    for value in outputs:
        own = sums.get(value.name or "")
        noise = 0.0 if own is None else own.noise if value in ends else own.carried
        weights.append(noise / own.signal if own is not None and own.signal > 0 else 0.0)
    if not any(weights):
        weights = [1.0] * len(outputs)
    mixed = _weighted([found[value] for value in outputs], weights)
    total = sum(mixed.values())
    return {source.name or "": share / total for source, share in mixed.items()} if total else {}
