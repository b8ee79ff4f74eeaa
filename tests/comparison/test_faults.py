"""A fault is found where it is, whatever lies behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxcomp.compare import compare_models
from onnxcomp.comparison.sums import ratio_to_decibels
from onnxcomp.data import Feeds, open_feeds
from onnxcomp.runtime.activations import expose
from onnxcomp.runtime.session import open_session, run

LAYERS = {
    "stem": "s",
    "left": "l",
    "right": "r",
    "deep": "d",
    "thin": "t",
    "side": "e",
    "gate": "q",
    "last": "z",
    "head": "h",
}


def array(model: ir.Model, name: str) -> Any:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


@pytest.mark.parametrize("layer", LAYERS)
def test_one_layer_is_at_fault(net: ir.Model, changed: Any, feeds: Feeds, layer: str) -> None:
    weight, bias = f"w{LAYERS[layer]}", f"b{LAYERS[layer]}"
    scaled = array(net, weight).copy()
    scaled[3] *= 1.3
    for fault in ({weight: scaled}, {bias: np.zeros_like(array(net, bias))}):
        found = compare_models(net, changed(net, **fault), feeds, samples=8)
        assert [entry.layer for entry in found.ranked] == [layer]
        assert found.fault is not None
        assert found.fault.share == pytest.approx(1)
        assert found.fault.rewrites == ("weights changed",)


@pytest.mark.parametrize("layer", LAYERS)
def test_it_stands_out_of_the_noise_of_all_others(net: ir.Model, changed: Any, feeds: Feeds, layer: str) -> None:
    rng = np.random.default_rng(1)
    noisy = {f"w{own}": blurred(array(net, f"w{own}"), rng) for own in LAYERS.values()}
    scaled = noisy[f"w{LAYERS[layer]}"]
    scaled[:8] *= 1.3
    for attribute in (None, 0):
        found = compare_models(net, changed(net, **noisy), feeds, attribute=attribute)
        assert found.fault is not None
        assert found.fault.layer == layer
        assert len(found.ranked) == len(LAYERS)
        assert sum(entry.share for entry in found.layers) == pytest.approx(1)


def blurred(weight: Any, rng: np.random.Generator) -> Any:
    return weight * rng.normal(1, 0.003, weight.shape)


def test_what_a_layer_adds_is_its_own(net: ir.Model, changed: Any, feeds: Feeds, images: Any) -> None:
    other = changed(net, ws=array(net, "ws") * 1.1, wr=array(net, "wr") * 0.9)
    found = {entry.tensor: entry for entry in compare_models(net, other, feeds).layers}
    tensors = ["s1", "l1", "r"]
    base, late = (
        dict(zip(tensors, run(open_session(expose(model, tensors)), {"x": images}), strict=True))
        for model in (net, other)
    )
    assert found["s1"].sqnr == pytest.approx(sqnr(base["s1"], late["s1"]), abs=1e-3)
    assert found["l1"].max_error == pytest.approx(np.abs(late["l1"] - base["l1"]).max(), rel=1e-6)
    largest = np.abs(late["l1"] - base["l1"]).max() / np.abs(base["l1"]).max()
    assert found["l1"].relative == pytest.approx(largest, rel=1e-6)
    assert found["l1"].bias == pytest.approx(float((late["l1"] - base["l1"]).mean()), rel=1e-4)
    # What right adds is a tenth of what the base would make of what reaches it, but for the bias.
    bias = array(net, "br").reshape(1, -1, 1, 1)
    forced = (late["r"] - bias) / 0.9 + bias
    assert found["r"].added == pytest.approx(np.sum((late["r"] - forced) ** 2) / np.sum(base["r"] ** 2), rel=1e-3)
    assert found["l1"].added == pytest.approx(0, abs=1e-11)


def sqnr(base: Any, other: Any) -> float:
    return ratio_to_decibels(float(np.sum((other - base) ** 2) / np.sum(base**2)))


def test_values_that_are_lost_are_the_fault(net: ir.Model, changed: Any, feeds: Feeds) -> None:
    broken = array(net, "bt").copy()
    broken[2] = np.inf
    found = compare_models(net, changed(net, ws=array(net, "ws") * 1.1, bt=broken), feeds)
    assert found.fault is not None
    assert (found.fault.layer, found.fault.added) == ("thin", float("inf"))
    assert found.fault.lost == 24 * 64
    (output,) = found.outputs.outputs
    assert output.sqnr == -float("inf")
    assert output.lost == 240


def test_what_the_base_has_lost_is_left_out(net: ir.Model, changed: Any, feeds: Feeds) -> None:
    broken = array(net, "be").copy()
    broken[2] = np.inf
    found = compare_models(changed(net, be=broken), changed(net, be=broken, wl=array(net, "wl") * 1.1), feeds)
    by_layer = {entry.tensor: entry for entry in found.layers}
    assert by_layer["e"].unknown == 24 * 64
    assert by_layer["e"].lost == 0
    assert np.isfinite(by_layer["e"].sqnr)
    assert found.fault is not None
    assert found.fault.layer == "left"


def test_a_model_and_itself(net: ir.Model, feeds: Feeds) -> None:
    found = compare_models(net, net.clone(), feeds)
    assert found.fault is None
    assert found.ranked == ()
    assert all(entry.sqnr > 110 for entry in found.layers)
    assert found.outputs.outputs[0].sqnr == float("inf")
    assert found.outputs.agreement == 1


@pytest.mark.parametrize("attribute", [0, None])
def test_noise_passes_through_what_a_body_reads(parsed: Any, attribute: int | None) -> None:
    text = """g (float[N,4] x) => (float[N,4] y) {
      [early] h = Gemm(x, w) t = ReduceMax<keepdims=0>(x) b = Less(t, c)
      [branch] m = If(b) <then_branch = one () => (float[N,4] p) { p = Relu(h) },
                          else_branch = two () => (float[N,4] q) { q = Abs(h) }>
      [late] y = Gemm(m, v) }"""
    rng = np.random.default_rng(0)
    w, v = (rng.standard_normal((4, 4)).astype(np.float32) for _ in range(2))
    base = parsed(text, w=w, v=v, c=np.array(9, np.float32))
    other = parsed(text, w=(1.2 * w).astype(np.float32), v=(1.001 * v).astype(np.float32), c=np.array(9, np.float32))
    feeds = open_feeds({"x": rng.standard_normal((20, 4)).astype(np.float32)}, base)
    found = compare_models(base, other, feeds, attribute=attribute)
    assert found.fault is not None
    assert (found.fault.layer, found.fault.share > 0.9) == ("early", True)
