"""lowrank: matrix products of every form, and every reason for which it leaves one alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.contract import Context, Skip
from onnxcomp.data import open_feeds
from onnxcomp.passes.lowrank import Lowrank

Array = NDArray[np.float32]
Parsed = Callable[..., ir.Model]
InContext = Callable[..., Context]
OutputsOf = Callable[[ir.Model, Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]
CI, CO, RANK = 24, 40, 6
GEMM = "g (float[N,24] x) => (float[N,40] y) { [fc] y = Gemm(x, w) }"
ROWS = "g (float[N,7,24] x) => (float[N,7,40] y) { [fc] y = MatMul(x, w) }"
FORMS = {
    "gemm": GEMM,
    "gemm with a bias": GEMM.replace("w)", "w, b)"),
    "gemm of a transposed weight": GEMM.replace("Gemm(x, w)", "Gemm<transB=1>(x, v, b)"),
    "gemm with factors": GEMM.replace("Gemm(x, w)", "Gemm<transB=1, alpha=0.5, beta=-2.0>(x, v, b)"),
    "matmul": GEMM.replace("Gemm", "MatMul"),
    "matmul of batches": ROWS,
    "matmul of batches with an Add": ROWS.replace("[fc] y = MatMul(x, w)", "[fc] m = MatMul(x, w) y = Add(m, b)"),
    "matmul of four axes": ROWS.replace("N,7", "N,2,7"),
}


def _matrix(rank: int = RANK, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    return np.asarray(
        rng.standard_normal((CI, rank)) @ rng.standard_normal((rank, CO)) / np.sqrt(rank * CI), np.float32
    )


def _model(parsed: Parsed, text: str, matrix: Array) -> ir.Model:
    held = {"w": matrix, "v": np.ascontiguousarray(matrix.T), "b": np.linspace(-1, 1, CO, dtype=np.float32)}
    used = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return parsed(text, **{name: array for name, array in held.items() if name in used})


def _feed(text: str, seed: int = 1, samples: int = 64) -> Array:
    """Columns that move together, away from zero."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).standard_normal((CI, CI)) * np.exp(-np.arange(CI) / 3)
    inner = (2, 7) if "N,2,7" in text else (7,) if "N,7" in text else ()
    return np.asarray(rng.standard_normal((samples, *inner, CI)) @ mixing.T + 1.0, np.float32)


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("data", [False, True])
def test_exact_at_its_rank(text: str, data: bool, parsed: Parsed, in_context: InContext, outputs_of: OutputsOf) -> None:
    model = _model(parsed, text, _matrix())
    x = {"x": _feed(text, 2)}
    before = outputs_of(model, x)["y"]
    feeds = open_feeds({"x": _feed(text)}, model) if data else None
    (change,) = Lowrank(rank=RANK).run(model, in_context(data=feeds)).changes
    after = outputs_of(model, x)["y"]
    assert np.linalg.norm(after - before) <= 1e-5 * np.linalg.norm(before)
    kind = "Gemm" if "Gemm" in text else "MatMul"
    assert change.summary.startswith(f"{kind} 24>6, {kind} 6>40") and change.choice == {"rank": 6}
    assert [n.op_type for n in model.graph][:2] == [kind] * 2
    assert change.error == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_data_beat_weights_and_the_bias_takes_the_mean(
    text: str, parsed: Parsed, in_context: InContext, outputs_of: OutputsOf
) -> None:
    base = _model(parsed, text, _matrix(CI))
    held_out = {"x": _feed(text, 2)}
    before = outputs_of(base, held_out)["y"].reshape(-1, CO)
    energy = np.square(before - before.mean(0)).sum()
    errors: dict[str, float] = {}
    drift: dict[str, float] = {}
    for fit in ("weights", "data"):
        model = base.clone()
        Lowrank(rank=4, fit=fit).run(model, in_context(data=open_feeds({"x": _feed(text)}, model)))
        difference = outputs_of(model, held_out)["y"].reshape(-1, CO) - before
        errors[fit] = float(np.square(difference).sum() / energy)
        drift[fit] = float(np.abs(difference.mean(0)).max() / before.std())
    assert errors["data"] < 0.5 * errors["weights"] and drift["data"] < 0.5 * drift["weights"]


@pytest.mark.parametrize("group", [1, 2])
def test_a_pointwise_convolution_keeps_strides_and_pads_on_its_first_node(
    group: int, parsed: Parsed, in_context: InContext
) -> None:
    node = f"[fc] y = Conv<strides=[2,1], pads=[1,0,0,2], group={group}>(x, w)"
    text = f"g (float[N,32,8,8] x) => (float[N,32,a,b] y) {{ {node} }}"
    model = parsed(text, w=np.random.default_rng(0).standard_normal((32, 32 // group, 1, 1)).astype(np.float32))
    (change,) = Lowrank(rank=4).run(model, in_context()).changes
    core, last = list(model.graph)
    assert core.attributes.get_ints("strides") == (2, 1) and last.attributes.get_ints("strides") == (1, 1)
    assert list(core.attributes.get_ints("pads") or ()) == [1, 0, 0, 2]
    assert change.after.macs is not None and change.before.macs is not None and change.after.macs < change.before.macs


CASES: dict[str, tuple[str, tuple[int, ...], str]] = {
    "kernel": (
        "g (float[N,32,8,8] x) => (float[N,32,a,b] y) { [fc] y = Conv(x, w) }",
        (32, 32, 3, 3),
        "the kernel is 3x3",
    ),
    "depthwise": (
        "g (float[N,32,8,8] x) => (float[N,32,a,b] y) { [fc] y = Conv<group=32>(x, w) }",
        (32, 1, 1, 1),
        "depthwise",
    ),
    "narrow": (GEMM.replace("40", "3"), (24, 3), "too few channels: 24 in, 3 out"),
    "full": (GEMM.replace("40", "8"), (24, 8), "rank 8 reaches the full 8"),
    "transposed data": (
        "g (float[24,N] x) => (float[N,40] y) { [fc] y = Gemm<transA=1>(x, w) }",
        (24, 40),
        "its left operand is transposed",
    ),
}


@pytest.mark.parametrize(("text", "shape", "reason"), CASES.values(), ids=CASES)
def test_reason(text: str, shape: tuple[int, ...], reason: str, parsed: Parsed, in_context: InContext) -> None:
    model = parsed(text, w=np.ones(shape, np.float32))
    assert Lowrank(rank=8).run(model, in_context()).skips == (Skip("fc", reason),)


def test_products_of_activations_are_no_sites(parsed: Parsed, in_context: InContext) -> None:
    model = parsed("g (float[N,8,8] x) => (float[N,8,8] y) { y = MatMul(x, x) }")
    report = Lowrank(rank=2).run(model, in_context())
    assert report.changes == () and report.skips == ()
