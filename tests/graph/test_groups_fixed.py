"""Channels that cannot be removed, one reason at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxcomp.graph.fold.shapes import infer_shapes
from onnxcomp.graph.groups import Groups, find_groups

Parsed = Callable[..., ir.Model]
Shapes = Mapping[str, tuple[int, ...]]
Given = Mapping[str, object]

OUT = "y = Conv(z, out)"
TURNED = "t = Transpose<perm=[0,2,1,3]>(a)"

# Why the layer that writes a keeps its channels: what follows it, shapes of random constants, given constants.
# a is (N, 8, 8, 8), from x of 4 channels; b is another input of a's shape; out is (3, 8, 1, 1).
REASONS: dict[str, tuple[str, Shapes, Given]] = {
    "y is an output of the model": ("y = Relu(a)", {}, {}),
    "b is an input of the model": (f"z = Add(a, b) {OUT}", {}, {}),
    "LRN z is not known to treat channels alike": (f"z = LRN<size=3>(a) {OUT}", {}, {}),
    "Einsum z is not known to treat channels alike": (f'z = Einsum<equation="nchw->nchw">(a) {OUT}', {}, {}),
    "GroupNormalization z is not known": (f"z = GroupNormalization<num_groups=2>(a, g, g) {OUT}", {"g": (8,)}, {}),
    "Softmax z works across its channels": (f"z = Softmax<axis=1>(a) {OUT}", {}, {}),
    "CumSum z works across its channels": (f"z = CumSum(a, one) {OUT}", {}, {"one": np.int64(1)}),
    "ReduceMean m works across its channels": (f"m = ReduceMean(a, one) z = Mul(a, m) {OUT}", {}, {"one": [1]}),
    "ArgMax m works across its channels": (f"m = ArgMax<axis=1>(a) f = Cast<to=1>(m) z = Mul(a, f) {OUT}", {}, {}),
    "TopK m works across its channels": ("m, i = TopK<axis=1>(a, k) y = Conv(m, v)", {"v": (3, 2, 1, 1)}, {"k": [2]}),
    "LayerNormalization z works across": (f"z = LayerNormalization<axis=1>(a, g) {OUT}", {"g": (8, 8, 8)}, {}),
    "BatchNormalization z is in training": (
        f"z, m, v = BatchNormalization<training_mode=1>(a, g, g, h, h) {OUT}",
        {"g": (8,), "h": (8,)},
        {},
    ),
    "Gather g reads them beside data that stay": (
        "i = Cast<to=7>(a) g = Gather(k, i) s = ReduceSum(g) r = Reshape(s, ones) z = Add(b, r) y = Conv(z, out)",
        {"k": (5,)},
        {"ones": [1, 1, 1, 1]},
    ),
    "LayerNormalization m reads them beside data that stay": (
        "m = LayerNormalization(b, a) s = ReduceSum(m) r = Reshape(s, ones) z = Add(b, r) y = Conv(z, out)",
        {},
        {"ones": [1, 1, 1, 1]},
    ),
    "MatMul m multiplies two activations": (f"m = MatMul(a, b) z = Relu(m) {OUT}", {}, {}),
    "the left operand of MatMul z is the constant": (f"z = MatMul(g, a) {OUT}", {"g": (8, 8)}, {}),
    "the weight of MatMul z has 4 axes": (f"{TURNED} z = MatMul(t, g) {OUT}", {"g": (1, 1, 8, 8)}, {}),
    "Gemm z reads its input transposed": (
        "f = GlobalAveragePool(a) q = Squeeze(f, ends) z = Gemm<transA=1>(q, v) y = Reshape(z, shape)",
        {"v": (2, 3)},
        {"ends": [2, 3], "shape": [1, 1, 8, 3]},
    ),
    "MaxPool z gives indices": (
        "z, i = MaxPool<kernel_shape=[1,1]>(a) f = Cast<to=1>(i) s = ReduceSum(f) v = Add(z, s) y = Conv(v, out)",
        {},
        {},
    ),
    "MaxPool z works along the axis of its channels": (f"{TURNED} z = MaxPool<kernel_shape=[1,1]>(t) {OUT}", {}, {}),
    "channels lie along another axis": (f"{TURNED} y = Conv(t, out)", {}, {}),
    "Add z combines channels that lie along different axes": (f"{TURNED} z = Add(a, t) {OUT}", {}, {}),
    "Concat z joins channels that lie along different": (f"{TURNED} z = Concat<axis=3>(a, t) {OUT}", {}, {}),
    "k is a constant": (f"z = Concat<axis=2>(a, k) {OUT}", {"k": (1, 8, 8, 8)}, {}),
    "all channels of a are tied": (
        f"g = Gather<axis=1>(a, i) z = Add(a, g) {OUT}",
        {},
        {"i": [1, 2, 3, 4, 5, 6, 7, 0]},
    ),
    "the weight 'v' is shared": ("z = Conv(a, v) c = Conv(z, v) y = Conv(c, out)", {"v": (8, 8, 1, 1)}, {}),
    "ConvInteger i: already quantized": (
        "q = QuantizeLinear(a, s) i = ConvInteger(q, c) y = Cast<to=1>(i)",
        {},
        {"c": np.ones((3, 8, 1, 1), np.uint8), "s": np.float32(0.1)},
    ),
    "the constant 'k' is shared": (f"c = Mul(a, k) z = Add(c, k) {OUT}", {"k": (8, 1, 1)}, {}),
    "the weight 'c' is not a constant": ("c = Relu(b) y = Conv(a, c)", {}, {}),
    "already quantized": (
        "v = DequantizeLinear(c, s) y = Conv(a, v)",
        {},
        {"c": np.ones((3, 8, 1, 1), np.int8), "s": np.float32(0.1)},
    ),
    "Slice z takes channels with a step of -1": (
        f"z = Slice(a, s, e, one, s) {OUT}",
        {},
        {"s": [-1], "e": [-99], "one": [1]},
    ),
    "Pad z repeats or cuts channels": (
        'z = Pad<mode="edge">(a, p) y = Conv(z, v)',
        {"v": (3, 9, 1, 1)},
        {"p": [0, 1, 0, 0, 0, 0, 0, 0]},
    ),
    "input 1 of Pad z is not a constant": (f"p = Cast<to=7>(n) z = Pad(a, p) {OUT}", {}, {}),
    "Resize z resizes its channels": (
        'z = Resize<mode="nearest">(a, , s) y = Conv(z, v)',
        {"v": (3, 16, 1, 1)},
        {"s": np.array([1, 2, 1, 1], np.float32)},
    ),
    "Gather z takes channels into several axes": (
        "z = Gather<axis=1>(a, i) y = ReduceSum<keepdims=0>(z, last)",
        {},
        {"i": [[0, 1], [2, 3]], "last": [4]},
    ),
    "input 1 of Gather z is not a constant": (f"p = Cast<to=7>(n) z = Gather<axis=1>(a, p) {OUT}", {}, {}),
    "Reshape z has dimensions that are not known": (
        "z = Reshape(a, s) y = Conv(z, v)",
        {"v": (3, 1, 1, 1)},
        {"s": [-1, 1, 8, 8]},
    ),
    "the shape that Reshape z makes is computed": (f"p = Cast<to=7>(n) z = Reshape(a, p) {OUT}", {}, {}),
    "Squeeze z does not say which axes": (f"c = Unsqueeze(a, four) z = Squeeze(c) {OUT}", {}, {"four": [4]}),
    "Size s counts its elements": (f"s = Size(a) f = Cast<to=1>(s) z = Mul(a, f) {OUT}", {}, {}),
    "Div z computes with their number": (
        f"s = Shape(a) g = Gather(s, one) f = Cast<to=1>(g) z = Div(a, f) {OUT}",
        {},
        {"one": np.int64(1)},
    ),
    "Expand e makes a tensor of their number": (
        "s = Shape(a) e = Expand(k, s) m = MaxPool<kernel_shape=[8,8]>(e) y = Conv(a, out)",
        {"k": (1, 1, 1, 1)},
        {},
    ),
}


def _groups(
    parsed: Parsed, body: str, shapes: Shapes, given: Given, refuse: Callable[[ir.Node], str | None] | None = None
) -> Groups:
    rng = np.random.default_rng(0)
    wanted = {"w": (8, 4, 1, 1), "out": (3, 8, 1, 1), **shapes}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in wanted.items()}
    header = "g (float[N,4,8,8] x, float[N,8,8,8] b, int32[K] n, bool flag) => (float[N,E,F,G] y)"
    text = f"{header} {{ a = Conv(x, w) {body} }}"
    model = parsed(text, opset=21, **arrays, **{name: np.asarray(array) for name, array in given.items()})
    infer_shapes(model)
    return find_groups(model, refuse)


def _reason(groups: Groups) -> str:
    return next(reason for node, reason in groups.reasons.items() if node.outputs[0].name == "a")


@pytest.mark.parametrize("reason", REASONS)
def test_a_layer_whose_channels_all_stay_has_the_reason(parsed: Parsed, reason: str) -> None:
    groups = _groups(parsed, *REASONS[reason])
    assert reason in _reason(groups)
    assert all(node.outputs[0].name != "a" or not labels.any() for node, labels in groups.writes.items())


def _refusing(output: str) -> Callable[[ir.Node], str | None]:
    return lambda node: "no" if node.outputs[0].name == output else None


def test_constants_that_are_refused_keep_what_they_read_and_write(parsed: Parsed) -> None:
    body = "r = Relu(a) c = Conv(r, v) s = Mul(c, k) d = Conv(s, u) y = Conv(d, out)"
    shapes = {"v": (6, 8, 1, 1), "k": (6, 1, 1), "u": (8, 6, 1, 1)}
    for refused, free in (("", [6, 8, 8]), ("c", [8]), ("s", [8, 8]), ("y", [6, 8]), ("r", [6, 8, 8])):
        groups = _groups(parsed, body, shapes, {}, _refusing(refused))
        assert sorted(len(group.classes) for group in groups.groups) == free
        assert refused in ("", "r") or "no" in groups.reasons.values()


def test_what_a_body_reads_stays(parsed: Parsed) -> None:
    body = (
        "c = Conv(a, v) r = Relu(c) z = If(flag) <then_branch = t () => (float[N,8,8,8] p) { p = Relu(r) },"
        " else_branch = e () => (float[N,8,8,8] q) { q = Identity(a) }> y = Conv(z, out)"
    )
    groups = _groups(parsed, body, {"v": (8, 8, 1, 1)}, {})
    assert groups.count == 0 and _reason(groups) == "a body reads a"


def _free(text: str, arrays: Mapping[str, object], opset: int = 17, domain: str = "") -> Groups:
    """The groups of a model that the checker need not know."""
    more = f', "{domain}" : 1' if domain else ""
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}{more}]> g {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items())
    model = ir.from_proto(proto)
    infer_shapes(model)
    return find_groups(model)


GIVEN = {"w": np.ones((8, 4, 1, 1), np.float32), "out": np.ones((3, 8, 1, 1), np.float32)}
Y = "=> (float[N,3,H,W] y)"


def test_inputs_that_override_a_weight_fix_it() -> None:
    free = f"(float[N,4,H,W] x) {Y} {{ a = Conv(x, w) y = Conv(a, out) }}"
    assert _free(free, GIVEN).count == 8
    overridden = f"(float[N,4,H,W] x, float[8,4,1,1] w) {Y} {{ a = Conv(x, w) y = Conv(a, out) }}"
    assert _reason(_free(overridden, GIVEN)) == "the weight 'w' can be overridden by a graph input"


def test_old_opsets_and_other_domains_fix_all() -> None:
    text = f"(float[N,4,H,W] x) {Y} {{ a = Conv(x, w) y = Conv(a, out) }}"
    assert _reason(_free(text, GIVEN, 12)) == "opset 12 has other operators"
    other = f"(float[N,4,H,W] x) {Y} {{ a = Conv(x, w) z = other.Relu(a) y = Conv(z, out) }}"
    groups = _free(other, GIVEN, domain="other")
    assert _reason(groups) == "other.Relu z is not known to treat channels alike"


# Lists of numbers stand for constants.
SYMBOLIC = {
    "Flatten z has dimensions that are not known": "z = Flatten(a)",
    "Reshape z has dimensions that are not known": "z = Reshape(a, [0, -1])",
    "Mul d computes with their number": (
        "s = Shape(a) c = Slice(s, [1], [2]) d = Mul(c, [1]) t = Concat<axis=0>([0], d, [-1]) z = Reshape(a, t)"
    ),
    "gets its number of channels from another tensor": (
        "s = Shape(b) t = Slice(s, [0], [2]) u = Concat<axis=0>(t, [-1]) z = Reshape(a, u)"
    ),
    "the number of channels that Reshape z makes is computed": (
        "s = Shape(x) h = Slice(s, [2], [4]) c = Mul([8], [1]) t = Concat<axis=0>([0], c, h) z = Reshape(a, t)"
    ),
    "other nodes read the shape that Reshape z makes": (
        "s = Shape(x) h = Slice(s, [2], [4]) t = Concat<axis=0>([0, 8], h) z = Reshape(a, t) u = Reshape(b, t)"
    ),
    "Expand z makes another axis as long": (
        "g = GlobalAveragePool(a) s = Shape(a) c = Slice(s, [1], [2]) t = Concat<axis=0>([1, 1, 1], c) z = Expand(g, t)"
    ),
    "the size that Resize z makes is computed": "s = Cast<to=7>(n) z = Resize(a, , , s)",
    "Resize z resizes its channels": "z = Resize(a, , , [1, 16, 4, 4])",
    "the shape that Expand z makes is computed": "s = Cast<to=7>(n) z = Expand(a, s)",
}


@pytest.mark.parametrize("reason", SYMBOLIC)
def test_a_size_that_cannot_follow_fixes_the_channels(reason: str) -> None:
    numbers: dict[str, object] = {}

    def name(found: re.Match[str]) -> str:
        numbers[f"k{len(numbers)}"] = [int(k) for k in found.group(1).split(",")]
        return f"k{len(numbers) - 1}"

    body = re.sub(r"\[([-0-9, ]+)\]", name, SYMBOLIC[reason])
    text = f"(float[N,4,H,W] x, int32[K] n) {Y} {{ a = Conv(x, w) b = Conv(x, w2) {body} y = Conv(z, out) }}"
    assert reason in _reason(_free(text, {**GIVEN, "w2": GIVEN["w"], **numbers}))
