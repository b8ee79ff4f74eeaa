"""depthwise: the chain is the layer, the fit follows the data, and what is left alone says why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxcomp import modelio
from onnxcomp.allocation.problem import Setting, problems_of
from onnxcomp.contract import Context, Skip
from onnxcomp.data import open_feeds
from onnxcomp.errors import OptionError
from onnxcomp.graph.chain import chain_cost
from onnxcomp.graph.edit import ORIGIN, replace_by_chain
from onnxcomp.graph.sites import Site, conv_site
from onnxcomp.passes.depthwise import Depthwise
from onnxcomp.runtime.session import open_session
from onnxcomp.targets.target import load_target
from onnxcomp.testing import assert_refuses, conv_model

Array = NDArray[np.float32]
OutputsOf = Callable[[ir.Model, Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]
InContext = Callable[..., Context]
Parsed = Callable[..., ir.Model]
OrderName = Literal["dw", "pw"]
CI, CO, RANK = 12, 16, 2
KERNELS = [(3, 3), (5, 5), (1, 3), (2, 4), (3,), (5,), (3, 3, 3)]


def _planted(shape: Sequence[int], rank: int, order: OrderName, groups: int = 1, seed: int = 0) -> Array:
    """A weight (groups * Co, Ci, *kernel) that `rank` blocks of that order are."""
    rng = np.random.default_rng(seed)
    outs, ins, *kernel = shape
    axis = "i" if order == "dw" else "o"
    weights = [
        np.einsum(
            f"ori,{axis}r...->oi...",
            rng.standard_normal((outs, rank, ins)),
            rng.standard_normal((ins if order == "dw" else outs, rank, *kernel)),
        )
        for _ in range(groups)
    ]
    joined = np.concatenate(weights)
    return np.asarray(joined / (joined.std() * np.sqrt(np.prod(shape[1:]))), np.float32)


def _site(model: ir.Model) -> Site:
    site = conv_site(next(node for node in model.graph if node.op_type == "Conv"))
    assert isinstance(site, Site)
    return site


@dataclass(frozen=True)
class Case:
    order: OrderName
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    group: int
    bias: bool
    dynamic: bool
    attributes: dict[str, Any]

    def model(self, weight: Array) -> ir.Model:
        constants = {"w": weight}
        if self.bias:
            constants["b"] = np.linspace(-1, 1, len(weight), dtype=np.float32)
        node = helper.make_node("Conv", ["x", *constants], ["y"], "conv", group=self.group, **self.attributes)
        free = [None] * len(self.size)
        shape = ["N", weight.shape[1] * self.group, *(free if self.dynamic else self.size)]
        graph = helper.make_graph(
            [node],
            "one",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", len(weight), *free])],
            [onnx.numpy_helper.from_array(a, name) for name, a in constants.items()],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto))

    def feed(self) -> dict[str, Array]:
        rng = np.random.default_rng(1)
        return {"x": rng.standard_normal((2, CI * self.group, *self.size)).astype(np.float32)}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kernel = draw(st.sampled_from(KERNELS))
    rank = len(kernel)
    small = 5 if rank == 3 else 9
    size = tuple(draw(st.lists(st.integers(small, small + 3), min_size=rank, max_size=rank)))
    attributes: dict[str, Any] = {"strides": draw(st.sampled_from([(1, 1, 1), (2, 2, 2), (2, 1, 2), (3, 2, 1)]))[:rank]}
    auto_pad = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if not auto_pad.startswith("SAME"):  # ONNX Runtime knows no dilation there
        attributes["dilations"] = (draw(st.sampled_from([1, 2])),) * rank
    if auto_pad == "NOTSET":
        attributes["pads"] = draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank))
    else:
        attributes["auto_pad"] = auto_pad
    order: OrderName = draw(st.sampled_from(["dw", "pw"]))
    group = draw(st.sampled_from([1, 1, 2, 4]))
    return Case(order, kernel, size, group, draw(st.booleans()), draw(st.booleans()), attributes)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(case=cases())
def test_blocks_that_a_weight_is_made_of_are_found(case: Case, outputs_of: OutputsOf) -> None:
    model = case.model(_planted((CO, CI, *case.kernel), RANK, case.order, case.group))
    before = outputs_of(model, case.feed())["y"]
    context = Context(target=load_target("ort-x86"), workdir=Path("unused"), objective="size")
    report = Depthwise(rank=RANK, order=case.order).run(model, context)
    assert [c.site for c in report.changes] == ["conv"], report.skips
    assert [n.op_type for n in model.graph] == ["Conv"] * 4 + ["Add"]
    assert {n.metadata_props[ORIGIN] for n in model.graph} == {"conv"}
    after = outputs_of(model, case.feed())["y"]
    assert after.shape == before.shape
    assert np.linalg.norm(after - before) <= 1e-5 * np.linalg.norm(before)
    assert report.changes[0].error == pytest.approx(0, abs=1e-10)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(case=cases())
def test_all_blocks_are_the_layer(case: Case, outputs_of: OutputsOf) -> None:
    weight = np.random.default_rng(0).standard_normal((CO * case.group, CI, *case.kernel)).astype(np.float32)
    model = case.model(weight)
    site, form = _site(model), Depthwise()
    before = outputs_of(model, case.feed())["y"]
    setting = Setting(form.full((CO, CI, *case.kernel), case.order), case.order)
    groups = [form.balanced(form.factor(p.weight, None, setting), None) for p in problems_of(site, None)]
    replace_by_chain(site.node, form.links(site, setting, groups, site.bias), "depthwise")
    after = outputs_of(model, case.feed())["y"]
    assert np.linalg.norm(after - before) <= 1e-5 * np.linalg.norm(before)


@pytest.mark.parametrize("order", ["dw", "pw"])
def test_the_branches_are_added_and_one_has_the_bias(order: OrderName, in_context: InContext) -> None:
    model = conv_model(bias=np.ones(32), pads=[1, 1, 1, 1], strides=[2, 2])
    Depthwise(rank=3, order=order).run(model, in_context())
    nodes = {(n.name or "").removeprefix("conv."): n for n in model.graph if n.name != "relu"}
    first, last = ("depthwise", "last") if order == "dw" else ("first", "depthwise")
    names = [f"{role}{r}" for r in range(3) for role in (first, last)]
    assert list(nodes) == [*names[:4], "sum1", *names[4:], "sum2"]
    assert [name for name, node in nodes.items() if len(node.inputs) == 3] == [f"{last}0"]
    for name, node in nodes.items():
        if name.startswith("depthwise"):
            assert node.attributes.get_int("group") == 32
            assert node.attributes.get_ints("pads") == (1, 1, 1, 1)
            assert node.attributes.get_ints("strides") == (2, 2)
        elif node.op_type == "Conv":
            assert node.attributes.get_ints("pads") == (0, 0, 0, 0)
            assert node.attributes.get_ints("strides") == (1, 1)
        if name.startswith(first):
            assert node.inputs[0] is model.graph.inputs[0]
    assert [n.name for n in nodes["sum2"].predecessors()] == ["conv.sum1", f"conv.{last}2"]


@pytest.mark.parametrize(("kernel", "outs"), [((3, 3), 32), ((5, 5), 24), ((3,), 16)])
def test_one_block_has_the_share_of_weights_of_the_separable_convolution(kernel: tuple[int, ...], outs: int) -> None:
    """1/n^2 + 1/N of a convolution of n x n kernels and N outputs (MobileNets, Howard et al. 2017, section 3.1)."""
    case = Case("dw", kernel, (9,) * len(kernel), 1, False, False, {})
    site = _site(case.model(np.ones((outs, CI, *kernel), np.float32)))
    form = Depthwise(rank=1, order="dw", fit="weights")
    cost = chain_cost(site, form.blank(site, Setting((1,), "dw")))
    assert cost.parameters / site.cost.parameters == pytest.approx(1 / np.prod(kernel) + 1 / outs, rel=1e-12)
    assert cost == form.cost(site, Setting((1,), "dw"))


def test_the_order_that_loses_less_is_taken(in_context: InContext) -> None:
    for order in ("dw", "pw"):
        model = conv_model(_planted((32, 32, 3, 3), RANK, order))
        (change,) = Depthwise(rank=RANK).run(model, in_context()).changes
        assert change.choice == {"rank": RANK, "order": order}
        assert change.error == pytest.approx(0, abs=1e-10)


def test_strides_make_pointwise_first_dear() -> None:
    site, form = _site(conv_model(pads=[1, 1, 1, 1], strides=[2, 2])), Depthwise()
    macs = [form.cost(site, Setting((2,), order)).macs for order in ("dw", "pw")]
    assert macs == [2 * 16 * (32 * 9 + 32 * 32), 2 * (64 * 32 * 32 + 16 * 32 * 9)]
    assert form.orders(site) == ("dw",)
    assert Depthwise(order="pw").orders(site) == ("pw",)
    assert form.orders(_site(conv_model())) == ("dw", "pw")


def _images(count: int, seed: int) -> Array:
    """Channels that move together, in space as well, away from zero: the statistics that the weights do not show."""
    mixing = np.random.default_rng(99).standard_normal((32, 32)) * np.exp(-np.arange(32) / 4)
    sources = np.cumsum(np.random.default_rng(seed).standard_normal((count, 32, 8, 8)), axis=2) / np.sqrt(8)
    return np.asarray(np.einsum("cs,nshw->nchw", mixing, sources) + 2, np.float32)


def _white(count: int, seed: int) -> Array:
    """Positions that know nothing of each other, which leaves filters little to go by."""
    mixing = np.random.default_rng(99).standard_normal((32, 32)) / 2
    sources = np.random.default_rng(seed).standard_normal((count, 32, 8, 8))
    return np.asarray(np.maximum(np.einsum("cs,nshw->nchw", mixing, sources), 0), np.float32)


@dataclass(frozen=True)
class Trial:
    """What a pass loses of the output of a model on images that it has not seen, and what it reports."""

    in_context: InContext
    outputs_of: OutputsOf
    images: Callable[[int, int], Array] = _images

    def __call__(self, model: ir.Model, form: Depthwise) -> tuple[float, float]:
        held_out = {"x": self.images(32, 2)}
        before = self.outputs_of(model, held_out)["y"]
        rewritten = model.clone()
        feeds = open_feeds({"x": self.images(96, 1)}, model)
        (change,) = form.run(rewritten, self.in_context(data=feeds)).changes
        rest = self.outputs_of(rewritten, held_out)["y"] - before
        energy = np.square(before - before.mean((0, 2, 3), keepdims=True)).sum()
        assert change.error is not None
        return float(np.square(rest).sum() / energy), change.error


@pytest.mark.parametrize("order", ["dw", "pw"])
@pytest.mark.parametrize("group", [1, 2])
def test_data_beat_weights_on_held_out_data(
    order: OrderName, group: int, parsed: Parsed, in_context: InContext, outputs_of: OutputsOf
) -> None:
    text = f"""g (float[N,32,8,8] x) => (float[N,32,8,8] y) {{
      [conv] y = Conv<group={group}, pads=[1,1,1,1]>(x, w, b) }}"""
    weight = np.random.default_rng(0).standard_normal((32, 32 // group, 3, 3)).astype(np.float32)
    model = parsed(text, w=weight, b=np.ones(32, np.float32))
    lost = Trial(in_context, outputs_of)
    weights, _ = lost(model, Depthwise(rank=3, order=order, fit="weights"))
    data, told = lost(model, Depthwise(rank=3, order=order))
    assert data < 0.2 * weights
    assert told == pytest.approx(data, rel=0.5)


def test_what_the_relu_leaves_can_be_fitted(in_context: InContext, outputs_of: OutputsOf) -> None:
    weight = np.random.default_rng(0).standard_normal((32, 32, 3, 3)) / 12
    model = conv_model(weight, -np.einsum("oikl,i->o", weight, _white(8, 3).mean((0, 2, 3))) - 1)
    lost = Trial(in_context, outputs_of, _white)
    plain, _ = lost(model, Depthwise(rank=1, order="dw"))
    aware, told = lost(model, Depthwise(rank=1, order="dw", relu=True))
    assert aware < 0.9 * plain
    assert told == pytest.approx(aware, rel=0.05)
    # With the 1x1 first there is no dense map at the end to fit again.
    assert lost(model, Depthwise(rank=1, order="pw", relu=True)) == lost(model, Depthwise(rank=1, order="pw"))


def test_the_dense_map_at_the_end_is_the_chain() -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((16, 12, 3, 3)), rng.standard_normal((50, 12 * 9))
    form = Depthwise()
    factors = form.factor(weight, None, Setting((2,), "dw"))
    tail = form.tail(factors)
    assert tail is not None and tail.rank is None
    seen = tail.features(x) @ tail.linear.T
    np.testing.assert_allclose(seen, x @ form.compose(factors).reshape(16, -1).T, atol=1e-10)
    doubled = form.compose(tail.with_map(2 * tail.linear, None))
    np.testing.assert_allclose(doubled, 2 * form.compose(factors), atol=1e-10)
    assert form.tail(form.factor(weight, None, Setting((2,), "pw"))) is None


def test_replay_gives_the_same_bytes(in_context: InContext) -> None:
    model = conv_model(np.random.default_rng(3).standard_normal((32, 32, 3, 3)))
    again = model.clone()
    (change,) = Depthwise(keep=0.5).run(model, in_context()).changes
    report = Depthwise(keep=0.5).run(again, in_context(replay={"conv": change.choice}))
    assert report.changes[0].choice == change.choice
    assert modelio.to_bytes(again) == modelio.to_bytes(model)


def test_rules_find_the_number_of_blocks(in_context: InContext) -> None:
    noise = np.random.default_rng(5).standard_normal((64, 64, 3, 3))
    weight = _planted((64, 64, 3, 3), 2, "dw") * 10 + 0.02 * noise
    forms = {
        Depthwise(order="dw", energy=0.99): 2,
        Depthwise(order="dw", rank="vbmf"): 2,
        Depthwise(order="dw", weaken=0.5): 5,  # 9 - 0.5 (9 - 2)
        Depthwise(order="dw", ratio=3.0): 2,  # 7.9 blocks have all the weights
        Depthwise(order="dw", keep=0.4): 3,
    }
    for form, rank in forms.items():
        (change,) = form.run(conv_model(weight), in_context()).changes
        assert change.choice["rank"] == rank, form


def test_the_runtime_takes_the_branches_in_its_blocked_layout(in_context: InContext, tmp_path: Path) -> None:
    model = conv_model(np.random.default_rng(0).standard_normal((64, 64, 3, 3)), size=16, pads=[1, 1, 1, 1])
    Depthwise(rank=2, order="dw").run(model, in_context())
    open_session(model, dump=tmp_path / "run.onnx")
    nodes = onnx.load(tmp_path / "run.onnx").graph.node
    convolutions = [n for n in nodes if n.op_type.endswith("Conv")]
    assert [n.domain for n in convolutions] == ["com.microsoft.nchwc"] * 4
    assert not [n for n in nodes if n.op_type == "Add"]  # part of the second 1x1


CONV = "g (float[N,32,8,8] x) => (float[N,o,h,w] y) { [conv] y = Conv(x, w) }"
REFUSALS = {
    "pointwise": (CONV, (64, 32, 1, 1), "the kernel is 1x1"),
    "depthwise": (CONV.replace("Conv(", "Conv<group=32>("), (32, 1, 3, 3), "depthwise already"),
    "multiplier": (CONV.replace("Conv(", "Conv<group=32>("), (64, 1, 3, 3), "depthwise already"),
    "transposed": (CONV.replace("Conv(", "ConvTranspose("), (32, 32, 3, 3), "a ConvTranspose"),
    "first": (CONV.replace("32,8", "3,8"), (64, 3, 3, 3), "too few channels: 3 in, 64 out"),
    "narrow": (CONV, (6, 32, 3, 3), "too few channels: 32 in, 6 out"),
    "groups": (CONV.replace("Conv(", "Conv<group=8>("), (64, 4, 3, 3), "too few channels: 4 in, 8 out a group"),
}


@pytest.mark.parametrize(("text", "shape", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_reason(text: str, shape: tuple[int, ...], reason: str, parsed: Parsed, in_context: InContext) -> None:
    model = parsed(text, w=np.ones(shape, np.float32))
    report = Depthwise(rank=1).run(model, in_context())
    assert (report.skips, report.changes) == ((Skip("conv", reason),), ())


def test_ranks_without_gain_are_refused() -> None:
    model = conv_model(np.random.default_rng(0).standard_normal((16, 16, 3, 3)))
    assert_refuses(Depthwise(rank=9), model, "conv", "rank 9 reaches the full 9")
    assert_refuses(Depthwise(rank=6), model, "conv", "no gain: 82,944 -> 86,400 MACs")
    assert_refuses(Depthwise(energy=0.999), model, "conv", "past break-even")
    assert_refuses(Depthwise(keep=0.1), model, "conv", "no ranks in steps of 1 keep 0.1 of the MACs or less")


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(OptionError, match="exclude each other"):
        Depthwise(rank=2, keep=0.5)
