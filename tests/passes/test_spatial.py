"""spatial: its two formulas, its orders, and every reason for which it leaves a convolution alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.allocation.problem import Setting
from onnxcomp.contract import Context, Skip
from onnxcomp.graph.sites import Site, conv_site
from onnxcomp.numeric.moments import Moments
from onnxcomp.passes.spatial import Spatial
from onnxcomp.registry import build_pipeline

Parsed = Callable[..., ir.Model]
InContext = Callable[..., Context]
CONV = "g (float[N,32,16,16] x) => (float[N,o,h,w] y) { [conv] y = Conv<pads=[1,1,1,1]>(x, w) }"


def _ones(*shape: int) -> NDArray[np.float32]:
    return np.ones(shape, np.float32)


def _site(model: ir.Model) -> Site:
    site = conv_site(model.graph[0])
    assert isinstance(site, Site)
    return site


@pytest.mark.parametrize("n", [3, 5, 7])
@pytest.mark.parametrize("order", ["vh", "hv"])
def test_as_many_channels_between_leave_2_of_n_weights(
    parsed: Parsed, in_context: InContext, n: int, order: str
) -> None:
    model = parsed(CONV.replace("[1,1,1,1]", str([n // 2] * 4)), w=_ones(32, 32, n, n))
    site = _site(model)
    cost = Spatial().cost(site, Setting((32,), order))
    assert cost.parameters * n == 2 * site.weight.size
    assert cost.macs is not None and site.cost.macs is not None and cost.macs * n == 2 * site.cost.macs
    (change,) = Spatial(rank=32).run(model, in_context()).changes
    assert change.after.parameters * n == 2 * change.before.parameters


def test_the_better_order_is_taken(parsed: Parsed, in_context: InContext) -> None:
    """Rank 3 between columns and rows is exact in one order alone."""
    rng = np.random.default_rng(0)
    vertical = np.einsum("orq,rip->oipq", rng.standard_normal((32, 3, 3)), rng.standard_normal((3, 32, 3)))
    for weight, order, ends in (
        (vertical, "vh", ("3x1 32>3", "1x3 3>32")),
        (vertical.swapaxes(2, 3), "hv", ("1x3 32>3", "3x1 3>32")),
    ):
        model = parsed(CONV, w=np.ascontiguousarray(weight, np.float32))
        (change,) = Spatial(rank=3).run(model.clone(), in_context()).changes
        assert change.choice == {"rank": 3, "order": order} and change.summary == ", ".join(ends)
        assert change.error is not None and change.error < 1e-10
        (forced,) = Spatial(rank=3, order="hv" if order == "vh" else "vh").run(model, in_context()).changes
        assert forced.error is not None and forced.error > 0.1


def test_of_three_axes_the_first_one_over_1_is_split_off(parsed: Parsed, in_context: InContext) -> None:
    text = "g (float[N,16,4,8,8] x) => (float[N,16,a,b,c] y) { [conv] y = Conv(x, w) }"
    for kernel, words in (((3, 3, 3), ("3x1x1", "1x3x3")), ((1, 3, 5), ("1x3x1", "1x1x5"))):
        for order in ("vh", "hv"):
            model = parsed(text.replace("4,8,8", "8,8,8"), w=_ones(16, 16, *kernel))
            (change,) = Spatial(rank=8, order=order).run(model, in_context()).changes
            first, second = words if order == "vh" else words[::-1]
            assert change.summary == f"{first} 16>8, {second} 8>16"


CASES: dict[str, tuple[str, NDArray[np.float32], str]] = {
    "pointwise": (CONV, _ones(32, 32, 1, 1), "the kernel is 1x1"),
    "line": (CONV, _ones(32, 32, 1, 3), "the kernel has one axis over 1 only"),
    "transposed": (CONV.replace("Conv<", "ConvTranspose<"), _ones(32, 32, 3, 3), "a ConvTranspose"),
    "small depthwise": (
        CONV.replace("Conv<", "Conv<group=32, "),
        _ones(32, 1, 3, 3),
        "depthwise, of a small kernel",
    ),
    "multiplier": (
        CONV.replace("Conv<", "Conv<group=32, "),
        _ones(64, 1, 5, 5),
        "depthwise, with a channel multiplier",
    ),
    "narrow": (CONV, _ones(4, 32, 3, 3), "too few channels: 32 in, 4 out"),
    "narrow groups": (
        CONV.replace("Conv<", "Conv<group=8, "),
        _ones(32, 4, 3, 3),
        "too few channels: 4 in, 4 out a group",
    ),
}


@pytest.mark.parametrize(("text", "weight", "reason"), CASES.values(), ids=CASES)
def test_reason(text: str, weight: Any, reason: str, parsed: Parsed, in_context: InContext) -> None:
    model = parsed(text, w=weight)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert Spatial(rank=8).run(model, in_context()).skips == (Skip("conv", reason),)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_depthwise_kernels_become_pairs_added_up(parsed: Parsed, in_context: InContext) -> None:
    rng = np.random.default_rng(1)
    filters = rng.standard_normal((32, 2, 7, 1)) @ rng.standard_normal((32, 2, 1, 7))
    filters[:, 1] *= 0.1
    model = parsed(CONV.replace("Conv<", "Conv<group=32, "), w=filters.sum(1, keepdims=True).astype(np.float32))
    context = in_context(objective="latency", replay={"conv": {}})  # blocks of 16 are no matter: channels stay
    (one,) = Spatial(energy=0.9).run(model.clone(), context).changes
    assert one.choice["rank"] == 1 and one.summary in ("dw 7x1 32, dw 1x7 32", "dw 1x7 32, dw 7x1 32")
    (two,) = Spatial(energy=0.9999).run(model.clone(), context).changes
    assert two.choice["rank"] == 2 and two.summary.startswith("2 x (dw ")
    assert Spatial(keep=0.7).run(model.clone(), context).changes[0].choice["rank"] == 2
    assert "in steps of" in Spatial(keep=0.1).run(model.clone(), context).skips[0].reason


def test_an_order_of_another_name_is_refused() -> None:
    with pytest.raises(Exception, match=r"spatial.order: 'diagonal' is not one of vh, hv"):
        build_pipeline("spatial(order=diagonal)")


@pytest.mark.parametrize("order", ["vh", "hv"])
def test_with_data_each_order_has_its_own_statistics(order: str) -> None:
    """Both are scored and fitted on the same moments; a kernel that is exact in one order stays so after the other."""
    rng = np.random.default_rng(0)
    one, two = rng.standard_normal((4, 16, 3)), rng.standard_normal((16, 4, 3))
    weight = np.einsum("orq,rip->oipq" if order == "vh" else "orp,riq->oipq", two, one)
    patches = rng.standard_normal((2000, 16 * 9)) @ rng.standard_normal((16 * 9, 16 * 9))
    moments = Moments(patches.T @ patches / 2000, patches.mean(0), 2000).with_weight(weight)
    form = Spatial()
    score = form.scores(weight, moments)
    errors = {each: score(Setting((4,), each)) for each in ("vh", "hv", "vh")}
    assert errors.pop(order) < 1e-9 and min(errors.values()) > 0.01
    fitted = form.compose(form.factor(weight, moments, Setting((4,), order)))
    np.testing.assert_allclose(fitted, weight, atol=1e-6)
