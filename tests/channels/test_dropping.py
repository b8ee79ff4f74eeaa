"""What a model would lose with a residual block, measured with a linear map of the shortcut in its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.channels.dropping import score_blocks
from onnxcomp.contract import Context
from onnxcomp.data import open_feeds, synthetic_feeds
from onnxcomp.graph.blocks import find_blocks
from onnxcomp.modelio import to_bytes

InContext = Callable[..., Context]
Parsed = Callable[..., ir.Model]

# Branches that are linear, zero, and neither; then a product's.
IMAGES = """g (float[N,6,8,8] x) => (float[N,6,8,8] y) {
  u = Conv(x, stem) a = Relu(u)
  l = Conv(a, w1, bias) [linear] b = Add(l, a)
  z = Conv(b, w0) [zero] c = Add(b, z)
  d = Conv<pads=[1,1,1,1]>(c, w3) e = Sigmoid(d) f = Conv(e, w1b) [bent] y = Add(f, c) }"""
ROWS = """g (float[N,5,6] x) => (float[N,5,6] y) {
  p = MatMul(x, m1) q = Add(p, bias) [linear] b = Add(x, q)
  r = MatMul(b, m2) s = Sigmoid(r) t = MatMul(s, m1b) [bent] y = Add(b, t) }"""


def arrays(graph: str) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(2)
    shapes = {"stem": (6, 6, 1, 1), "w1": (6, 6, 1, 1), "w1b": (6, 6, 1, 1), "w3": (6, 6, 3, 3), "bias": (6,)}
    shapes |= {"m1": (6, 6), "m2": (6, 6), "m1b": (6, 6)}
    made = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    made["w0"] = np.zeros((6, 6, 1, 1), np.float32)
    return {name: array for name, array in made.items() if f" {name})" in graph or f" {name}," in graph}


@pytest.mark.parametrize("graph", [IMAGES, ROWS])
@pytest.mark.parametrize("made_up", [False, True])
def test_what_a_linear_map_makes_good_is_lost_for_nothing(
    graph: str, made_up: bool, parsed: Parsed, in_context: InContext
) -> None:
    model = parsed(graph, **arrays(graph))
    shape = (64, 6, 8, 8) if graph is IMAGES else (64, 5, 6)
    x: dict[str, Any] = {"x": np.random.default_rng(7).standard_normal(shape).astype(np.float32)}
    context = in_context(stand_in=synthetic_feeds(model, 0)) if made_up else in_context(data=open_feeds(x, model))
    before, blocks = to_bytes(model), find_blocks(model).blocks
    scores = dict(zip([block.name for block in blocks], score_blocks(model, blocks, context), strict=True))
    assert scores["linear"] < 0.01 < scores["bent"] < 1
    assert scores.get("zero", 0.0) < 1e-10
    assert to_bytes(model) == before
    # Blocks are scored one by one: another number of them changes nothing.
    assert score_blocks(model, blocks[-1:], context) == pytest.approx([scores["bent"]], rel=1e-6)


def test_without_any_samples_the_weights_rank_the_blocks(parsed: Parsed, in_context: InContext) -> None:
    model = parsed(IMAGES, **arrays(IMAGES))
    blocks = find_blocks(model).blocks
    scores = dict(zip([b.name for b in blocks], score_blocks(model, blocks, replace(in_context())), strict=True))
    assert scores["zero"] == 0.0 and sum(scores.values()) == pytest.approx(1.0)
    energies = {name: float(np.square(arrays(IMAGES)[w]).sum()) for name, w in (("linear", "w1"), ("bent", "w1b"))}
    assert scores["linear"] / scores["bent"] == pytest.approx(energies["linear"] / energies["bent"])
