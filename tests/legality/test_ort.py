"""The rules of ONNX Runtime's CPU provider: each is broken, and what it says is seen in the runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxcomp.errors import ModelError
from onnxcomp.legality.checker import check_model
from onnxcomp.legality.finding import Finding
from onnxcomp.runtime.fusion import fusion_proof
from onnxcomp.runtime.session import open_session
from onnxcomp.targets.target import load_target

Found = Callable[..., dict[str, Finding]]
X86 = load_target("ort-x86")
SIMPLE = "g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y) { y = Conv(x, k) }"
on_x86 = pytest.mark.skipif(not X86.host, reason="which groups fuse is asked of the runtime on x86-64")


def conv_is_integer(model: ir.Model) -> bool:
    return next(fate.integer for fate in fusion_proof(model) if fate.node == "conv")


@pytest.mark.parametrize("target", ["ort-x86", "ort-arm", "ort-mobile"])
def test_what_is_well_quantized_breaks_nothing(groups: Any, target: str) -> None:
    model = groups(signed=target != "ort-x86")
    assert check_model(model, target) == ()


@on_x86
def test_what_is_well_quantized_fuses(groups: Any) -> None:
    assert conv_is_integer(groups())


def test_a_newer_opset(groups: Any, found: Found) -> None:
    model = groups.of(SIMPLE, opset=26)
    assert found(model) == {}
    open_session(model)
    model.graph.opset_imports[""] = 27
    finding = found(model)["ort-opset"]
    assert (finding.severity, finding.node) == ("error", "")
    assert "opset 27" in finding.message
    assert "26" in finding.remedy
    with pytest.raises(ModelError):
        open_session(model)


def test_a_newer_ir_version(groups: Any, found: Found) -> None:
    model = groups.of(SIMPLE)
    model.ir_version = 13
    assert found(model) == {}
    open_session(model)
    model.ir_version = 14
    assert found(model)["ort-ir-version"].severity == "error"
    with pytest.raises(ModelError):
        open_session(model)


@pytest.mark.parametrize("target", ["ort-x86", "ort-arm", "ort-mobile", "coreml"])
def test_an_operator_without_a_kernel(groups: Any, found: Found, target: str) -> None:
    model = groups.of("g (int16[4] x) => (int16[4] y) { y = Relu(x) }")
    finding = found(model, target)["ort-load"]
    assert finding.severity == "error"
    assert "Relu" in finding.message
    assert "ort-load" not in found(groups.of("g (float[4] x) => (float[4] y) { y = Relu(x) }"), target)


def test_a_reason_that_says_more_stands_alone(groups: Any, found: Found) -> None:
    model = groups.of(SIMPLE)
    model.graph.opset_imports[""] = 27
    assert set(found(model)) == {"ort-opset"}


UNTYPED = (
    ("QuantizeLinear(c, os, z)", "QuantizeLinear<output_dtype = 3>(c, os)"),
    ("DequantizeLinear(cq, os, z)", "DequantizeLinear(cq, os)"),
)


def test_a_pair_of_int8_without_zero_point(groups: Any) -> None:
    model = groups(*UNTYPED, signed=True, opset=21)
    for target in ("ort-x86", "ort-arm"):
        places = {f.node for f in check_model(model, target) if f.rule == "ort-zero-point"}
        assert places == {"requantize", "end"}
    assert not X86.host or not conv_is_integer(model)


def test_uint8_needs_no_zero_point_at_a_convolution(groups: Any, found: Found) -> None:
    model = groups(("(c, os, z)", "(c, os)"), ("(cq, os, z)", "(cq, os)"))
    assert found(model) == {}
    assert not X86.host or conv_is_integer(model)


POOL = """
g (float[1, 16, 8, 8] x) => (float[1, 16, 6, 6] y) {
  xq = QuantizeLinear(x, s)
  [before] xd = DequantizeLinear(xq, s)
  [pool] p = MaxPool<kernel_shape = [3, 3]>(xd)
  [after] pq = QuantizeLinear(p, s)
  y = DequantizeLinear(pq, s)
}
"""


def test_what_only_moves_values_needs_zero_points(groups: Any, found: Found) -> None:
    model = groups.of(POOL)
    places = {f.node for f in check_model(model, X86) if f.rule == "ort-zero-point"}
    assert places == {"before", "after"}
    assert found(groups.of(POOL.replace(", s)", ", s, z)"))) == {}


def biased(groups: Any, factor: float = 1.0, zero: int = 0, kind: Any = np.int32) -> ir.Model:
    arrays = groups.arrays(False)
    scales = (arrays["s"] * arrays["ws"] * factor).astype(np.float32)
    quantized = ("[conv]", "bd = DequantizeLinear<axis = 0>(b, bs, bz)\n  [conv]")
    model: ir.Model = groups(
        ("wd, b)", "wd, bd)"), quantized, b=np.arange(16, dtype=kind), bs=scales, bz=np.full(16, zero, kind)
    )
    return model


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"factor": 2.0}, "scale input x weight"), ({"zero": 3}, "zero point"), ({"kind": np.int8}, "stored as int8")],
)
def test_a_bias_of_another_form(groups: Any, found: Found, changes: dict[str, Any], words: str) -> None:
    model = biased(groups, **changes)
    finding = found(model)["ort-bias"]
    assert (finding.severity, finding.node) == ("warning", "conv")
    assert words in finding.message
    assert not X86.host or not conv_is_integer(model)


def test_a_bias_as_it_should_be(groups: Any, found: Found) -> None:
    model = biased(groups)
    assert found(model) == {}
    assert not X86.host or conv_is_integer(model)


@pytest.mark.parametrize("axis", [1, -3])
def test_scales_along_another_axis(groups: Any, found: Found, axis: int) -> None:
    model = groups(("axis = 0", f"axis = {axis}"))
    finding = found(model)["ort-weight-axis"]
    assert (finding.severity, finding.node) == ("warning", "conv")
    assert "along axis 1" in finding.message
    assert not X86.host or not conv_is_integer(model)


def test_an_axis_that_is_counted_from_the_end(groups: Any, found: Found) -> None:
    assert found(groups(("axis = 0", "axis = -4"))) == {}


WEIGHT_ONLY = """
g (float[1, 16, 8, 8] x) => (float[1, 16, 6, 6] y) {
  wd = DequantizeLinear<axis = 0>(w, ws, wz)
  [conv] y = Conv<kernel_shape = [3, 3]>(x, wd)
}
"""


def test_a_convolution_whose_weight_alone_is_quantized(groups: Any, found: Found, tmp_path: Any) -> None:
    model = groups.of(WEIGHT_ONLY)
    finding = found(model)["ort-weight-only-conv"]
    assert (finding.severity, finding.node) == ("warning", "conv")
    open_session(model, dump=tmp_path / "dump.onnx")
    assert "DequantizeLinear" in {node.op_type for node in ir.load(tmp_path / "dump.onnx").graph}


HARD_SWISH = ("[requantize] cq = QuantizeLinear(c", "h = HardSwish(c)\n  [requantize] cq = QuantizeLinear(h")


@on_x86
def test_a_group_that_does_not_fuse(groups: Any, found: Found) -> None:
    finding = found(groups(HARD_SWISH))["ort-unfused"]
    assert (finding.severity, finding.node) == ("warning", "conv")
    assert "HardSwish" in finding.message


@on_x86
def test_sixteen_bits_have_no_kernel(groups: Any, found: Found) -> None:
    finding = found(groups(z=np.array(100, np.uint16), opset=21))["ort-unfused"]
    assert "its activations are uint16, and integer kernels have 8 bits" in finding.message


@on_x86
def test_int8_that_branches_fuses_on_arm_alone(groups: Any, found: Found) -> None:
    twice = ("[end]", "[second] c2 = Conv(xd, k)\n  [end]"), ("8] y)", "8] y, float[1, 16, 8, 8] c2)")
    model = groups(*twice, signed=True)
    assert found(model, "ort-x86")["ort-unfused"].node == "conv"
    assert "ort-unfused" not in found(model, "ort-arm")


def test_a_float_layer_behind_integers_is_no_group(groups: Any, found: Found) -> None:
    tail = "[end] d = DequantizeLinear(cq, os, z)\n  [head] y = Sigmoid(d)"
    assert found(groups(("[end] y = DequantizeLinear(cq, os, z)", tail))) == {}


def test_what_the_standard_deprecates(groups: Any, found: Found) -> None:
    text = "g (float[1, 2, 4, 4] x) => (float[1, 2, 8, 8] y) { [up] y = Upsample(x, f) }"
    model = groups.of(text, opset=9, f=np.array([1, 1, 2, 2], np.float32))
    assert found(model) == {}
    model.graph.opset_imports[""] = 10
    finding = found(model)["ort-deprecated"]
    assert (finding.severity, finding.node) == ("warning", "up")


def test_an_unsigned_weight_on_x86(groups: Any, found: Found) -> None:
    model = groups(w=np.ones((16, 16, 3, 3), np.uint8), wz=np.full(16, 128, np.uint8))
    assert found(model)["x86-uint8-weight"].severity == "warning"
    assert "x86-uint8-weight" not in found(groups())
    assert "x86-uint8-weight" not in found(model, "ort-arm")


def test_unsigned_activations_on_arm(groups: Any, found: Found) -> None:
    assert found(groups(), "ort-arm")["arm-uint8-activation"].node == "conv"
    assert found(groups(signed=True), "ort-arm") == {}


OPERATOR = """
g (float[1, 16, 8, 8] x) => (float[1, 16, 6, 6] y) {
  xq = QuantizeLinear(x, s, z)
  [conv] cq = QLinearConv(xq, s, z, w, ws, wz, os, z)
  y = DequantizeLinear(cq, os, z)
}
"""


def test_int8_activations_of_a_quantized_operator_on_x86(groups: Any, found: Found) -> None:
    signed = groups.of(OPERATOR, signed=True)
    assert found(signed)["x86-int8-operator"].severity == "warning"
    assert found(signed, "ort-arm") == {}
    assert found(groups.of(OPERATOR)) == {}
