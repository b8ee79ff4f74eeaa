"""What int8 does for accuracy, and when it leaves a model as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxcomp import modelio
from onnxcomp.contract import PassReport
from onnxcomp.data import open_feeds, synthetic_feeds
from onnxcomp.quantize.constants import read_weight
from onnxcomp.quantize.trial import output_errors
from onnxcomp.quantize.weights import on_grid
from onnxcomp.runtime.fusion import fusion_proof

Builder = Callable[..., ir.Model]
Quantizer = Callable[..., tuple[ir.Model, PassReport]]

DEFAULT: dict[str, Any] = {"rounding": "auto", "inputs": "auto", "equalize": "auto"}
CHAIN = """g (float[N,8,8,8] x) => (float[N,8,8,8] y) {
  [first] a = Conv(x, u, b)  c = Relu(a)  [second] y = Conv(c, v) }"""
SHAPES = {"u": (8, 8, 1, 1), "v": (8, 8, 1, 1), "b": (8,)}


def replace(model: ir.Model, name: str, array: Any) -> None:
    model.graph.initializers[name].const_value = ir.tensor(np.asarray(array, np.float32), name=name)


def weight_of(model: ir.Model, name: str) -> Any:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy().copy()


def uneven(build: Builder) -> ir.Model:
    """Channels between the layers differ by up to 100 times, as equalization undoes."""
    model = build(CHAIN, SHAPES)
    factors = np.geomspace(0.1, 10, 8)
    replace(model, "u", weight_of(model, "u") * factors.reshape(8, 1, 1, 1))
    replace(model, "b", weight_of(model, "b") * factors)
    replace(model, "v", weight_of(model, "v") / factors.reshape(1, 8, 1, 1))
    return model


@pytest.mark.parametrize("rounding", ["nearest", "gram"])
def test_uneven_channels_are_equalized(rounding: str, build: Builder, quantize: Quantizer) -> None:
    model = uneven(build)
    x = np.random.default_rng(1).standard_normal((32, 8, 8, 8)).astype(np.float32)
    found = {rule: quantize(model, equalize=rule, rounding=rounding) for rule in ("off", "auto", "weights")}
    errors = output_errors(model, [quantized for quantized, _ in found.values()], open_feeds(x, model), limit=32)
    assert errors[1] < 0.5 * errors[0] and errors[2] < 0.5 * errors[0]
    assert any("channels" in note for note in found["auto"][1].notes)
    assert not any("equalize" in note for note in found["off"][1].notes)


def test_weights_on_a_grid_of_eight_bits_are_not_rescaled(build: Builder, quantize: Quantizer) -> None:
    """They were quantized once: their codes are kept, exactly."""
    model = uneven(build)
    codes = np.random.default_rng(0).integers(-127, 128, (2, 8, 8, 1, 1))
    codes[:, :, 0] = 127
    steps = np.geomspace(0.001, 0.1, 8).reshape(8, 1, 1, 1)
    for name, own in zip("uv", codes, strict=True):
        replace(model, name, own * steps)
        assert on_grid(weight_of(model, name))
    quantized, _ = quantize(model, equalize="auto")
    for name, own in zip(("first", "second"), codes, strict=True):
        stored = read_weight(next(node for node in quantized.graph if node.name == name))
        np.testing.assert_array_equal(stored.values, own)
        np.testing.assert_allclose(stored.scales, steps.reshape(-1), rtol=1e-6)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_nothing_changes_where_nothing_is_quantized(bits: int, build: Builder, quantize: Quantizer) -> None:
    model = uneven(build)
    before = modelio.to_bytes(model)
    quantized, report = quantize(model, weight_bits=bits, context={"exclude": ("*",)}, **DEFAULT)
    assert modelio.to_bytes(quantized) == before
    assert report.notes == ("nothing to quantize",) and not report.changes
    assert {skip.site for skip in report.skips} == {"first", "second"}


def test_layers_left_alone_keep_their_weights(build: Builder, quantize: Quantizer) -> None:
    model = uneven(build)
    quantized, _ = quantize(model, context={"exclude": ("first",)}, **DEFAULT)
    np.testing.assert_array_equal(weight_of(quantized, "u"), weight_of(model, "u"))
    np.testing.assert_array_equal(weight_of(quantized, "b"), weight_of(model, "b"))


def test_made_up_data_leave_channels_and_weights_alone(build: Builder, quantize: Quantizer) -> None:
    model = uneven(build)
    made_up: dict[str, Any] = {"data": None, "stand_in": synthetic_feeds(model, 0, 8)}
    plain, _ = quantize(model, context=made_up)
    default, _ = quantize(model, context=made_up, **DEFAULT)
    assert modelio.to_bytes(plain) == modelio.to_bytes(default)


@pytest.mark.parametrize("target", ["ort-x86", "ort-arm", "ort-mobile"])
def test_everything_together_fuses_and_is_no_worse(target: str, build: Builder, quantize: Quantizer) -> None:
    model = uneven(build)
    x = np.random.default_rng(1).standard_normal((32, 8, 8, 8)).astype(np.float32)
    plain, _ = quantize(model, target=target)
    default, _ = quantize(model, target=target, **DEFAULT)
    assert [f.kernel for f in fusion_proof(default, int8_kernels=target != "ort-x86")] == ["QLinearConv"] * 2
    before, after = output_errors(model, [plain, default], open_feeds(x, model), limit=32)
    assert after < before


def test_what_was_asked_for_and_takes_data_is_told_without_them(build: Builder, quantize: Quantizer) -> None:
    model = build(CHAIN, SHAPES)
    _, report = quantize(model, equalize="activations", context={"data": None, "stand_in": synthetic_feeds(model, 0)})
    assert any(note.startswith("channels stay as they are") for note in report.notes)
