"""structured: window sums and a smaller kernel are the layer over the whole geometry, in both ways to write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
from onnxcomp.contract import Candidate, Change, Context, PassReport
from onnxcomp.data import Feeds, open_feeds
from onnxcomp.errors import OptionError
from onnxcomp.graph.chain import chain_cost
from onnxcomp.graph.sites import Site, conv_site
from onnxcomp.numeric.structured import compose, core_kernel
from onnxcomp.passes.structured import Structured
from onnxcomp.targets.target import load_target

Array = NDArray[np.float32]
Parsed = Callable[..., ir.Model]
InContext = Callable[..., Context]
OutputsOf = Callable[[ir.Model, Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]
CI, CO = 5, 12
KERNELS = [(3, 3), (5, 5), (1, 3), (2, 4), (3,), (6,), (3, 3, 3)]


@dataclass(frozen=True)
class Case:
    kernel: tuple[int, ...]
    n: int
    size: tuple[int, ...]
    group: int
    bias: bool
    dynamic: bool
    attributes: dict[str, Any]

    @property
    def unknown(self) -> bool:
        """Whether the pads depend on a size that is not known."""
        same = str(self.attributes.get("auto_pad", "")).startswith("SAME")
        return self.dynamic and same and max(self.attributes["strides"]) > 1


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kernel = draw(st.sampled_from(KERNELS))
    rank = len(kernel)
    small = 5 if rank == 3 else 11
    size = tuple(draw(st.lists(st.integers(small, small + 3), min_size=rank, max_size=rank)))
    strides = draw(st.sampled_from([(1, 1, 1), (2, 2, 2), (2, 1, 2), (3, 2, 1), (4, 3, 2)]))[:rank]
    attributes: dict[str, Any] = {"strides": strides}
    auto_pad = draw(st.sampled_from(["NOTSET", "NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto_pad.startswith("SAME"):  # ONNX Runtime knows no dilation there, and crops where a stride skips inputs
        attributes["strides"] = tuple(min(s, k) for s, k in zip(strides, kernel, strict=True))
    else:
        attributes["dilations"] = draw(st.sampled_from([(1, 1, 1), (1, 1, 1), (2, 2, 2), (1, 2, 1)]))[:rank]
    if auto_pad == "NOTSET":
        attributes["pads"] = draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank))
    else:
        attributes["auto_pad"] = auto_pad
    n = draw(st.integers(1, max(kernel) - 1))
    return Case(kernel, n, size, draw(st.sampled_from([1, 1, 3])), draw(st.booleans()), draw(st.booleans()), attributes)


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


def _within(kernel: tuple[int, ...], n: int, group: int) -> Array:
    """A weight of window sums and n taps an axis."""
    core = np.random.default_rng(n).standard_normal((CO * group, CI, *core_kernel(kernel, n)))
    return compose(core, kernel).astype(np.float32)


@settings(max_examples=150, derandomize=True)
@given(case=cases(), sums=st.sampled_from(["ones", "pool"]))
def test_the_chain_is_the_layer(case: Case, sums: Any, outputs_of: OutputsOf) -> None:
    weight = _within(case.kernel, case.n, case.group)
    size = tuple(None for _ in case.size) if case.dynamic else case.size
    model = _model(weight, size, case.group, case.bias, case.attributes)
    x = np.random.default_rng(1).standard_normal((2, CI * case.group, *case.size)).astype(np.float32)
    before = outputs_of(model, {"x": x})["y"]
    context = Context(target=load_target("ort-x86"), workdir=Path("unused"), objective="size")
    report = Structured(n=case.n, sums=sums).run(model, context)
    if case.unknown:
        assert "the size of the input is not known" in report.skips[0].reason
        return
    assert [c.site for c in report.changes] == ["conv"], report.skips
    kinds = [node.op_type for node in model.graph]
    assert kinds == ["Conv", "Conv"] or (sums == "pool" and kinds == ["AveragePool", "Conv"])
    after = outputs_of(model, {"x": x})["y"]
    assert after.shape == before.shape
    assert np.linalg.norm(after - before) <= 1e-5 * np.linalg.norm(before)
    assert report.changes[0].error == pytest.approx(0, abs=1e-10)


def _site(weight: Array, size: int = 16, **attributes: Any) -> Site:
    site = conv_site(next(iter(_model(weight, (size,) * (weight.ndim - 2), 1, True, attributes).graph)))
    assert isinstance(site, Site)
    return site


@pytest.mark.parametrize(
    ("kernel", "n", "attributes", "kind"),
    [
        (3, 2, {"pads": [1, 1, 1, 1]}, "AveragePool"),
        (3, 2, {"pads": [1, 1, 1, 1], "strides": [2, 2]}, "AveragePool"),
        (3, 1, {"pads": [2, 2, 2, 2]}, "AveragePool"),
        (3, 2, {"auto_pad": "SAME_UPPER"}, "AveragePool"),
        (3, 2, {"pads": [2, 1, 1, 1]}, "Conv"),  # a pad as large as the window
        (3, 2, {"pads": [0, 0, 0, 0], "dilations": [2, 2]}, "Conv"),
        (5, 4, {"pads": [2, 2, 2, 2]}, "Conv"),
    ],
)
def test_pools_where_the_runtime_takes_them(kernel: int, n: int, attributes: dict[str, Any], kind: str) -> None:
    site = _site(np.ones((4, 4, kernel, kernel), np.float32), **attributes)
    links = Structured(sums="pool").blank(site, Setting((n,), "pool"))
    assert [link.op_type for link in links] == [kind, "Conv"]
    assert links[1].attributes["pads"] == (0, 0, 0, 0)


def test_sums_are_made_only_where_they_are_read() -> None:
    """One tap a stride apart reads every stride-th sum; a dilation of the stride's size divides both."""
    site = _site(np.ones((4, 4, 3, 3), np.float32), strides=[2, 2], dilations=[2, 1])
    box, core = Structured().blank(site, Setting((1,), "ones"))
    assert (box.attributes["strides"], core.attributes["strides"]) == ((2, 2), (1, 1))
    box, core = Structured().blank(site, Setting((2,), "ones"))
    assert (box.attributes["strides"], core.attributes["strides"]) == ((2, 1), (1, 2))
    assert (box.attributes["dilations"], core.attributes["dilations"]) == ((2, 1), (1, 1))


def test_what_it_costs() -> None:
    site = _site(np.ones((32, 16, 3, 3), np.float32), pads=[1, 1, 1, 1])
    for sums, extra in (("ones", 16 * 4), ("pool", 0)):
        cost = chain_cost(site, Structured().blank(site, Setting((2,), sums)))
        assert cost.parameters == 32 * 16 * 4 + 32 + extra
        assert cost.macs == 32 * 16 * 4 * 16 * 16 + extra * 17 * 17
    unknown = replace(site, input_shape=(None, 16, None, None))
    assert chain_cost(unknown, Structured().blank(unknown, Setting((2,), "pool"))).macs is None


def _images(count: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return np.asarray(np.cumsum(rng.standard_normal((count, 24, 8, 8)), axis=2) / 3 + 1, np.float32)


def _error(before: NDArray[Any], after: NDArray[Any]) -> float:
    centred = before - before.mean((0, 2, 3), keepdims=True)
    return float(np.square(after - before).sum() / np.square(centred).sum())


ONE = "g (float[N,24,8,8] x) => (float[N,32,a,b] y) { [one] y = Conv<pads=[1,0,0,1], strides=[1,2]>(x, w, b) }"


@pytest.fixture
def one(parsed: Parsed) -> ir.Model:
    """One convolution far from any structure."""
    weight = np.random.default_rng(0).standard_normal((32, 24, 3, 3)) / 15
    return parsed(ONE, w=np.asarray(weight, np.float32), b=np.linspace(-1, 1, 32, dtype=np.float32))


def _feeds(model: ir.Model) -> Feeds:
    return open_feeds({"x": _images(64, 1)}, model)


def _only(report: PassReport) -> Change:
    assert len(report.changes) == 1, report.skips
    return report.changes[0]


def test_data_beat_weights_on_held_out_data(one: ir.Model, in_context: InContext, outputs_of: OutputsOf) -> None:
    held_out = {"x": _images(32, 2)}
    before = outputs_of(one, held_out)["y"]
    errors: dict[str, float] = {}
    for fit in ("weights", "data", "auto"):
        model = one.clone()
        change = _only(Structured(fit=fit).run(model, in_context(data=_feeds(model))))
        errors[fit] = _error(before, outputs_of(model, held_out)["y"])
        assert change.choice == {"n": 2, "sums": "ones"}
        if fit == "data":
            assert change.error == pytest.approx(errors[fit], rel=0.5)
    assert errors["auto"] == errors["data"] < 0.7 * errors["weights"]


def test_rules_choose_n(parsed: Parsed, in_context: InContext) -> None:
    rng = np.random.default_rng(0)
    weight = compose(rng.standard_normal((20, 16, 3, 3)), (5, 5)) + 0.01 * rng.standard_normal((20, 16, 5, 5))
    text = "g (float[N,16,9,9] x) => (float[N,20,a,b] y) { [one] y = Conv(x, w) }"
    for options, n in (
        ({"energy": 0.99}, 3),
        ({"energy": 0.5}, 2),
        ({"keep": 0.4}, 3),
        ({"keep": 0.35}, 2),
        ({"ratio": 2.0}, 3),
        ({"rank": 4}, 4),
        ({"n": 1}, 1),
        ({}, 2),
    ):
        model = parsed(text, w=weight.astype(np.float32))
        given_: dict[str, Any] = options
        assert _only(Structured(**given_).run(model, in_context(objective="macs"))).choice["n"] == n, options


def test_the_core_is_a_map_of_features() -> None:
    structured = Structured()
    weight = np.random.default_rng(0).standard_normal((6, 4, 5, 3))
    factors = structured.factor(weight, None, Setting((2,)))
    x = np.random.default_rng(0).standard_normal((7, 60))
    tail = structured.tail(factors)
    assert tail is not None and tail.rank is None
    assert tail.features(x) @ tail.linear.T == pytest.approx(x @ structured.compose(factors).reshape(6, -1).T)
    doubled = tail.with_map(2 * tail.linear, None)
    assert structured.compose(doubled) == pytest.approx(2 * structured.compose(factors))


def test_both_kinds_of_sums_are_timed(one: ir.Model, in_context: InContext) -> None:
    site = conv_site(next(iter(one.graph)))
    assert isinstance(site, Site)

    def offered(context: Context, **options: Any) -> list[str]:
        found = Structured(**options).propose(site, None, context)
        assert isinstance(found, list)
        candidates: list[Candidate] = found
        return [str(candidate.choice["sums"]) for candidate in candidates]

    assert offered(in_context(objective="latency")) == ["ones", "pool"]
    assert offered(in_context(objective="latency"), sums="ones") == ["ones"]
    assert offered(in_context(objective="macs")) == ["ones"]
    assert offered(in_context(objective="latency", target=load_target("ort-arm"))) == ["ones"]


X, Y = "float[N,32,8,8] x", "float[N,o,h,w] y"
CONV = f"g ({X}) => ({Y}) {{ [conv] y = Conv(x, w) }}"
SAME = CONV.replace("8,8", "h,w").replace("o,h,w", "o,p,q")
REFUSED: dict[str, tuple[str, tuple[int, ...], Structured, str]] = {
    "pointwise": (CONV, (64, 32, 1, 1), Structured(), "the kernel is 1x1"),
    "depthwise": (CONV.replace("Conv(", "Conv<group=32>("), (32, 1, 3, 3), Structured(), "depthwise"),
    "transposed": (CONV.replace("Conv(", "ConvTranspose("), (32, 64, 3, 3), Structured(), "a ConvTranspose"),
    "nothing to sum": (CONV, (32, 32, 2, 2), Structured(), "rank 2 reaches the full 2"),
    "as long as the kernel": (CONV, (32, 32, 3, 3), Structured(n=4), "rank 4 reaches the full 3"),
    "all of the energy": (CONV, (32, 32, 3, 3), Structured(energy=1.0), "no gain"),
    "size unknown": (
        SAME.replace("Conv(", 'Conv<auto_pad="SAME_UPPER", strides=[2,2]>('),
        (32, 32, 3, 3),
        Structured(),
        "auto_pad SAME_UPPER with a stride, and the size of the input is not known",
    ),
}


@pytest.mark.parametrize(("text", "shape", "structured", "reason"), list(REFUSED.values()), ids=list(REFUSED))
def test_refusals(
    text: str, shape: tuple[int, ...], structured: Structured, reason: str, parsed: Parsed, in_context: InContext
) -> None:
    model = parsed(text, w=np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    before = ir.to_proto(model).SerializeToString()
    report = structured.run(model, in_context())
    assert not report.changes
    assert [reason in skip.reason for skip in report.skips] == [True], report.skips
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rank": "vbmf"}, "no rank=vbmf; it takes energy, ratio or a number"),
        ({"rank": "weakened"}, "no rank=weakened"),
        ({"n": 2, "rank": 2}, "n and rank exclude each other"),
        ({"n": 2, "keep": 0.5}, "n and keep exclude each other"),
        ({"keep": 0.5, "energy": 0.9}, "exclude each other"),
    ],
)
def test_options(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        Structured(**options)


def test_only_what_is_named_is_explicit() -> None:
    assert not Structured().explicit() and not Structured(sums="pool").explicit()
    assert all(s.explicit() for s in (Structured(n=2), Structured(rank=1), Structured(energy=0.9)))
