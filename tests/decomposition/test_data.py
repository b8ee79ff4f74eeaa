"""Fits to data of every form: better than to weights, asymmetric, behind a Relu, and int8 after them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp import optimize
from onnxcomp.contract import Context
from onnxcomp.data import open_feeds
from onnxcomp.decomposition.base import Decomposition
from onnxcomp.passes.channel import Channel
from onnxcomp.passes.lowrank import Lowrank
from onnxcomp.passes.spatial import Spatial
from onnxcomp.passes.tucker2 import Tucker2

Array = NDArray[np.float32]
Parsed = Callable[..., ir.Model]
InContext = Callable[..., Context]
Fading = Callable[..., Array]
OutputsOf = Callable[[ir.Model, Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]
Form = type[Decomposition]
FORMS: dict[Form, int] = {Tucker2: 10, Spatial: 12, Channel: 10, Lowrank: 8}
TEXT = """g (float[N,24,10,10] x) => (float[N,32,a,b] y) {
  [one] h1 = Conv<pads=[P,P,P,P]>(x, w1, b1) [act1] r1 = Relu(h1)
  [two] h2 = Conv<pads=[P,P,P,P]>(r1, w2, b2) [act2] y = Relu(h2) }"""


@pytest.fixture
def net(parsed: Parsed) -> Callable[[Form], ir.Model]:
    """Two convolutions of full rank, each with a Relu; of one tap for lowrank."""

    def make(form: Form) -> ir.Model:
        n = 1 if form is Lowrank else 3
        rng = np.random.default_rng(0)
        shapes = {"w1": (32, 24, n, n), "w2": (32, 32, n, n)}
        arrays = {
            k: (rng.standard_normal(s) * np.sqrt(2 / np.prod(s[1:]))).astype(np.float32) for k, s in shapes.items()
        }
        biases = {f"b{i}": np.full(32, -0.3, np.float32) for i in (1, 2)}
        return parsed(TEXT.replace("P", str(n // 2)), **arrays, **biases)

    return make


def _images(count: int, seed: int) -> Array:
    """Channels that move together, in space as well, away from zero."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((24, 24)) * np.exp(-np.arange(24) / 3)
    sources = np.cumsum(rng.standard_normal((count, 24, 10, 10)), axis=2) / np.sqrt(10)
    return np.asarray(np.einsum("cs,nshw->nchw", mixing, sources) + 1, np.float32)


def _error(before: NDArray[Any], after: NDArray[Any]) -> float:
    centred = before - before.mean((0, 2, 3), keepdims=True)
    return float(np.square(after - before).sum() / np.square(centred).sum())


@pytest.mark.parametrize(("form", "rank"), FORMS.items())
def test_the_asymmetric_fit_beats_the_symmetric_one_and_that_to_weights(
    form: Form, rank: int, net: Callable[[Form], ir.Model], in_context: InContext, outputs_of: OutputsOf
) -> None:
    base, held_out = net(form), {"x": _images(32, 2)}
    data = open_feeds({"x": _images(64, 1)}, base)
    before = outputs_of(base, held_out)["y"]
    asymmetric, symmetric, weights = base.clone(), base.clone(), base.clone()
    form(rank=rank).run(asymmetric, in_context(data=data))
    form(rank=rank, fit="weights").run(weights, in_context())
    for other in ("one", "two"):  # backwards: every layer still sees the original's inputs
        form(rank=rank).run(symmetric, in_context(data=data, exclude=(other,)))
    errors = [_error(before, outputs_of(m, held_out)["y"]) for m in (asymmetric, symmetric, weights)]
    assert errors[0] < errors[1] < 0.7 * errors[2], errors


@pytest.mark.parametrize(("form", "rank"), FORMS.items())
def test_a_fit_to_what_the_relu_leaves_is_better_behind_it(
    form: Form, rank: int, net: Callable[[Form], ir.Model], in_context: InContext, outputs_of: OutputsOf
) -> None:
    base, held_out = net(form), {"x": _images(32, 2)}
    data = open_feeds({"x": _images(64, 1)}, base)
    before = outputs_of(base, held_out)["y"]
    errors: list[float] = []
    for relu in (True, False):
        model = base.clone()
        form(rank=rank, relu=relu).run(model, in_context(data=data, exclude=("one",)))
        errors.append(_error(before, outputs_of(model, held_out)["y"]))
    assert errors[0] < 0.995 * errors[1], errors


@pytest.mark.parametrize(("form", "rank"), FORMS.items())
def test_the_bias_takes_the_mean(
    form: Form, rank: int, net: Callable[[Form], ir.Model], in_context: InContext, outputs_of: OutputsOf
) -> None:
    base, images = net(form), {"x": _images(64, 1)}
    model = base.clone()
    form(rank=rank).run(model, in_context(data=open_feeds(images, base), exclude=("two",)))
    seen = [_inner(m, "h1", outputs_of, images) for m in (base, model)]
    drift = np.abs((seen[1] - seen[0]).mean((0, 2, 3))) / seen[0].std((0, 2, 3))
    assert drift.max() < 5e-3


@pytest.mark.parametrize(("form", "rank"), FORMS.items())
def test_int8_after_a_chain_keeps_its_accuracy(
    form: Form, rank: int, net: Callable[[Form], ir.Model], outputs_of: OutputsOf
) -> None:
    """What int8 does to the chain is no more than 3 dB worse than what it does to the layers."""
    base, images = net(form), {"x": _images(32, 1)}
    held_out = {"x": _images(32, 2)}
    noise: list[float] = []
    option = f"ranks={rank}x{rank}" if form is Tucker2 else f"rank={rank}"
    for spec in (None, f"{form.name}({option})"):
        plain = base if spec is None else optimize(base.clone(), spec, data=images, objective="size").model
        small = optimize(plain.clone(), "int8", data=images, objective="macs").model
        quantized = [n for n in small.graph if n.op_type == "Conv"]
        assert quantized and all(_from_quantized(n) for n in quantized)
        reference, after = (outputs_of(m, held_out)["y"] for m in (plain, small))
        noise.append(10 * np.log10(np.square(reference).sum() / np.square(after - reference).sum()))
    assert noise[1] > noise[0] - 3, noise


def _from_quantized(node: ir.Node) -> bool:
    """Whether a node reads its data and its weight from integers."""
    makers = [value.producer() for value in node.inputs[:2] if value is not None]
    return all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)


def _inner(model: ir.Model, name: str, outputs_of: OutputsOf, feed: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """The value of an inner tensor."""
    shown = model.clone()
    value = next(v for node in shown.graph for v in node.outputs if v.name == name)
    shown.graph.outputs.append(value)
    return outputs_of(shown, feed)[name]
