"""Every reason for which tucker2 leaves a convolution alone, one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.contract import Context, Skip
from onnxcomp.passes.tucker2 import Tucker2

Parsed = Callable[..., ir.Model]
InContext = Callable[..., Context]


def _ones(*shape: int, dtype: Any = np.float32) -> NDArray[Any]:
    return np.ones(shape, dtype)


X = "float[N,32,8,8] x"
Y = "float[N,o,h,w] y"
CONV = f"g ({X}) => ({Y}) {{ [conv] y = Conv(x, w) }}"
BROKEN = _ones(32, 32, 3, 3)
BROKEN[0, 0, 0, 0] = np.nan
CASES: dict[str, tuple[str, dict[str, NDArray[Any]], str]] = {
    "pointwise": (CONV, {"w": _ones(64, 32, 1, 1)}, "the kernel is 1x1"),
    "depthwise": (CONV.replace("Conv(", "Conv<group=32>("), {"w": _ones(32, 1, 3, 3)}, "depthwise"),
    "multiplier": (CONV.replace("Conv(", "Conv<group=32>("), {"w": _ones(64, 1, 3, 3)}, "depthwise"),
    "narrow": (CONV.replace("32,8", "16,8"), {"w": _ones(16, 16, 3, 3)}, "too few channels: 16 in, 16 out"),
    "first": (CONV.replace("32,8", "3,8"), {"w": _ones(64, 3, 3, 3)}, "too few channels: 3 in, 64 out"),
    "narrow groups": (
        CONV.replace("Conv(", "Conv<group=2>("),
        {"w": _ones(32, 16, 3, 3)},
        "too few channels: 16 in, 16 out a group",
    ),
    "transposed pointwise": (
        CONV.replace("Conv(", "ConvTranspose<strides=[2,2]>("),
        {"w": _ones(32, 64, 1, 1)},
        "the kernel is 1x1",
    ),
    "output_shape": (
        CONV.replace("Conv(", "ConvTranspose<strides=[2,2], output_shape=[16,17]>("),
        {"w": _ones(32, 64, 3, 3)},
        "its pads follow from output_shape",
    ),
    "shared": (
        f"g ({X}) => ({Y}) {{ [conv] a = Conv(x, w) [other] y = Conv(a, w) }}",
        {"w": _ones(32, 32, 3, 3)},
        "the weight is shared with other",
    ),
    "in both inputs": (
        "g (float[32,32,3,3] x) => (float[a,b,c,d] y) { s = Identity(x) [conv] t = Conv(w, w) y = Sub(s, t) }",
        {"w": _ones(32, 32, 3, 3)},
        "the weight is shared with another input of the same node",
    ),
    "overridable": (
        CONV.replace(X, f"{X}, float[32,32,3,3] w"),
        {"w": _ones(32, 32, 3, 3)},
        "the weight 'w' can be overridden by a graph input",
    ),
    "overridable bias": (
        CONV.replace(X, f"{X}, float[32] b").replace("w)", "w, b)"),
        {"w": _ones(32, 32, 3, 3), "b": _ones(32)},
        "the bias 'b' can be overridden by a graph input",
    ),
    "computed": (
        CONV.replace("[conv]", "v = Neg(w) [conv]").replace("Conv(x, w)", "Conv(x, v)"),
        {"w": _ones(32, 32, 3, 3)},
        "the weight 'v' is not a constant",
    ),
    "quantized": (
        CONV.replace("[conv]", "v = DequantizeLinear(w, s) [conv]").replace("Conv(x, w)", "Conv(x, v)"),
        {"w": _ones(32, 32, 3, 3, dtype=np.int8), "s": np.array(0.1, np.float32)},
        "already quantized",
    ),
    "NaN": (CONV, {"w": BROKEN}, "the weight holds NaN or Inf"),
    "bias of Inf": (
        CONV.replace("w)", "w, b)"),
        {"w": _ones(32, 32, 3, 3), "b": np.full(32, np.inf, np.float32)},
        "the bias holds NaN or Inf",
    ),
    "double": (
        CONV.replace("float[", "double["),
        {"w": _ones(32, 32, 3, 3, dtype=np.float64)},
        "the weight is double, not float32",
    ),
    "half": (
        CONV.replace("float[", "float16["),
        {"w": _ones(32, 32, 3, 3, dtype=np.float16)},
        "the weight is float16, not float32",
    ),
    "inside If": (
        f"""g ({X}, bool c) => ({Y}) {{ y = If(c) <
          then_branch = t () => (float[N,32,6,6] p) {{ [conv] p = Conv(x, w) }},
          else_branch = e () => (float[N,32,6,6] q) {{ [other] q = Conv(x, w) }}> }}""",
        {"w": _ones(32, 32, 3, 3)},
        "inside a subgraph (If, Loop or Scan body)",
    ),
}


@pytest.mark.parametrize(("text", "arrays", "reason"), CASES.values(), ids=CASES)
def test_reason(text: str, arrays: dict[str, NDArray[Any]], reason: str, parsed: Parsed, in_context: InContext) -> None:
    model = parsed(text, **arrays)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    report = Tucker2(ranks="8x8").run(model, in_context())
    assert Skip("conv", reason) in report.skips
    assert report.changes == ()
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_excluded_by_glob(parsed: Parsed, in_context: InContext) -> None:
    model = parsed(
        f"g ({X}) => ({Y}) {{ [conv] a = Conv(x, w) [other] y = Conv(a, v) }}",
        w=_ones(32, 32, 3, 3),
        v=_ones(32, 32, 3, 3),
    )
    report = Tucker2(ranks="8x8").run(model, in_context(exclude=("co*",)))
    assert report.skips == (Skip("conv", "excluded by the user"),)
    assert [c.site for c in report.changes] == ["other"]


def test_a_zero_weight_has_nothing_to_keep(parsed: Parsed, in_context: InContext) -> None:
    for rule in ("energy", "vbmf"):
        model = parsed(CONV, w=np.zeros((32, 32, 3, 3), np.float32))
        report = Tucker2(rank=rule).run(model, in_context())
        assert report.skips == (Skip("conv", f"{rule} finds nothing to keep (rank 0)"),)


def test_inside_a_function(in_context: InContext) -> None:
    text = """<ir_version: 9, opset_import: ["" : 17, "f" : 1]>
    g (float[N,32,8,8] x, float[32,32,3,3] w) => (float[N,32,6,6] y) { y = f.block(x, w) }
    <domain: "f", opset_import: ["" : 17]> block (a, k) => (b) { [conv] b = Conv(a, k) }"""
    model = ir.from_onnx_text(text)
    assert Tucker2().run(model, in_context()).skips == (Skip("conv", "inside the function block"),)
