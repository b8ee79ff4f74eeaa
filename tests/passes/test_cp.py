"""cp: the chain is its factors' product over the whole geometry, follows the data, and leaves alone what it must."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxcomp.allocation.problem import Setting
from onnxcomp.contract import Change, Context, PassReport
from onnxcomp.data import Feeds, open_feeds
from onnxcomp.errors import DataError, OptionError
from onnxcomp.graph.sites import Site, conv_site
from onnxcomp.numeric.cp import CP, DIVERGED, compose, divergence
from onnxcomp.passes.cp import Cp
from onnxcomp.passes.tucker2 import Tucker2
from onnxcomp.targets.target import load_target

Array = NDArray[np.float32]
Parsed = Callable[..., ir.Model]
InContext = Callable[..., Context]
OutputsOf = Callable[[ir.Model, Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]
CI, CO = 10, 18
KERNELS = [(3, 3), (5, 5), (1, 3), (2, 4), (3,), (5,), (3, 3, 3)]
ONE = "g (float[N,24,8,8] x) => (float[N,32,a,b] y) { [one] y = Conv<pads=[1,0,0,2], strides=[1,2]>(x, w, b) }"


def _exact(kernel: tuple[int, ...], group: int) -> Array:
    """A weight (group * CO, CI, *kernel) of five orthogonal terms a group, two kernels shared by them."""
    rng = np.random.default_rng(len(kernel) + group)
    weights: list[NDArray[np.float64]] = []
    for _ in range(group):
        kernels = np.linalg.qr(rng.standard_normal((int(np.prod(kernel)), 2)))[0].T[[0, 0, 0, 1, 1]]
        outs = np.linalg.qr(rng.standard_normal((CO, 5)))[0] * [1, 1, 1, 0.3, 0.3]
        weights.append(compose(CP(rng.standard_normal((5, CI)), kernels, outs)).reshape(CO, CI, *kernel))
    return np.concatenate(weights).astype(np.float32)


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], int, bool, dict[str, Any]]:
    """Kernel, input size, groups, bias, attributes."""
    kernel = draw(st.sampled_from(KERNELS))
    rank = len(kernel)
    small = 5 if rank == 3 else 9
    size = tuple(draw(st.lists(st.integers(small, small + 3), min_size=rank, max_size=rank)))
    strides = draw(st.sampled_from([(1, 1, 1), (2, 2, 2), (2, 1, 2), (3, 2, 1)]))[:rank]
    attributes: dict[str, Any] = {"strides": strides}
    auto_pad = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto_pad.startswith("SAME"):  # ONNX Runtime knows no dilation there, and crops where a stride skips inputs
        attributes["strides"] = tuple(min(s, k) for s, k in zip(strides, kernel, strict=True))
    else:
        attributes["dilations"] = (draw(st.sampled_from([1, 2])),) * rank
    if auto_pad == "NOTSET":
        attributes["pads"] = draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank))
    else:
        attributes["auto_pad"] = auto_pad
    return kernel, size, draw(st.sampled_from([1, 1, 2, 3])), draw(st.booleans()), attributes


def _model(weight: Array, size: tuple[int | None, ...], group: int, bias: bool, attributes: dict[str, Any]) -> ir.Model:
    constants = {"w": weight} | ({"b": np.linspace(-1, 1, len(weight), dtype=np.float32)} if bias else {})
    node = helper.make_node("Conv", ["x", *constants], ["y"], "conv", group=group, **attributes)
    ends = [
        helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", weight.shape[1] * group, *size]),
        helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", len(weight), *[None] * len(size)]),
    ]
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph([node], "one", ends[:1], ends[1:], held)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


@settings(max_examples=50, derandomize=True)
@given(case=cases(), dynamic=st.booleans())
def test_the_chain_is_the_layer(
    case: tuple[tuple[int, ...], tuple[int, ...], int, bool, dict[str, Any]], dynamic: bool, outputs_of: OutputsOf
) -> None:
    kernel, size, group, bias, attributes = case
    model = _model(_exact(kernel, group), tuple(None for _ in size) if dynamic else size, group, bias, attributes)
    x = np.random.default_rng(1).standard_normal((2, CI * group, *size)).astype(np.float32)
    before = outputs_of(model, {"x": x})["y"]
    context = Context(target=load_target("ort-x86"), workdir=Path("unused"), objective="size")
    report = Cp(rank=5).run(model, context)
    assert [c.site for c in report.changes] == ["conv"], report.skips
    assert [n.attributes.get_int("group", 1) for n in model.graph] == [group, 5 * group, group]
    after = outputs_of(model, {"x": x})["y"]
    assert after.shape == before.shape
    assert np.linalg.norm(after - before) <= 1e-5 * np.linalg.norm(before)
    assert report.changes[0].error == pytest.approx(0, abs=1e-10)


def _weight(seed: int, out: int = 32, into: int = 24) -> Array:
    return np.asarray(np.random.default_rng(seed).standard_normal((out, into, 3, 3)) / np.sqrt(9 * into), np.float32)


def _images(count: int, seed: int) -> Array:
    """Channels that move together, in space as well, away from zero."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((24, 24)) * np.exp(-np.arange(24) / 3)
    sources = np.cumsum(rng.standard_normal((count, 24, 8, 8)), axis=2) / np.sqrt(8)
    return np.asarray(np.einsum("cs,nshw->nchw", mixing, sources) + 2, np.float32)


def _error(before: NDArray[Any], after: NDArray[Any]) -> float:
    centred = before - before.mean((0, 2, 3), keepdims=True)
    return float(np.square(after - before).sum() / np.square(centred).sum())


@pytest.fixture
def one(parsed: Parsed) -> ir.Model:
    """One convolution of full rank."""
    return parsed(ONE, w=_weight(0), b=np.linspace(-1, 1, 32, dtype=np.float32))


def _feeds(model: ir.Model) -> Feeds:
    return open_feeds({"x": _images(64, 1)}, model)


def _only(report: PassReport) -> Change:
    assert len(report.changes) == 1, report.skips
    return report.changes[0]


def test_data_beat_weights_and_tucker2_on_held_out_data(
    one: ir.Model, in_context: InContext, outputs_of: OutputsOf
) -> None:
    held_out = {"x": _images(32, 2)}
    before = outputs_of(one, held_out)["y"]
    errors: dict[str, float] = {}
    for fit in ("weights", "data", "auto"):
        model = one.clone()
        change = _only(Cp(rank=24, fit=fit).run(model, in_context(data=_feeds(model))))
        errors[fit] = _error(before, outputs_of(model, held_out)["y"])
        if fit == "data":
            assert change.error == pytest.approx(errors[fit], rel=0.5)
    assert errors["auto"] == errors["data"] < 0.3 * errors["weights"]
    model = one.clone()
    tucker = _only(Tucker2(ranks="8x10").run(model, in_context(data=_feeds(model))))
    assert tucker.after.parameters >= 24 * (24 + 9 + 32) * 0.7
    assert errors["data"] < _error(before, outputs_of(model, held_out)["y"])


def test_a_fit_gives_the_same_bytes_twice(one: ir.Model, in_context: InContext) -> None:
    models = [one.clone(), one.clone()]
    for model in models:
        Cp(rank=16).run(model, in_context(data=_feeds(model)))
    assert ir.to_proto(models[0]).SerializeToString() == ir.to_proto(models[1]).SerializeToString()


def test_inner_activations_are_of_one_magnitude(parsed: Parsed, in_context: InContext, outputs_of: OutputsOf) -> None:
    model = parsed(ONE.replace("<pads=[1,0,0,2], strides=[1,2]>", ""), w=_weight(0), b=np.zeros(32, np.float32))
    Cp(rank=16).run(model, in_context(data=_feeds(model)))
    for node, size in zip(list(model.graph)[:2], (8, 6), strict=True):
        inner = node.outputs[0]
        inner.shape = ir.Shape(["N", 16, size, size])
        model.graph.outputs.append(inner)
    values = outputs_of(model, {"x": _images(64, 1)})
    for node in list(model.graph)[:2]:
        loudness = np.sqrt(np.square(values[node.outputs[0].name or ""]).mean((0, 2, 3)))
        assert loudness.max() < 1.8 * loudness.min(), loudness


def test_the_last_node_follows_the_relu(parsed: Parsed, in_context: InContext, outputs_of: OutputsOf) -> None:
    text = ONE.replace("y = Conv", "c = Conv").replace(" }", " [act] y = Relu(c) }")
    model = parsed(text, w=_weight(0), b=np.full(32, -0.5, np.float32))
    held_out = {"x": _images(32, 2)}
    before = outputs_of(model, held_out)["y"]
    errors: list[float] = []
    for relu in (False, True):
        changed = model.clone()
        _only(Cp(rank=4, relu=relu).run(changed, in_context(data=_feeds(model))))
        errors.append(_error(before, outputs_of(changed, held_out)["y"]))
    assert errors[1] < 0.99 * errors[0]


def test_the_last_node_is_a_map_of_features() -> None:
    cp = Cp()
    factors = cp.factor(_weight(0).astype(np.float64), None, Setting((9,)))
    x = np.random.default_rng(0).standard_normal((5, 24 * 9))
    tail = cp.tail(factors)
    assert tail is not None and tail.rank is None
    assert tail.features(x) @ tail.linear.T == pytest.approx(x @ cp.compose(factors).reshape(32, -1).T)
    doubled = tail.with_map(2 * tail.linear, None)
    assert cp.compose(doubled) == pytest.approx(2 * cp.compose(factors))


def test_no_terms_cancel(one: ir.Model, in_context: InContext) -> None:
    Cp(rank=100).run(one, in_context(data=_feeds(one)))
    first, middle, last = (
        np.asarray(node.inputs[1].const_value, np.float64) for node in one.graph if node.inputs[1] is not None
    )
    factors = CP(first.reshape(100, 24), middle.reshape(100, 9), last.reshape(32, 100))
    assert divergence(factors) <= DIVERGED


def _site(weight: Array, **attributes: Any) -> Site:
    site = conv_site(next(iter(_model(weight, (8, 8), 1, False, attributes).graph)))
    assert isinstance(site, Site)
    return site


def test_ranks_end_at_break_even() -> None:
    cp = Cp()
    site = _site(_weight(0), pads=[1, 1, 1, 1])
    (full,) = cp.full(site.weight.shape, "")
    size = sum(int(np.prod(shape)) for shape in cp.shapes(site.weight.shape, Setting((full,))).values())
    assert size >= site.weight.size > size - sum((32, 24, 9))
    assert max(s.ranks[0] for s in cp.settings(site, 8)) < full
    assert [s.ranks[0] for s in cp.settings(site, 8)] == list(range(8, full, 8))


def test_vbmf_finds_planted_terms_in_noise(in_context: InContext) -> None:
    noise = np.random.default_rng(5).standard_normal((64, 48, 3, 3))
    rng = np.random.default_rng(4)
    kernels = np.linalg.qr(rng.standard_normal((9, 2)))[0].T[[0, 0, 0, 0, 1, 1, 1]]
    outs = np.linalg.qr(rng.standard_normal((64, 7)))[0] * [9, 8, 7, 6, 3, 3, 3]
    planted = compose(CP(rng.standard_normal((7, 48)), kernels, outs)).reshape(64, 48, 3, 3)
    (rank,) = Cp().vbmf(planted + 0.02 * noise, "")
    assert rank == 7
    model = _model(np.asarray(planted + 0.02 * noise, np.float32), (8, 8), 1, False, {})
    assert _only(Cp(rank="vbmf").run(model, in_context())).choice["rank"] in (7, 8, 9)


X, Y = "float[N,32,8,8] x", "float[N,o,h,w] y"
CONV = f"g ({X}) => ({Y}) {{ [conv] y = Conv(x, w) }}"
REFUSED: dict[str, tuple[str, tuple[int, ...], Cp, str]] = {
    "pointwise": (CONV, (64, 32, 1, 1), Cp(), "the kernel is 1x1"),
    "depthwise": (CONV.replace("Conv(", "Conv<group=32>("), (32, 1, 3, 3), Cp(), "depthwise"),
    "multiplier": (CONV.replace("Conv(", "Conv<group=32>("), (64, 1, 3, 3), Cp(), "depthwise"),
    "narrow": (CONV.replace("32,8", "16,8"), (16, 16, 3, 3), Cp(), "too few channels: 16 in, 16 out"),
    "first": (CONV.replace("32,8", "3,8"), (64, 3, 3, 3), Cp(), "too few channels: 3 in, 64 out"),
    "groups": (CONV.replace("Conv(", "Conv<group=2>("), (32, 16, 3, 3), Cp(), "16 in, 16 out a group"),
    "transposed": (CONV.replace("Conv(", "ConvTranspose("), (32, 64, 3, 3), Cp(), "a ConvTranspose"),
    "past break-even": (CONV, (32, 32, 3, 3), Cp(rank=200), "rank 200 reaches the full 127"),
    "all of the energy": (CONV, (32, 32, 3, 3), Cp(energy=1.0), "no gain"),
}


@pytest.mark.parametrize(("text", "shape", "cp", "reason"), list(REFUSED.values()), ids=list(REFUSED))
def test_refusals(
    text: str, shape: tuple[int, ...], cp: Cp, reason: str, parsed: Parsed, in_context: InContext
) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    model = parsed(text, w=weight)
    before = ir.to_proto(model).SerializeToString()
    report = cp.run(model, in_context())
    assert not report.changes
    assert [reason in skip.reason for skip in report.skips] == [True], report.skips
    assert ir.to_proto(model).SerializeToString() == before


def test_options() -> None:
    with pytest.raises(OptionError, match="exclude each other"):
        Cp(rank=3, keep=0.5)
    with pytest.raises(DataError, match="fit=data"):
        Cp(fit="data").requires(ir.Model(ir.Graph([], [], nodes=[]), ir_version=9), _bare())
    assert not Cp().explicit() and Cp(rank=4).explicit()


def _bare() -> Context:
    return Context(target=load_target("ort-x86"), workdir=Path("unused"))
