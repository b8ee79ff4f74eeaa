"""Concrete sizes in place of symbols, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcomp.errors import InputError
from onnxcomp.graph.fixing import fix_shapes, free_inputs

TWO = """
g (float[N, 4, H, 8] x, float[N, 4] u, float[M, 2] v) => (float[N, 4, H, 8] y, float[N, 4] w, float[M, 2] t) {
  r = Relu(x)
  y = Neg(r)
  w = Neg(u)
  t = Neg(v)
}
"""


def shapes(model: ir.Model) -> dict[str, str]:
    values = (*model.graph.inputs, *model.graph.outputs, *(out for node in model.graph for out in node.outputs))
    return {value.name or "": str(value.shape) for value in values}


def test_a_symbol_gets_its_number_everywhere(parsed: Callable[..., ir.Model]) -> None:
    model = parsed(TWO)
    fix_shapes(model, {"x": (3, 4, 5, 8)})
    found = shapes(model)
    assert found["x"] == found["r"] == found["y"] == "[3,4,5,8]"
    assert found["u"] == found["w"] == "[3,4]"
    assert found["v"] == found["t"] == "[M,2]"
    assert [value.name for value in free_inputs(model)] == ["v"]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_what_follows_from_numbers_is_inferred(parsed: Callable[..., ir.Model]) -> None:
    text = "g (float[N, 4] x) => (float[A, B] y) { c = Concat<axis = 0>(x, x)\n y = Transpose(c) }"
    model = parsed(text)
    fix_shapes(model, {"x": (3, 4)})
    assert shapes(model) == {"x": "[3,4]", "c": "[6,4]", "y": "[4,6]"}


def test_the_sizes_of_an_earlier_example_go(parsed: Callable[..., ir.Model]) -> None:
    model = parsed("g (float[N, 4] x) => (float[N, 4] y) { r = Relu(x)\n y = Neg(r) }")
    model.graph[0].outputs[0].shape = ir.Shape([1, 4])
    fix_shapes(model, {"x": (7, 4)})
    assert set(shapes(model).values()) == {"[7,4]"}


def test_a_size_that_depends_on_data_stays_free(parsed: Callable[..., ir.Model]) -> None:
    text = "g (float[N, 4] x) => (int64[A, K] y) { r = Relu(x)\n y = NonZero(r) }"
    model = parsed(text)
    fix_shapes(model, {"x": (7, 4)})
    assert shapes(model)["y"] == "[2,K]"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"z": (1, 2)}, "there is no input 'z'; the model has 'x', 'u', 'v'"),
        ({"u": (1, 4, 1)}, "the input has 2 dimensions"),
        ({"u": (1, 5)}, "a size that is fixed already stays"),
        ({"x": (1, 4, 4, 8), "u": (2, 4)}, "'N' would be 1 and 2 at once"),
    ],
)
def test_what_does_not_fit(parsed: Callable[..., ir.Model], given: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        fix_shapes(parsed(TWO), given)


def test_shapes_that_contradict_each_other(parsed: Callable[..., ir.Model]) -> None:
    model = parsed("g (float[N, A] x, float[B, 4] u) => (float[N, 4] y) { y = MatMul(x, u) }")
    with pytest.raises(InputError, match="does not go with these shapes"):
        fix_shapes(model, {"x": (2, 3), "u": (5, 4)})


def test_inputs_with_a_default_are_no_inputs(parsed: Callable[..., ir.Model]) -> None:
    model: Any = parsed("g (float[N] x, float[1] k) => (float[N] y) { y = Add(x, k) }", k=np.ones(1, np.float32))
    assert [value.name for value in free_inputs(model)] == ["x"]
    with pytest.raises(InputError, match="there is no input 'k'"):
        fix_shapes(model, {"k": (1,)})
