"""What int8 writes for the targets that are ONNX Runtime: storage types, zero points, which tensors have pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxcomp.api import optimize
from onnxcomp.contract import PassReport
from onnxcomp.runtime.fusion import fusion_proof
from onnxcomp.runtime.session import open_session, run

Builder = Callable[..., ir.Model]
Quantizer = Callable[..., tuple[ir.Model, PassReport]]
Sqnr = Callable[[ir.Model, ir.Model], float]
Pairs = Callable[[ir.Model], dict[str, tuple[float, int, str]]]

RESIDUAL = """g (float[1,16,8,8] x) => (float[1,16,8,8] y) <float zero = {0}, float six = {6}> {
    h = HardSwish(x)
    [first] a = Conv<pads=[1,1,1,1]>(h, w1, b1)  r = Relu(a)
    [second] c = Conv<pads=[1,1,1,1]>(r, w2, b2)  s = Add(c, r)  t = Clip(s, zero, six)
    p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(t)
    j = Resize<mode="nearest">(p,,sizes)
    k = Concat<axis=1>(j, t)
    [last] y = Conv(k, w3) }"""
WEIGHTS = {"w1": (16, 16, 3, 3), "b1": (16,), "w2": (16, 16, 3, 3), "b2": (16,), "w3": (16, 32, 1, 1)}


@pytest.fixture
def residual(build: Builder) -> ir.Model:
    text = RESIDUAL.replace("float six = {6}", "float six = {6}, float[4] sizes = {1,1,2,2}")
    return build(text, WEIGHTS)


def test_arm_stores_what_x86_stores_128_lower(residual: ir.Model, quantize: Quantizer, pairs_of: Pairs) -> None:
    (x86, _), (arm, report) = (quantize(residual, target=target) for target in ("ort-x86", "ort-arm"))
    unsigned, signed = pairs_of(x86), pairs_of(arm)
    assert list(unsigned) == list(signed)
    for name, (scale, zero, dtype) in unsigned.items():
        assert dtype == "uint8"
        assert signed[name] == (scale, zero - 128, "int8")
    assert list(signed) == ["h", "r", "c", "t", "p", "j", "k", "y.raw"]
    assert signed["r"][1] == -128  # behind a Relu
    weights = [(model.graph.initializers[f"{name}.quantized"].const_value for name in WEIGHTS) for model in (x86, arm)]
    for a, b in zip(*weights, strict=True):
        assert a is not None and b is not None and np.array_equal(a.numpy(), b.numpy())
    assert report.changes[0].summary == "Conv, int8 x int8, 16 weight scales"
    others = [c.summary for c in report.changes if "weight" not in c.summary]
    assert others == ["Add on int8", "MaxPool on int8", "Resize on int8", "Concat on int8"]


def test_arm_and_x86_compute_the_same_numbers(residual: ir.Model, quantize: Quantizer) -> None:
    feed = {"x": np.random.default_rng(5).standard_normal((1, 16, 8, 8)).astype(np.float32)}
    x86, arm = (
        run(open_session(quantize(residual, target=target)[0], optimize="off"), feed)[0]
        for target in ("ort-x86", "ort-arm")
    )
    assert np.array_equal(x86, arm)


def test_all_of_arm_fuses_where_int8_is_allowed(residual: ir.Model, quantize: Quantizer, sqnr: Sqnr) -> None:
    quantized, report = quantize(residual, target="ort-arm", rounding="nearest")
    assert not report.skips
    floats = [
        [fate.op_type for fate in fusion_proof(quantized, int8_kernels=allowed) if not fate.integer]
        for allowed in (True, False)
    ]
    assert floats[0] == ["HardSwish"]  # the head
    assert "Add" in floats[1]  # on x86, branches of int8 stay float
    assert sqnr(residual, quantized) > 25


def test_mobile_stays_within_the_operators_of_nnapi(
    build: Builder, quantize: Quantizer, pairs_of: Pairs, sqnr: Sqnr
) -> None:
    model = build(
        """g (float[1,8,8,8] x) => (float[1,32] y) <int64[2] shape = {1,-1}> {
            [first] a = Conv(x, u, b)  r = Relu(a)  p = AveragePool<kernel_shape=[2,2]>(r)
            [second] c = Conv(p, v)  s = Sigmoid(c)
            [third] d = Conv(s, v)  e = LeakyRelu(d)
            [fourth] f = Conv(e, v)  h = Reshape(f, shape)
            [product] m = Gemm(h, w)  n = Relu(m)  [head] y = Gemm(n, z) }""",
        {"u": (8, 8, 1, 1), "b": (8,), "v": (8, 8, 1, 1), "w": (392, 128), "z": (128, 32)},
    )
    quantized, report = quantize(model, target="ort-mobile", rounding="nearest")
    found = pairs_of(quantized)
    # An AveragePool keeps its input's scale; a Gemm's result is rounded.
    assert list(found) == ["x", "r", "p", "c", "s", "d", "e", "f", "h", "n"]
    assert found["p"] == found["r"] and found["h"] == found["f"]
    assert {dtype for _, _, dtype in found.values()} == {"uint8"}
    layers = ["first", "second", "third", "fourth", "product"]
    assert [c.site for c in report.changes if "weight" in c.summary] == layers
    assert [c.summary for c in report.changes][5:] == ["AveragePool on uint8", "Reshape on uint8"]
    assert [fate.node for fate in fusion_proof(quantized) if not fate.integer] == ["head"]
    assert sqnr(model, quantized) > 20


def test_mobile_takes_convolutions_in_a_plane_only(build: Builder, quantize: Quantizer) -> None:
    model = build("g (float[1,8,16] x) => (float[1,8,C] y) { [line] y = Conv(x, w) }", {"w": (8, 8, 3)})
    _, report = quantize(model, target="ort-mobile", rounding="nearest")
    assert [(s.site, s.reason) for s in report.skips] == [
        ("line", "the runtime has no integer kernel for a convolution of 1 spatial axes")
    ]


@pytest.mark.parametrize("target", ["ort-arm", "ort-mobile", "tensorrt"])
def test_from_end_to_end(target: str, residual: ir.Model, tmp_path: Path, sqnr: Sqnr) -> None:
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(1).standard_normal((64, 16, 8, 8)).astype(np.float32))
    result = optimize(residual, "int8(rounding=nearest)", target=target, data=tmp_path / "data.npz")
    assert any(node.op_type == "QuantizeLinear" for node in result.model.graph)
    assert sqnr(residual, result.model) > 20
