"""Where a model gets quantized: which nodes compute on integers, which tensors get a Q/DQ pair, and why the rest stays
float.

A pair that the runtime does not fuse costs more than it saves, so the rule is: integers start and end at a weighted
node (Conv, Gemm, MatMul), and what lies between two of them (residual Add, Concat, pools, reshapes) joins in if the
runtime has a kernel for it. Heads and tails stay float. Where exactly the pairs stand is the runtime's own way:
:mod:`onnxcomp.quantize.placement_ort`, :mod:`onnxcomp.quantize.placement_tensorrt`.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxcomp.contract import Skip
from onnxcomp.graph.decoding import is_decoded
from onnxcomp.graph.edit import origin_of
from onnxcomp.graph.foreign import foreign_reason
from onnxcomp.graph.sites import is_default_domain
from onnxcomp.quantize.placement_ort import GroupPlacer, small_heads
from onnxcomp.quantize.placement_tensorrt import InputPlacer
from onnxcomp.quantize.plan import IntegerNode, Plan, Quantized
from onnxcomp.quantize.unprofitable import unprofitable_in_tensorrt
from onnxcomp.quantize.weighted import WEIGHTED, Weighted, already_quantized, nested_skips, weighted_or_reason
from onnxcomp.targets.target import Scheme

__all__ = ["IntegerNode", "Plan", "Quantized", "place"]

# Why a layer is float in a model that somebody quantized is not known: it may be there that accuracy was lost.
_LEFT_FLOAT = "the model is already quantized, and this layer was left in float"
_SMALL_HEAD = "a small product that ends the network: int8 gains no time there and costs accuracy"


def place(
    model: ir.Model,
    scheme: Scheme,
    refuse: Callable[[ir.Node], str | None] = lambda node: None,
    close: Callable[[ir.Node], bool] = lambda node: False,
) -> Plan:
    """Decide what is quantized. The model is not changed.

    Args:
        model: A canonical model (constants are initializers).
        scheme: The target's rules.
        refuse: Reason why the user or the recipe leaves a node alone, or None.
        close: Whether the output of a node with weights is quantized even where the scheme does not ask for it; counts
            only where pairs stand around groups.
    """
    weighted, skips = _weighted(model, scheme, refuse)
    nodes = {w.node for w in weighted}
    refused = {n for n in model.graph if refuse(n) is not None}
    placer: GroupPlacer | InputPlacer
    if scheme.pairs == "inputs":
        placer = InputPlacer(scheme, nodes, refused)
    else:
        ends = {node for node in nodes if node.op_type in scheme.output_required or close(node)}
        placer = GroupPlacer(scheme, nodes, ends, refused)
    placer.find_paths(model.graph)
    placer.mark(model.graph)
    return Plan(
        scheme=scheme,
        weighted=tuple(weighted),
        others=tuple(IntegerNode(n, origin_of(n)) for n in model.graph if n in placer.chosen and n not in nodes),
        tensors=placer.tensors,
        outputs=placer.outputs,
        skips=(*skips, *nested_skips(model)),
    )


def _weighted(
    model: ir.Model, scheme: Scheme, refuse: Callable[[ir.Node], str | None]
) -> tuple[list[Weighted], list[Skip]]:
    found: list[Weighted] = []
    skips: list[Skip] = []
    foreign = already_quantized(model)
    for node in model.graph:
        if is_default_domain(node, "MatMul") and is_decoded(node.outputs[0]):
            continue  # a step of decoding a weight
        if not is_default_domain(node, *WEIGHTED):
            if reason := foreign_reason(node):
                skips.append(Skip(origin_of(node), reason))
            continue
        result = refuse(node) or weighted_or_reason(node, scheme)
        if foreign and isinstance(result, Weighted):
            result = _LEFT_FLOAT
        if isinstance(result, Weighted):
            found.append(result)
        else:
            skips.append(Skip(origin_of(node), result))
    useless = _useless(model.graph, scheme, found)
    skips.extend(Skip(w.site, reason) for w, reason in useless.items())
    return [w for w in found if w not in useless], skips


def _useless(graph: ir.Graph, scheme: Scheme, weighted: list[Weighted]) -> dict[Weighted, str]:
    """What could be quantized, but would gain nothing, and why."""
    if scheme.pairs == "inputs":
        reasons = {w: unprofitable_in_tensorrt(w) for w in weighted}
        return {w: reason for w, reason in reasons.items() if reason is not None}
    return dict.fromkeys(small_heads(graph, weighted), _SMALL_HEAD)
