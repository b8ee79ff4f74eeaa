"""A model at a glance."""

from __future__ import annotations

import onnx_ir as ir

from onnxcomp.subject import operator_counts, subject_of

TEXT = """
<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1], producer_name: "maker", producer_version: "1.2">
agraph (float[N, 4] x, int64 k) => (float[N, 4] y, bool[?] z)
<float[1] w = {1}>
{
    a = Mul(x, w)
    b = com.microsoft.Gelu(a)
    y = Mul(b, w)
    c = Cast<to = 9>(k)
    shape = Constant<value = int64[1] {-1}>()
    z = Reshape(c, shape)
}
"""


def test_what_a_model_says_of_itself() -> None:
    model = ir.from_onnx_text(TEXT)
    subject = subject_of(model, "a/net.onnx")
    assert (subject.file, subject.producer, subject.ir_version) == ("a/net.onnx", "maker 1.2", 8)
    assert subject.opsets == {"ai.onnx": 17, "com.microsoft": 1}
    assert subject.inputs == {"x": "float32[N,4]", "k": "int64[]"}
    assert subject.outputs == {"y": "float32[N,4]", "z": "bool[?]"}


def test_operators_are_counted_by_their_domain() -> None:
    counts = operator_counts(ir.from_onnx_text(TEXT))
    assert counts == {"Cast": 1, "Constant": 1, "Mul": 2, "Reshape": 1, "com.microsoft.Gelu": 1}
