"""Weights of 4 and 2 bits: packed in the file, and to the runtime the same int8 weights as ever."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp import modelio
from onnxcomp.contract import Override, PassReport
from onnxcomp.legality.checker import check_model
from onnxcomp.quantize.constants import dequantizer, read_weight, write_weight
from onnxcomp.quantize.narrowing import narrow_weights
from onnxcomp.runtime.fusion import fusion_proof
from onnxcomp.runtime.session import open_session, run

Builder = Callable[..., ir.Model]
Quantizer = Callable[..., tuple[ir.Model, PassReport]]

CHAIN = """g (float[N,8,8,8] x) => (float[N,8,6,6] y) {
  [first] a = Conv(x, u, b)  c = Relu(a)  [second] y = Conv(c, v) }"""
SHAPES = {"u": (8, 8, 1, 1), "v": (8, 8, 3, 3), "b": (8,)}
TYPES = {4: ir.DataType.INT4, 3: ir.DataType.INT4, 2: ir.DataType.INT2}


def stored(model: ir.Model, type_: ir.DataType) -> dict[str, NDArray[Any]]:
    found = {n: v.const_value for n, v in model.graph.initializers.items() if v.dtype == type_}
    return {n: tensor.numpy() for n, tensor in found.items() if tensor is not None}


def outputs(model: ir.Model, *, optimize: Any = "all") -> NDArray[Any]:
    x = np.random.default_rng(5).standard_normal((4, 8, 8, 8)).astype(np.float32)
    result: NDArray[Any] = run(open_session(model, optimize=optimize), {"x": x})[0]
    return result


def widened(model: ir.Model) -> ir.Model:
    """The same codes in int8, as one initializer, without Cast and signs."""
    copy = model.clone()
    for node in [n for n in copy.graph if n.op_type == "Conv"]:
        pair = dequantizer(node, 1)
        value = pair.inputs[0]
        chain: list[ir.Node] = []
        while value is not None and value.const_value is None:
            producer = value.producer()
            assert producer is not None
            chain.append(producer)
            value = producer.inputs[0]
        assert value is not None and value.const_value is not None
        codes = value.const_value.numpy().astype(np.int8)
        for factor in (step.inputs[1] for step in chain if step.op_type == "Mul"):
            assert factor is not None and factor.const_value is not None
            codes = codes * factor.const_value.numpy()
        wide = ir.Value(name=f"{value.name}.wide", const_value=ir.tensor(codes))
        copy.graph.register_initializer(wide)
        pair.replace_input_with(0, wide)
        copy.graph.remove(chain, safe=True)
    return copy


@pytest.mark.parametrize("rounding", ["nearest", "gram"])
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_codes_are_packed_and_the_runtime_sees_int8(
    bits: int, rounding: str, build: Builder, quantize: Quantizer, tmp_path: Path
) -> None:
    model = build(CHAIN, SHAPES)
    quantized, report = quantize(model, weight_bits=bits, rounding=rounding)
    assert len(stored(quantized, TYPES[bits])) == 2
    path = tmp_path / "m.onnx"
    modelio.save(quantized, path)
    per_byte = 4 if bits == 2 else 2
    packed = {t.name: len(t.raw_data) for t in onnx.load(path).graph.initializer if t.data_type == TYPES[bits].value}
    assert sorted(packed.values()) == [64 // per_byte, 576 // per_byte]
    assert not any(t.int32_data for t in onnx.load(path).graph.initializer)
    assert [fate.kernel for fate in fusion_proof(quantized)] == ["QLinearConv"] * 2
    assert {change.facts["weight.bits"] for change in report.changes} == {bits}
    wide = widened(quantized)
    np.testing.assert_array_equal(outputs(quantized), outputs(wide))
    np.testing.assert_array_equal(outputs(quantized, optimize="off"), outputs(wide, optimize="off"))


@pytest.mark.parametrize(
    ("target", "bits"), [(t, b) for t in ("ort-x86", "ort-arm") for b in (8, 4, 2)] + [("tensorrt", 8)]
)
def test_reported_bytes_are_those_of_the_file(target: str, bits: int, build: Builder, quantize: Quantizer) -> None:
    quantized, report = quantize(
        build(CHAIN, SHAPES), weight_bits=bits, target=target, reduce_range="off", bias_correction="off"
    )
    of = {"first": ("u", "a", "b"), "second": ("v",)}
    sites = tuple(name for change in report.changes for name in of[change.site])
    held = sum(
        value.const_value.nbytes
        for name, value in quantized.graph.initializers.items()
        if value.const_value is not None and name.startswith(sites) and not name.endswith(".zero_point")
    )
    told = sum(change.after.bytes for change in report.changes)
    assert held == told


@pytest.mark.parametrize("target", ["ort-x86", "ort-arm", "ort-mobile"])
@pytest.mark.parametrize("bits", [4, 2])
def test_nothing_is_illegal(bits: int, target: str, build: Builder, quantize: Quantizer) -> None:
    model = build(CHAIN.replace("N", "1"), SHAPES)
    quantized, _ = quantize(model, weight_bits=bits, target=target)
    assert [finding for finding in check_model(quantized, target) if finding.severity == "error"] == []


@pytest.mark.parametrize("bits", [5, 6, 7])
def test_five_to_seven_bits_lie_in_eight(bits: int, build: Builder, quantize: Quantizer) -> None:
    quantized, _ = quantize(build(CHAIN, SHAPES), weight_bits=bits)
    found = {n: a for n, a in stored(quantized, ir.DataType.INT8).items() if n.endswith(".quantized")}
    assert len(found) == 2
    assert {int(np.abs(codes).max()) for codes in found.values()} == {2 ** (bits - 1) - 1}
    assert quantized.opset_imports[""] == 17


def test_rows_that_reach_two_are_stored_with_their_signs_turned(build: Builder, quantize: Quantizer) -> None:
    quantized, _ = quantize(build(CHAIN, SHAPES), calibration="minmax")
    node = next(n for n in quantized.graph if n.name == "first")
    codes = np.random.default_rng(0).integers(-2, 2, (8, 8, 1, 1)).astype(np.int8)
    codes[:, 0] = -2
    codes[::2] *= -1  # -1 ... 2
    write_weight(node, codes, read_weight(node).scales)
    before = outputs(quantized)
    narrow_weights(quantized, [(node, 2)])
    onnx.checker.check_model(ir.to_proto(lifted(quantized)), full_check=True)
    [signs] = [array for name, array in stored(quantized, ir.DataType.INT8).items() if name.endswith(".signs")]
    assert signs.shape == (8, 1, 1, 1) and signs.reshape(-1).tolist() == [-1, 1] * 4
    np.testing.assert_array_equal(outputs(lifted(quantized)), before)
    assert next(f.kernel for f in fusion_proof(lifted(quantized)) if f.node == "first") == "QLinearConv"


def lifted(model: ir.Model) -> ir.Model:
    """The model with the opset of int2, which changes none of its operators."""
    model.opset_imports[""] = model.graph.opset_imports[""] = 25
    model.ir_version = 13
    return model


def test_rows_of_the_other_grid_need_no_signs(build: Builder, quantize: Quantizer) -> None:
    quantized, _ = quantize(build(CHAIN, SHAPES), weight_bits=4)
    assert not any(name.endswith(".signs") for name in quantized.graph.initializers)
    assert "Mul" not in {node.op_type for node in quantized.graph}


def test_a_shared_weight_is_stored_once(build: Builder, quantize: Quantizer) -> None:
    model = build(
        "g (float[N,8,8,8] x) => (float[N,8,8,8] y) { a = Conv(x, v)  c = Relu(a)  y = Conv(c, v) }",
        {"v": (8, 8, 1, 1)},
    )
    quantized, _ = quantize(model, weight_bits=4)
    assert len(stored(quantized, ir.DataType.INT4)) == 1
    assert [node.op_type for node in quantized.graph].count("Cast") == 1
    assert [fate.kernel for fate in fusion_proof(quantized)] == ["QLinearConv"] * 2


def test_single_layers_get_fewer_bits(build: Builder, quantize: Quantizer) -> None:
    given = (Override("second", {"weight_bits": 2}),)
    quantized, report = quantize(build(CHAIN, SHAPES), context={"overrides": given}, reduce_range="off")
    assert [change.facts["weight.bits"] for change in report.changes] == [8, 2]
    assert len(stored(quantized, ir.DataType.INT2)) == 1


@pytest.mark.parametrize(("bits", "opset", "ir_version"), [(4, 21, 10), (3, 21, 10), (2, 25, 13)])
def test_the_opset_is_raised_to_what_has_the_type(
    bits: int, opset: int, ir_version: int, build: Builder, quantize: Quantizer
) -> None:
    quantized, _ = quantize(build(CHAIN, SHAPES), weight_bits=bits)
    assert (quantized.opset_imports[""], quantized.ir_version) == (opset, ir_version)


def test_a_model_that_cannot_be_raised_keeps_eight_bits_and_says_so(
    build: Builder, quantize: Quantizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: ir.Model, opset: int) -> str:
        return "an operator has no newer form"

    monkeypatch.setattr("onnxcomp.quantize.storage.raise_opset", refuse)
    quantized, report = quantize(build(CHAIN, SHAPES), weight_bits=4)
    assert quantized.opset_imports[""] == 17
    assert not stored(quantized, ir.DataType.INT4)
    found = {n: a for n, a in stored(quantized, ir.DataType.INT8).items() if n.endswith(".quantized")}
    assert {int(np.abs(codes).max()) for codes in found.values()} == {7}
    assert "weights of fewer than 8 bits lie in 8: an operator has no newer form" in report.notes
