from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.cost import Cost, model_cost
from onnxcomp.graph.chain import chain_cost
from onnxcomp.graph.edit import Link, replace_by_chain
from onnxcomp.graph.fold.shapes import infer_shapes
from onnxcomp.graph.sites import Site, conv_sites

Parsed = Callable[..., ir.Model]


def _ones(*shape: int, dtype: Any = np.float32) -> NDArray[Any]:
    return np.ones(shape, dtype)


def _site(model: ir.Model) -> Site:
    (site,) = conv_sites(model)
    assert isinstance(site, Site)
    return site


def test_counted_by_hand(parsed: Parsed) -> None:
    model = parsed(
        "g (float[N,20,10,12] x) => (float[N,a,b,c] y) { y = Conv<strides=[2,1], pads=[1,0,1,0]>(x, w, b) }",
        w=_ones(24, 20, 3, 3),
        b=_ones(24),
    )
    chain = [
        Link("first", "Conv", (_ones(5, 20, 1, 1),)),
        Link("core", "Conv", (_ones(6, 5, 3, 3),), {"strides": (2, 1), "pads": (1, 0, 1, 0)}),
        Link("last", "Conv", (_ones(24, 6, 1, 1), _ones(24))),
    ]
    weights = 100 + 270 + 144
    # 10 x 12 positions in, 5 x 10 out
    assert chain_cost(_site(model), chain) == Cost(weights + 24, 100 * 120 + (270 + 144) * 50, 4 * (weights + 24))


def test_branches_and_other_operators(parsed: Parsed) -> None:
    """Two branches over the same input, summed: only the convolutions multiply, and int8 constants are one byte."""
    model = parsed("g (float[N,8,6,6] x) => (float[N,8,6,6] y) { y = Conv<pads=[1,1,1,1]>(x, w) }", w=_ones(8, 8, 3, 3))
    chain = [
        Link("a", "Conv", (_ones(8, 8, 1, 3),), {"pads": (0, 1, 0, 1)}, ("",)),
        Link("b", "Conv", (_ones(8, 8, 3, 1),), {"pads": (1, 0, 1, 0)}, ("",)),
        Link("scale", "Mul", (_ones(8, 1, 1, dtype=np.int8),), {}, ("b",)),
        Link("sum", "Add", (), {}, ("a", "scale")),
    ]
    assert chain_cost(_site(model), chain) == Cost(2 * 192 + 8, 2 * 192 * 36, 4 * 2 * 192 + 8)


def test_unknown_sizes_have_no_macs(parsed: Parsed) -> None:
    model = parsed("g (float[N,8,H,6] x) => (float[N,8,a,b] y) { y = Conv(x, w) }", w=_ones(8, 8, 3, 3))
    assert chain_cost(_site(model), [Link("only", "Conv", (_ones(8, 8, 3, 3),))]) == Cost(576, None, 2304)


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("Conv", {"strides": (2, 3), "pads": (0, 1, 2, 1), "dilations": (2, 1)}),
        ("Conv", {"auto_pad": "SAME_UPPER", "strides": (2, 3)}),
        ("Conv", {"auto_pad": "VALID", "strides": (2, 3)}),
        ("ConvTranspose", {"strides": (2, 3), "pads": (0, 1, 1, 0), "output_padding": (1, 2)}),
    ],
)
def test_it_is_what_the_rewritten_model_costs(parsed: Parsed, kind: str, attributes: dict[str, Any]) -> None:
    written = ", ".join(f"{k}={list(v) if isinstance(v, tuple) else repr(v)}" for k, v in attributes.items())
    text = f"g (float[N,8,11,13] x) => (float[N,8,a,b] y) {{ y = {kind}<{written}>(x, w) }}".replace("'", '"')
    model = parsed(text, w=_ones(8, 8, 3, 3))
    site = _site(model)
    chain = [
        Link("first", "Conv", (_ones(4, 8, 1, 1),)),
        Link("core", kind, (_ones(4, 4, 3, 3),), site.geometry.attributes()),
        Link("last", "Conv", (_ones(8, 4, 1, 1), _ones(8))),
    ]
    predicted = chain_cost(site, chain)
    assert model_cost(model) == site.cost
    replace_by_chain(site.node, chain, "test")
    infer_shapes(model)
    assert model_cost(model) == predicted
