"""Time replacement chains against the site they replace, on its real shapes, as the passes that follow leave them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from onnxcomp.contract import Context
from onnxcomp.graph.edit import Link, add_initializer, replace_by_chain
from onnxcomp.graph.sites import Site
from onnxcomp.runtime.session import open_session
from onnxcomp.runtime.timing import paired

__all__ = ["chain_speedups", "site_model"]

# A site alone is dominated by the conversions of layout at its ends; a row of three amortises them.
_COPIES = 3
_SECONDS = 0.5
# An interval wider than this share of the ratio is measured again, longer.
_WIDE = 0.1


def site_model(site: Site, chain: Sequence[Link] | None, opset: int, copies: int) -> ir.Model:
    """Build a model that holds nothing but the site, or the chain in its place, `copies` times in a row.

    Each copy ends in a Relu, as convolutions nearly always do, so that fusion is that of a real network.
    """
    shape = [1, *(d or 1 for d in site.input_shape[1:])]
    source = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
    graph = ir.Graph([source], [], nodes=[], opset_imports={"": opset}, name="site")
    value = source
    for copy in range(copies):
        weights = [site.weight] if site.bias is None else [site.weight, site.bias]
        constants = [add_initializer(graph, f"w{copy}.{i}", w) for i, w in enumerate(weights)]
        node = ir.node(
            site.kind, [value, *constants], attributes=_listed(site.geometry.attributes()), name=f"site{copy}"
        )
        node.outputs[0].name = f"site{copy}.out"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        relu = ir.node("Relu", [node.outputs[0]], name=f"relu{copy}")
        relu.outputs[0].name = f"relu{copy}.out"
        relu.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        graph.extend([node, relu])
        value = relu.outputs[0]
        if chain is not None:
            replace_by_chain(node, chain, "bench")
    value.shape = ir.Shape([1, *(site.output_shape[1:] or [None] * (len(shape) - 1))])
    graph.outputs.append(value)
    return ir.Model(graph, ir_version=8)


def chain_speedups(site: Site, chains: Sequence[Sequence[Link]], opset: int, context: Context) -> list[float] | None:
    """Return time(site) / time(chain) for each chain, interleaved and paired; None where the site's shape is not known.

    When passes follow the running one, both sides are timed as those passes would leave them. The figure is the smaller
    one of the ratio of medians and that of the 10th percentiles: a rewrite must pay on a busy machine and on a quiet
    one.
    """
    if not site.input_shape or any(d is None for d in site.input_shape[1:]):
        return None
    copies = _COPIES if site.input_shape[1:] == site.output_shape[1:] else 1
    base = _session(site_model(site, None, opset, copies), context)
    shape = [1, *(d or 1 for d in site.input_shape[1:])]
    feed = {"x": np.random.default_rng(context.seed).standard_normal(shape).astype(np.float32)}
    return [_speedup(base, _session(site_model(site, chain, opset, copies), context), feed) for chain in chains]


def _speedup(base: InferenceSession, other: InferenceSession, feed: dict[str, NDArray[np.float32]]) -> float:
    measured = paired(base, other, feed, budget_s=_SECONDS)
    if measured.high - measured.low > _WIDE * measured.ratio:
        measured = paired(base, other, feed, rounds=600, budget_s=4 * _SECONDS)
    return min(measured.ratio, measured.base_p10_ms / measured.other_p10_ms)


def _session(model: ir.Model, context: Context) -> InferenceSession:
    return open_session(context.rehearsed(model), threads=context.threads)


def _listed(attributes: dict[str, int | str | tuple[int, ...]]) -> dict[str, int | str | list[int]]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in attributes.items()}
