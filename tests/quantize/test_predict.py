"""Predicted errors against measured ones: of a site's own output, and under a budget of the model's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import onnxcomp
from onnxcomp.contract import PassReport
from onnxcomp.data import Feeds, open_feeds
from onnxcomp.quantize.trial import output_errors

Builder = Callable[..., ir.Model]
Quantizer = Callable[..., tuple[ir.Model, PassReport]]

MODELS = Path(__file__).parents[2] / "models"

ONE = "g (float[N,8,8,8] x) => (float[N,8,B,C] y) {{ [site] {} }}"
CHAIN = """g (float[N,8,8,8] x) => (float[N,8,8,8] y) {
    [first] a = Conv(x, u)  b = Relu(a)  [second] c = Conv(b, v)  [sum] d = Add(c, b)
    [pool] e = MaxPool<kernel_shape=[1,1]>(d)  [third] y = Conv(e, w) }"""


def errors(report: PassReport) -> dict[str, float]:
    found = {change.site: change.error for change in report.changes}
    return {site: error for site, error in found.items() if error is not None}


def calibrated_on(*shape: int, model: ir.Model) -> Feeds:
    """The samples that the fixture calibrates on."""
    return open_feeds(np.random.default_rng(1).standard_normal((32, *shape)).astype(np.float32), model)


@pytest.mark.parametrize("body", ["y = Conv(x, w)", "a = Conv(x, w) y = Relu(a)", "y = Conv(x, w, b)"])
@pytest.mark.parametrize("bits", ["on", "off"])
def test_the_error_of_one_layer_is_predicted(body: str, bits: str, build: Builder, quantize: Quantizer) -> None:
    model = build(ONE.format(body), {"w": (8, 8, 3, 3), "b": (8,)} if "b)" in body else {"w": (8, 8, 3, 3)})
    quantized, report = quantize(model, reduce_range=bits)
    measured = output_errors(model, [quantized], calibrated_on(8, 8, 8, model=model), limit=32)[0]
    assert errors(report)["site"] == pytest.approx(measured, rel=0.1)


def test_the_error_of_a_product_that_ends_in_float_is_predicted(build: Builder, quantize: Quantizer) -> None:
    model = build("g (float[N,256] x) => (float[N,128] y) { [site] y = Gemm(x, w) }", {"w": (256, 128)})
    quantized, report = quantize(model)
    measured = output_errors(model, [quantized], calibrated_on(256, model=model), limit=32)[0]
    assert errors(report)["site"] == pytest.approx(measured, rel=0.1)


def test_every_change_has_a_prediction(build: Builder, quantize: Quantizer) -> None:
    shapes = dict.fromkeys("uvw", (8, 8, 1, 1))
    _, report = quantize(build(CHAIN, shapes))
    found = errors(report)
    assert set(found) == {"first", "second", "sum", "pool", "third"}
    assert found["pool"] == 0.0  # it only moves values
    assert all(0 < found[site] < 1e-2 for site in ("first", "second", "sum", "third"))


def test_an_outlier_in_a_weight_makes_its_site_the_worst(build: Builder, quantize: Quantizer) -> None:
    model = build(CHAIN, dict.fromkeys("uvw", (8, 8, 1, 1)))
    weight = model.graph.initializers["v"]
    assert weight.const_value is not None
    values = weight.const_value.numpy().copy()
    values[:, 0] = 100  # for an input channel that is dead
    weight.const_value = ir.tensor(values, name="v")
    first = model.graph.initializers["u"]
    assert first.const_value is not None
    dead = first.const_value.numpy().copy()
    dead[0] = 0
    first.const_value = ir.tensor(dead, name="u")
    _, report = quantize(model, weights="minmax")
    found = errors(report)
    assert max(found, key=lambda site: found[site]) == "second"


def test_under_a_budget_the_outputs_decide(build: Builder, quantize: Quantizer) -> None:
    model = build(CHAIN, dict.fromkeys("uvw", (8, 8, 1, 1)))
    _, report = quantize(model, context={"budgeted": True}, calibration="minmax")
    found = errors(report)
    assert found["sum"] == found["pool"] == 0.0  # alone they are not integer
    others = frozenset({"first", "second", "sum", "pool"})
    alone, _ = quantize(model, context={"given_back": others}, calibration="minmax")
    feeds = calibrated_on(8, 8, 8, model=model)
    assert found["third"] == pytest.approx(output_errors(model, [alone], feeds, limit=32)[0], rel=0.2)


def test_few_sites_of_a_real_network_are_given_back() -> None:
    model, data = MODELS / "digits_resnet.onnx", MODELS / "digits_calibration.npz"
    plain = onnxcomp.optimize(model, "int8(sensitivity=on)", data=data, objective="macs").report
    assert plain.after.quality is not None
    limit = min(plain.after.quality.sqnr.values()) + 0.5
    report = onnxcomp.optimize(model, "int8", data=data, min_sqnr=limit, objective="macs").report
    back = {skip.site for skip in report.steps[0].report.skips if "given back" in skip.reason}
    ranked = [own.site for own in plain.steps[0].report.sensitivity]
    assert not report.failures and 1 <= len(back) <= 2 and back == set(ranked[: len(back)])
