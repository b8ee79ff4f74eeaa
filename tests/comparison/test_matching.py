"""Which tensors stand for each other in files that other tools have rewritten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from onnxcomp import modelio
from onnxcomp.compare import compare_models
from onnxcomp.comparison.graphs import typed
from onnxcomp.comparison.matching import match
from onnxcomp.data import Feeds
from onnxcomp.graph.fold.canonical import canonicalise

FLOATS = [
    "s",
    "s1",
    "l",
    "n",
    "l1",
    "r",
    "j",
    "j1",
    "d",
    "d1",
    "t",
    "a",
    "e",
    "c",
    "q",
    "q1",
    "k",
    "z",
    "z1",
    "p",
    "f",
    "y",
]


def by_kind(base: ir.Model, other: ir.Model) -> dict[str, str]:
    return {name: pair.how for name, pair in match(typed(base), typed(other)).pairs.items()}


def renamed(model: ir.Model, *, nodes: bool) -> ir.Model:
    """Another export: tensors and, if asked for, nodes have numbers for names."""
    clone = model.clone()
    for index, node in enumerate(clone.graph):
        if nodes:
            node.name = f"node_{index}"
        for value in node.outputs:
            if not value.is_graph_output():
                value.name = f"value_{index}"
    return clone


def test_names_come_first(net: ir.Model) -> None:
    assert by_kind(net, net.clone()) == dict.fromkeys(FLOATS, "name")


def test_layers_of_the_same_name(net: ir.Model) -> None:
    assert by_kind(net, renamed(net, nodes=False)) == {**dict.fromkeys(FLOATS, "provenance"), "y": "name"}


def test_the_same_place_in_the_graph(net: ir.Model, feeds: Feeds) -> None:
    other = renamed(net, nodes=True)
    assert by_kind(net, other) == {**dict.fromkeys(FLOATS, "structure"), "y": "name"}
    assert all(entry.sqnr > 110 for entry in compare_models(net, other, feeds).layers)


def test_twins_are_not_guessed(parsed: Any) -> None:
    text = """g (float[N,4,4,4] x) => (float[N,4,4,4] y) {
      [one] a = Conv(x, w) [two] b = Conv(x, v) [sum] y = Add(a, b) }"""
    arrays = {name: np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1) for name in ("w", "v")}
    model = parsed(text, **arrays)
    assert by_kind(model, renamed(model, nodes=True)) == {"y": "name"}


@pytest.mark.parametrize("kept", ["l", "n", "other"])
def test_a_folded_normalization(net: ir.Model, feeds: Feeds, kept: str) -> None:
    other = net.clone()
    canonicalise(other)
    (value,) = [node.outputs[0] for node in other.graph if node.name == "left"]
    value.name = kept
    matching = match(typed(net), typed(other))
    assert matching.pairs["n"].other == kept
    assert matching.missing == {"l": "no counterpart: what follows is folded into it"}
    found = compare_models(net, other, feeds)
    assert all(entry.sqnr > 110 for entry in found.layers)
    assert [entry.tensor for entry in found.missing] == ["l"]


def test_operators_that_the_runtime_fused(net: ir.Model, feeds: Feeds, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    ort.InferenceSession(modelio.to_bytes(net), options, providers=["CPUExecutionProvider"])
    fused = modelio.load(tmp_path / "fused.onnx")
    assert any(node.op_type == "FusedConv" for node in fused.graph)
    found = compare_models(net, fused, feeds)
    assert {"s1", "l1", "d1", "a", "c", "z1"} <= {entry.tensor for entry in found.layers}
    assert {"s", "l", "d"} <= {entry.tensor for entry in found.missing}
    assert all(entry.sqnr > 100 for entry in found.layers)


def reader(images: Any) -> Any:
    """What the quantizer asks for its calibration images."""
    left = iter(images)

    def get_next(_: object) -> Any:
        image = next(left, None)
        return None if image is None else {"x": image[None]}

    return type("Images", (CalibrationDataReader,), {"get_next": get_next})()


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_the_quantizer_of_the_runtime(
    net: ir.Model, images: Any, feeds: Feeds, tmp_path: Path, form: QuantFormat
) -> None:
    modelio.save(net, tmp_path / "net.onnx")
    quantize_static(tmp_path / "net.onnx", tmp_path / "q.onnx", reader(images), quant_format=form, per_channel=True)
    found = compare_models(net, modelio.load(tmp_path / "q.onnx"), feeds)
    assert {"s1", "r", "j1", "t", "a", "e", "z1", "y"} <= {entry.tensor for entry in found.layers}
    assert all(18 < entry.sqnr < 60 for entry in found.layers)
    assert {entry.match for entry in found.layers} == {"name"}
    stem = next(entry for entry in found.layers if entry.tensor == "s1")
    assert stem.layer == "stem"
    assert stem.rewrites == (("weights quantized",) if form is QuantFormat.QDQ else ("now QLinearConv",))
