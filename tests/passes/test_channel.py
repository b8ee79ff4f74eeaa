"""channel: what it writes, and every reason for which it leaves a convolution alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.contract import Context, Skip
from onnxcomp.passes.channel import Channel

Parsed = Callable[..., ir.Model]
InContext = Callable[..., Context]
CONV = "g (float[N,32,16,16] x) => (float[N,o,h,w] y) { [conv] y = Conv<pads=[1,1,1,1]>(x, w) }"


def _ones(*shape: int) -> NDArray[np.float32]:
    return np.ones(shape, np.float32)


CASES: dict[str, tuple[str, NDArray[np.float32], str]] = {
    "pointwise": (CONV, _ones(32, 32, 1, 1), "the kernel is 1x1"),
    "transposed": (CONV.replace("Conv<", "ConvTranspose<"), _ones(32, 32, 3, 3), "a ConvTranspose"),
    "depthwise": (CONV.replace("Conv<", "Conv<group=32, "), _ones(32, 1, 3, 3), "depthwise"),
    "narrow": (CONV, _ones(8, 32, 3, 3), "too few channels: 8 out"),
    "narrow groups": (CONV.replace("Conv<", "Conv<group=4, "), _ones(32, 8, 3, 3), "too few channels: 8 out a group"),
    "full": (CONV, _ones(16, 32, 3, 3), "rank 16 reaches the full 16"),
}


@pytest.mark.parametrize(("text", "weight", "reason"), CASES.values(), ids=CASES)
def test_reason(text: str, weight: NDArray[np.float32], reason: str, parsed: Parsed, in_context: InContext) -> None:
    model = parsed(text, w=weight)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert Channel(rank=16).run(model, in_context()).skips == (Skip("conv", reason),)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_the_error_is_that_of_the_truncated_svd(parsed: Parsed, in_context: InContext) -> None:
    weight = np.random.default_rng(0).standard_normal((32, 32, 3, 3)).astype(np.float32)
    values = np.linalg.svd(weight.reshape(32, -1).astype(np.float64), compute_uv=False) ** 2
    (change,) = Channel(rank=9).run(parsed(CONV, w=weight), in_context()).changes
    assert change.summary == "3x3 32>9, 1x1 9>32" and change.choice == {"rank": 9}
    assert change.error == pytest.approx(values[9:].sum() / values.sum())
    assert change.after.parameters == 9 * (32 * 9 + 32)


def test_groups_share_a_rank(parsed: Parsed, in_context: InContext) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 16, 3, 3)).astype(np.float32)
    model = parsed(CONV.replace("Conv<", "Conv<group=2, "), w=weight)
    (change,) = Channel(rank=5).run(model, in_context()).changes
    shapes = [tuple(v.shape.numpy()) for v in model.graph.initializers.values() if v.shape is not None]
    assert shapes == [(10, 16, 3, 3), (64, 5, 1, 1)] and change.error is not None and 0 < change.error < 1
