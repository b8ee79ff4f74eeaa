from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.graph.edit import PASS
from onnxcomp.graph.fold import Log, fold
from onnxcomp.graph.fold.constants import FOLDABLE, GROWTH

Build = Callable[..., ir.Model]
Check = Callable[..., Log]


def f32(values: object) -> NDArray[np.float32]:
    return np.array(values, np.float32)


F = f32([[1.5, -2.25, 3.0], [0.5, 7.0, -0.125]])
P = np.abs(F) + 1
D = np.array([[7, -7, 5], [-5, 2, 9]], np.int64)
E = np.array([[2, 2, -3], [3, -4, 5]], np.int64)
B = np.array([[True, False, True], [False, False, True]])
C = np.array([[True, True, False], [False, True, False]])


def i(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def s(value: int) -> NDArray[np.int64]:
    return np.array(value, np.int64)


# One call for each foldable operator, on constants a, b, c, d in order. Shape and Size have tests of their own.
CASES: list[tuple[str, list[NDArray[Any]]]] = [
    *(
        (f"{op}(a)", [F])
        for op in ("Abs", "Ceil", "Exp", "Floor", "Neg", "Sign", "Transpose", "Flatten", "Shape", "Size")
    ),
    *((f"{op}(a)", [P]) for op in ("Log", "Sqrt", "Reciprocal")),
    *((f"{op}(a, b)", [F, P]) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Greater", "Less")),
    *((f"{op}(a, b)", [D, E]) for op in ("Add", "Sub", "Mul", "Div", "Mod", "Equal", "GreaterOrEqual", "LessOrEqual")),
    ("Mod<fmod=1>(a, b)", [D, E]),
    ("Mod<fmod=1>(a, b)", [F, P]),
    *((f"{op}(a, b)", [B, C]) for op in ("And", "Or", "Equal")),
    ("Not(a)", [B]),
    ("Pow(a, b)", [P, F]),
    ("Pow(a, b)", [D, s(3)]),
    ("Where(a, b, c)", [B, F, P]),
    ("Clip(a, b, c)", [F, f32(-1), f32(2)]),
    ("CumSum<reverse=1, exclusive=1>(a, b)", [F, s(1)]),
    *((f"{op}<axes=[1]>(a)", [F]) for op in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd")),
    ("ReduceSum<keepdims=0>(a, b)", [F, i(-1)]),
    ("Cast<to=7>(a)", [F]),
    ("Cast<to=1>(a)", [D]),
    ("Cast<to=9>(a)", [D]),
    ("Cast<to=10>(a)", [F]),
    ("Concat<axis=-1>(a, b)", [F, P]),
    ("ConstantOfShape<value=float[1] {2.5}>(a)", [i(2, 3)]),
    ("ConstantOfShape(a)", [i(2)]),
    ("Expand(a, b)", [F, i(2, 2, 3)]),
    ("Gather<axis=1>(a, b)", [F, i(2, -3)]),
    ("Gather(a, b)", [i(4, 5, 6), s(-1)]),
    ("GatherElements<axis=1>(a, b)", [F, np.array([[2, 0], [-1, 1]], np.int64)]),
    ("GatherND(a, b)", [F, np.array([[0, 2], [1, -1]], np.int64)]),
    ("Pad(a, b, c)", [F, i(0, 1, 1, 0), f32(9)]),
    ('Pad<mode="reflect">(a, b)', [F, i(0, 2, 0, 1)]),
    ("Range(a, b, c)", [s(9), s(-4), s(-3)]),
    ("Reshape(a, b)", [F, i(0, -1, 1)]),
    ("ScatterElements<axis=1>(a, b, c)", [F, np.array([[2, 0]], np.int64), f32([[8, 9]])]),
    ("ScatterND(a, b, c)", [F, np.array([[1]], np.int64), f32([[7, 8, 9]])]),
    ("Slice(a, b, c, d)", [F, i(-1), i(-(2**63) + 1), i(1)]),
    ("Slice(a, b, c)", [F, i(0), i(2**63 - 1)]),
    ("Split<axis=1>(a, b)", [F, i(3)]),
    ("Squeeze(a, b)", [F[None], i(0)]),
    ("Squeeze(a)", [F[None, :, None]]),
    ("Tile(a, b)", [F, i(2, 1)]),
    ("Transpose<perm=[2,0,1]>(a)", [F[None]]),
    ("Trilu<upper=0>(a, b)", [F, s(-1)]),
    ("Unsqueeze(a, b)", [F, i(0, -1)]),
]


@pytest.mark.parametrize(("call", "arrays"), CASES, ids=[call for call, _ in CASES])
def test_every_foldable_operator_agrees_with_the_runtime(
    build: Build, check: Check, call: str, arrays: list[NDArray[Any]]
) -> None:
    """ONNX Runtime runs the folded model against the original, so the reference implementation is what is tested."""
    body = f"k = {call} f = Cast<to=1>(k) r = Flatten<axis=0>(f) m = Mul(r, x) y = Neg(m)"
    model = build(f"g (float[1] x) => (float[A,B] y) {{ {body} }}", **dict(zip("abcd", arrays, strict=False)))
    log = check(model)
    assert [n.op_type for n in model.graph] == ["Mul", "Neg"], log.lines


def test_every_foldable_operator_has_a_case() -> None:
    assert {call.split("(")[0].split("<")[0] for call, _ in CASES} == FOLDABLE


def test_constant_nodes_of_every_kind_become_initializers(build: Build, check: Check) -> None:
    model = build(
        """g (float[N,2] x) => (float[N,2] y, int64[2] z) {
          a = Constant<value = float[2] {1.0, 2.0}>() b = Constant<value_float=2.0>()
          c = Constant<value_floats=[1.0, 3.0]>()
          d = Constant<value_ints=[-1, 2]>() e = Constant<value_int=1>() z = Constant<value_ints=[5, 6]>()
          f = Mul(x, a) g1 = Add(f, b) h = Sub(g1, c) y = Reshape(h, d) n = Neg(e) }"""
    )
    log = check(model)
    assert log.lines[0] == "5 Constant nodes became initializers"
    assert {"a", "b", "c", "d"} == set(model.graph.initializers)
    assert sorted(n.op_type for n in model.graph) == ["Add", "Constant", "Mul", "Reshape", "Sub"]


def test_integer_division_by_zero_is_left_to_the_runtime(build: Build) -> None:
    model = build("g (int64[2] x) => (int64[2] y) { k = Div(a, b) y = Add(x, k) }", a=i(1, 2), b=i(0, 1))
    assert fold(model) == ()


def test_the_file_never_blows_up(build: Build, check: Check) -> None:
    elements = GROWTH // 4
    model = build(
        """g (float[1] x) => (float[A] y, float[B] z) {
          a = Expand(one, n) y = Mul(a, x) b = Expand(one, m) z = Mul(b, x) }""",
        one=f32([2]),
        n=i(elements),
        m=i(elements + 8),
    )
    check(model)
    assert [n.op_type for n in model.graph] == ["Mul", "Expand", "Mul"]


def test_a_large_weight_is_rearranged_only_when_nobody_else_reads_it(build: Build, check: Check) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    model = build(
        "g (float[N,64] x) => (float[N,32] y) { t = Transpose(w) u = Transpose(t) y = MatMul(x, u) }", w=weight
    )
    check(model)
    assert [n.op_type for n in model.graph] == ["MatMul"]
    model = build(
        "g (float[N,64] x) => (float[N,64] y) { t = Transpose(w) z = MatMul(x, w) y = MatMul(z, t) }", w=weight
    )
    check(model)
    assert [n.op_type for n in model.graph] == ["Transpose", "MatMul", "MatMul"]


@pytest.mark.parametrize(
    "body",
    [
        "k = RandomNormal<shape=[2], seed=1.0>() y = Add(x, k)",
        "k = RandomUniformLike(a) y = Add(x, k)",
        "k = DequantizeLinear(q, a1) y = Add(x, k)",
    ],
)
def test_random_and_quantized_values_stay(build: Build, body: str) -> None:
    arrays = {"a": f32([1, 2]), "a1": f32(0.5), "q": np.array([1, 2], np.int8)}
    used = {name: array for name, array in arrays.items() if f"{name})" in body or f"({name}," in body}
    model = build(f"g (float[2] x) => (float[2] y) {{ {body} }}", **used)
    assert fold(model) == ()


def test_a_decoder_that_a_pass_left_stays(build: Build) -> None:
    model = build(
        "g (float[N,2] x) => (float[N,2] y) { i = Cast<to=6>(q) k = Gather(book, i) y = Mul(x, k) }",
        q=np.array([0, 1], np.uint8),
        book=f32([0.5, 0.25]),
    )
    for node in list(model.graph)[:2]:
        node.metadata_props[PASS] = "palettize"
    assert fold(model) == ()


def test_an_overridable_initializer_is_no_constant(build: Build, check: Check) -> None:
    model = build("g (float[N,2] x) => (float[N,2] y) { n = Neg(k) y = Mul(x, n) }", k=f32([1, 2]))
    model.graph.inputs.append(model.graph.initializers["k"])
    log = check(model)
    assert log.lines == () and len(model.graph) == 2


SHAPES = "g (float[N,3,8,8] x) => (float[A,B] y)"


def test_known_sizes_are_computed_and_free_ones_are_not(build: Build, check: Check) -> None:
    model = build(
        SHAPES
        + """{ s = Shape(x) c = Gather(s, one) h = Slice(s, two, four) n = Gather(s, zero)
          a = ReduceProd<keepdims=0>(h) b = Mul(a, c) u = Unsqueeze(b, axis) v = Unsqueeze(n, axis)
          d = Concat<axis=0>(v, u)
          y = Reshape(x, d) }""",
        zero=s(0),
        one=s(1),
        two=i(2),
        four=i(4),
        axis=i(0),
    )
    check(model)
    assert [n.op_type for n in model.graph] == ["Shape", "Gather", "Unsqueeze", "Concat", "Reshape"]
    assert [
        v.const_value.numpy().tolist() for v in model.graph.initializers.values() if v.name == "u" and v.const_value
    ] == [[192]]


def test_part_of_a_shape(build: Build, check: Check) -> None:
    model = build(
        f"{SHAPES} {{ s = Shape<start=1, end=-1>(x) t = Concat<axis=0>(m, s) r = Reshape(x, t) y = Flatten(r) }}",
        m=i(-1),
    )
    check(model)
    assert [n.op_type for n in model.graph] == ["Reshape", "Flatten"]


def test_a_stale_shape_in_the_file_is_not_believed(build: Build, check: Check) -> None:
    model = build(
        """g (float[N,3] x) => (float[A] y) <float[1,3] r> {
          r = Relu(x) s = Shape(r) f = ReduceProd<keepdims=1>(s) y = Reshape(r, f) }"""
    )
    check(model)
    assert [n.op_type for n in model.graph] == ["Relu", "Shape", "ReduceProd", "Reshape"]
    assert str(model.graph.node(0).outputs[0].shape) == "[N,3]"


def test_in_a_loop_body(build: Build, check: Check) -> None:
    model = build(
        """g (float[N] x) => (float[N] y) { y = Loop(trips, , x) <
          body = b (int64 i, bool c, float[N] v) => (bool d, float[N] w) {
          d = Identity(c) two = Constant<value_float=2.0>() four = Mul(two, two) w = Mul(v, four) }> }""",
        trips=s(3),
    )
    check(model)
    assert sorted(n.op_type for n in model.graph.all_nodes()) == ["Identity", "Loop", "Mul"]
