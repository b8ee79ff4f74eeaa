from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxcomp.data.inputs import model_inputs
from onnxcomp.errors import DataError

ModelOf = Callable[..., ir.Model]


def test_dtype_shape_and_batch(model_of: ModelOf) -> None:
    a, b, c, d = model_inputs(model_of(a=["N", 3], b=([4, "T"], TensorProto.INT64), c=[], d=None))
    assert (str(a), a.fixed_batch) == ("float32[N,3]", None)
    assert (str(b), b.fixed_batch) == ("int64[4,T]", 4)
    assert (str(c), c.fixed_batch) == ("float32[]", None)
    assert (str(d), d.fixed_batch) == ("float32[...]", None)


def test_given_shapes_replace_free_axes(model_of: ModelOf) -> None:
    (x,) = model_inputs(model_of(x=["N", 3, "H", None]), {"x": (2, 3, 8, 9)})
    assert x.shape == (2, 3, 8, 9)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"imag": (1, 3)}, r"no input 'imag'; it has: image; did you mean 'image'\?"),
        ({"image": (1, 4)}, r"image:1x4 contradicts the model's \[N,3\]"),
        ({"image": (1, 3, 1)}, "contradicts"),
        ({"image": (0, 3)}, "axis below 1"),
    ],
)
def test_wrong_shapes(model_of: ModelOf, shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        model_inputs(model_of(image=["N", 3]), shapes)


def test_sequence_inputs_are_refused() -> None:
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [2]))
    graph = helper.make_graph(
        [helper.make_node("SequenceLength", ["s"], ["n"])],
        "g",
        [helper.make_value_info("s", kind)],
        [helper.make_tensor_value_info("n", TensorProto.INT64, [])],
    )
    with pytest.raises(DataError, match="input 's' is no tensor"):
        model_inputs(ir.from_proto(helper.make_model(graph)))


def test_a_model_without_inputs(model_of: ModelOf) -> None:
    model = model_of(x=[2])
    x = model.graph.inputs[0]
    x.const_value = ir.tensor(np.zeros(2, np.float32), name="x")
    model.graph.register_initializer(x)
    with pytest.raises(DataError, match="no input that could be fed"):
        model_inputs(model)
