"""Round the weights of a quantized model again, layer by layer, each for the inputs that it really gets.

The model is walked through in network order beside the original: a layer reads activations as the integer layers before
it deliver them and aims at the outputs of the original, so that it makes up for what came before (GPTQ, Frantar et al.
2023, in the asymmetric form of He et al. 2017).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp import progress
from onnxcomp.calibration.frontier import Frontier, data_input, lifetimes
from onnxcomp.calibration.gram import PatchGram
from onnxcomp.calibration.sweep import alone
from onnxcomp.data import Feeds
from onnxcomp.graph.products import product_site, rows_of
from onnxcomp.graph.sites import Site, conv_site
from onnxcomp.numeric.refit import Effort, Refit, grids, refit
from onnxcomp.quantize.constants import input_scale, write_bias, write_weight
from onnxcomp.quantize.weights import bias_floors
from onnxcomp.runtime.session import open_session, run

__all__ = ["Pair", "Twin", "refine"]

Float = NDArray[np.float64]

# Multiply-accumulates for the Gram of one layer: half a second or so.
_GRAM_FLOPS = 2e10
_MOST_PATCHES = 1 << 16
_MOST_GROUPED = 1 << 14
# Activations that are kept in memory.
_MEMORY = 192 << 20
_SAMPLES = 512


@dataclass(frozen=True, eq=False, slots=True)
class Twin:
    """A layer in the original and in the quantized model.

    Attributes:
        site: Its name in the user's model.
        original: The node of the original.
        node: The node of the quantized model, which reads its weight through a DequantizeLinear.
        bits: Of its weight.
        axis: The weight's axis of output channels.
    """

    site: str
    original: ir.Node
    node: ir.Node
    bits: int
    axis: int


@dataclass(frozen=True, eq=False, slots=True)
class Pair:
    """A model and its quantized form; the values that both have in common go by the same names.

    Attributes:
        original: The model as it was.
        quantized: Its quantized form.
        twins: The layers to fit, in graph order.
    """

    original: ir.Model
    quantized: ir.Model
    twins: tuple[Twin, ...]


def refine(
    pair: Pair,
    feeds: Feeds,
    workdir: Path,
    *,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Fit the weights and biases of a quantized model, in place.

    Args:
        pair: The models and the layers.
        feeds: The data.
        workdir: Where activations are spilled.
        limit: At most that many samples; 512 where None.
        seed: Of the sampled positions.

    Returns:
        The relative squared error of each site's output, against the original's.
    """
    original, model, twins = pair.original, pair.quantized, pair.twins
    limit = min(limit or _SAMPLES, _SAMPLES)
    allowance = [_MEMORY]
    before = _frontier(original, {t.original for t in twins}, feeds, workdir, allowance, limit)
    after = _frontier(model, {t.node for t in twins}, feeds, workdir, allowance, limit)
    places = [{node: i for i, node in enumerate(m.graph)} for m in (original, model)]
    errors: dict[str, float] = {}
    try:
        for twin in progress.each(twins, "round weights"):
            site = _site(twin.original)
            if site is None:
                continue
            before.advance(places[0][twin.original], [data_input(twin.original)])
            after.advance(places[1][twin.node], [data_input(twin.node)])
            gram = _gram(site, min(limit, len(feeds)), seed)
            session = open_session(alone(original, twin.original), threads=os.cpu_count() or 1)
            name = data_input(twin.original)
            for x, later in zip(before.values(name), after.values(data_input(twin.node)), strict=True):
                gram.update(rows_of(site, later), rows_of(site, run(session, {name: x})[0]))
            errors[twin.site] = _fit(twin, site, gram, _effort(twin.bits, min(limit, len(feeds))))
    finally:
        before.close()
        after.close()
    return errors


def _site(node: ir.Node) -> Site | None:
    """What is fitted of a node; None where several layers share the weight, or outputs have no patches of their own."""
    site = product_site(node) if node.op_type in ("Gemm", "MatMul") else conv_site(node)
    return site if isinstance(site, Site) and not site.geometry.transposed else None


def _frontier(
    model: ir.Model, stops: set[ir.Node], feeds: Feeds, workdir: Path, allowance: list[int], limit: int
) -> Frontier:
    alive = lifetimes(model.graph, lambda node: node in stops)
    return Frontier(model, alive, feeds, workdir, allowance, limit=limit)


def _gram(site: Site, samples: int, seed: int) -> PatchGram:
    dimension, groups = site.weight[0].size, site.geometry.group
    patches = max(int(_GRAM_FLOPS / (groups * dimension * (dimension + 64))), 10 * dimension)
    return PatchGram(
        site.geometry,
        site.channels_in,
        site.channels_out,
        max_total=min(patches, max(_MOST_PATCHES if groups == 1 else _MOST_GROUPED, 10 * dimension)),
        samples=samples,
        seed=seed,
    )


def _fit(twin: Twin, site: Site, gram: PatchGram, effort: Effort) -> float:
    """Fit one layer, write it, and return the relative squared error of its output."""
    groups = site.geometry.group
    weight = site.weight.reshape(groups, site.channels_out // groups, -1).astype(np.float64)
    biased = site.kind != "MatMul"
    moments = gram.moments()

    def fitted(scales: Sequence[Float | None]) -> list[Refit]:
        return [
            refit(m, w, grids(twin.bits), effort, biased=biased, scales=s)
            for m, w, s in zip(moments, weight, scales, strict=True)
        ]

    results = fitted([None] * groups)
    if biased:
        least = bias_floors(
            np.concatenate([r.bias for r in results]).astype(np.float32), input_scale(twin.node)
        ).reshape(groups, -1)
        if any((r.scales < floor).any() for r, floor in zip(results, least, strict=True)):
            results = fitted([np.maximum(r.scales, floor) for r, floor in zip(results, least, strict=True)])
    codes = np.concatenate([r.codes for r in results]).astype(np.int8).reshape(len(site.weight), -1)
    _write(twin, site, codes, np.concatenate([r.scales for r in results]).astype(np.float32))
    if biased:
        write_bias(twin.node, np.concatenate([r.bias for r in results]).astype(np.float32))
    error, power = (
        float(sum(part.sum() for part in parts)) for parts in zip(*((r.error, r.power) for r in results), strict=True)
    )
    return error / max(power, np.finfo(np.float64).tiny)


def _write(twin: Twin, site: Site, codes: NDArray[np.int8], scales: NDArray[np.float32]) -> None:
    if site.kind == "Conv":
        write_weight(twin.node, codes.reshape(site.weight.shape), scales)
    else:
        write_weight(twin.node, codes if twin.axis == 0 else codes.T, scales)


def _effort(bits: int, samples: int) -> Effort:
    """How thoroughly a layer is fitted.

    What the layers before have lost at 8 bits is mostly noise that a fit to few images only overfits, so the original
    weight counts much; below, errors are larger and systematic. The strengths are those of best outputs on images not
    used (resnet20, 64 and 512 images). At 8 bits little is left to gain after the first sweep; below, scales and codes
    depend on each other.
    """
    few = _SAMPLES / max(samples, 1)
    if bits >= 7:
        return Effort(ridge=3.0 * few, sweeps=1, rounds=1)
    return Effort(ridge=(0.03 if bits <= 4 else 0.3) * few, sweeps=4, rounds=3)
