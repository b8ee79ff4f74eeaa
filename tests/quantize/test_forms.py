"""Every stored form gives back the codes, is folded by ONNX Runtime at load, and takes the bytes it should."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.cost import stored_bytes
from onnxcomp.graph.edit import Link, replace_by_chain
from onnxcomp.graph.products import weighted_sites
from onnxcomp.graph.sites import Site
from onnxcomp.numeric.rounding import dequantized, integer_levels, power_levels
from onnxcomp.quantize.forms import (
    Form,
    bits_in_planes,
    block_product,
    decoded,
    integers,
    packed_size,
    signs,
    table_of,
)
from onnxcomp.quantize.layout import Layout, block_of
from onnxcomp.quantize.storage import admit
from onnxcomp.runtime.session import open_session, run

Parsed = Callable[..., ir.Model]
ONE, TWO, THREE = (np.array(levels, np.float64) for levels in ([-1, 1], [-1, 0, 1], [-3, -2, -1, 0, 1, 2, 3]))

FORMS: dict[str, tuple[Form, NDArray[np.float64], float]] = {
    "int4": (integers(4), integer_levels(4), 4),
    "int2": (integers(2), TWO, 2),
    "planes": (bits_in_planes(3), THREE, 3),
    "signs": (signs, ONE, 1),
    "pow2": (table_of(power_levels(4)), power_levels(4), 4),
    "pow2 of 5 bits": (table_of(power_levels(5)), power_levels(5), 8),
}
# Graph, shape of the weight of the node `c`.
NODES: dict[str, tuple[str, tuple[int, ...]]] = {
    "Conv": ("g (float[1,8,6,6] x) => (float[1,24,o,p] y) { [c] y = Conv<strides=[2,1]>(x, w) }", (24, 8, 3, 3)),
    "depthwise": ("g (float[1,8,6,6] x) => (float[1,8,o,p] y) { [c] y = Conv<group=8>(x, w) }", (8, 1, 3, 3)),
    "grouped": ("g (float[1,8,6,6] x) => (float[1,6,o,p] y) { [c] y = Conv<group=2>(x, w) }", (6, 4, 3, 3)),
    "1-D": ("g (float[1,8,9] x) => (float[1,6,o] y) { [c] y = Conv(x, w) }", (6, 8, 3)),
    "3-D": ("g (float[1,4,5,5,5] x) => (float[1,6,o,p,q] y) { [c] y = Conv(x, w) }", (6, 4, 2, 2, 2)),
    "ConvTranspose": (
        "g (float[1,8,4,4] x) => (float[1,6,o,p] y) { [c] y = ConvTranspose<strides=[2,2]>(x, w) }",
        (8, 6, 3, 3),
    ),
    "grouped ConvTranspose": (
        "g (float[1,8,4,4] x) => (float[1,12,o,p] y) { [c] y = ConvTranspose<group=2, strides=[2,2]>(x, w) }",
        (8, 6, 3, 3),
    ),
    "Gemm": ("g (float[3,32] x) => (float[3,8] y) { [c] y = Gemm(x, w) }", (32, 8)),
    "Gemm transposed": ("g (float[3,32] x) => (float[3,8] y) { [c] y = Gemm<transB=1, alpha=0.5>(x, w) }", (8, 32)),
    "MatMul": ("g (float[2,3,32] x) => (float[2,3,8] y) { [c] y = MatMul(x, w) }", (32, 8)),
}


def _site(model: ir.Model) -> Site:
    [site] = weighted_sites(model, ("Conv", "ConvTranspose", "Gemm", "MatMul"))
    assert isinstance(site, Site)
    return site


def _random(site: Site, levels: NDArray[np.float64], block: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    rows = Layout(site).rows()
    codes = rng.choice(levels, rows.shape)
    shape = (len(rows), rows.shape[1] // block) if block else (len(rows),)
    return codes, rng.uniform(0.5, 2.0, shape).astype(np.float32).astype(np.float64)


def _weighted(model: ir.Model, weight: NDArray[np.float64]) -> ir.Model:
    """The model with rows as the weight of its node."""
    site = _site(model)
    shape, group = site.weight.shape, site.geometry.group
    if site.geometry.transposed:
        parts = weight.reshape(group, shape[1], shape[0] // group, *shape[2:])
        restored = np.swapaxes(parts, 1, 2).reshape(shape)
    elif site.kind in ("Gemm", "MatMul"):
        restored = weight if site.node.attributes.get_int("transB", 0) else weight.T
        restored = restored / site.node.attributes.get_float("alpha", 1.0)
    else:
        restored = weight.reshape(shape)
    copy = model.clone()
    copy.graph.initializers["w"].const_value = ir.tensor(np.ascontiguousarray(restored, np.float32))
    return copy


def _feed(model: ir.Model) -> dict[str, NDArray[Any]]:
    shape = model.graph.inputs[0].shape
    assert shape is not None
    return {"x": np.random.default_rng(1).standard_normal(shape.numpy()).astype(np.float32)}


def _kernels(model: ir.Model, folder: Path) -> list[str]:
    open_session(model, dump=folder / "optimised.onnx")
    return [node.op_type for node in ir.load(folder / "optimised.onnx").graph]


def _written(model: ir.Model, chain: list[Link], bits: int) -> ir.Model:
    copy = model.clone()
    assert admit(copy, bits) is None
    replace_by_chain(_site(copy).node, chain, "test")
    return copy


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("node", NODES)
def test_forms_are_exact_and_folded(parsed: Parsed, tmp_path: Path, node: str, form: str) -> None:
    graph, shape = NODES[node]
    model = parsed(graph, w=np.ones(shape, np.float32))
    site = _site(model)
    stored, levels, _ = FORMS[form]
    for block in {0, block_of(site, 16)}:
        codes, scales = _random(site, levels, block)
        chain = decoded(Layout(site, block), codes, scales, None, stored)
        low = _written(model, chain, 2 if form == "int2" else 4)
        expected = run(open_session(_weighted(model, dequantized(codes, scales)), optimize="off"), _feed(model))[0]
        for level in ("off", "all"):
            [found] = run(open_session(low, optimize=level), _feed(model))
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
        assert set(_kernels(low, tmp_path)) <= {
            "Conv",
            "ConvTranspose",
            "Gemm",
            "MatMul",
            "ReorderInput",
            "ReorderOutput",
        }


@pytest.mark.parametrize("form", FORMS)
def test_bytes_a_weight(parsed: Parsed, form: str) -> None:
    graph, shape = NODES["Conv"]
    site = _site(parsed(graph, w=np.ones(shape, np.float32)))
    stored, levels, bits = FORMS[form]
    codes, scales = _random(site, levels, 0)
    links = stored(Layout(site).stored(codes))
    size = stored_bytes(links[0].constants[0])
    assert size == codes.size * bits / 8
    whole = packed_size(decoded(Layout(site), codes, scales, None, stored))
    assert size + scales.size * 4 < whole < size + scales.size * 4 + 8 * 300


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("node", ["Gemm", "Gemm transposed", "MatMul"])
def test_products_run_on_the_codes(parsed: Parsed, tmp_path: Path, node: str, bits: int) -> None:
    graph, shape = NODES[node]
    model = parsed(graph, w=np.ones(shape, np.float32))
    site = _site(model)
    for block in (0, 16):
        codes, scales = _random(site, integer_levels(bits), block)
        chain = block_product(Layout(site, block), codes, scales, None, bits)
        assert stored_bytes(chain[0].constants[0]) == 32 * 8 * max(bits, 4) / 8
        low = _written(model, chain, 4)
        [expected] = run(open_session(_weighted(model, dequantized(codes, scales))), _feed(model))
        [exact] = run(open_session(low, optimize="off"), _feed(model))
        np.testing.assert_allclose(exact, expected, rtol=1e-4, atol=1e-3)
        [fused] = run(open_session(low), _feed(model))
        # The kernel rounds its input to 8 bits.
        assert np.square(fused - expected).sum() < 1e-3 * np.square(expected).sum()
        assert _kernels(low, tmp_path) == ["MatMulNBits"]


def test_signs_and_planes_of_odd_sizes_are_stored_whole() -> None:
    assert [link.op_type for link in signs(np.ones((3, 1, 1, 1)))] == ["Cast"]
    assert [link.op_type for link in bits_in_planes(3)(np.ones((3, 3)))] == ["Cast"]


@pytest.mark.parametrize(
    ("node", "wanted", "block"),
    [
        ("Conv", 32, 24),
        ("Conv", 72, 72),
        ("Conv", 7, 0),
        ("depthwise", 32, 9),
        ("ConvTranspose", 32, 0),
        ("Gemm", 30, 16),
    ],
)
def test_blocks_divide_rows(parsed: Parsed, node: str, wanted: int, block: int) -> None:
    graph, shape = NODES[node]
    assert block_of(_site(parsed(graph, w=np.ones(shape, np.float32))), wanted) == block
