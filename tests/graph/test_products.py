from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.contract import Skip
from onnxcomp.cost import Cost
from onnxcomp.graph.products import rows_of, weighted_sites
from onnxcomp.graph.sites import Site

Parsed = Callable[..., ir.Model]
ALL = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def _w(*shape: int) -> NDArray[np.float32]:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def _only(model: ir.Model) -> Site:
    [site] = weighted_sites(model, ALL)
    assert isinstance(site, Site)
    return site


def test_sites_come_in_order_and_by_kind(parsed: Parsed) -> None:
    model = parsed(
        """g (float[N,3,4,4] x) => (float[N,5] y) { [conv] a = Conv(x, k) f = Flatten(a) [one] b = MatMul(f, w)
        [two] y = Gemm(b, v) }""",
        k=_w(2, 3, 1, 1),
        w=_w(32, 7),
        v=_w(7, 5),
    )
    names = {kinds: [s.name for s in weighted_sites(model, kinds) if isinstance(s, Site)] for kinds in (ALL, ALL[:2])}
    assert names == {ALL: ["conv", "one", "two"], ALL[:2]: ["conv"]}


def test_a_gemm_is_its_effective_weight_and_bias(parsed: Parsed) -> None:
    for transposed, shape in ((0, (4, 3)), (1, (3, 4))):
        model = parsed(
            f"g (float[N,4] x) => (float[N,3] y) {{ y = Gemm<alpha=2.0, beta=0.5, transB={transposed}>(x, w, b) }}",
            w=_w(*shape),
            b=_w(1, 3),
        )
        site = _only(model)
        matrix = _w(*shape) if transposed else _w(*shape).T
        np.testing.assert_array_equal(site.weight, 2 * matrix[..., None])
        assert site.bias is not None
        np.testing.assert_array_equal(site.bias, [0, 0.5, 1])
        assert (site.channels_in, site.channels_out) == (4, 3)
        assert site.cost == Cost(15, 12, 60)


def test_rows_are_positions(parsed: Parsed) -> None:
    site = _only(parsed("g (float[N,5,4] x) => (float[N,5,3] y) { y = MatMul(x, w) }", w=_w(4, 3)))
    assert site.input_shape == (None, 4, 5) and site.output_shape == (None, 3, 5)
    assert site.cost.macs == 4 * 3 * 5
    x = _w(2, 5, 4)
    rows = rows_of(site, x)
    assert rows.shape == (10, 4, 1)
    np.testing.assert_array_equal(rows[7, :, 0], x[1, 2])


@pytest.mark.parametrize(
    ("graph", "arrays", "reason"),
    [
        ("g (float[4,N] x) => (float[N,3] y) { [c] y = Gemm<transA=1>(x, w) }", {"w": _w(4, 3)}, "left operand is tr"),
        ("g (float[4,3] x) => (float[5,3] y) { [c] y = MatMul(w, x) }", {"w": _w(5, 4)}, "left operand is the const"),
        ("g (float[2,3,4] x) => (float[2,3,5] y) { [c] y = MatMul(x, w) }", {"w": _w(2, 4, 5)}, "not two axes"),
        ("g (float[2,4] x) => (float[2] y) { [c] y = MatMul(x, w) }", {"w": _w(4)}, "not two axes"),
        (
            "g (float[2,4] x) => (float[2,3] y) { [c] y = Gemm(x, w, b) }",
            {"w": _w(4, 3), "b": _w(2, 3)},
            "a bias of shape (2, 3) is not one number a column",
        ),
        (
            "g (float[2,4] x, float[3] b) => (float[2,3] y) { [c] y = Gemm(x, w, b) }",
            {"w": _w(4, 3)},
            "overridden by a graph input",
        ),
        (
            "g (float[2,4] x, float[4,3] w) => (float[2,3] y) { [c] y = MatMul(x, w) }",
            {"w": _w(4, 3)},
            "can be overridden by a graph input",
        ),
        ("g (double[2,4] x) => (double[2,3] y) { [c] y = MatMul(x, w) }", {"w": _w(4, 3).astype(float)}, "double"),
        (
            "g (float[2,4] x) => (float[2,4] y) { [c] a = MatMul(x, w) [d] y = MatMul(a, w) }",
            {"w": _w(4, 4)},
            "shared with",
        ),
        (
            "g (float[2,4] x) => (float[2,3] y) { [c] y = MatMul(x, w) }",
            {"w": np.full((4, 3), np.inf, np.float32)},
            "holds NaN or Inf",
        ),
    ],
)
def test_what_is_no_site(parsed: Parsed, graph: str, arrays: dict[str, NDArray[Any]], reason: str) -> None:
    first = next(iter(weighted_sites(parsed(graph, **arrays), ALL)))
    assert isinstance(first, Skip) and first.site == "c" and reason in first.reason


def test_bodies_and_products_of_activations(parsed: Parsed) -> None:
    model = parsed(
        """g (float[4,4] x, bool c) => (float[4,4] y) { a = MatMul(x, x)
        z = If(c) <then_branch = t () => (float[k,l] p) { [inner] p = MatMul(a, w) },
                  else_branch = e () => (float[k,l] q) { q = Identity(a) }>
        y = Relu(z) }""",
        w=_w(4, 4),
    )
    assert list(weighted_sites(model, ALL)) == [Skip("inner", "inside a subgraph (If, Loop or Scan body)")]
