"""The first convolution tells pixels from a normalised image."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.data import synthetic_feeds
from onnxcomp.data.firstlayer import expected_scale
from onnxcomp.data.plausible import input_span
from onnxcomp.data.synthetic import noise_image


def network(
    weight: NDArray[np.float32], bias: NDArray[np.float32] | None, front: list[onnx.NodeProto] | None = None
) -> ir.Model:
    """A Conv behind the given nodes, which read x and write h."""
    weights = [numpy_helper.from_array(weight, "w")]
    read = "h" if front else "x"
    inputs = [read, "w"]
    if bias is not None:
        weights.append(numpy_helper.from_array(bias, "b"))
        inputs.append("b")
    nodes = [*(front or []), helper.make_node("Conv", inputs, ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["A", "B", "C", "D"])],
        weights,
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def folded(scale: float, seed: int = 0, channels: int = 3) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A Conv whose BatchNormalization was folded, trained on images `scale` times unit variance around 2 `scale`."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((32, channels, 3, 3))
    image = scale * (2 + np.stack([noise_image(rng, channels, 32, 32) for _ in range(8)]))
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), axis=(2, 3))
    products = np.einsum("fckl,ncyxkl->fnyx", weight, windows).reshape(32, -1)
    mean, std = products.mean(axis=1), products.std(axis=1)
    beta = rng.normal(0.0, 0.5, 32)
    return (weight / std[:, None, None, None]).astype(np.float32), (beta - mean / std).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("scale", "pixels"), [(1 / 4, False), (1.0, False), (64.0, True)])
def test_biases_tell_pixels(seed: int, scale: float, pixels: bool) -> None:
    model = network(*folded(scale, seed))
    x = next(iter(synthetic_feeds(model, 0, 16).batches()))["x"]
    assert input_span(model.graph.inputs[0]).high == (255.0 if pixels else 2.7)
    assert (x.max() > 200) == pixels and (x.min() >= 0) == pixels


def test_it_is_seen_through_slices_and_a_concat() -> None:
    """The stem of YOLOX reads the image in phases."""
    weight, bias = folded(64.0, channels=6)
    front = [
        helper.make_node("Constant", [], ["zero"], value_ints=[0]),
        helper.make_node("Constant", [], ["end"], value_ints=[8]),
        helper.make_node("Constant", [], ["last"], value_ints=[16]),
        helper.make_node("Constant", [], ["axis"], value_ints=[2]),
        helper.make_node("Slice", ["x", "zero", "end", "axis"], ["top"]),
        helper.make_node("Slice", ["x", "end", "last", "axis"], ["bottom"]),
        helper.make_node("Concat", ["top", "bottom"], ["h"], axis=1),
    ]
    model = network(weight, bias, front)
    assert expected_scale(model.graph.inputs[0]) == pytest.approx(expected_scale(network(weight, bias).graph.inputs[0]))
    assert input_span(model.graph.inputs[0]).high == 255


def test_nothing_is_told_without_a_bias_or_behind_an_activation() -> None:
    weight, bias = folded(64.0)
    assert expected_scale(network(weight, None).graph.inputs[0]) is None
    squashed = network(weight, bias, [helper.make_node("Sigmoid", ["x"], ["h"])])
    assert expected_scale(squashed.graph.inputs[0]) is None
    assert expected_scale(network(np.zeros_like(weight), bias).graph.inputs[0]) is None


def test_only_the_ratio_counts() -> None:
    weight, bias = folded(1.0)
    scale = expected_scale(network(weight, bias).graph.inputs[0])
    wider = expected_scale(network((weight / 10).astype(np.float32), bias).graph.inputs[0])
    assert scale is not None and wider == pytest.approx(10 * scale, rel=1e-5)
