"""What costs speed on TensorRT: one placement that does, one that does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxcomp.legality.finding import Finding

Found = Callable[..., dict[str, Finding]]

RESIDUAL = """
g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y) {
  xq = QuantizeLinear(x, s, z)
  xd = DequantizeLinear(xq, s, z)
  wd = DequantizeLinear<axis = 0>(w, ws, wz)
  [conv] c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(xd, wd)
  cq = QuantizeLinear(c, os, z)
  cd = DequantizeLinear(cq, os, z)
  [add] a = Add(LEFT, RIGHT)
  aq = QuantizeLinear(a, s, z)
  ad = DequantizeLinear(aq, s, z)
  [second] t = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(ad, wd)
  [tail] y = Conv(t, k)
}
"""


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [("cd", "xd", "both operands"), ("c", "x", "neither operand"), ("c", "xd", "")],
)
def test_residual_additions(groups: Any, found: Found, left: str, right: str, words: str) -> None:
    text = RESIDUAL.replace("LEFT", left).replace("RIGHT", right)
    if left == "c":
        text = "\n".join(line for line in text.splitlines() if not line.startswith(("  cq", "  cd")))
    finding = found(groups.of(text, signed=True), "tensorrt").get("trt-residual")
    assert (finding is None) == (words == "")
    if finding is not None:
        assert (finding.severity, finding.node) == ("warning", "add")
        assert words in finding.message


def concat(groups: Any, scale: str) -> Any:
    text = f"""
    g (float[1, 16, 8, 8] x, float[1, 16, 8, 8] u) => (float[1, 16, 8, 8] y) {{
      xq = QuantizeLinear(x, s, z)
      xd = DequantizeLinear(xq, s, z)
      uq = QuantizeLinear(u, {scale}, z)
      ud = DequantizeLinear(uq, {scale}, z)
      [join] c = Concat<axis = 1>(xd, ud)
      y = Conv(c, k)
    }}
    """
    return groups.of(text, signed=True, k=np.zeros((16, 32, 1, 1), np.float32))


def test_a_concat_of_different_scales(groups: Any, found: Found) -> None:
    finding = found(concat(groups, "os"), "tensorrt")["trt-concat"]
    assert (finding.severity, finding.node) == ("warning", "join")
    assert "trt-concat" not in found(concat(groups, "s"), "tensorrt")


def test_a_pair_before_the_activation(groups: Any, found: Found) -> None:
    between = (
        ("r = Relu(c)", "r = Relu(cd)"),
        ("[relu]", "cq = QuantizeLinear(c, os, z)\n  [pair] cd = DequantizeLinear(cq, os, z)\n  [relu]"),
    )
    findings = found(groups(*between, runtime="tensorrt", signed=True), "tensorrt")
    assert findings["trt-before-activation"].node == "relu"
    assert findings["trt-idle-pair"].node == "pair"
    assert "Relu" in findings["trt-idle-pair"].message


def test_a_pair_that_an_output_reads(groups: Any, found: Found) -> None:
    text = "g (float[4] x) => (float[4] y) { q = QuantizeLinear(x, s, z)\n [pair] y = DequantizeLinear(q, s, z) }"
    assert "output of the network" in found(groups.of(text, signed=True), "tensorrt")["trt-idle-pair"].message


@pytest.mark.parametrize(
    ("swap", "words"),
    [(("(xd, wd, b)", "(x, wd, b)"), "input is not"), (("(xd, wd, b)", "(xd, f, b)"), "weight is not")],
)
def test_half_quantized(groups: Any, found: Found, swap: tuple[str, str], words: str) -> None:
    model = groups(swap, runtime="tensorrt", signed=True, f=np.zeros((16, 16, 3, 3), np.float32))
    finding = found(model, "tensorrt")["trt-half-quantized"]
    assert (finding.severity, finding.node) == ("warning", "conv")
    assert words in finding.message


def test_layers_that_gain_nothing(groups: Any, found: Found) -> None:
    text = RESIDUAL.replace("LEFT", "c").replace("RIGHT", "xd").replace("ad, wd)", "ad, nd)")
    text = "\n".join(line for line in text.splitlines() if not line.startswith(("  cq", "  cd")))
    text = text.replace("[second]", "nd = DequantizeLinear<axis = 0>(n, ns)\n  [second]")
    text = text.replace("[3, 3], pads = [1, 1, 1, 1]>(ad", "[1, 3], pads = [0, 1, 0, 1]>(ad")
    arrays = {
        "n": np.ones((4, 16, 1, 3), np.int8),
        "ns": np.ones(4, np.float32),
        "k": np.zeros((16, 4, 1, 1), np.float32),
    }
    finding = found(groups.of(text, signed=True, **arrays), "tensorrt")["trt-unprofitable"]
    assert (finding.severity, finding.node) == ("warning", "second")
    assert "too few channels" in finding.message


@pytest.mark.parametrize("stored", ["n", "nq"])
def test_products_with_a_short_side(groups: Any, found: Found, stored: str) -> None:
    text = f"""
    g (float[32, 16] x) => (float[32, 1] y) {{
      xq = QuantizeLinear(x, s, z)
      xd = DequantizeLinear(xq, s, z)
      r = Relu(xd)
      rq = QuantizeLinear(r, s, z)
      rd = DequantizeLinear(rq, s, z)
      nq = QuantizeLinear(m, s, z)
      nd = DequantizeLinear({stored}, s, z)
      [narrow] l = MatMul(rd, nd)
      t = Sin(l)
      y = MatMul(t, o)
    }}
    """
    arrays = {"n": np.ones((16, 8), np.int8), "m": np.ones((16, 8), np.float32), "o": np.ones((8, 1), np.float32)}
    finding = found(groups.of(text, signed=True, **arrays), "tensorrt")["trt-unprofitable"]
    assert finding.node == "narrow"
    assert "16 x 8" in finding.message


def test_the_layer_that_makes_the_output(groups: Any, found: Found) -> None:
    text = (
        RESIDUAL.replace("LEFT", "c")
        .replace("RIGHT", "xd")
        .replace("  [tail] y = Conv(t, k)\n", "")
        .replace("t = Conv", "y = Conv")
    )
    text = "\n".join(line for line in text.splitlines() if not line.startswith(("  cq", "  cd")))
    assert "output of the network" in found(groups.of(text, signed=True), "tensorrt")["trt-unprofitable"].message


def test_free_dimensions(groups: Any, found: Found) -> None:
    text = "g (float[N, 16, 8, 8] x) => (float[N, 16, 8, 8] y) { y = Conv(x, k) }"
    finding = found(groups.of(text), "tensorrt")["trt-shape"]
    assert (finding.severity, finding.node) == ("warning", "x")
    assert "--minShapes" in finding.remedy
    assert found(groups.of(text.replace("N,", "1,")), "tensorrt") == {}


def test_float64(groups: Any, found: Found) -> None:
    text = "g (float[4] x) => (float[4] y) { [wide] t = Cast<to = 11>(x)\n y = Cast<to = 1>(t) }"
    finding = found(groups.of(text), "tensorrt")["trt-float64"]
    assert (finding.severity, finding.node) == ("warning", "wide")
