"""What int8 writes for TensorRT: symmetric int8, float biases, pairs where integers are read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxcomp.contract import PassReport
from onnxcomp.targets.target import load_target

Builder = Callable[..., ir.Model]
Quantizer = Callable[..., tuple[ir.Model, PassReport]]
Sqnr = Callable[[ir.Model, ir.Model], float]
Pairs = Callable[[ir.Model], dict[str, tuple[float, int, str]]]
Reads = Callable[[ir.Model, str], list[bool]]

SQUARE = (16, 16, 1, 1)


@pytest.fixture
def trt(build: Builder, quantize: Quantizer, sqnr: Sqnr) -> Callable[..., tuple[ir.Model, PassReport]]:
    """Quantize the body of a graph for TensorRT and check what holds for every result."""

    def go(body: str, weights: dict[str, tuple[int, ...]], **options: object) -> tuple[ir.Model, PassReport]:
        # The layer behind keeps the ones that are looked at from being output layers.
        model = build(
            f"g (float[1,16,8,8] x) => (float[A,B,C,D] y) <float zero = {{0}}, float six = {{6}}> {{ {body} }}", weights
        )
        quantized, report = quantize(model, target="tensorrt", **{"rounding": "nearest", **options})
        for node in quantized.graph:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                zero = node.inputs[2]
                assert zero is not None and zero.const_value is not None
                assert zero.const_value.dtype == ir.DataType.INT8
                assert not zero.const_value.numpy().any()
        assert sqnr(model, quantized) > 20
        return quantized, report

    return go


Trt = Callable[..., tuple[ir.Model, PassReport]]


@pytest.mark.parametrize("activation", ["Relu(a)", "Clip(a, zero, six)", "LeakyRelu(a)", "Sigmoid(a)"])
def test_the_pair_comes_behind_the_activation(activation: str, trt: Trt, pairs_of: Pairs) -> None:
    quantized, report = trt(
        f"[one] a = Conv(x, v, b)  r = {activation}  [two] c = Conv(r, w)  [three] y = Conv(c, w)",
        {"v": SQUARE, "b": (16,), "w": SQUARE},
    )
    assert list(pairs_of(quantized)) == ["x", "r"]
    assert [c.site for c in report.changes] == ["one", "two"]
    assert [(s.site, s.reason) for s in report.skips] == [
        ("three", "it makes an output of the network: left in float for accuracy")
    ]


@pytest.mark.parametrize("corrected", ["on", "off"])
def test_biases_stay_in_floating_point(corrected: str, trt: Trt) -> None:
    quantized, _ = trt(
        "[one] a = Conv(x, v, b)  r = Relu(a)  [two] c = Conv(r, w)  [head] y = Conv(c, w)",
        {"v": SQUARE, "b": (16,), "w": SQUARE},
        bias_correction=corrected,
    )
    one, two = (next(n for n in quantized.graph if n.name == name) for name in ("one", "two"))
    assert one.inputs[2] is not None and one.inputs[2].const_value is not None
    assert one.inputs[2].const_value.dtype == ir.DataType.FLOAT
    assert (one.inputs[2].name == "b") == (corrected == "off")
    assert (len(two.inputs) == 3) == (corrected == "on")


def test_a_residual_add_reads_the_identity_as_integers_and_the_convolution_in_float(
    trt: Trt, pairs_of: Pairs, reads_pair: Reads
) -> None:
    quantized, report = trt(
        """[in] i = Conv(x, v)  r = Relu(i)
           [one] a = Conv(r, v)  ar = Relu(a)  [two] b = Conv(ar, w)  [sum] s = Add(r, b)  t = Relu(s)
           [three] c = Conv(t, v)  [out] y = Conv(c, w)""",
        {"v": SQUARE, "w": SQUARE},
    )
    assert list(pairs_of(quantized)) == ["x", "r", "ar", "t"]
    assert reads_pair(quantized, "sum") == [True, False]
    assert "Add on int8" in [c.summary for c in report.changes]


def test_of_two_convolutions_the_deeper_one_takes_the_add_in(trt: Trt, pairs_of: Pairs, reads_pair: Reads) -> None:
    quantized, _ = trt(
        """[short] s = Conv(x, v)
           [one] a = Conv(x, v)  r = Relu(a)  [two] b = Conv(r, w)  [sum] t = Add(s, b)  u = Relu(t)
           [three] c = Conv(u, v)  [out] y = Conv(c, w)""",
        {"v": SQUARE, "w": SQUARE},
    )
    assert list(pairs_of(quantized)) == ["x", "s", "r", "u"]
    assert reads_pair(quantized, "sum") == [True, False]


def test_an_add_of_anything_else_stays_float(trt: Trt, pairs_of: Pairs, reads_pair: Reads) -> None:
    """Behind an activation of its own, or read elsewhere, a convolution's result cannot take the Add in."""
    quantized, _ = trt(
        """[one] a = Conv(x, v)  r = Relu(a)  [sum] s = Add(x, r)
           [two] b = Conv(s, v)  g = Sigmoid(b)  [sum2] t = Add(s, b)  p = Mul(t, g)
           [three] c = Conv(p, v)  [out] y = Conv(c, v)""",
        {"v": SQUARE},
    )
    assert list(pairs_of(quantized)) == ["x", "s", "p"]
    assert reads_pair(quantized, "sum") == reads_pair(quantized, "sum2") == [False, False]


def test_a_concat_and_what_it_reads_have_one_scale(trt: Trt, pairs_of: Pairs, reads_pair: Reads) -> None:
    quantized, report = trt(
        """[one] a = Conv(x, v)  r = Relu(a)  [two] b = Conv(x, w)  q = MaxPool<kernel_shape=[1,1]>(r)
           [cat] k = Concat<axis=1>(r, b, q)  [three] c = Conv(k, u)  [side] d = Conv(r, v)
           [sum] e = Add(c, d)  [out] y = Conv(e, v)""",
        {"v": SQUARE, "w": SQUARE, "u": (16, 48, 1, 1)},
    )
    found = pairs_of(quantized)
    assert found["r"] == found["b"] == found["q"] == found["k"]
    assert reads_pair(quantized, "cat") == [True, True, True]
    assert "Concat on int8" in [c.summary for c in report.changes]


def test_a_concat_whose_input_has_another_concats_scale_stays_float(trt: Trt, reads_pair: Reads) -> None:
    quantized, _ = trt(
        """[one] a = Conv(x, v)  [two] b = Conv(x, w)
           [cat] k = Concat<axis=1>(a, b)  [cat2] l = Concat<axis=1>(b, x)
           [three] c = Conv(k, u)  [four] d = Conv(l, u)  s = Sigmoid(c)  m = Mul(s, d)  [out] y = Conv(m, v)""",
        {"v": SQUARE, "w": SQUARE, "u": (16, 32, 1, 1)},
    )
    assert reads_pair(quantized, "cat") == [True, True]
    assert reads_pair(quantized, "cat2") == [False, False]


def test_moving_values_needs_no_pair_and_keeps_the_scale(trt: Trt, pairs_of: Pairs, reads_pair: Reads) -> None:
    quantized, _ = trt(
        """[one] a = Conv(x, v)  r = Relu(a)  [pool] p = MaxPool<kernel_shape=[2,2]>(r)
           [two] b = Conv(p, v)  [three] c = Conv(r, w)  m = GlobalMaxPool(c)  s = Mul(b, m)  [out] y = Conv(s, v)""",
        {"v": SQUARE, "w": SQUARE},
    )
    found = pairs_of(quantized)
    assert reads_pair(quantized, "pool") == [False]
    assert found["p"] == found["r"]


def test_pools_that_average_join_between_layers(trt: Trt, pairs_of: Pairs, reads_pair: Reads) -> None:
    quantized, report = trt(
        """[one] a = Conv(x, v)  r = Relu(a)  [pool] p = AveragePool<kernel_shape=[2,2]>(r)
           [two] b = Conv(p, v)  [last] q = GlobalAveragePool(b)  [out] y = Conv(q, v)""",
        {"v": SQUARE},
    )
    assert list(pairs_of(quantized)) == ["x", "r", "p"]
    assert reads_pair(quantized, "pool") == [True]
    assert reads_pair(quantized, "last") == [False]  # what is behind it stays float
    assert [c.site for c in report.changes] == ["one", "two", "pool"]


def test_a_transposed_convolution_has_its_scales_along_axis_1(trt: Trt, reads_pair: Reads) -> None:
    quantized, _ = trt(
        """[up] a = ConvTranspose<strides=[2,2]>(x, v, b)  r = Relu(a)  [one] c = Conv(r, w)  [out] y = Conv(c, w)""",
        {"v": (16, 16, 2, 2), "b": (16,), "w": SQUARE},
    )
    assert reads_pair(quantized, "up") == [True, True, False]
    up = next(n for n in quantized.graph if n.name == "up")
    weight = up.inputs[1].producer() if up.inputs[1] is not None else None
    assert weight is not None and weight.attributes.get_int("axis") == 1


@pytest.mark.parametrize(
    ("attributes", "shape", "quantized"),
    [
        ("", (16, 16, 1, 1), True),
        ("", (8, 16, 1, 1), True),  # 8 channels with 16 on the other side
        ("", (8, 16, 1, 3), False),  # the kernel is no square
        ("", (12, 16, 3, 3), True),
        ("", (12, 12, 3, 3), False),
        ("group=16, pads=[1,1,1,1]", (16, 1, 3, 3), True),
        ("group=16", (16, 1, 1, 1), False),
        ("group=4, pads=[1,1,1,1]", (12, 4, 3, 3), False),
    ],
)
def test_few_channels_stay_float(
    attributes: str, shape: tuple[int, ...], quantized: bool, build: Builder, quantize: Quantizer
) -> None:
    channels = shape[1] * (int(attributes[6:].split(",")[0]) if attributes else 1)
    model = build(
        f"""g (float[1,16,8,8] x) => (float[A,B,C,D] y) {{
            [in] a = Conv(x, u)  [it] b = Conv{attributes and f"<{attributes}>"}(a, v)  [out] y = Conv(b, w) }}""",
        {"u": (channels, 16, 1, 1), "v": shape, "w": (16, shape[0], 1, 1)},
    )
    _, report = quantize(model, target="tensorrt", rounding="nearest")
    assert ("it" in [c.site for c in report.changes]) == quantized
    assert quantized or "too few channels" in next(s.reason for s in report.skips if s.site == "it")


@pytest.mark.parametrize(
    ("rows", "product", "shape", "reason"),
    [
        ("N", "Gemm(x, w)", (64, 32), None),
        ("N", "Gemm<transB=1>(x, w)", (32, 64), None),
        ("4", "MatMul(x, w)", (64, 32), None),
        ("1", "MatMul(x, w)", (64, 32), "a matrix times a vector"),
        ("N", "Gemm(x, w)", (64, 8), "the weight has 64 x 8 values"),
    ],
)
def test_products(
    rows: str, product: str, shape: tuple[int, int], reason: str | None, build: Builder, quantize: Quantizer
) -> None:
    wide = shape[0] if "transB" in product else shape[1]
    model = build(
        f"g (float[{rows},64] x) => (float[A,B] y) {{ [it] a = {product} r = Relu(a) [out] y = Gemm(r, v) }}",
        {"w": shape, "v": (wide, 32)},
    )
    quantized, report = quantize(model, target="tensorrt", rounding="nearest")
    if reason is not None:
        assert not report.changes
        assert next(s.reason for s in report.skips if s.site == "it").startswith(reason)
        return
    assert [c.site for c in report.changes] == ["it"]
    weight = next(n for n in quantized.graph if n.op_type == "DequantizeLinear" and "axis" in n.attributes)
    assert weight.attributes.get_int("axis") == (0 if "transB" in product else 1)


def test_output_layers_stay_float_behind_softmax_and_reshapes_too(build: Builder, quantize: Quantizer) -> None:
    model = build(
        """g (float[N,64] x) => (float[A,B] y, float[C,D] z) {
            [body] a = Gemm(x, w)  r = Relu(a)
            [one] b = MatMul(r, w)  c = Add(b, bias)  y = Softmax(c)
            [two] d = Gemm(r, w)  e = Sigmoid(d)  f = Relu(e)  g = Sigmoid(f)  z = Transpose<perm=[1,0]>(g) }""",
        {"w": (64, 64), "bias": (64,)},
    )
    _, report = quantize(model, target="tensorrt", rounding="nearest")
    assert [c.site for c in report.changes] == ["body", "two"]


def test_scales_are_symmetric_and_cover_the_data(trt: Trt, pairs_of: Pairs) -> None:
    quantized, report = trt(
        "[one] a = Conv(x, v)  r = Relu(a)  [two] c = Conv(r, v)  [out] y = Conv(c, v)",
        {"v": SQUARE},
        calibration="minmax",
    )
    scale = pairs_of(quantized)["x"][0]
    samples = np.random.default_rng(1).standard_normal((32, 16, 8, 8)).astype(np.float32)
    assert scale == pytest.approx(float(np.abs(samples).max()) / 127, rel=1e-6)
    facts = report.changes[0].facts
    assert facts["input.zero_point"] == 0
    assert facts["input.scale"] == pytest.approx(scale, rel=1e-5)


def test_the_placement_is_not_tried_in_another_runtime(
    trt: Trt, monkeypatch: pytest.MonkeyPatch, pairs_of: Pairs
) -> None:
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("asked ONNX Runtime")

    monkeypatch.setattr("onnxcomp.quantize.fusing.fusion_proof", never)
    scheme = load_target("tensorrt").scheme
    assert scheme is not None and scheme.pairs == "inputs"
    quantized, _ = trt("[one] a = Conv(x, v)  [two] b = Conv(a, v)  [out] y = Conv(b, v)", {"v": SQUARE})
    assert list(pairs_of(quantized)) == ["x", "a"]
