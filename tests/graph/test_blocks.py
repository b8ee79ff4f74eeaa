"""Residual blocks: which can go, and that without them the model computes what its shortcuts do, under known names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.graph.blocks import Block, drop, find_blocks

Parsed = Callable[..., ir.Model]
OutputsOf = Callable[..., dict[str, NDArray[Any]]]

C3 = "<pads=[1,1,1,1]>"
HEAD = "(float[N,4,8,8] x) => (float[N,M,H,W] y)"
# Blocks of two convolutions on 4 channels; {a} is what is read, {y} what is written.
PLAIN = f"c{{k}} = Conv{C3}({{a}}, w) r{{k}} = Relu(c{{k}}) [last{{k}}] f{{k}} = Conv{C3}(r{{k}}, v)"


def branch(k: int, source: str) -> str:
    return PLAIN.format(k=k, a=source)


STEM = "u = Conv(x, p) t = Relu(u)"
TAIL = "y = Conv({}, z)"

# Name: body, names of the Adds of the blocks, and what a block's shortcut computes from t instead.
FOUND: dict[str, tuple[str, list[str]]] = {
    "identity": (f"{STEM} {branch(1, 't')} [add1] s = Add(f1, t) o = Relu(s) {TAIL.format('o')}", ["add1"]),
    "identity first, no Relu": (f"{STEM} {branch(1, 't')} [add1] s = Add(t, f1) {TAIL.format('s')}", ["add1"]),
    "Sum": (f"{STEM} {branch(1, 't')} [add1] s = Sum(t, f1) {TAIL.format('s')}", ["add1"]),
    "projection": (f"{STEM} {branch(1, 't')} q = Conv(t, p2) [add1] s = Add(q, f1) {TAIL.format('s')}", ["add1"]),
    "option A": (
        f"{STEM} c = Conv<pads=[1,1,1,1], strides=[2,2]>(t, w6) r = Relu(c) f = Conv{C3}(r, v6)"
        " h = Slice(t, zero, far, axes, steps) q = Pad(h, pads)"
        " [add1] s = Add(f, q) o = Relu(s) y = Conv(o, z6)",
        ["add1"],
    ),
    "pooled": (
        f"{STEM} c = Conv<pads=[1,1,1,1], strides=[2,2]>(t, w) r = Relu(c) f = Conv{C3}(r, v)"
        f" q = AveragePool<kernel_shape=[2,2], strides=[2,2]>(t) [add1] s = Add(q, f) o = Relu(s) {TAIL.format('o')}",
        ["add1"],
    ),
    "inverted residual": (
        f"u = Conv(x, p) e = Conv(u, w8) l = Clip(e, low, high) d = Conv<group=8, pads=[1,1,1,1]>(l, dw)"
        f" m = Clip(d, low, high) f = Conv(m, v8) [add1] s = Add(u, f) {TAIL.format('s')}",
        ["add1"],
    ),
    "squeeze and excitation": (
        f"{STEM} c = Conv{C3}(t, w) a = GlobalAveragePool(c) e = Conv(a, p2) g = Sigmoid(e) f = Mul(c, g)"
        f" [add1] s = Add(f, t) {TAIL.format('s')}",
        ["add1"],
    ),
    "nested": (
        f"{STEM} {branch(1, 't')} [inner] s = Add(f1, t) i = Conv(s, p2) [outer] n = Add(t, i) {TAIL.format('n')}",
        ["inner", "outer"],
    ),
    "of the input": (f"{branch(1, 'x')} [add1] s = Add(f1, x) {TAIL.format('s')}", ["add1"]),
    "an output": (f"{STEM} {branch(1, 't')} [add1] y = Add(f1, t)", ["add1"]),
    "skip from the source": (
        f"{STEM} {branch(1, 't')} [add1] s = Add(f1, t) o = Relu(s) k = Concat<axis=1>(o, t) y = Conv(k, z8)",
        ["add1"],
    ),
}
# Name: body and part of the reason.
REFUSED = {
    "read elsewhere": (
        f"{STEM} {branch(1, 't')} s = Add(f1, t) k = Concat<axis=1>(s, r1) y = Conv(k, z8)",
        "does not begin where the shortcut does, or is read elsewhere",
    ),
    "its end is read": (
        f"{STEM} {branch(1, 't')} s = Add(f1, t) k = Concat<axis=1>(s, f1) y = Conv(k, z8)",
        "also read",
    ),
    "two sources": (f"{STEM} c = Conv(t, w1) m = Mul(c, x) s = Add(m, t) {TAIL.format('s')}", "reads 2 activations"),
    "branches alike": (f"{STEM} c = Conv(t, w1) d = Conv(t, p2) s = Add(c, d) {TAIL.format('s')}", "neither operand"),
    "attention": (
        f"{STEM} c = Conv(t, w1) d = MatMul(c, c) s = Add(d, t) {TAIL.format('s')}",
        "product of two activations",
    ),
    "normalised": (
        f"{STEM} n = LayerNormalization(t, g8) c = Conv(n, w1) s = Add(c, t) {TAIL.format('s')}",
        "layer normalisation",
    ),
    "broadcast": (
        f"{STEM} a = GlobalAveragePool(t) c = Conv(a, w1) s = Add(c, t) {TAIL.format('s')}",
        "shapes of the sum's operands differ",
    ),
}
SHAPES = {
    name: (rows, columns, size, size)
    for size, names in {
        1: {
            "p": (4, 4),
            "p2": (4, 4),
            "w1": (4, 4),
            "w8": (8, 4),
            "v8": (4, 8),
            "z": (2, 4),
            "z6": (2, 6),
            "z8": (2, 8),
        },
        3: {"w": (4, 4), "v": (4, 4), "w2": (4, 4), "v2": (4, 4), "w6": (6, 4), "v6": (6, 6), "dw": (8, 1)},
    }.items()
    for name, (rows, columns) in names.items()
}
GIVEN = {
    "zero": np.array([0, 0]),
    "far": np.array([8, 8]),
    "axes": np.array([2, 3]),
    "steps": np.array([2, 2]),
    "pads": np.array([0, 1, 0, 0, 0, 1, 0, 0]),
    "low": np.float32(0),
    "high": np.float32(6),
    "g8": np.ones(8, np.float32),
}


def arrays(body: str) -> dict[str, NDArray[Any]]:
    """The constants that a body names, at random or as they are given."""
    rng = np.random.default_rng(3)
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    made = {name: rng.standard_normal(shape).astype(np.float32) / 4 for name, shape in SHAPES.items()}
    return {name: np.asarray(array) for name, array in (made | GIVEN).items() if name in words}


@pytest.fixture
def built(parsed: Parsed) -> Callable[[str], ir.Model]:
    return lambda body: parsed(f"g {HEAD} {{ {body} }}", **arrays(body))


FEED = {"x": np.random.default_rng(5).standard_normal((2, 4, 8, 8)).astype(np.float32)}


def inner(model: ir.Model, feed: dict[str, NDArray[Any]], outputs_of: OutputsOf) -> dict[str, NDArray[Any]]:
    """Every value of a model by name."""
    clone = model.clone()
    known = {value.name for value in clone.graph.outputs}
    values = [value for node in clone.graph for value in node.outputs if value.name and value.name not in known]
    clone.graph.outputs.extend(values)
    return outputs_of(clone, feed)


@pytest.mark.parametrize("case", FOUND)
def test_a_block_without_its_branch_is_its_shortcut(
    case: str, built: Callable[[str], ir.Model], outputs_of: OutputsOf
) -> None:
    body, adds = FOUND[case]
    model = built(body)
    found = find_blocks(model)
    assert [block.name for block in found.blocks] == adds
    assert not found.refusals
    for index, name in enumerate(adds):
        # With a branch that is zero, the values that stay must be those without the branch.
        silenced, dropped = model.clone(), model.clone()
        block = find_blocks(silenced).blocks[index]
        end = next(value for value in block.add.inputs if value is not block.shortcut)
        assert end is not None
        silence(silenced, block.add, end)
        drop(dropped, [find_blocks(dropped).blocks[index]])
        wanted, got = inner(silenced, FEED, outputs_of), inner(dropped, FEED, outputs_of)
        assert set(got) < set(wanted)
        assert not set(block.sites) & {node.name for node in dropped.graph if node.op_type == "Conv"}
        assert not [name for name, value in dropped.graph.initializers.items() if not value.uses()]
        assert [value.name for value in dropped.graph.outputs] == ["y"]
        np.testing.assert_allclose(got["y"], wanted["y"], rtol=1e-5, atol=1e-5)
        for value in (value for node in dropped.graph for value in node.outputs):
            assert value.shape is not None and value.name is not None
            assert len(value.shape) == got[value.name].ndim
        assert name not in {node.name for node in dropped.graph}


def silence(model: ir.Model, add: ir.Node, end: ir.Value) -> None:
    """Make what a branch adds zero."""
    zero = ir.Value(name="nothing", const_value=ir.tensor(np.zeros(1, np.float32), name="nothing"))
    model.graph.register_initializer(zero)
    node = ir.node("Mul", [end, zero], name="silenced")
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "silenced", end.type, end.shape
    model.graph.insert_before(add, node)
    add.replace_input_with(list(add.inputs).index(end), node.outputs[0])


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_block_is_told(case: str, built: Callable[[str], ir.Model]) -> None:
    body, reason = REFUSED[case]
    found = find_blocks(built(body))
    assert not found.blocks
    (told,) = found.refusals.values()
    assert reason in told


def test_sums_without_a_layer_in_a_branch_are_no_blocks(built: Callable[[str], ir.Model]) -> None:
    found = find_blocks(built(f"{STEM} r = Sigmoid(t) s = Add(r, t) d = Add(s, s) {TAIL.format('d')}"))
    assert not found.blocks and not found.refusals


def test_what_a_block_holds(built: Callable[[str], ir.Model]) -> None:
    body, _ = FOUND["nested"]
    inside, outside = find_blocks(built(body)).blocks
    assert list(inside.sites) == ["c1", "last1"] and set(inside.sites) < set(outside.sites)
    assert sum(cost.bytes for cost in inside.sites.values()) == inside.cost.bytes
    assert inside.cost.parameters == 2 * 4 * 4 * 9 and inside.cost.macs == 2 * 4 * 4 * 9 * 64
    assert inside.cost.bytes == 4 * inside.cost.parameters
    assert outside.source is inside.source is outside.shortcut
    assert inside.excludes(outside) and outside.excludes(inside)
    with pytest.raises(ValueError, match="exclude each other"):
        drop(built(body), (inside, outside))


SECOND = f"c2 = Conv{C3}(o, w2) r2 = Relu(c2) f2 = Conv{C3}(r2, v2) [add2] s2 = Add(f2, o) o2 = Relu(s2)"
TWO = f"{STEM} {branch(1, 't')} [add1] s = Add(f1, t) o = Relu(s) {SECOND} y = Conv(o2, z)"


@pytest.mark.parametrize(
    ("which", "total", "source"), [([0], "s", "o"), ([1], "s2", "o2"), ([0, 1], "s2", "o2"), ([1, 0], "s2", "o2")]
)
def test_the_value_before_a_block_takes_the_names_behind_it(
    which: list[int], total: str, source: str, built: Callable[[str], ir.Model], outputs_of: OutputsOf
) -> None:
    two = built(TWO)
    blocks: tuple[Block, ...] = find_blocks(two).blocks
    drop(two, [blocks[k] for k in which])
    by_name = {value.name: node for node in two.graph for value in node.outputs}
    relu = by_name[source]
    assert relu.op_type == "Relu" and relu.inputs[0] is not None and relu.inputs[0].name == total
    if which != [1]:  # the stem is what stands for the sum
        assert by_name[total].op_type == "Conv" and "u" not in by_name and "t" not in by_name
    assert len(by_name) == {1: 8, 2: 3}[len(which)]
    assert "Identity" not in {node.op_type for node in two.graph}
    assert outputs_of(two, FEED)["y"].shape == (2, 2, 8, 8)


def test_a_source_that_is_read_elsewhere_keeps_its_name(built: Callable[[str], ir.Model]) -> None:
    model = built(FOUND["skip from the source"][0])
    drop(model, find_blocks(model).blocks)
    by_name = {value.name: node for node in model.graph for value in node.outputs}
    assert by_name["t"].op_type == "Relu" and by_name["u"].op_type == "Conv"
    assert by_name["o"].op_type == "Identity" and by_name["o"].inputs[0] is by_name["t"].outputs[0]
    assert "s" not in by_name


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ("Relu(u)", "Relu(s)", False),
        ("Clip(u, low, high)", "Clip(s, low, high)", False),
        ("Clip(u, low, high)", "Relu(s)", False),
        ("MaxPool<kernel_shape=[1,1]>(t0)", "Relu(s)", False),
        ("Relu(u)", "Clip(s, low, high)", True),
        ("LeakyRelu(u)", "Relu(s)", True),
        ("Relu(u)", "LeakyRelu(s)", True),
    ],
)
def test_an_activation_that_would_do_nothing_goes(
    first: str, second: str, kept: bool, built: Callable[[str], ir.Model], outputs_of: OutputsOf
) -> None:
    before = "t0 = Relu(u)" if "t0" in first else ""
    model = built(
        f"u = Conv(x, p) {before} t = {first} {branch(1, 't')} s = Add(f1, t) o = {second} {TAIL.format('o')}"
    )
    drop(model, find_blocks(model).blocks)
    nodes = [node.op_type for node in model.graph]
    assert len(nodes) == 3 + kept + bool(before)
    assert "o" in {value.name for node in model.graph for value in node.outputs}
    outputs_of(model, FEED)


@pytest.mark.parametrize("which", [[0], [1], [0, 1]])
@pytest.mark.parametrize("activation", ["Relu({})", "Clip({}, low, high)"])
def test_what_the_original_hides_is_free_for_what_stands_for_it(
    activation: str, which: list[int], built: Callable[[str], ir.Model], outputs_of: OutputsOf
) -> None:
    body = TWO
    for name, source in (("t", "u"), ("o", "s"), ("o2", "s2")):
        body = body.replace(f"{name} = Relu({source})", f"{name} = {activation.format(source)}")
    model, original = (built(body) for _ in range(2))
    before = inner(model, FEED, outputs_of)
    blocks = find_blocks(model).blocks
    drop(model, [blocks[k] for k in which], original)
    eased = inner(original, FEED, outputs_of)
    low, high = 0.0, np.inf if "Relu" in activation else 6.0
    for name in ("y", "o", "o2"):
        np.testing.assert_array_equal(eased[name], before[name])
    instead = {"s": before["u"], "s2": eased["s"]}
    for name in [("s", "s2")[k] for k in which]:
        inside = (before[name] > low) & (before[name] < high)
        np.testing.assert_array_equal(eased[name][inside], before[name][inside])
        beside = np.where(before[name] <= low, np.minimum(instead[name], low), np.maximum(instead[name], high))
        np.testing.assert_array_equal(eased[name][~inside], beside[~inside])
