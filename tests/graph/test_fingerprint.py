"""Fingerprints follow what is computed, not how it is written down."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxcomp.graph.fingerprint import fingerprints, model_fingerprint, structures

TEXT = """
<ir_version: 9, opset_import: ["": 17]>
g (float[N, 2] x) => (float[N, 2] y) <float[2] w = {1.0, 2.0}, float[2] v = {3.0, 4.0}>
{
  a = Add (x, w)
  b = Mul (x, v)
  c = Relu (a)
  y = Add (c, b)
}
"""


def parsed(text: str = TEXT) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(text))


def test_every_tensor_has_its_own() -> None:
    prints = fingerprints(parsed())
    assert list(prints) == ["x", "a", "b", "c", "y"]
    assert len(set(prints.values())) == 5
    assert {len(value) for value in prints.values()} == {32}


def test_a_weight_changes_what_depends_on_it_and_nothing_else() -> None:
    before, after = fingerprints(parsed()), fingerprints(parsed(TEXT.replace("{1.0, 2.0}", "{1.0, 2.5}")))
    assert [name for name in before if before[name] != after[name]] == ["a", "c", "y"]


def test_order_names_and_symbolic_sizes_do_not_count() -> None:
    text = TEXT.replace("a = Add (x, w)\n  b = Mul (x, v)", "b = Mul (x, v)\n  a = Add (x, w)")
    text = text.replace("w", "renamed").replace("[N, 2]", "[batch, 2]").replace("c", "inner")
    assert text != TEXT
    assert model_fingerprint(parsed(text)) == model_fingerprint(parsed())


def test_names_of_nodes_and_what_is_said_of_them_do_not_count() -> None:
    model = parsed()
    model.graph[2].name, model.graph[2].doc_string = "relu", "words"
    model.graph[2].metadata_props["key"] = "value"
    assert model_fingerprint(model) == model_fingerprint(parsed())


@pytest.mark.parametrize(
    ("old", "new"), [("Relu (a)", "Sigmoid (a)"), ("Add (c, b)", "Add (b, c)"), ("float[N", "double[N")]
)
def test_operators_order_of_operands_and_types_count(old: str, new: str) -> None:
    text = TEXT.replace(old, new)
    assert text != TEXT
    assert model_fingerprint(parsed(text)) != model_fingerprint(parsed())


def test_names_of_outputs_count() -> None:
    text = TEXT.replace("2] y)", "2] z)").replace("y = Add", "z = Add")
    assert model_fingerprint(parsed(text)) != model_fingerprint(parsed())
    assert fingerprints(parsed(text))["z"] == fingerprints(parsed())["y"]


def test_attributes_count() -> None:
    def made(axis: int) -> ir.Model:
        text = f'<ir_version: 9, opset_import: ["": 17]> g (float[2, 2] x) => (y) {{ y = Softmax <axis = {axis}> (x) }}'
        return parsed(text)

    assert model_fingerprint(made(0)) != model_fingerprint(made(1))
    assert model_fingerprint(made(1)) == model_fingerprint(made(1))


def test_what_a_body_reads_of_the_outer_graph_counts() -> None:
    def made(operator: str) -> dict[str, bytes]:
        text = f"""<ir_version: 9, opset_import: ["": 17]>
        g (float[2] x, bool c) => (float[2] y) {{
          a = {operator} (x)
          y = If (c) <then_branch = t () => (p) {{ p = Relu (a) }}, else_branch = e () => (q) {{ q = Neg (x) }}>
        }}"""
        return fingerprints(parsed(text))

    one, other = made("Abs"), made("Exp")
    assert one["a"] != other["a"]
    assert one["y"] != other["y"]
    assert one["y"] == made("Abs")["y"]


def test_the_form_of_a_constant_does_not_count() -> None:
    raw, listed = onnx.parser.parse_model(TEXT), onnx.parser.parse_model(TEXT)
    values = np.array([1.0, 2.0], np.float32)
    make: Callable[..., onnx.TensorProto] = onnx.helper.make_tensor
    raw.graph.initializer[0].CopyFrom(make("w", onnx.TensorProto.FLOAT, [2], values.tobytes(), raw=True))
    listed.graph.initializer[0].CopyFrom(make("w", onnx.TensorProto.FLOAT, [2], values))
    assert model_fingerprint(ir.from_proto(raw)) == model_fingerprint(ir.from_proto(listed))


def test_structures_see_no_weights() -> None:
    rounded = parsed(TEXT.replace("{1.0, 2.0}", "{1.0, 2.5}"))
    assert structures(rounded) == structures(parsed())
    assert structures(parsed(TEXT.replace("Relu (a)", "Sigmoid (a)"))) != structures(parsed())
    assert structures(parsed())["a"] != fingerprints(parsed())["a"]


def test_structures_see_whole_numbers() -> None:
    def made(shape: str) -> ir.Model:
        return parsed(
            f"""<ir_version: 9, opset_import: ["": 17]>
            g (float[2, 2] x) => (y) <int64[1] s = {{{shape}}}> {{ y = Reshape (x, s) }}"""
        )

    assert structures(made("4"))["y"] != structures(made("-1"))["y"]
