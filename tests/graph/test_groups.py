"""Channels are removed from all kinds of models: what is left runs, and gives the same where they did not matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.graph.edit import origin_of
from onnxcomp.graph.fold.shapes import infer_shapes
from onnxcomp.graph.fold.values import constant
from onnxcomp.graph.groups import Groups, find_groups
from onnxcomp.graph.shrinking import remove_classes

Parsed = Callable[..., ir.Model]
OutputsOf = Callable[..., dict[str, NDArray[Any]]]
AnyRemoved = Callable[[Groups, int], NDArray[np.bool_]]
Blind = Callable[[Groups, NDArray[np.bool_]], None]
Shapes = Mapping[str, tuple[int, ...]]
Given = Mapping[str, object]

C1, C3, PLAIN = "Conv", "Conv<pads=[1,1,1,1]>", "y = Conv(z, out)"

# Name: body, shapes of random constants, given constants, sizes of the groups. x is (N, 4, 8, 8).
MODELS: dict[str, tuple[str, Shapes, Given, list[int]]] = {
    "residual blocks with a projection": (
        f"a = {C3}(x, w1, b1) r = Relu(a) c = {C3}(r, w2) s = Relu(c) d = {C3}(s, w3, b3) e = Add(r, d) f = Relu(e)"
        f" g = Conv<strides=[2,2]>(f, w4) h = Conv<strides=[2,2],pads=[1,1,1,1]>(f, w5) i = Relu(h) j = {C3}(i, w6)"
        f" k = Add(j, g) z = Relu(k) {PLAIN}",
        {"w1": (8, 4, 3, 3), "b1": (8,), "w2": (6, 8, 3, 3), "w3": (8, 6, 3, 3), "b3": (8,), "w4": (10, 8, 1, 1)}
        | {"w5": (5, 8, 3, 3), "w6": (10, 5, 3, 3), "out": (3, 10, 1, 1)},
        {},
        [5, 6, 8, 10],
    ),
    "shortcut that pads channels": (
        f"a = {C3}(x, w1) r = Relu(a) s = Slice(r, starts, ends, axes, steps) p = Pad(s, pads)"
        f" c = Conv<strides=[2,2],pads=[1,1,1,1]>(r, w2, b2) k = Add(c, p) z = Relu(k) {PLAIN}",
        {"w1": (6, 4, 3, 3), "w2": (12, 6, 3, 3), "b2": (12,), "out": (3, 12, 1, 1)},
        {"starts": [0, 0], "ends": [99, 99], "axes": [2, 3], "steps": [2, 2], "pads": [0, 3, 0, 0, 0, 3, 0, 0]},
        [6, 6],
    ),
    "dense": (
        f"a = {C3}(x, w1) r = Relu(a) b = {C3}(r, w2) s = Relu(b) c = Concat<axis=1>(r, s) d = {C3}(c, w3, b3)"
        f" e = Concat<axis=1>(c, d) f = Mul(e, k) z = AveragePool<kernel_shape=[2,2]>(f) {PLAIN}",
        {
            "w1": (6, 4, 3, 3),
            "w2": (5, 6, 3, 3),
            "w3": (4, 11, 3, 3),
            "b3": (4,),
            "k": (15, 1, 1),
            "out": (3, 15, 1, 1),
        },
        {},
        [4, 5, 6],
    ),
    "shuffle": (
        f"a = {C1}(x, w1) r = Relu(a) s, t = Split<axis=1>(r) u = {C1}(t, w2) v = Relu(u)"
        " d = Conv<group=6,pads=[1,1,1,1]>(v, w3, b3) e = Conv(d, w4) f = Concat<axis=1>(s, e) g = Reshape(f, five)"
        f" h = Transpose<perm=[0,2,1,3,4]>(g) i = Reshape(h, four) z = {C3}(i, w5) y = Conv(z, out)",
        {"w1": (12, 4, 1, 1), "w2": (6, 6, 1, 1), "w3": (6, 1, 3, 3), "b3": (6,), "w4": (6, 6, 1, 1)}
        | {"w5": (5, 12, 3, 3), "out": (3, 5, 1, 1)},
        {"five": [0, 2, 6, 8, 8], "four": [0, -1, 8, 8]},
        [5, 6, 6, 6],
    ),
    "inverted residual with a gate": (
        f"a = {C1}(x, w1) b = {C1}(a, w2, b2) c = HardSwish(b) d = Conv<group=12,pads=[1,1,1,1]>(c, w3, b3)"
        " e = GlobalAveragePool(d) f = Conv(e, w4, b4) g = Relu(f) h = Conv(g, w5) i = HardSigmoid(h) j = Mul(i, d)"
        f" k = Conv(j, w6) z = Add(k, a) {PLAIN}",
        {"w1": (6, 4, 1, 1), "w2": (12, 6, 1, 1), "b2": (12,), "w3": (12, 1, 3, 3), "b3": (12,), "w4": (3, 12, 1, 1)}
        | {"b4": (3,), "w5": (12, 3, 1, 1), "w6": (6, 12, 1, 1), "out": (3, 6, 1, 1)},
        {},
        [3, 6, 12],
    ),
    "grouped, normalized": (
        f"a = {C1}(x, w1) n = BatchNormalization(a, g, b, m, q) p = PRelu(n, k)"
        " c = Conv<group=2,pads=[1,1,1,1]>(p, w2, b2) i = InstanceNormalization(c, ig, ib) r = Clip(i)"
        f" d = Conv<group=3>(r, w3) e = ConvTranspose<group=2>(d, w4, b4) z = LeakyRelu(e) {PLAIN}",
        {"w1": (8, 4, 1, 1), "g": (8,), "b": (8,), "m": (8,), "k": (8, 1, 1), "w2": (12, 4, 3, 3), "b2": (12,)}
        | {"ig": (12,), "ib": (12,), "w3": (12, 4, 1, 1), "w4": (12, 3, 2, 2), "b4": (6,), "out": (3, 6, 1, 1)},
        {"q": np.arange(1, 9, dtype=np.float32)},
        [2, 2, 3, 4],
    ),
    "depthwise that multiplies": (
        "a = Conv(x, w1) c = Conv<group=6,pads=[1,1,1,1]>(a, w2, b2)"
        f" d = ConvTranspose<group=12>(c, w3, b3) z = Sigmoid(d) {PLAIN}",
        {"w1": (6, 4, 1, 1), "w2": (12, 1, 3, 3), "b2": (12,), "w3": (12, 2, 2, 2), "b3": (24,), "out": (3, 24, 1, 1)},
        {},
        [6],
    ),
    "U-Net": (
        f"a = {C3}(x, w1) r = Relu(a) p = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r) b = {C3}(p, w2) s = Relu(b)"
        ' u = ConvTranspose<kernel_shape=[2,2],strides=[2,2]>(s, w3, b3) v = Resize<mode="nearest">(s, , scales)'
        f" c = Concat<axis=1>(u, r, v, x) z = {C3}(c, w4) {PLAIN}",
        {"w1": (6, 4, 3, 3), "w2": (8, 6, 3, 3), "w3": (8, 5, 2, 2), "b3": (5,), "w4": (7, 23, 3, 3)}
        | {"out": (3, 7, 1, 1)},
        {"scales": np.array([1, 1, 2, 2], np.float32)},
        [5, 6, 7, 8],
    ),
    "depth to space and back": (
        f"a = {C1}(x, w1) d = DepthToSpace<blocksize=2>(a) r = Tanh(d) b = {C1}(r, w2)"
        f' e = DepthToSpace<blocksize=2,mode="CRD">(b) f = Relu(e) z = SpaceToDepth<blocksize=2>(f) {PLAIN}',
        {"w1": (12, 4, 1, 1), "w2": (20, 3, 1, 1), "out": (3, 20, 1, 1)},
        {},
        [3, 5],
    ),
    "flattened": (
        f"a = {C3}(x, w1, b1) p = MaxPool<kernel_shape=[2,2],strides=[2,2]>(a) f = Flatten(p)"
        " g = Gemm<transB=1>(f, w2, b2) r = Relu(g) h = Gemm(r, w3, b3) s = Relu(h) m = MatMul(s, w4)"
        " t = Reshape(m, grid) q = ReduceMean<axes=[2]>(t) v = Squeeze(q, two) y = MatMul(v, w5)",
        {"w1": (5, 4, 3, 3), "b1": (5,), "w2": (7, 80), "b2": (7,), "w3": (7, 6), "b3": (1, 6), "w4": (6, 12)}
        | {"w5": (4, 3)},
        {"grid": [-1, 4, 3], "two": [2]},
        [4, 5, 6, 7],
    ),
    "transformer block": (
        "a = Reshape(x, rows) e = MatMul(a, w0) q = MatMul(e, wq) k = MatMul(e, wk) v = MatMul(e, wv)"
        " l = Transpose<perm=[0,2,1]>(k) s = MatMul(q, l) p = Softmax(s) o = MatMul(p, v) t = MatMul(o, wo)"
        " r = Add(e, t) n = LayerNormalization(r, g, b) i = MatMul(n, w1) j = Add(i, b1) h = Gelu(j) m = MatMul(h, w2)"
        " c = Add(m, n) y = MatMul(c, w3)",
        {"w0": (16, 8), "wq": (8, 6), "wk": (8, 6), "wv": (8, 6), "wo": (6, 8), "g": (8,), "b": (8,), "w1": (8, 20)}
        | {"b1": (20,), "w2": (20, 8), "w3": (8, 3)},
        {"rows": [0, 16, 16]},
        [20],
    ),
    "parts of channels": (
        "a = Conv(x, w1, b1) s = Slice(a, two, nine, axis, axis) g = Gather<axis=1>(a, picked) r = Relu(s)"
        " e = Expand(r, spread) t = Tile(e, twice) u = Unsqueeze(t, axis) v = ReduceSum<keepdims=0>(u, axis)"
        " c, d, f = Split<axis=1>(g, parts) h = Sub(c, f) o = Concat<axis=1>(v, d, h) i = Where(flag, o, nil)"
        f" z = Max(i, low) {PLAIN}",
        {"w1": (10, 4, 1, 1), "b1": (10,), "low": (1, 19, 1, 1), "out": (3, 19, 1, 1)},
        {"two": [2], "nine": [9], "axis": [1], "picked": [9, 0, 3, -6, 3, 1, 2], "spread": [1, 7, 1, 1]}
        | {"twice": [1, 2, 1, 1], "parts": [2, 3, 2], "flag": np.ones((1, 1, 1, 8), bool), "nil": np.float32(0)},
        [1, 1, 1, 1, 4],
    ),
    "sizes computed from the input": (
        "a = Conv(x, w1) r = Relu(a) sh = Shape(r) n = Gather(sh, first) c = Gather(sh, second)"
        " ax = Slice(sh, two, four) n1 = Unsqueeze(n, zero) t1 = Concat<axis=0>(n1, lit, ax) k = Reshape(r, t1)"
        " t = Transpose<perm=[0,2,1,3,4]>(k) bx = Slice(sh, zero, one) t2 = Concat<axis=0>(bx, lit2, ax)"
        " b = Reshape(t, t2) c1 = Unsqueeze(c, zero)"
        ' hw = Mul(ax, doubled) t3 = Concat<axis=0>(n1, c1, hw) u = Resize<mode="nearest">(r, , , t3)'
        " d = AveragePool<kernel_shape=[2,2],strides=[2,2]>(u) i = Concat<axis=1>(b, d) t4 = Concat<axis=0>(bx, lit4)"
        " z = Reshape(i, t4) y = Conv<kernel_shape=[1]>(z, out)",
        {"w1": (8, 4, 1, 1), "out": (3, 16, 1)},
        {"first": np.int64(0), "second": np.int64(1), "zero": [0], "one": [1], "two": [2], "four": [4], "lit": [2, 4]}
        | {"lit2": [8], "doubled": [2, 2], "lit4": [16, -1]},
        [4],
    ),
    "a detector with several outputs": (
        f"a = {C3}(x, w1) r = Relu(a) b = Conv<strides=[2,2],pads=[1,1,1,1]>(r, w2) s = Relu(b) d = {C3}(r, w3)"
        f" t = Relu(d) e = {C3}(s, w3b) v = Relu(e) i = Conv(t, w4) j = Conv(v, w4b) k = Transpose<perm=[0,2,3,1]>(i)"
        " l = Transpose<perm=[0,2,3,1]>(j) m = Reshape(k, rows) n = Reshape(l, rows) q = Concat<axis=1>(m, n)"
        " y = Sigmoid(q) o = Conv(t, w5)",
        {"w1": (6, 4, 3, 3), "w2": (7, 6, 3, 3), "w3": (5, 6, 3, 3), "w3b": (8, 7, 3, 3), "w4": (6, 5, 1, 1)}
        | {"w4b": (6, 8, 1, 1), "w5": (2, 5, 1, 1)},
        {"rows": [0, -1, 3]},
        [5, 6, 7, 8],
    ),
    "rounded activations": (
        f"a = {C1}(x, w1) r = Relu(a) q = QuantizeLinear(r, s, z8) d = DequantizeLinear(q, s, z8) b = Conv(d, w2)"
        " p = QuantizeLinear<axis=1>(b, sc, zc) z = DequantizeLinear<axis=1>(p, sd, zd) y = Conv(z, out)",
        {"w1": (6, 4, 1, 1), "w2": (5, 6, 1, 1), "out": (3, 5, 1, 1)},
        {"s": np.float32(0.1), "z8": np.uint8(3), "sc": np.full(5, 0.1, np.float32), "sd": np.full(5, 0.1, np.float32)}
        | {"zc": np.arange(5, dtype=np.int8), "zd": np.arange(5, dtype=np.int8)},
        [5, 6],
    ),
}


def _model(parsed: Parsed, name: str) -> ir.Model:
    body, shapes, given, _ = MODELS[name]
    rng = np.random.default_rng(0)
    arrays = {k: (rng.standard_normal(shape) / 2).astype(np.float32) for k, shape in shapes.items()}
    rank = 2 if name == "flattened" else 3 if "transformer" in name or "computed" in name or "detector" in name else 4
    side = "H,W" if "computed" in name else "8,8"
    more = ", float[N,D,E,F] o" if " o = Conv" in body else ""
    text = f"g (float[N,4,{side}] x) => (float[{','.join('NCHW'[:rank])}] y{more}) {{ {body} }}"
    opset = 17 if name == "flattened" else 20 if "Gelu" in body else 18
    text = text.replace("Split<axis=1>(r)", "Split<axis=1,num_outputs=2>(r)")
    model = parsed(text, opset=opset, **arrays, **{k: np.asarray(array) for k, array in given.items()})
    infer_shapes(model)
    return model


def _all_tensors(model: ir.Model, groups: Groups) -> ir.Model:
    """The model with the tensors that have channels to remove as further outputs."""
    proto = ir.to_proto(model)
    for value in groups.tensors:
        assert value.dtype is not None and value.shape is not None
        dims = [d if isinstance(d, int) else None for d in value.shape]
        proto.graph.output.append(onnx.helper.make_tensor_value_info(str(value.name), int(value.dtype), dims))
    return ir.from_proto(proto)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MODELS)
def test_what_no_layer_reads_can_go(
    parsed: Parsed, outputs_of: OutputsOf, any_removed: AnyRemoved, blind: Blind, name: str, seed: int
) -> None:
    model = _model(parsed, name)
    groups = find_groups(model)
    assert sorted(len(group.classes) for group in groups.groups) == MODELS[name][3]
    removed = any_removed(groups, seed)
    assert removed.any()
    blind(groups, removed)
    feed = {"x": np.random.default_rng(1).standard_normal((2, 4, 8, 8)).astype(np.float32)}
    before = outputs_of(model, feed)
    remove_classes(model, groups, removed)
    after = outputs_of(_all_tensors(model, groups), feed)
    for output, array in before.items():
        np.testing.assert_allclose(after[output], array, rtol=1e-4, atol=1e-5 * np.abs(array).max())
    for value, (axis, labels) in groups.tensors.items():
        left = np.count_nonzero(~removed[labels])
        assert value.shape is not None and value.shape[axis] == left == after[str(value.name)].shape[axis]


RELU = ["residual blocks with a projection", "shortcut that pads channels", "dense", "shuffle", "U-Net", "flattened"]


@pytest.mark.parametrize("name", RELU)
def test_channels_that_are_zero_can_go(
    parsed: Parsed, outputs_of: OutputsOf, any_removed: AnyRemoved, name: str
) -> None:
    model = _model(parsed, name)
    groups = find_groups(model)
    removed = any_removed(groups, 1)
    for node, labels in {**groups.writes, **groups.channelwise}.items():
        by_columns = node.op_type in ("ConvTranspose", "MatMul") or (
            node.op_type == "Gemm" and not node.attributes.get_int("transB", 0)
        )
        for index, value in enumerate(node.inputs[1:]):
            assert value is not None and value.const_value is not None
            array = value.const_value.numpy().copy()
            np.moveaxis(array, (1 if by_columns else 0) if index == 0 else -1, 0)[removed[labels]] = 0
            value.const_value = ir.tensor(array, name=value.name)
    feed = {"x": np.random.default_rng(1).standard_normal((2, 4, 8, 8)).astype(np.float32)}
    before = outputs_of(model, feed)["y"]
    remove_classes(model, groups, removed)
    np.testing.assert_allclose(outputs_of(model, feed)["y"], before, rtol=1e-4, atol=1e-5 * np.abs(before).max())


def test_what_layers_read_and_write(parsed: Parsed) -> None:
    groups = find_groups(_model(parsed, "inverted residual with a gate"))
    of = {origin_of(node) or str(node.outputs[0].name): (node, labels) for node, labels in groups.writes.items()}
    reads = {node.outputs[0].name: labels for node, labels in groups.reads.items()}
    wide = next(group for group in groups.groups if len(group.classes) == 12)
    assert [node.outputs[0].name for node in wide.producers] == ["b", "h"]
    assert [node.outputs[0].name for node in wide.consumers] == ["f", "k"]
    assert (reads["k"] == of["b"][1]).all() and (reads["k"] == of["h"][1]).all() and (of["b"][1] == wide.classes).all()
    assert (reads["a"] == 0).all() and (reads["y"] == of["k"][1]).all() and (of["y"][1] == 0).all()
    assert [node.outputs[0].name for node in groups.channelwise] == ["d"]
    assert {node.outputs[0].name: reason for node, reason in groups.reasons.items()} == {
        "y": "y is an output of the model"
    }
    assert {value.name for value in groups.tensors} == {*"abcdefghijkz"}


def test_groups_of_a_grouped_convolution_stay_alike(parsed: Parsed) -> None:
    model = _model(parsed, "grouped, normalized")
    groups = find_groups(model)
    reads = {node.outputs[0].name: labels for node, labels in groups.reads.items()}
    assert (reads["c"][:4] == reads["c"][4:]).all() and len(set(reads["c"].tolist())) == 4
    removed = np.zeros(groups.count + 1, np.bool_)
    removed[reads["c"][1]] = True
    remove_classes(model, groups, removed)
    weights = {value.name: value.shape for value in model.graph.initializers.values()}
    assert weights["w1"] == (6, 4, 1, 1) and weights["w2"] == (12, 3, 3, 3) and weights["g"] == (6,)


def test_shared_shapes_are_not_changed_for_others(parsed: Parsed) -> None:
    model = parsed(
        "g (float[N,4,8,8] x) => (float[N,C,D] y, float[N,E,F] o)"
        " { a = Conv(x, w) b = Reshape(a, to) y = Conv(b, out) o = Reshape(x, keep) }",
        w=np.ones((6, 4, 1, 1), np.float32),
        out=np.ones((3, 6, 1), np.float32),
        to=np.array([-1, 6, 64]),
        keep=np.array([-1, 6, 64]),
    )
    o = next(node for node in model.graph if node.outputs[0].name == "o")
    o.replace_input_with(1, next(node for node in model.graph if node.outputs[0].name == "b").inputs[1])
    groups = find_groups(model)
    remove_classes(model, groups, np.arange(groups.count + 1) == 2)
    targets = [constant(node.inputs[1]) for node in model.graph if node.op_type == "Reshape"]
    assert [target.tolist() for target in targets if target is not None] == [[-1, 5, 64], [-1, 6, 64]]


def test_one_channel_that_is_taken_stays(parsed: Parsed, outputs_of: OutputsOf) -> None:
    model = parsed(
        "g (float[N,4,8,8] x) => (float[N,3,8,8] y)"
        " { a = Conv(x, w) f = Gather<axis=1>(a, five) g = Unsqueeze(f, one) z = Mul(a, g) y = Conv(z, out) }",
        w=np.random.default_rng(0).standard_normal((8, 4, 1, 1)).astype(np.float32),
        out=np.broadcast_to(np.arange(8, dtype=np.float32)[None, :, None, None] > 2, (3, 8, 1, 1)).astype(np.float32),
        five=np.array(5),
        one=np.array([1]),
    )
    groups = find_groups(model)
    (labels,) = (labels for node, labels in groups.writes.items() if node.outputs[0].name == "a")
    assert labels.tolist() == [1, 2, 3, 4, 5, 0, 6, 7]
    feed = {"x": np.random.default_rng(1).standard_normal((2, 4, 8, 8)).astype(np.float32)}
    before = outputs_of(model, feed)["y"]
    remove_classes(model, groups, np.isin(np.arange(8), (1, 2, 3)))
    np.testing.assert_allclose(outputs_of(model, feed)["y"], before, rtol=1e-4, atol=1e-4)


def test_no_tensor_loses_all_channels(parsed: Parsed) -> None:
    model = _model(parsed, "parts of channels")
    groups = find_groups(model)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    for removed, message in (
        (np.arange(groups.count + 1) > 0, "no channels of"),
        (np.zeros(groups.count, np.bool_), "truth values"),
        (np.ones(groups.count + 1, np.bool_), "the first of them False"),
    ):
        with pytest.raises(ValueError, match=message):
            remove_classes(model, groups, removed)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_a_deep_model_is_quick() -> None:
    arrays = {k: np.zeros(s, np.float32) for k, s in {"in": (32, 3, 1, 1), "out": (3, 32, 1, 1)}.items()}
    nodes = [onnx.helper.make_node("Conv", ["x", "in"], ["r0"])]
    for k in range(1250):
        arrays |= {f"v{k}": np.zeros((32, 32, 1, 1), np.float32), f"w{k}": np.zeros((32, 32, 1, 1), np.float32)}
        for op, inputs, output in (
            ("Conv", [f"r{k}", f"v{k}"], f"a{k}"),
            ("Relu", [f"a{k}"], f"b{k}"),
            ("Conv", [f"b{k}", f"w{k}"], f"c{k}"),
            ("Add", [f"r{k}", f"c{k}"], f"r{k + 1}"),
        ):
            nodes.append(onnx.helper.make_node(op, inputs, [output]))
    nodes.append(onnx.helper.make_node("Conv", ["r1250", "out"], ["y"]))
    image = [onnx.helper.make_tensor_value_info(name, 1, ["N", 3, 4, 4]) for name in "xy"]
    graph = onnx.helper.make_graph(nodes, "g", image[:1], image[1:])
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]))
    infer_shapes(model)
    start = perf_counter()
    groups = find_groups(model)
    assert perf_counter() - start < 5
    assert groups.count == 1251 * 32 and len(groups.groups) == 1251
    assert len(groups.groups[0].producers) == 1251 and len(groups.groups[0].consumers) == 1251
