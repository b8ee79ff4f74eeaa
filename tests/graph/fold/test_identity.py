from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxcomp.graph.fold import Log

Build = Callable[..., ir.Model]
Check = Callable[..., Log]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Identity(x) b = Identity(a) y = Relu(b)", ["Relu"]),
        ("a = Relu(x) y = Identity(a)", ["Relu"]),  # the Relu takes the output's name
        ("a = Relu(x) b = Identity(a) y = Identity(b)", ["Relu"]),
        ("y = Identity(x)", ["Identity"]),  # an output cannot be an input
        ("y = Identity(k)", ["Identity"]),
        ("w = Identity(k) y = Add(x, w)", ["Add"]),
        ("a = Relu(x) b = Neg(a) c = Identity(a) y = Add(b, c)", ["Relu", "Neg", "Add"]),
        ("a = Dropout(x) y = Relu(a)", ["Relu"]),
        ("a, mask = Dropout(x) y = Relu(a)", ["Relu"]),
        ("a, mask = Dropout(x) f = Cast<to=1>(mask) y = Add(a, f)", ["Dropout", "Cast", "Add"]),
        ("a = Dropout(x, half, no) y = Relu(a)", ["Relu"]),
    ],
)
def test_no_ops_go_where_names_allow(build: Build, check: Check, body: str, left: list[str]) -> None:
    constants = {"k": np.ones(3, np.float32), "half": np.float32(0.5), "no": np.array(False)}
    used = {name: array for name, array in constants.items() if f"({name}" in body or f", {name}" in body}
    output = "3" if body == "y = Identity(k)" else "N,3"
    model = build(f"g (float[N,3] x) => (float[{output}] y) {{ {body} }}", **used)
    check(model)
    assert [n.op_type for n in model.graph] == left


def test_two_outputs_of_one_value_keep_both_names(build: Build, check: Check) -> None:
    model = build("g (float[N,3] x) => (float[N,3] y, float[N,3] z) { y = Relu(x) z = Identity(y) }")
    check(model)
    assert [n.op_type for n in model.graph] == ["Relu", "Identity"]


def test_training_dropout_stays(build: Build) -> None:
    from onnxcomp.graph.fold import fold

    model = build(
        "g (float[N,3] x) => (float[N,3] y) { y = Dropout(x, half, yes) }", half=np.float32(0.5), yes=np.array(True)
    )
    assert fold(model) == ()


def test_a_branch_that_returns_an_outer_value_keeps_its_identity(build: Build, check: Check) -> None:
    model = build(
        """g (float[N,3] x, bool t) => (float[N,3] o) { r = Relu(x) o = If(t) <
          then_branch = a () => (float[N,3] y) { y = Identity(r) },
          else_branch = b () => (float[N,3] z) { i = Identity(r) n = Neg(i) z = Identity(n) }> }"""
    )
    check(model, free=(2, 3, 4, 5))
    assert sorted(n.op_type for n in model.graph.all_nodes()) == ["Identity", "If", "Neg", "Relu"]


def test_the_output_keeps_its_declared_shape(build: Build, check: Check) -> None:
    model = build("g (float[4,3] x) => (float[M,3] y) { a = Relu(x) y = Identity(a) }")
    check(model)
    assert str(model.graph.outputs[0].shape) == "[M,3]"
