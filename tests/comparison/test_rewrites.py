"""What passes made of a model: found again, said, and compared on what is left."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onnxcomp
from onnxcomp.compare import Comparison, compare_models
from onnxcomp.comparison.recipes import steps_between
from onnxcomp.data import Feeds


def compressed(model: ir.Model, passes: str, images: Any) -> ir.Model:
    return onnxcomp.optimize(model, passes, data={"x": images}, objective="size", target="ort-x86").model


def by_tensor(found: Comparison) -> dict[str, Any]:
    return {entry.tensor: entry for entry in found.layers}


def test_a_decomposition_and_int8(net: ir.Model, images: Any, feeds: Feeds) -> None:
    found = compare_models(net, compressed(net, 'tucker2(ranks="8x8"),int8', images), feeds)
    last = by_tensor(found)["z1"]
    assert last.layer == "last"
    assert last.rewrites[0].startswith("tucker2(ranks=")
    assert last.rewrites[1].startswith("int8")
    assert found.fault is not None
    assert found.fault.rewrites[0].startswith("tucker2")
    assert {entry.match for entry in found.layers} == {"name"}


def test_equalized_channels_are_brought_back(net: ir.Model, quantized: ir.Model, feeds: Feeds) -> None:
    layers = by_tensor(compare_models(net, quantized, feeds))
    assert layers["s1"].rescaled
    assert layers["d1"].rescaled
    assert all(layer.sqnr > 20 for layer in layers.values())
    # Without the recipe nobody knows that they are scaled.
    bare = quantized.clone()
    bare.metadata_props.clear()
    plain = by_tensor(compare_models(net, bare, feeds))
    assert not any(layer.rescaled for layer in plain.values())
    assert min(layer.sqnr for layer in plain.values()) < 15
    assert plain["z1"].rewrites == ("int8",)


@pytest.mark.parametrize("layer", ["stem", "right", "side", "last"])
def test_a_channel_that_is_wrong_is_no_equalized_one(
    net: ir.Model, quantized: ir.Model, feeds: Feeds, layer: str
) -> None:
    other = quantized.clone()
    node = next(node for node in other.graph if node.name == layer)
    decode = node.inputs[1].producer()  # type: ignore[union-attr]
    assert decode is not None
    scale = decode.inputs[1]
    assert scale is not None
    assert scale.const_value is not None
    wrong = scale.const_value.numpy().copy()
    wrong[:4] *= 1.5
    scale.const_value = ir.tensor(wrong, name=scale.name)
    found = compare_models(net, other, feeds)
    assert found.fault is not None
    assert found.fault.layer == layer


def test_pruned_channels(net: ir.Model, images: Any, feeds: Feeds) -> None:
    other = compressed(net, "prune(keep=0.6)", images)
    found = compare_models(net, other, feeds)
    removed = {entry.tensor: entry.channels for entry in found.layers if entry.channels is not None}
    shapes = {v.name: v.shape for node in other.graph for v in node.outputs}
    assert removed
    for name, (left, _) in removed.items():
        shape = shapes[name]
        assert shape is not None
        assert shape[1] == left
    assert all(left < whole for left, whole in removed.values())
    assert all(entry.sqnr > 0 for entry in found.layers)
    assert [entry.tensor for entry in found.missing] == ["l"]  # the normalization is folded
    bare = other.clone()
    bare.metadata_props.clear()
    reasons = {entry.tensor: entry.reason for entry in compare_models(net, bare, feeds).missing}
    for name, (left, whole) in removed.items():
        assert reasons[name] == f"channels removed: {whole} -> {left}, and nothing tells which"


def test_dropped_blocks(images: Any, parsed: Any) -> None:
    rng = np.random.default_rng(0)
    arrays = {k: (0.1 * rng.standard_normal((8, 8, 3, 3))).astype(np.float32) for k in ("w1", "w2", "w3", "w4", "w5")}
    model = parsed(
        """g (float[N,8,8,8] x) => (float[N,8,8,8] y) {
          [c1] a = Conv<pads=[1,1,1,1]>(x, w1) [r1] b = Relu(a) [c2] c = Conv<pads=[1,1,1,1]>(b, w2) [a1] d = Add(c, x)
          [c3] e = Conv<pads=[1,1,1,1]>(d, w3) [r2] f = Relu(e) [c4] h = Conv<pads=[1,1,1,1]>(f, w4) [a2] i = Add(h, d)
          [c5] y = Conv<pads=[1,1,1,1]>(i, w5) }""",
        **arrays,
    )
    other = compressed(model, "drop_blocks(blocks=a1)", images)
    found = compare_models(model, other, onnxcomp.open_feeds({"x": images}, model))
    dropped = {entry.layer for entry in found.missing if entry.reason == "dropped by drop_blocks(blocks=a1)"}
    assert dropped == {"c1", "c2"}
    assert found.fault is not None
    assert any(text.startswith("drop_blocks") for text in found.fault.rewrites)


def test_channels_in_another_order(net: ir.Model, images: Any, feeds: Feeds) -> None:
    found = compare_models(net, compressed(net, "sparsity(pattern=2:4)", images), feeds)
    moved = {entry.tensor for entry in found.missing if entry.reason == "its channels have another order"}
    assert moved
    assert not any(".permuted" in entry.counterpart for entry in found.layers)
    assert found.fault is not None
    assert found.fault.rewrites[0].startswith("sparsity(")


def test_other_precision(net: ir.Model, images: Any, feeds: Feeds, changed: Any) -> None:
    half = compressed(net, "fp16", images)
    layers = compare_models(net, half, feeds).layers
    assert len(layers) == 21  # the normalization is folded
    assert all(50 < layer.sqnr < 90 for layer in layers)


def test_only_what_came_after_the_base_counts(net: ir.Model, images: Any) -> None:
    first = compressed(net, 'tucker2(ranks="8x8")', images)
    second = compressed(first, "int8", images)
    assert [step.spec.name for step in steps_between(net, second)] == ["tucker2", "int8"]
    assert [step.spec.name for step in steps_between(first, second)] == ["int8"]
    feeds = onnxcomp.open_feeds({"x": images}, net)
    assert compare_models(first, second, feeds, samples=2).own == ()
    assert compare_models(second, first, feeds, samples=2).own == ("int8",)


@pytest.mark.parametrize(
    "recipe",
    ["", "[]", "{", '{"passes": 3}', '{"passes": ["?"], "choices": [{}]}', '{"passes": ["prune"], "choices": [7]}'],
)
def test_metadata_that_are_no_recipe(net: ir.Model, feeds: Feeds, recipe: str) -> None:
    other = net.clone()
    other.metadata_props["onnxcomp.recipe"] = recipe
    assert compare_models(net, other, feeds).fault is None


def test_a_recipe_of_another_model(net: ir.Model, feeds: Feeds) -> None:
    other = net.clone()
    choices = {"stem": {"outputs": "zz"}, "last": {"outputs": "f0"}}
    other.metadata_props["onnxcomp.recipe"] = json.dumps({"passes": ["prune"], "choices": [choices]})
    assert len(compare_models(net, other, feeds).layers) > 10
