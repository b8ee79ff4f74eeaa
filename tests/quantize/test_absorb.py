"""High-bias absorption: exact on the calibration data, and only where nothing else can see it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcomp.data import Feeds, open_feeds
from onnxcomp.quantize.absorb import absorb
from onnxcomp.runtime.session import open_session, run

Builder = Callable[..., ir.Model]
CHAIN = (
    "g (float[N, 3, 6, 6] x) => (float[N, 4, 4, 4] y) { a = Conv (x, w, b)  r = Relu (a)"
    " y = Conv <group = 2, kernel_shape = [3, 3]> (r, v) }"
)
SHAPES = {"w": (6, 3, 1, 1), "b": (6,), "v": (4, 3, 3, 3)}


def _high(model: ir.Model, name: str = "b") -> None:
    """Channels 0 and 3 lie far above 0."""
    value = model.graph.initializers[name]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[[0, 3]] = 20.0
    value.const_value = ir.tensor(array, name=name)


def _data(path: Path, model: ir.Model) -> Feeds:
    shape = model.graph.inputs[0].shape
    assert shape is not None
    sizes = [d for d in shape[1:] if isinstance(d, int)]
    np.savez(path / "data.npz", x=np.random.default_rng(3).standard_normal((32, *sizes)).astype(np.float32))
    return open_feeds(path / "data.npz", model)


def _check(model: ir.Model, feeds: Feeds, layer: str, channels: int) -> None:
    feed = feeds.first(32)
    wanted = run(open_session(model), feed)[0]
    done = absorb(model, feeds)
    assert done.channels == {layer: channels}
    assert "would come out as it" in done.lines[0]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    got = run(open_session(model), feed)[0]
    assert np.linalg.norm(got - wanted) <= 1e-5 * np.linalg.norm(wanted)


def test_two_high_channels(build: Builder, tmp_path: Path) -> None:
    model = build(CHAIN, SHAPES)
    _high(model)
    _check(model, _data(tmp_path, model), "a", 2)
    bias = model.graph.initializers["b"].const_value
    assert bias is not None
    assert bias.numpy().max() < 10
    last = model.graph[-1]
    assert len(last.inputs) == 3
    assert last.inputs[2] is not None


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(build: Builder, tmp_path: Path, transposed: int) -> None:
    graph = (
        "g (float[N, 5] x) => (float[N, 4] y) { a = Gemm (x, w, b)  r = Relu (a)"
        f" y = Gemm <transB = {transposed}> (r, v, c) }}"
    )
    model = build(graph, {"w": (5, 6), "b": (6,), "v": (4, 6) if transposed else (6, 4), "c": (4,)})
    _high(model)
    _check(model, _data(tmp_path, model), "a", 2)


REFUSED = {
    "padding": CHAIN.replace("kernel_shape", "pads = [1, 1, 1, 1], kernel_shape").replace("4, 4, 4]", "4, 6, 6]"),
    "another reader": CHAIN.replace("float[N, 4, 4, 4] y", "float[N, 4, 4, 4] y, float[N, 6, 6, 6] s").replace(
        "y = Conv", "s = Sigmoid (r)  y = Conv"
    ),
    "an output": CHAIN.replace("float[N, 4, 4, 4] y", "float[N, 4, 4, 4] y, float[N, 6, 6, 6] r"),
    "no Relu": CHAIN.replace("Relu", "Sigmoid"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(build: Builder, tmp_path: Path, case: str) -> None:
    model = build(REFUSED[case], SHAPES)
    _high(model)
    before = ir.to_proto(model).SerializeToString()
    assert absorb(model, _data(tmp_path, model)).channels == {}
    assert ir.to_proto(model).SerializeToString() == before


def test_nothing_is_always_there(build: Builder, tmp_path: Path) -> None:
    model = build(CHAIN, SHAPES)
    done = absorb(model, _data(tmp_path, model))
    assert done.channels == {}
    assert done.lines == ("nothing to absorb: no channel in front of a Relu is always clearly positive",)


def test_the_caller_can_refuse(build: Builder, tmp_path: Path) -> None:
    model = build(CHAIN, SHAPES)
    _high(model)
    assert absorb(model, _data(tmp_path, model), refuse=lambda node: "excluded").channels == {}
