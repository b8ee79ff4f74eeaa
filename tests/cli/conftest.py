"""Small models and a way to call the command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.cli.main import main


@dataclass(frozen=True)
class Outcome:
    """What a call of the command line left."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]
Make = Callable[..., Path]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call `onnxcomp ARGUMENTS...` here."""

    def call(*arguments: str | Path) -> Outcome:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a model made of nodes and arrays."""

    def write(
        nodes: list[onnx.NodeProto],
        arrays: dict[str, NDArray[Any]],
        *,
        inputs: tuple[tuple[Any, ...], ...] = (("x", TensorProto.FLOAT, ["N", 3, 16, 16]),),
        outputs: tuple[tuple[Any, ...], ...] = (("y", TensorProto.FLOAT, ["N", 10]),),
        opset: int = 17,
        name: str = "model.onnx",
        opsets: tuple[onnx.OperatorSetIdProto, ...] = (),
    ) -> Path:
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info(*value) for value in inputs],
            [helper.make_tensor_value_info(*value) for value in outputs],
            [numpy_helper.from_array(array, key) for key, array in arrays.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), *opsets], ir_version=9)
        path = tmp_path / name
        onnx.save(model, path)
        return path

    return write


def weights(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Normal weights with the variance that keeps activations in range."""
    fan_in = int(np.prod(shape[1:]))
    values = np.random.default_rng(seed).normal(0, (2 / fan_in) ** 0.5, shape)
    return values.astype(np.float32)


def low_rank(channels: int, rank: int) -> NDArray[np.float32]:
    """A 3 x 3 convolution whose channels mix through `rank` others, of the variance that keeps activations in range."""
    rng = np.random.default_rng(1)
    first, core, last = (
        rng.normal(size=(rank, channels)),
        rng.normal(size=(rank, rank, 3, 3)),
        rng.normal(size=(channels, rank)),
    )
    kernel: NDArray[np.float64] = np.einsum("oa,abpq,bi->oipq", last, core, first)
    scale = float((2 / (9 * channels)) ** 0.5 / kernel.std())
    return (scale * kernel).astype(np.float32)


def cnn_nodes() -> list[onnx.NodeProto]:
    """Two convolutions and a linear classifier."""
    return [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="conv2", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], name="head", transB=1),
    ]


def cnn_arrays() -> dict[str, NDArray[Any]]:
    """The constants of `cnn_nodes`."""
    return {
        "w1": weights(32, 3, 3, 3),
        "b1": np.zeros(32, np.float32),
        "w2": low_rank(32, 8),
        "w3": weights(10, 32, seed=2),
        "b3": np.zeros(10, np.float32),
    }


@pytest.fixture
def cnn(make: Make) -> Path:
    """A small classifier."""
    return make(cnn_nodes(), cnn_arrays())


@pytest.fixture
def parts() -> tuple[list[onnx.NodeProto], dict[str, NDArray[Any]]]:
    """Nodes and constants of the small classifier, to be damaged."""
    return cnn_nodes(), cnn_arrays()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A hundred labelled images for the classifier."""
    rng = np.random.default_rng(3)
    path = tmp_path / "images.npz"
    np.savez(path, x=rng.normal(size=(100, 3, 16, 16)).astype(np.float32), labels=rng.integers(0, 10, 100))
    return path
