"""int8 behind weights that an earlier pass stored in codes: the file keeps them, the runtime computes on int8."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import onnxcomp
from onnxcomp import modelio
from onnxcomp.api import Result
from onnxcomp.contract import Override
from onnxcomp.cost import model_cost
from onnxcomp.graph.decoding import decoded_bytes, is_decoded
from onnxcomp.graph.edit import origin_of
from onnxcomp.legality.checker import check_model
from onnxcomp.quantize.constants import dequantizer
from onnxcomp.quantize.retarget import retarget
from onnxcomp.quantize.stored import evaluate_decoded, quantize_stored
from onnxcomp.runtime.fusion import fusion_proof
from onnxcomp.runtime.session import open_session, run

Parsed = Callable[..., ir.Model]

NET = """g (float[N,16,8,8] x) => (float[N,8,6,6] y) {
    [first] a = Conv<pads=[1,1,1,1]>(x, w, b) ra = Relu(a)
    [depth] d = Conv<group=64, pads=[1,1,1,1]>(ra, u) rd = Relu(d)
    [second] c = Conv<pads=[1,1,1,1]>(rd, v, c0) rc = Relu(c)
    [last] y = Conv(rc, m) }"""
PRODUCT = """g (float[N,64] x) => (float[N,256] y) { [up] a = Gemm<transB=1>(x, w, b) r = Relu(a)
    [down] y = Gemm(r, v) }"""
SHAPES = {"w": (64, 16, 3, 3), "b": (64,), "u": (64, 1, 3, 3), "v": (64, 64, 3, 3), "c0": (64,), "m": (8, 64, 3, 3)}


def arrays(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return {n: (rng.standard_normal(s) / np.sqrt(np.prod(s[1:]))).astype(np.float32) for n, s in shapes.items()}


@pytest.fixture
def net(parsed: Parsed) -> ir.Model:
    return parsed(NET, **arrays(SHAPES))


@pytest.fixture
def product(parsed: Parsed) -> ir.Model:
    return parsed(PRODUCT, **arrays({"w": (256, 64), "b": (256,), "v": (256, 256)}))


def samples(model: ir.Model, count: int = 32) -> dict[str, NDArray[np.float32]]:
    shape = [d for d in model.graph.inputs[0].shape or () if isinstance(d, int)]
    return {"x": np.random.default_rng(1).standard_normal((count, *shape)).astype(np.float32)}


def compressed(model: ir.Model, passes: str, **options: Any) -> Result:
    given: dict[str, Any] = {"objective": "macs", "data": samples(model)}
    return onnxcomp.optimize(model, passes, **(given | options))


def outputs(model: ir.Model) -> NDArray[np.float32]:
    return run(open_session(model), samples(model, 8))[0]


def weights(model: ir.Model) -> dict[str, NDArray[np.float32]]:
    """The decoded weight of every layer, whatever stands between it and the layer."""
    found: dict[str, ir.Value] = {}
    for node in model.graph:
        if node.op_type in ("Conv", "Gemm"):
            value = node.inputs[1]
            while value is not None and (p := value.producer()) and p.op_type in ("DequantizeLinear", "QuantizeLinear"):
                value = p.inputs[0]
            assert value is not None
            if is_decoded(value):
                found[origin_of(node)] = value
    return dict(zip(found, evaluate_decoded(model, list(found.values())), strict=True))


@pytest.mark.parametrize(
    "passes", ["int4(first_last=quantize, rounding=nearest)", "pow2(first_last=quantize, rounding=nearest)"]
)
def test_the_file_stays_small_and_the_arithmetic_is_int8(passes: str, net: ir.Model, tmp_path: Path) -> None:
    alone, both = compressed(net, passes), compressed(net, f"{passes},int8")
    assert [fate.kernel for fate in fusion_proof(both.model) if fate.op_type == "Conv"] == ["QLinearConv"] * 4
    codes = sum(array.size for name, array in arrays(SHAPES).items() if name not in ("b", "c0")) / 2
    held = model_cost(both.model).bytes
    assert codes < held < codes + 4 * 64 * 12  # no weight of 8 bits anywhere
    assert both.report.after.cost.macs == both.report.before.cost.macs is not None
    before, after = weights(alone.model), weights(both.model)
    assert all(np.array_equal(before[name], after[name]) for name in before) and len(before) == 4
    # As int8 on the float weights that the codes stand for.
    reference = outputs(alone.model)
    assert np.square(outputs(both.model) - reference).sum() < 1e-3 * np.square(reference).sum()
    both.save(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_size == both.report.after.bytes
    told = {change.site: change.after.bytes for change in both.report.steps[1].report.changes}
    assert told["second"] < told["first"] * 4 and told["second"] < 64 * 64 * 9 / 2 + 64 * 17


def test_products_join_in(product: ir.Model) -> None:
    both = compressed(product, "pow2(first_last=quantize, rounding=nearest),int8")
    assert [f.kernel for f in fusion_proof(both.model) if f.op_type == "Gemm"] == ["QGemm"] * 2


@pytest.mark.parametrize("bits", [8, 7])
def test_codes_are_those_of_the_runtime(bits: int) -> None:
    rng = np.random.default_rng(2)
    steps = rng.uniform(0.01, 0.1, (6, 1))
    on_grid = (rng.integers(-60, 61, (6, 40)) * steps).astype(np.float32)
    held = quantize_stored(on_grid, 0, bits)
    np.testing.assert_allclose(held.restored(), on_grid, rtol=2e-6)
    free = quantize_stored(rng.standard_normal((6, 40)).astype(np.float32), 0, bits)
    assert np.abs(free.values.astype(int)).max() <= 2 ** (bits - 1) - (bits == 7)


def test_zeros_stay_zero(net: ir.Model) -> None:
    net.graph.initializers["v"].const_value = ir.tensor(
        np.where(np.arange(36864).reshape(64, 64, 3, 3) % 3, 0.0, 0.1).astype(np.float32), name="v"
    )
    both = compressed(net, "int4(rounding=nearest),int8")
    second = next(n for n in both.model.graph if n.op_type == "Conv" and origin_of(n) == "second")
    pair = dequantizer(second, 1)
    scale = pair.inputs[1]
    assert scale is not None and scale.const_value is not None
    codes = np.round(weights(both.model)["second"] / scale.const_value.numpy().reshape(-1, 1, 1, 1))
    np.testing.assert_array_equal(codes == 0, np.arange(36864).reshape(64, 64, 3, 3) % 3 > 0)


def test_replay_gives_the_same_bytes(net: ir.Model) -> None:
    first = compressed(net, "pow2(rounding=nearest),int8")
    again = compressed(net, "pow2(rounding=nearest),int8", replay=first.report.choices)
    assert modelio.to_bytes(again.model) == modelio.to_bytes(first.model)


def test_a_layer_left_alone_decodes_to_float(net: ir.Model) -> None:
    both = compressed(net, "pow2(rounding=nearest),int8", overrides=[[], [Override("second", None)]])
    second = next(n for n in both.model.graph if n.name and n.name.startswith("second") and n.op_type == "Conv")
    assert is_decoded(second.inputs[1]) and second.inputs[1] is not None
    producer = second.inputs[1].producer()
    assert producer is not None and producer.op_type == "Mul"
    assert not [name for name in both.model.graph.initializers if name.endswith(".decoded")]


@pytest.mark.parametrize("target", ["ort-x86", "ort-mobile", "tensorrt"])
def test_retargeting_keeps_the_numbers(target: str, net: ir.Model) -> None:
    source = compressed(net, "int4(rounding=nearest),int8", target="ort-arm")
    assert not [f for f in check_model(source.model, "ort-arm") if f.severity == "error"]
    moved = retarget(source.model, target).model
    assert not [f for f in check_model(moved, target) if f.severity == "error"]
    a, b = outputs(source.model), outputs(moved)
    assert np.square(a - b).sum() < 1e-3 * np.square(a).sum()
    decoded = [n for n in moved.graph if n.op_type == "QuantizeLinear" and is_decoded(n.inputs[0])]
    assert bool(decoded) == (target == "ort-x86")


def test_what_a_decoded_value_takes(net: ir.Model) -> None:
    alone = compressed(net, "int4(rounding=nearest)")
    second = next(n for n in alone.model.graph if origin_of(n) == "second" and n.op_type == "Conv")
    value = second.inputs[1]
    assert value is not None and decoded_bytes(value) == 64 * 64 * 9 // 2 + 4 * 64
    assert not is_decoded(second.inputs[0]) and not is_decoded(None) and not is_decoded(second.inputs[2])
