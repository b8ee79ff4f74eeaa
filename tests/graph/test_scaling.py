"""Classes of channels: any positive factors leave the outputs as they are, and what cannot take factors is named."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxcomp.graph.scaling import Scaling, find_scaling
from onnxcomp.runtime.session import open_session, run

HEADER = '<ir_version: 9, opset_import: ["": 17]>'


def build(
    graph: str, weights: Mapping[str, tuple[int, ...]], constants: Mapping[str, object] | None = None
) -> ir.Model:
    """A model from text; `weights` become random initializers of these shapes, `constants` initializers as given."""
    proto = onnx.parser.parse_model(f"{HEADER}\n{graph}")
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    for name, value in (constants or {}).items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    onnx.checker.check_model(proto)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def scale(scaling: Scaling, factors: NDArray[np.float64]) -> None:
    """Multiply and divide the constants, as the docstring of Slot says."""
    for slot in scaling.slots:
        value = slot.node.inputs[slot.index]
        assert value is not None
        assert value.const_value is not None
        array = value.const_value.numpy().astype(np.float64)
        array = array if slot.multiply is None else array * factors[slot.multiply]
        array = array if slot.divide is None else array / factors[slot.divide]
        value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
        value.shape = ir.Shape(array.shape)


def outputs(model: ir.Model) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    feed: dict[str, NDArray[np.float32]] = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        shape = [d if isinstance(d, int) else 2 for d in value.shape]
        assert value.name is not None
        if value.name not in model.graph.initializers:
            feed[value.name] = rng.standard_normal(shape).astype(np.float32)
    return run(open_session(model, optimize="off"), feed)


def check_exact(model: ir.Model) -> Scaling:
    """Powers of two change no bit of the outputs, other factors only the rounding."""
    wanted = outputs(model)
    rng = np.random.default_rng(2)
    for kind in ("powers", "any"):
        copy = model.clone()
        scaling = find_scaling(copy)
        assert scaling.count
        logs = rng.integers(-3, 4, scaling.count) if kind == "powers" else 3 * rng.standard_normal(scaling.count)
        scale(scaling, np.concatenate([[1.0], 2.0**logs, [1.0]]))
        onnx.checker.check_model(ir.to_proto(copy), full_check=True)
        for got, exact in zip(outputs(copy), wanted, strict=True):
            if kind == "powers":
                np.testing.assert_array_equal(got, exact)
            else:
                assert np.linalg.norm(got - exact) <= 1e-5 * np.linalg.norm(exact)
    return find_scaling(model)


C3 = "<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"

EXACT: dict[str, tuple[str, dict[str, tuple[int, ...]], dict[str, object], int]] = {
    # Name: graph, weights, constants, number of free classes.
    "pair": (
        f"g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {{ a = Conv {C3} (x, w, b)  r = Relu (a)"
        f" y = Conv {C3} (r, v) }}",
        {"w": (5, 3, 3, 3), "b": (5,), "v": (4, 5, 3, 3)},
        {},
        5,
    ),
    "low-rank chain": (
        "g (float[N, 6, 8, 8] x) => (float[N, 6, 8, 8] y) {"
        f" a = Conv (x, u)  c = Conv {C3} (a, k)  y = Conv (c, v, b) }}",
        {"u": (3, 6, 1, 1), "k": (2, 3, 3, 3), "v": (6, 2, 1, 1), "b": (6,)},
        {},
        5,
    ),
    "residual": (
        f"g (float[N, 3, 8, 8] x) => (float[N, 2, 8, 8] y) {{ a = Conv {C3} (x, w, b)  r = Relu (a)"
        f" c = Conv {C3} (r, v)  d = Relu (c)  e = Conv {C3} (d, u)  s = Add (e, r)  t = Relu (s)"
        f" y = Conv {C3} (t, z) }}",
        {"w": (4, 3, 3, 3), "b": (4,), "v": (6, 4, 3, 3), "u": (4, 6, 3, 3), "z": (2, 4, 3, 3)},
        {},
        10,
    ),
    "option A shortcut": (
        f"g (float[N, 3, 8, 8] x) => (float[N, 2, 4, 4] y) {{ a = Conv {C3} (x, w)  r = Relu (a)"
        " c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (r, v)"
        " h = Slice (r, starts, ends, axes, steps)  p = Pad (h, pads)  s = Add (c, p)  t = Relu (s)"
        f" y = Conv {C3} (t, z) }}",
        {"w": (4, 3, 3, 3), "v": (8, 4, 3, 3), "z": (2, 8, 3, 3)},
        {
            "starts": [0, 0],
            "ends": np.array([2**31, 2**31]),
            "axes": [2, 3],
            "steps": [2, 2],
            "pads": [0, 2, 0, 0, 0, 2, 0, 0],
        },
        8,
    ),
    "concat, pool, split": (
        f"g (float[N, 3, 8, 8] x) => (float[N, 2, 4, 4] y, float[N, 2, 4, 4] q) {{ a = Conv {C3} (x, w)"
        f" b = Conv {C3} (x, v)"
        " j = Concat <axis = 1> (a, b)  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (j)"
        f" l, m = Split <axis = 1> (p, parts)  y = Conv {C3} (l, u)  q = Conv {C3} (m, z) }}",
        {"w": (4, 3, 3, 3), "v": (2, 3, 3, 3), "u": (2, 3, 3, 3), "z": (2, 3, 3, 3)},
        {"parts": [3, 3]},
        6,
    ),
    "channel shuffle": (
        f"g (float[N, 3, 8, 8] x) => (float[N, 2, 8, 8] y) {{ a = Conv {C3} (x, w)  f = Reshape (a, five)"
        f" t = Transpose <perm = [0, 2, 1, 3, 4]> (f)  s = Reshape (t, four)  y = Conv <group = 2> (s, v) }}",
        {"w": (6, 3, 3, 3), "v": (2, 3, 1, 1)},
        {"five": [-1, 2, 3, 8, 8], "four": [-1, 6, 8, 8]},
        6,
    ),
    "shuffle by Gather": (
        "g (float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y) { a = Conv (x, w)  f = Reshape (a, three)"
        " t = Transpose <perm = [1, 0, 2]> (f)  s = Reshape (t, five)  k = Gather <axis = 0> (s, one)"
        " y = Conv (k, v) }",
        {"w": (6, 3, 1, 1), "v": (2, 3, 1, 1)},
        {"three": [3, 2, 16], "five": [2, -1, 3, 4, 4], "one": np.array(1)},
        6,
    ),
    "depthwise with multiplier": (
        "g (float[N, 3, 8, 8] x) => (float[N, 2, 8, 8] y) { a = Conv (x, w, b)  r = Relu (a)"
        " d = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 4> (r, k, c)  e = LeakyRelu (d)"
        " y = Conv (e, v) }",
        {"w": (4, 3, 1, 1), "b": (4,), "k": (8, 1, 3, 3), "c": (8,), "v": (2, 8, 1, 1)},
        {},
        12,
    ),
    "grouped": (
        "g (float[N, 3, 8, 8] x) => (float[N, 2, 8, 8] y) {"
        " a = Conv (x, w)  d = Conv <group = 2> (a, k)  y = Conv (d, v) }",
        {"w": (4, 3, 1, 1), "k": (6, 2, 1, 1), "v": (2, 6, 1, 1)},
        {},
        10,
    ),
    "transposed, grouped": (
        "g (float[N, 3, 4, 4] x) => (float[N, 2, 9, 9] y) { a = Conv (x, w)  r = Relu (a)"
        " d = ConvTranspose <group = 2, strides = [2, 2], kernel_shape = [3, 3]> (r, k, b)  y = Conv (d, v) }",
        {"w": (4, 3, 1, 1), "k": (4, 3, 3, 3), "b": (6,), "v": (2, 6, 1, 1)},
        {},
        10,
    ),
    "Gemm both ways": (
        "g (float[N, 5] x) => (float[N, 2] y) { a = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, b)  r = Relu (a)"
        " c = Gemm (r, v, s)  y = Gemm (c, u) }",
        {"w": (4, 5), "b": (4,), "v": (4, 3), "s": (1,), "u": (3, 2)},
        {},
        7,
    ),
    "MatMul, Add, Flatten": (
        "g (float[N, 3, 4, 4] x) => (float[N, 2] y) { a = Conv (x, w)  f = Flatten (a)  m = MatMul (f, v)"
        " s = Add (b, m)"
        " r = Relu (s)  y = MatMul (r, u) }",
        {"w": (2, 3, 1, 1), "v": (32, 5), "b": (5,), "u": (5, 2)},
        {},
        37 - 32 + 2,
    ),
    "attention's values": (
        "g (float[N, 5, 8] x) => (float[N, 5, 3] y) { q = MatMul (x, wq)  k = MatMul (x, wk)"
        " t = Transpose <perm = [0, 2, 1]> (k)  l = MatMul (q, t)  p = Softmax (l)  v = MatMul (x, wv)"
        " h = MatMul (p, v)"
        " y = MatMul (h, wo) }",
        {"wq": (8, 4), "wk": (8, 4), "wv": (8, 6), "wo": (6, 3)},
        {},
        6,
    ),
    "LayerNormalization": (
        "g (float[N, 5, 8] x) => (float[N, 5, 3] y) { n = LayerNormalization (x, s, b)  y = MatMul (n, w) }",
        {"s": (8,), "b": (8,), "w": (8, 3)},
        {},
        8,
    ),
    "pooling": (
        f"g (float[N, 3, 8, 8] x) => (float[N, 2] y) {{ a = Conv {C3} (x, w)"
        f" p = AveragePool <kernel_shape = [2, 2]> (a)"
        " m = ReduceMean <axes = [2, 3], keepdims = 0> (p)  y = MatMul (m, v) }",
        {"w": (4, 3, 3, 3), "v": (4, 2)},
        {},
        4,
    ),
    "If reads another tensor": (
        "g (float[N, 3] x, bool c) => (float[N, 2] y, float[N, 3] o) { a = MatMul (x, w)  r = Relu (a)"
        " y = MatMul (r, v)"
        " d = MatMul (x, z) o = If (c) <then_branch = t () => (float[N, 3] e) { e = Identity (d) },"
        " else_branch = f () => (float[N, 3] h) { h = Neg (d) }> }",
        {"w": (3, 4), "v": (4, 2), "z": (3, 3)},
        {},
        4,
    ),
}


@pytest.mark.parametrize("case", [name for name in EXACT if not name.startswith("If")])
def test_any_factors_leave_the_outputs(case: str) -> None:
    graph, weights, constants, count = EXACT[case]
    assert check_exact(build(graph, weights, constants)).count == count


def test_what_a_body_reads_keeps_its_scale() -> None:
    graph, weights, constants, count = EXACT["If reads another tensor"]
    scaling = find_scaling(build(graph, weights, constants))
    assert scaling.count == count
    assert "d" not in scaling.tensors
    assert "a body of If reads it" in " ".join(skip.reason for skip in scaling.skips)


BLOCKED = {
    "Sigmoid": ("r = Sigmoid (a)", "Sigmoid does not pass a factor on"),
    "ReLU6": ("r = Clip (a, zero, six)", "Clip has a bound that does not scale"),
    "Softmax": ("r = Softmax <axis = 1> (a)", "Softmax does not pass a factor on"),
    "Mul of both": ("r = Mul (a, a)", "it is an operand of Mul"),
    "Pad with ones": ("r = Pad (a, pads, six)", "Pad writes a value that is not 0"),
}


@pytest.mark.parametrize("case", BLOCKED)
def test_what_does_not_pass_a_factor(case: str) -> None:
    middle, reason = BLOCKED[case]
    graph = f"g (float[N, 3, 8, 8] x) => (float y) {{ a = Conv (x, w)  {middle}  y = Conv (r, v) }}"
    constants = {"zero": np.float32(0), "six": np.float32(6), "pads": [0, 0, 1, 1, 0, 0, 1, 1]}
    scaling = find_scaling(build(graph, {"w": (4, 3, 1, 1), "v": (2, 4, 1, 1)}, constants))
    assert scaling.count == 0
    assert scaling.slots == ()
    assert reason in {skip.reason.split(": ")[-1] for skip in scaling.skips}


def _pair(*, weights: str = "w, b", outputs_: str = "float y", inputs: str = "float[N, 3, 8, 8] x") -> ir.Model:
    graph = f"g ({inputs}) => ({outputs_}) {{ a = Conv ({'x, ' + weights})  r = Relu (a)  y = Conv (r, v) }}"
    return build(graph, {"w": (4, 3, 1, 1), "b": (4,), "v": (2, 4, 1, 1)})


def test_an_inner_tensor_that_is_an_output_keeps_its_scale() -> None:
    scaling = find_scaling(_pair(outputs_="float[N, 2, 8, 8] y, float[N, 4, 8, 8] r"))
    assert scaling.count == 0
    assert any("r is an output of the model" in skip.reason for skip in scaling.skips)


def test_a_weight_that_callers_override_is_left_alone() -> None:
    scaling = find_scaling(_pair(inputs="float[N, 3, 8, 8] x, float[4, 3, 1, 1] w"))
    assert scaling.count == 0
    assert any("'w' can be overridden by a graph input" in skip.reason for skip in scaling.skips)


def test_a_shared_weight_is_left_alone() -> None:
    graph = "g (float[N, 4] x) => (float y) { a = MatMul (x, w)  r = Relu (a)  c = MatMul (r, w)  y = MatMul (c, v) }"
    scaling = find_scaling(build(graph, {"w": (4, 4), "v": (4, 2)}))
    assert scaling.count == 0


def test_a_weight_with_nan_is_left_alone() -> None:
    model = _pair()
    value = model.graph.initializers["w"]
    value.const_value = ir.tensor(np.full((4, 3, 1, 1), np.nan, np.float32), name="w")
    scaling = find_scaling(model)
    assert scaling.count == 0
    assert any("NaN or Inf" in skip.reason for skip in scaling.skips)


def test_the_caller_can_refuse_a_node() -> None:
    scaling = find_scaling(_pair(), lambda node: "excluded by the user" if node.op_type == "Conv" else None)
    assert scaling.count == 0
    assert {skip.reason for skip in scaling.skips} == {"excluded by the user"}


def test_find_scaling_leaves_the_model() -> None:
    model = _pair()
    before = ir.to_proto(model).SerializeToString()
    find_scaling(model)
    assert ir.to_proto(model).SerializeToString() == before
