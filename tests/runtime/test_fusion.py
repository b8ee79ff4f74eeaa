"""The fusion proof on hand-written Q/DQ forms: what fuses, what does not, and the reason given."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxcomp.runtime.fusion import NodeFate, fusion_proof

HEAD = """<ir_version: 9, opset_import: ["": 17]>
g (float[1,8,6,6] x) => (float[A,B,C,D] y) <float s = {0.05}, uint8 u = {128}, uint8 z = {0}, int8 i = {0}> {"""
PAIR = "{0}q = QuantizeLinear({0}, s, {1}) {0}d = DequantizeLinear({0}q, s, {1})"
WEIGHT = "wd = DequantizeLinear<axis=0>(w, ws, wz)"


def fates(*lines: str, head: str = HEAD) -> dict[str, NodeFate]:
    proto = onnx.parser.parse_model(head + "\n".join(lines) + "}")
    rng = np.random.default_rng(0)
    constants: dict[str, NDArray[np.generic]] = {
        "w": rng.integers(-90, 90, (8, 8, 1, 1)).astype(np.int8),
        "ws": np.full(8, 0.01, np.float32),
        "wz": np.zeros(8, np.int8),
        "f": rng.standard_normal((8, 8, 1, 1)).astype(np.float32),
    }
    used = {name for name in constants if re.search(rf"\b{name}\b", " ".join(lines))}
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items() if k in used)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    before = ir.to_proto(model).SerializeToString()
    found = fusion_proof(model)
    assert ir.to_proto(model).SerializeToString() == before
    return {fate.node: fate for fate in found}


def pair(name: str, zero: str = "u") -> str:
    return PAIR.format(name, zero)


def test_a_complete_group_is_one_integer_kernel() -> None:
    conv = fates(pair("x"), WEIGHT, "[conv] a = Conv(xd, wd)", pair("a"), "y = Identity(ad)")["conv"]
    assert conv == NodeFate("conv", "Conv", "QLinearConv", True, "")


def test_a_convolution_without_q_on_its_output_stays_float() -> None:
    conv = fates(pair("x"), WEIGHT, "[conv] a = Conv(xd, wd)", "y = Tanh(a)")["conv"]
    assert not conv.integer
    assert conv.reason == "its output is read in float by Tanh"


def test_an_output_that_is_a_graph_output_stays_float() -> None:
    head = HEAD.replace("float[A,B,C,D] y", "float[A,B,C,D] y, float[E,F,G,H] a")
    conv = fates(pair("x"), WEIGHT, "[conv] a = Conv(xd, wd)", pair("a"), "y = Identity(ad)", head=head)["conv"]
    assert (conv.integer, conv.reason) == (False, "its output 'a' is a graph output")


@pytest.mark.parametrize(("zero", "fused"), [("z", True), ("u", False)])
def test_relu_vanishes_only_into_zero_point_0(zero: str, fused: bool) -> None:
    found = fates(pair("x"), WEIGHT, "[conv] a = Conv(xd, wd) r = Relu(a)", pair("r", zero), "y = Identity(rd)")
    assert found["conv"].integer is fused
    assert fused or "clips values" in found["conv"].reason


def test_int8_activations_with_several_readers_stay_float() -> None:
    lines = (pair("x", "i"), WEIGHT, "[one] a = Conv(xd, wd)", pair("a", "i"), "[two] b = Conv(xd, wd)", pair("b", "i"))
    found = fates(*lines, "y = Add(ad, bd)")
    assert not found["one"].integer
    assert "int8 and has several readers" in found["one"].reason


def test_float_models_name_the_float_kernel() -> None:
    found = fates("[conv] a = Conv(x, f) [relu] r = Relu(a) [up] y = ConvTranspose(r, f)")
    assert found["conv"].kernel in ("Conv (NCHWc)", "FusedConv")
    assert found["conv"].reason == "not quantized"
    assert found["up"].reason == "the runtime has no integer kernel for ConvTranspose"


def test_a_float_weight_and_a_computed_one() -> None:
    found = fates(pair("x"), "[plain] a = Conv(xd, f)", pair("a"), "t = Tanh(f) [made] y = Conv(ad, t)")
    assert found["plain"].reason == "the weight 'f' is not quantized" or found["plain"].integer
    assert found["made"].reason == "the weight 't' is not a constant"


def test_maxpool_needs_the_same_scale() -> None:
    head = HEAD.replace("float s = {0.05}", "float s = {0.05}, float t = {0.04}")
    pool = "[pool] p = MaxPool<kernel_shape=[2,2]>(xd)"
    same = fates(pair("x"), pool, pair("p"), "y = Identity(pd)")["pool"]
    assert same.integer
    other = fates(pair("x"), pool, pair("p").replace("s,", "t,"), "y = Identity(pd)", head=head)["pool"]
    assert (other.integer, other.reason) == (False, "MaxPool needs the same scale and zero point before and after")


def test_nodes_without_names_go_by_their_output() -> None:
    assert set(fates("a = Conv(x, f) y = Relu(a)")) == {"a"}


def test_bodies_are_looked_into() -> None:
    head = HEAD.replace("uint8 z = {0}", "uint8 z = {0}, bool flag = {1}").replace(
        "float[A,B,C,D] y", "float[1,8,6,6] y"
    )
    found = fates(
        "c = Identity(flag) t = ReduceMax<keepdims=0>(x) k = Less(t, s)",
        "y = If (k) < then_branch = t1 () => (float[1,8,6,6] p) { [inside] p = Conv(x, f) },"
        " else_branch = e1 () => (float[1,8,6,6] q) { q = Relu(x) } >",
        head=head,
    )
    assert found["inside"].kernel
    assert not found["inside"].integer


def test_models_without_anything_to_quantize_have_no_fates() -> None:
    assert fates("y = Relu(x)") == {}
