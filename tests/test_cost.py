from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxcomp.cost import Cost, constant_behind, model_cost, node_macs

Parsed = Callable[..., ir.Model]


def _ones(*shape: int, dtype: Any = np.float32) -> Any:
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    ("text", "weight", "macs"),
    [
        ("g (float[N,8,10,12] x) => (float[N,a,b,c] y) { y = Conv<strides=[2,1]>(x, w) }", (6, 8, 3, 3), 432 * 40),
        ("g (float[N,8,10,12] x) => (float[N,a,b,c] y) { y = Conv<group=4>(x, w) }", (8, 2, 1, 1), 16 * 120),
        ("g (float[N,8,5] x) => (float[N,a,b] y) { y = ConvTranspose<strides=[3]>(x, w) }", (8, 2, 4), 64 * 5),
        ("g (float[N,8,H,12] x) => (float[N,a,b,c] y) { y = Conv(x, w) }", (6, 8, 3, 3), None),
        ("g (float[N,8] x) => (float[N,6] y) { y = Gemm<transB=1>(x, w) }", (6, 8), 48),
        ("g (float[N,8] x) => (float[N,6] y) { y = MatMul(x, w) }", (8, 6), 48),
        ("g (float[N,7,8] x) => (float[N,7,6] y) { y = MatMul(x, w) }", (8, 6), 48 * 7),
        ("g (float[N,T,8] x) => (float[N,T,6] y) { y = MatMul(x, w) }", (8, 6), None),
        ("g (float[N,8] x) => (float[N,8] y) { y = Add(x, w) }", (8,), 0),
    ],
)
def test_macs_at_batch_one(parsed: Parsed, text: str, weight: tuple[int, ...], macs: int | None) -> None:
    model = parsed(text, w=_ones(*weight))
    assert node_macs(model.graph[0]) == macs
    assert model_cost(model) == Cost(int(np.prod(weight)), macs, 4 * int(np.prod(weight)))


@pytest.mark.parametrize(("length", "layout", "macs"), [(7, 0, 7 * 132), (7, 1, 7 * 132), ("T", 0, None)])
def test_recurrent_layers_read_their_weights_once_a_step(
    parsed: Parsed, length: int | str, layout: int, macs: int | None
) -> None:
    sizes = f"{length},N" if layout == 0 else f"N,{length}"
    text = f"g (float[{sizes},8] x) => (float[a,b,c,d] y) {{ y = LSTM<hidden_size=3, layout={layout}>(x, w, r) }}"
    assert model_cost(parsed(text, w=_ones(1, 12, 8), r=_ones(1, 12, 3))).macs == macs


def test_integer_products_count(parsed: Parsed) -> None:
    text = """g (uint8[N,8] a, uint8[N,8,6,6] b) => (int32[N,6] y, int32[N,4,4,4] z) {
        y = MatMulInteger(a, v)
        z = ConvInteger(b, w)
    }"""
    model = parsed(text, v=_ones(8, 6, dtype=np.uint8), w=_ones(4, 8, 3, 3, dtype=np.uint8))
    assert [node_macs(node) for node in model.graph] == [48, 288 * 16]


def test_a_weight_is_seen_through_dequantization(parsed: Parsed) -> None:
    text = """g (float[N,8,4,4] x) => (float[N,6,2,2] y) { v = DequantizeLinear(w, s) y = Conv(x, v) }"""
    model = parsed(text, w=_ones(6, 8, 3, 3, dtype=np.int8), s=np.array(0.1, np.float32))
    assert model_cost(model) == Cost(432 + 1, 432 * 4, 432 + 4)


def test_the_codes_behind_a_weight_are_found(parsed: Parsed) -> None:
    text = """g (float[N,8,4,4] x) => (float[N,6,2,2] y) {
        c = Cast<to=3>(w) t = Mul(c, signs) v = DequantizeLinear<axis=0>(t, s) y = Conv(x, v) }"""
    codes = np.zeros((6, 8, 3, 3), ml_dtypes.int4)
    signs, scales = _ones(6, 1, 1, 1, dtype=np.int8), _ones(6)
    model = parsed(text, opset=21, w=codes, signs=signs, s=scales)
    conv = model.graph[-1]
    found = constant_behind(conv.inputs[1])
    assert found is not None and (found.dtype, found.size) == (ir.DataType.INT4, 432)
    assert constant_behind(conv.inputs[0]) is None and constant_behind(None) is None
    assert model_cost(model) == Cost(432 + 6 + 6, 432 * 4, 216 + 6 + 24)


def test_integers_are_no_parameters_but_take_bytes(parsed: Parsed) -> None:
    text = "g (float[N,8] x) => (float[M,4] y) { y = Reshape(x, shape) }"
    assert model_cost(parsed(text, shape=np.array([-1, 4], np.int64))) == Cost(0, 0, 16)


def test_bodies_count(parsed: Parsed) -> None:
    text = """g (float[N,8] x, bool c) => (float[N,6] y) { y = If(c) <
      then_branch = t () => (float[N,6] p) { p = MatMul(x, w) },
      else_branch = e () => (float[N,6] q) <float[8,6] v = {0.0}> { q = MatMul(x, v) }> }"""
    zeros = ", ".join(["0.0"] * 48)
    assert model_cost(parsed(text.replace("{0.0}", f"{{{zeros}}}"), w=_ones(8, 6))) == Cost(96, 96, 384)


def test_costs_add_and_the_unknown_spreads() -> None:
    assert Cost(1, 2, 3) + Cost(10, 20, 30) == Cost(11, 22, 33)
    assert Cost(1, None, 3) + Cost(10, 20, 30) == Cost(11, None, 33)
