from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxcomp.graph.fold import canonicalise
from onnxcomp.graph.fold.rank import rank_of
from onnxcomp.graph.fold.shapes import infer_shapes, skeleton

Build = Callable[..., ir.Model]


def test_sizes_and_the_inputs_own_symbols_are_written(build: Build) -> None:
    model = build(
        """g (float[N,3,H,8] x) => (float[A,B,C,D] y) {
          c = Conv<pads=[1,1,1,1]>(x, w) p = MaxPool<kernel_shape=[2,2]>(c) y = Relu(p) }""",
        w=np.zeros((6, 3, 3, 3), np.float32),
    )
    trusted = infer_shapes(model)
    assert [str(n.outputs[0].shape) for n in model.graph] == ["[N,6,None,8]", "[N,6,None,7]", "[A,B,C,D]"]
    assert trusted["c"] == (None, 6, None, 8) and trusted["y"] == (None, 6, None, 7) and trusted["w"] == (6, 3, 3, 3)


def test_what_the_file_says_stays_where_nothing_is_inferred(build: Build) -> None:
    model = build(
        """<ir_version: 8, opset_import: ["" : 17, "my" : 1]>
        g (float[N,3] x) => (float[A,B] y) <float[N,5] c> { c = my.Op(x) y = Relu(c) }"""
    )
    trusted = infer_shapes(model)
    assert str(model.graph.node(0).outputs[0].shape) == "[N,5]" and "c" not in trusted


def test_outputs_and_inputs_are_never_narrowed(build: Build) -> None:
    model = build("g (float[N,3] x) => (float[A,B] y) { y = Relu(x) }")
    infer_shapes(model)
    assert (str(model.graph.inputs[0].shape), str(model.graph.outputs[0].shape)) == ("[N,3]", "[A,B]")


def test_the_skeleton_is_small_and_the_model_untouched(build: Build) -> None:
    weight = np.zeros((512, 512), np.float32)
    model = build("g (float[N,512] x) => (float[N,512] y) { y = MatMul(x, w) }", w=weight)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert skeleton(model).ByteSize() < 1000
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_a_model_that_inference_rejects_is_still_folded(build: Build) -> None:
    model = build("g (float[N,3] x) => (float[N,3] y) { r = not.imported.Op(x) i = Identity(r) y = Neg(i) }")
    log = canonicalise(model)
    assert [n.op_type for n in model.graph] == ["Op", "Neg"]
    assert len(log.remarks) == 1 and log.remarks[0].startswith("shapes are not inferred:")


def test_rank_follows_the_producers(build: Build) -> None:
    model = build(
        """g (float[N,4] x, int64[K] s) => (float[A] y) { r = Reshape(x, s) t = Transpose<perm=[0,2,1]>(r)
          m = MatMul(t, t)          a = Add(m, x) v = MatMul(t, b) u = Relu(r) y = Relu(a) }"""
    )
    values = {v.name: v for n in model.graph for v in n.outputs}
    known = {"x": 2, "b": 1}
    assert {name: rank_of(v, known) for name, v in values.items()} == {
        "r": None,
        "t": 3,
        "m": 3,
        "a": 3,
        "v": None,
        "u": None,
        "y": 3,
    }
