"""Gemm's alpha and beta go into its constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.graph.fold import Log

Build = Callable[..., ir.Model]
Check = Callable[..., Log]


def normal(*shape: int, dtype: type[np.floating[Any]] = np.float32) -> NDArray[np.floating[Any]]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def scalars(model: ir.Model) -> set[str]:
    return {"alpha", "beta"} & {name for node in model.graph for name in node.attributes}


@pytest.mark.parametrize("bias", [None, (), (1,), (6,), (1, 1), (1, 6)])
@pytest.mark.parametrize("trans", [0, 1])
def test_alpha_and_beta_go_into_the_constants(
    build: Build, check: Check, trans: int, bias: tuple[int, ...] | None
) -> None:
    arrays = {"w": normal(6, 5) if trans else normal(5, 6)} | ({} if bias is None else {"b": normal(*bias)})
    model = build(
        f"g (float[N,5] x) => (float[N,6] y) {{ [fc] y = Gemm<transB={trans}, alpha=0.25, beta=3.0>"
        f"(x, w{'' if bias is None else ', b'}) }}",
        **arrays,
    )
    log = check(model)
    assert log.rewrites[0].site == "fc" and log.rewrites[0].summary.startswith("took over alpha, beta")
    assert not scalars(model)
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), arrays["w"] * np.float32(0.25))  # type: ignore[union-attr]
    if bias is not None:
        assert model.graph.initializers["b"].const_value.shape.numpy() == (6,)  # type: ignore[union-attr]


def test_transposed_data_keep_their_gemm(build: Build, check: Check) -> None:
    model = build(
        "g (float[5,4] x) => (float[4,6] y) { [fc] y = Gemm<transA=1, alpha=2.0, beta=0.5>(x, w, b) }",
        w=normal(5, 6),
        b=normal(4, 6),
    )
    check(model)
    assert not scalars(model)
    assert model.graph.node("fc").attributes.get_int("transA") == 1
    assert model.graph.initializers["b"].const_value.shape.numpy() == (4, 6)  # type: ignore[union-attr]


def test_a_bias_that_counts_for_nothing_goes(build: Build, check: Check) -> None:
    model = build(
        "g (float[N,5] x) => (float[N,6] y) { [fc] y = Gemm<beta=0.0>(x, w, b) }", w=normal(5, 6), b=normal(6)
    )
    check(model)
    assert set(model.graph.initializers) == {"w"} and len(model.graph.node("fc").inputs) == 2


def test_a_shared_bias_is_not_changed_for_its_other_reader(build: Build, check: Check) -> None:
    model = build(
        """g (float[N,6] x) => (float[N,6] y) {
            [one] a = Gemm<beta=2.0>(x, v, b)  [two] y = Gemm(a, w, b) }""",
        v=normal(6, 6),
        w=normal(6, 6) + np.float32(1),
        b=normal(6),
    )
    check(model)
    assert set(model.graph.initializers) == {"v", "w", "b", "one.bias"}


@pytest.mark.parametrize(
    "text, inputs, reason",
    [
        ("a = Gemm<alpha=2.0>(x, w)  y = Gemm(a, w)", "float[N,6] x", "cannot fold alpha: the weight is shared"),
        ("y = Gemm<alpha=2.0>(x, v)", "float[N,6] x, float[6,6] v", "cannot fold alpha: the weight is not a constant"),
        ("y = Gemm<beta=2.0>(x, w, v)", "float[N,6] x, float[6] v", "cannot fold beta: the bias is not a constant"),
        ("y = Gemm<alpha=1e30>(x, huge)", "float[N,6] x", "cannot fold alpha: the product does not fit float32"),
    ],
)
def test_what_is_not_folded_says_why(build: Build, text: str, inputs: str, reason: str) -> None:
    from onnxcomp.graph.fold import canonicalise

    model = build(
        f"g ({inputs}) => (float[N,6] y) {{ {text} }}", w=normal(6, 6), huge=np.full((6, 6), 1e20, np.float32)
    )
    before = [node.op_type for node in model.graph]
    log = canonicalise(model)
    assert [refusal.reason for refusal in log.refusals if refusal.reason.startswith(reason)]
    assert [node.op_type for node in model.graph] == before and scalars(model)


def test_a_bias_in_a_body_stays_there(build: Build, check: Check) -> None:
    model = build(
        """g (bool c, float[2,6] x) => (float[2,6] y) {
            y = If (c) <then_branch = t () => (float[2,6] p) { p = Gemm<alpha=2.0, beta=0.5>(x, w, b) },
                        else_branch = e () => (float[2,6] q) { q = Neg(x) }> }""",
        w=normal(6, 6),
        b=normal(1, 6),
    )
    log = check(model)
    assert any(rewrite.summary.startswith("took over alpha, beta") for rewrite in log.rewrites)
