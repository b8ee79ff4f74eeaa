from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxcomp.errors import PassError
from onnxcomp.verify import Signature, check_outputs, check_structure, signature_of

Parsed = Callable[..., ir.Model]
X = {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)}


def _net(parsed: Parsed, body: str, output: str = "float[N,4] y", **arrays: Any) -> ir.Model:
    return parsed(f"g (float[N,4] x) => ({output}) {{ {body} }}", **arrays)


def test_the_signature_has_names_types_and_symbolic_shapes(parsed: Parsed) -> None:
    model = parsed("g (float[N,4] x, int64[2] k) => (float[N,4] y, int64[2] j) { y = Relu(x) j = Neg(k) }")
    inputs = (("x", "FLOAT", "[N,4]"), ("k", "INT64", "[2]"))
    assert signature_of(model) == Signature(inputs, (("y", "FLOAT", "[N,4]"), ("j", "INT64", "[2]")))


def test_a_rewrite_inside_passes(parsed: Parsed) -> None:
    before, after = _net(parsed, "y = Relu(x)"), _net(parsed, "h = Neg(x) i = Neg(h) y = Relu(i)")
    check_structure(after, before)
    check_outputs(after, before, X)


@pytest.mark.parametrize(
    ("body", "output", "message"),
    [
        ("z = Relu(x)", "float[N,4] z", "y FLOAT [N,4] became z FLOAT [N,4]"),
        ("y = Cast<to=11>(x)", "double[N,4] y", "y FLOAT [N,4] became y DOUBLE [N,4]"),
        ("y = Relu(x)", "float[M,4] y", "y FLOAT [N,4] became y FLOAT [M,4]"),
        ("y = Relu(x) z = Neg(x)", "float[N,4] y, float[N,4] z", "an output was added or removed"),
    ],
)
def test_a_changed_signature_is_refused(parsed: Parsed, body: str, output: str, message: str) -> None:
    with pytest.raises(PassError) as caught:
        check_structure(_net(parsed, body, output), _net(parsed, "y = Relu(x)"))
    assert str(caught.value) == f"the signature changed: {message}"


def test_what_was_invalid_before_is_no_pass_fault(parsed: Parsed) -> None:
    good, bad = _net(parsed, "y = Relu(x)"), _net(parsed, "y = Relu(x)")
    bad.graph[0].op_type = "Rellu"
    with pytest.raises(PassError, match="not valid ONNX: No Op registered for Rellu"):
        check_structure(bad, good)
    check_structure(bad, bad.clone())


def test_outputs_must_be_numbers_where_they_were(parsed: Parsed) -> None:
    plain, nan = _net(parsed, "y = Exp(x)"), _net(parsed, "y = Sqrt(x)")
    with pytest.raises(PassError, match="output 'y' holds NaN or Inf where the original has none"):
        check_outputs(nan, plain, X)
    check_outputs(plain, nan, X)
    check_outputs(nan, nan.clone(), X)


def test_outputs_keep_their_shape(parsed: Parsed) -> None:
    before = _net(parsed, "y = Relu(x)", "float[a,b] y")
    after = _net(parsed, "y = Transpose<perm=[1,0]>(x)", "float[a,b] y")
    with pytest.raises(PassError, match=r"output 'y' has shape \(4, 2\) where the original has \(2, 4\)"):
        check_outputs(after, before, X)


def test_shapes_that_depend_on_values_may_change(parsed: Parsed) -> None:
    before = _net(parsed, "y = NonZero(x)", "int64[2,M] y")
    after = _net(parsed, "h = Relu(x) y = NonZero(h)", "int64[2,M] y")
    check_outputs(after, before, X)


def test_a_model_that_does_not_run_is_refused(parsed: Parsed) -> None:
    text = "two = Constant<value = int64[2] {3, 5}>() y = Reshape(x, two)"
    with pytest.raises(PassError, match="the rewritten model does not run: "):
        check_outputs(_net(parsed, text, "float[a,b] y"), _net(parsed, "y = Relu(x)"), X)


def test_outputs_that_are_no_tensors_are_let_be(parsed: Parsed) -> None:
    text = "g (float[N,4] x) => (seq(float[N,4]) y) { y = SequenceConstruct(x, x) }"
    check_outputs(parsed(text), parsed(text), X)
