from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.graph.fold import Log, canonicalise, fold

Build = Callable[..., ir.Model]
Check = Callable[..., Log]

Array = NDArray[np.floating[Any]]


def moments(channels: int, dtype: type[np.floating[Any]] = np.float32) -> dict[str, Array]:
    rng = np.random.default_rng(1)
    draws = {name: rng.standard_normal(channels) for name in ("gamma", "beta", "mean")}
    return {k: v.astype(dtype) for k, v in draws.items()} | {"var": (0.1 + rng.random(channels)).astype(dtype)}


def normal(*shape: int, dtype: type[np.floating[Any]] = np.float32) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


BN = "y = BatchNormalization(c, gamma, beta, mean, var)"


@pytest.mark.parametrize("spatial", [(9,), (7, 6), (5, 4, 6)])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_batch_normalization_into_convolution(
    build: Build, check: Check, spatial: tuple[int, ...], group: int, bias: bool, kind: str
) -> None:
    dims = ",".join(map(str, spatial))
    shape = (8, 4 // group) if kind == "Conv" else (4, 8 // group)
    arrays = moments(8) | {"w": normal(*shape, *(3,) * len(spatial))} | ({"b": normal(8)} if bias else {})
    out = ",".join(str(s - 2 if kind == "Conv" else s + 2) for s in spatial)
    model = build(
        f"g (float[N,4,{dims}] x) => (float[N,8,{out}] y) "
        f"{{ [conv] c = {kind}<group={group}>(x, w{', b' if bias else ''})  [bn] {BN} }}",
        **arrays,
    )
    model.graph.node("conv").metadata_props["mine"] = "kept"
    log = check(model)
    (node,) = model.graph
    assert log.lines == ("removed 4 unused initializers", "conv: absorbed BatchNormalization bn")
    assert (node.name, node.metadata_props["mine"], node.outputs[0].name) == ("conv", "kept", "y")
    assert [v.name for v in node.inputs if v is not None] == ["x", "w", "b" if bias else "conv.bias"]
    assert set(model.graph.initializers) == {"w", "b" if bias else "conv.bias"}


@pytest.mark.parametrize("trans", [0, 1])
@pytest.mark.parametrize("bias", [None, (), (1,), (6,), (1, 6)])
def test_batch_normalization_into_gemm(build: Build, check: Check, trans: int, bias: tuple[int, ...] | None) -> None:
    arrays = moments(6) | {"w": normal(6, 5) if trans else normal(5, 6)}
    if bias is not None:
        arrays["b"] = normal(*bias)
    model = build(
        f"g (float[N,5] x) => (float[N,6] y) {{ [fc] c = Gemm<transB={trans}, alpha=0.5, beta=3.0>"
        f"(x, w{'' if bias is None else ', b'}) {BN} }}",
        **arrays,
    )
    check(model)
    assert ops(model) == ["Gemm"]
    assert not {"alpha", "beta"} & set(model.graph.node("fc").attributes)


def test_half_precision_keeps_its_type(build: Build, check: Check) -> None:
    model = build(
        f"g (float16[N,4,6,6] x) => (float16[N,8,4,4] y) {{ [conv] c = Conv(x, w) {BN} }}",
        w=normal(8, 4, 3, 3, dtype=np.float16),
        **moments(8, np.float16),
    )
    check(model, tolerance=2e-3)
    assert ops(model) == ["Conv"]
    assert {v.dtype for v in model.graph.initializers.values()} == {ir.DataType.FLOAT16}


def test_double_precision_keeps_its_type(build: Build, check: Check) -> None:
    model = build(
        "g (double[N,5] x) => (double[N,6] y) { c = Gemm(x, w) s = Mul(c, k) y = Add(s, k) }",
        w=normal(5, 6, dtype=np.float64),
        k=normal(6, dtype=np.float64),
    )
    check(model, tolerance=1e-14)
    assert ops(model) == ["Gemm"]
    assert {v.dtype for v in model.graph.initializers.values()} == {ir.DataType.DOUBLE}


ABSORBED = ["c * k", "k * c", "c + k", "k + c", "c - k", "k - c", "c / k"]
OPS = {"*": "Mul", "+": "Add", "-": "Sub", "/": "Div"}


def arithmetic(formula: str) -> str:
    left, sign, right = formula.split()
    return f"[op] y = {OPS[sign]}({left}, {right})"


@pytest.mark.parametrize("formula", ABSORBED)
@pytest.mark.parametrize("shape", [(), (1,), (8, 1, 1), (1, 8, 1, 1), (1, 1, 1, 1)])
def test_arithmetic_with_a_constant(build: Build, check: Check, formula: str, shape: tuple[int, ...]) -> None:
    model = build(
        f"g (float[N,4,6,6] x) => (float[N,8,4,4] y) {{ [conv] c = Conv(x, w, b) {arithmetic(formula)} }}",
        w=normal(8, 4, 3, 3),
        b=normal(8),
        k=normal(*shape),
    )
    check(model)
    assert ops(model) == ["Conv"]


@pytest.mark.parametrize(
    ("formula", "shape", "output"),
    [
        ("k / c", (), "N,8,4,4"),  # not linear
        ("c * k", (4,), "N,8,4,4"),  # along the width
        ("c * k", (4, 1), "N,8,4,4"),  # along the height
        ("c + k", (8, 4, 4), "N,8,4,4"),  # one number a position
        ("c * k", (1, 1, 8, 1, 1), "1,N,8,4,4"),  # one axis more
        ("c * k", (2, 1, 1, 1), "2,8,4,4"),  # along the batch
    ],
)
def test_arithmetic_that_is_not_per_channel_stays(
    build: Build, check: Check, formula: str, shape: tuple[int, ...], output: str
) -> None:
    model = build(
        f"g (float[N,4,6,6] x) => (float[{output}] y) {{ [conv] c = Conv(x, w) {arithmetic(formula)} }}",
        w=normal(8, 4, 3, 3),
        k=normal(*shape),
    )
    log = check(model, free=(2,))
    assert ops(model) == ["Conv", OPS[formula.split()[1]]] and log.lines == ()


def test_arithmetic_that_widens_one_channel_stays(build: Build, check: Check) -> None:
    model = build(
        "g (float[N,4,6,6] x) => (float[N,8,4,4] y) { c = Conv(x, w) y = Mul(c, k) }",
        w=normal(1, 4, 3, 3),
        k=normal(8, 1, 1),
    )
    check(model)
    assert ops(model) == ["Conv", "Mul"]


def test_division_by_zero_stays(build: Build) -> None:
    model = build(
        "g (float[N,4,6,6] x) => (float[N,8,4,4] y) { c = Conv(x, w) y = Div(c, k) }",
        w=normal(8, 4, 3, 3),
        k=np.zeros(1, np.float32),
    )
    assert fold(model) == () and ops(model) == ["Conv", "Div"]


def test_a_chain_is_absorbed_in_order(build: Build, check: Check) -> None:
    model = build(
        f"""g (float[N,4,6,6] x) => (float[N,8,4,4] z) {{
          [conv] c = Conv(x, w) [bn] {BN} [twice] m = Mul(y, k) [up] s = Add(m, k) z = Relu(s) }}""",
        w=normal(8, 4, 3, 3),
        k=np.array([2.0], np.float32),
        **moments(8),
    )
    log = check(model)
    assert [str(r) for r in log.rewrites] == [
        "conv: absorbed BatchNormalization bn",
        "conv: absorbed Mul twice",
        "conv: absorbed Add up",
    ]
    assert ops(model) == ["Conv", "Relu"]


def test_an_initializer_that_serves_as_weight_and_operand_is_shared(build: Build, check: Check) -> None:
    model = build(
        "g (float[N,1,6,6] x) => (float[N,1,6,6] y) { [conv] c = Conv(x, w) y = Mul(c, w) }", w=normal(1, 1, 1, 1)
    )
    log = check(model)
    assert ops(model) == ["Conv", "Mul"]
    assert "shared" in log.refusals[0].reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"[conv] c = Conv(x, w) [bn] {BN} [other] z = Conv(x, w)", "the weight is shared with other"),
        (f"[conv] c = Conv(x, w) [bn] {BN} z = Relu(c)", None),
        ("[conv] z = Conv(x, w) y = BatchNormalization(z, gamma, beta, mean, var)", None),
        (
            "[conv] c = Conv(x, w) y, m, v = BatchNormalization<training_mode=1>(c, gamma, beta, mean, var) z = Abs(y)",
            None,
        ),
    ],
)
def test_refusals_change_nothing(build: Build, check: Check, body: str, reason: str | None) -> None:
    model = build(
        f"g (float[N,4,6,6] x) => (float[N,8,4,4] y, float[N,8,4,4] z) {{ {body} }}", w=normal(8, 4, 3, 3), **moments(8)
    )
    before = ir.to_proto(model).graph.initializer
    log = check(model)
    assert "BatchNormalization" in ops(model) and log.lines == ()
    assert ir.to_proto(model).graph.initializer == before
    assert [r.reason for r in log.refusals] == ([f"cannot absorb BatchNormalization bn: {reason}"] if reason else [])


@pytest.mark.parametrize("name", ["w", "gamma"])
def test_what_a_caller_may_override_is_never_baked_in(build: Build, check: Check, name: str) -> None:
    model = build(
        f"g (float[N,4,6,6] x) => (float[N,8,4,4] y) {{ [conv] c = Conv(x, w) {BN} }}",
        w=normal(8, 4, 3, 3),
        **moments(8),
    )
    model.graph.inputs.append(model.graph.initializers[name])
    log = check(model)
    assert ops(model) == ["Conv", "BatchNormalization"]
    refused = "cannot absorb BatchNormalization y: the weight 'w' can be overridden by a graph input"
    assert [r.reason for r in log.refusals] == ([refused] if name == "w" else [])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["w", "b", "gamma", "var"])
def test_nan_and_inf_are_refused(build: Build, bad: float, name: str) -> None:
    arrays = moments(8) | {"w": normal(8, 4, 3, 3), "b": normal(8)}
    arrays[name].flat[1] = bad
    if name == "var":
        arrays[name].flat[1] = -1.0
    model = build(f"g (float[N,4,6,6] x) => (float[N,8,4,4] y) {{ [conv] c = Conv(x, w, b) {BN} }}", **arrays)
    log = canonicalise(model)
    assert ops(model) == ["Conv", "BatchNormalization"] and log.lines == ()
    (refusal,) = log.refusals
    assert refusal.site == "conv" and ("holds NaN or Inf" in refusal.reason or "does not fit float32" in refusal.reason)


@pytest.mark.parametrize("scale", [1e5, 1e-7])
def test_half_precision_that_overflows_or_underflows_is_refused(build: Build, scale: float) -> None:
    model = build(
        "g (float16[N,4,6,6] x) => (float16[N,8,4,4] y) { c = Conv(x, w) y = BatchNormalization(c, g, b, b, v) }",
        w=normal(8, 4, 3, 3, dtype=np.float16) if scale > 1 else (normal(8, 4, 3, 3) * 1e-3).astype(np.float16),
        g=np.full(8, min(scale, 6e4) if scale > 1 else 1e-4, np.float16),
        b=np.zeros(8, np.float16),
        v=np.ones(8, np.float16),
    )
    (refusal,) = canonicalise(model).refusals
    assert "does not fit float16" in refusal.reason and ops(model) == ["Conv", "BatchNormalization"]


def test_a_shared_bias_is_copied(build: Build, check: Check) -> None:
    model = build(
        f"""g (float[N,4,6,6] x) => (float[N,8,4,4] y, float[N,8,4,4] z) {{
          [conv] c = Conv(x, w, b) {BN} [other] z = Conv(x, v, b) }}""",
        w=normal(8, 4, 3, 3),
        v=normal(8, 4, 3, 3),
        b=normal(8),
        **moments(8),
    )
    check(model)
    assert ops(model) == ["Conv", "Conv"]
    assert {v.name for n in model.graph for v in n.inputs[2:] if v is not None} == {"conv.bias", "b"}


def test_inside_a_branch(build: Build, check: Check) -> None:
    model = build(
        f"""g (float[N,4,6,6] x, bool t) => (float[N,8,4,4] o) {{ o = If(t) <
          then_branch = a () => (float[N,8,4,4] y) {{ [conv] c = Conv(x, w) {BN} }},
          else_branch = b () => (float[N,8,4,4] z) {{
            k = Constant<value_float=2.0>() d = Conv(x, v) z = Mul(d, k) }}> }}""",
        w=normal(8, 4, 3, 3),
        v=normal(8, 4, 3, 3),
        **moments(8),
    )
    check(model, free=(2, 3, 4, 5))
    assert sorted(n.op_type for n in model.graph.all_nodes()) == ["Conv", "Conv", "If"]


def test_a_reader_inside_a_branch_is_not_absorbed(build: Build, check: Check) -> None:
    model = build(
        """g (float[N,4,6,6] x, bool t) => (float[N,8,4,4] o) { [conv] c = Conv(x, w) o = If(t) <
          then_branch = a () => (float[N,8,4,4] y) { y = Mul(c, k) },
          else_branch = b () => (float[N,8,4,4] z) { z = Conv(x, w) }> }""",
        w=normal(8, 4, 3, 3),
        k=np.array([2.0], np.float32),
    )
    check(model, free=(2, 3, 4, 5))
    assert sorted(n.op_type for n in model.graph.all_nodes()) == ["Conv", "Conv", "If", "Mul"]


def test_a_weight_that_is_computed_stays(build: Build, check: Check) -> None:
    model = build(
        "g (float[N,4,6,6] x, float[8,4,3,3] w) => (float[N,8,4,4] y) { c = Conv(x, w) y = Mul(c, k) }",
        k=np.array([2.0], np.float32),
    )
    check(model)
    assert ops(model) == ["Conv", "Mul"]
