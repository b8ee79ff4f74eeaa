"""Channels that can change places: any order of them leaves the outputs as they are; what cannot move is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.graph.edit import origin_of
from onnxcomp.graph.permuting import Freedom, find_freedom, moved, permute

Parsed = Callable[..., ir.Model]
OutputsOf = Callable[..., dict[str, NDArray[Any]]]

C3 = "<pads=[1,1,1,1]>"
Shapes = dict[str, tuple[int, ...]]

# Name: body, shapes of random constants, given constants, sizes of the sets that can move. x has 4 channels of 6x6.
FREE: dict[str, tuple[str, Shapes, dict[str, object], list[int]]] = {
    "chain": (
        f"a = Conv{C3}(x, w, b) r = Relu(a) c = Conv{C3}(r, v, vb) s = Sigmoid(c) y = Conv{C3}(s, u)",
        {"w": (8, 4, 3, 3), "b": (8,), "v": (6, 8, 3, 3), "vb": (6,), "u": (4, 6, 3, 3)},
        {},
        [6, 8],
    ),
    "residual": (
        f"a = Conv{C3}(x, w) r = Relu(a) c = Conv{C3}(r, v) d = Clip(c) e = Conv{C3}(d, u) s = Add(e, r)"
        f" t = Add(s, k) y = Conv{C3}(t, z)",
        {"w": (8, 4, 3, 3), "v": (6, 8, 3, 3), "u": (8, 6, 3, 3), "z": (4, 8, 3, 3), "k": (8, 1, 1)},
        {},
        [6, 8],
    ),
    "depthwise": (
        "a = Conv(x, w, b) c = Conv<pads=[1,1,1,1], group=8>(a, v, vb) r = HardSwish(c) y = Conv(r, u)",
        {"w": (8, 4, 1, 1), "b": (8,), "v": (8, 1, 3, 3), "vb": (8,), "u": (4, 8, 1, 1)},
        {},
        [8],
    ),
    "normalized, pooled, Gemm": (
        "a = Conv(x, w) n = BatchNormalization(a, g, b, m, q) p = PRelu(n, k) h = GlobalAveragePool(p)"
        " f = Flatten(h) i = Gemm<transB=1>(f, u, ub) r = Relu(i) y = MatMul(r, z)",
        {"w": (8, 4, 1, 1), "g": (8,), "b": (8,), "m": (8,), "k": (8, 1, 1), "u": (6, 8), "ub": (6,), "z": (6, 3)},
        {"q": np.arange(1, 9, dtype=np.float32)},
        [6, 8],
    ),
    "gate": (
        "a = Conv(x, w) h = GlobalAveragePool(a) e = Conv(h, s, sb) g = Sigmoid(e) o = Mul(a, g) y = Conv(o, u)",
        {"w": (8, 4, 1, 1), "s": (8, 8, 1, 1), "sb": (8,), "u": (4, 8, 1, 1)},
        {},
        [8],
    ),
    "concat, split": (
        "a = Conv(x, w) b = Conv(x, v) c = Concat<axis=1>(a, b) s, t = Split<axis=1>(c, sizes) d = Conv(s, p)"
        " e = ConvTranspose(t, q) y = Add(d, e)",
        {"w": (4, 4, 1, 1), "v": (8, 4, 1, 1), "p": (3, 6, 1, 1), "q": (6, 3, 1, 1)},
        {"sizes": np.array([6, 6])},
        [2, 4, 6],
    ),
    "shortcut that pads channels": (
        "a = Conv(x, w) p = Pad(a, pads) c = Conv(a, v, vb) s = Add(c, p) r = Tanh(s) y = Conv(r, u)",
        {"w": (4, 4, 1, 1), "v": (8, 4, 1, 1), "vb": (8,), "u": (4, 8, 1, 1)},
        {"pads": np.array([0, 2, 0, 0, 0, 2, 0, 0])},
        [4, 4],
    ),
    "zeros that a constant tells apart": (
        "a = Conv(x, w) p = Pad(a, pads) n = Add(p, k) c = Conv(a, v) s = Add(c, n) y = Conv(s, u)",
        {"w": (4, 4, 1, 1), "k": (8, 1, 1), "v": (8, 4, 1, 1), "u": (4, 8, 1, 1)},
        {"pads": np.array([0, 2, 0, 0, 0, 2, 0, 0])},
        [4, 4],
    ),
}

FIXED: dict[str, tuple[str, Shapes, dict[str, object]]] = {
    "a grouped convolution": (
        "a = Conv(x, w) c = Conv<group=2>(a, v) y = Conv(c, u)",
        {"w": (8, 4, 1, 1), "v": (8, 4, 1, 1), "u": (4, 8, 1, 1)},
        {},
    ),
    "an operator across channels": (
        "a = Conv(x, w) l = LRN<size=3>(a) y = Conv(l, u)",
        {"w": (8, 4, 1, 1), "u": (4, 8, 1, 1)},
        {},
    ),
    "Flatten of several positions": (
        "a = Conv(x, w) f = Flatten(a) y = MatMul(f, u)",
        {"w": (8, 4, 1, 1), "u": (288, 3)},
        {},
    ),
    "a shared weight": (
        "a = Conv(x, w) b = Conv(a, v) y = Conv(b, v)",
        {"w": (8, 4, 1, 1), "v": (8, 8, 1, 1)},
        {},
    ),
    "a shared bias": (
        "a = Conv(x, w, b) s = Add(a, a) p = MaxPool<kernel_shape=[2,2]>(s) c = Conv(p, v, b) y = Softmax<axis=1>(c)",
        {"w": (8, 4, 1, 1), "b": (8,), "v": (8, 8, 1, 1)},
        {},
    ),
    "channels in another order beside their own": (
        "a = Conv(x, w) g = Gather<axis=1>(a, i) s = Add(a, g) y = Conv(s, u)",
        {"w": (4, 4, 1, 1), "u": (4, 4, 1, 1)},
        {"i": np.array([1, 0, 3, 2])},
    ),
}


def _model(parsed: Parsed, body: str, shapes: Shapes, given: dict[str, object]) -> ir.Model:
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    rank = "N,M" if "MatMul" in body else "N,C,H,W"
    text = f"g (float[N,4,6,6] x) => (float[{rank}] y) {{ {body} }}"
    return parsed(text, opset=18, **arrays, **{name: np.asarray(array) for name, array in given.items()})


def _any_moves(freedom: Freedom, seed: int) -> NDArray[np.int64]:
    """Moves that leave no class where it is."""
    rng = np.random.default_rng(seed)
    moves = np.arange(freedom.count + 1)
    for own in freedom.sets:
        circle = rng.permutation(own)
        moves[circle] = np.roll(circle, 1)
    return moves


@pytest.mark.parametrize("name", FREE)
def test_any_order_leaves_the_outputs_as_they_are(name: str, parsed: Parsed, outputs_of: OutputsOf) -> None:
    body, shapes, given, sizes = FREE[name]
    model = _model(parsed, body, shapes, given)
    assert sorted(len(own) for own in find_freedom(model).sets) == sizes
    feed = {"x": np.random.default_rng(1).standard_normal((3, 4, 6, 6)).astype(np.float32)}
    wanted = outputs_of(model, feed)["y"]
    for seed in range(3):
        other = model.clone()
        freedom = find_freedom(other)
        permute(other, freedom, _any_moves(freedom, seed))
        got = outputs_of(other, feed)["y"]
        assert np.linalg.norm(got - wanted) <= 1e-5 * np.linalg.norm(wanted)
        weights = [(m.graph.initializers["w"].const_value or pytest.fail()).numpy() for m in (model, other)]
        assert (weights[0] != weights[1]).any()


@pytest.mark.parametrize("name", FIXED)
def test_what_cannot_move_stays(name: str, parsed: Parsed) -> None:
    freedom = find_freedom(_model(parsed, *FIXED[name]))
    assert freedom.count == 0 and not freedom.tensors


def test_constants_of_a_node_that_is_refused_stay(parsed: Parsed) -> None:
    body, shapes, given, _ = FREE["chain"]
    model = _model(parsed, body, shapes, given)
    last = next(node for node in reversed(model.graph) if node.op_type == "Conv")
    freedom = find_freedom(model, lambda node: "no" if origin_of(node) == origin_of(last) else None)
    assert [len(own) for own in freedom.sets] == [8]


def test_tensors_whose_channels_move_get_other_names(parsed: Parsed) -> None:
    body, shapes, given, _ = FREE["chain"]
    model = _model(parsed, body, shapes, given)
    freedom = find_freedom(model)
    moves = np.arange(freedom.count + 1)
    eight = next(own for own in freedom.sets if len(own) == 8)
    moves[eight[:2]] = eight[1::-1]
    permute(model, freedom, moves)
    names = [value.name for node in model.graph for value in node.outputs]
    assert names == ["a.permuted", "r.permuted", "c", "s", "y"]


def test_where_entries_come_from() -> None:
    labels, moves = np.array([0, 3, 1, 0, 2]), np.array([0, 2, 3, 1])
    np.testing.assert_array_equal(moved(labels, moves), [0, 2, 4, 3, 1])
