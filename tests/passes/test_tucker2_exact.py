"""At the ranks that a weight really has, the chain is the layer: in ONNX Runtime, over the whole geometry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxcomp.contract import Context
from onnxcomp.graph.edit import ORIGIN
from onnxcomp.passes.tucker2 import Tucker2
from onnxcomp.targets.target import load_target

CI, CO, RANK_IN, RANK_OUT = 20, 24, 5, 6
KERNELS = [(3, 3), (5, 5), (1, 3), (2, 4), (3,), (5,), (3, 3, 3)]
OutputsOf = Callable[[ir.Model, Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]
Planted = Callable[..., NDArray[np.float32]]


@dataclass(frozen=True)
class Case:
    kind: str
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    group: int
    bias: bool
    sides: tuple[bool, bool]
    dynamic: bool
    attributes: dict[str, Any]

    @property
    def ranks(self) -> tuple[int, int]:
        return RANK_IN if self.sides[0] else CI, RANK_OUT if self.sides[1] else CO

    def model(self, planted: Planted) -> ir.Model:
        """One convolution; its weight has the ranks of the case in every group."""
        planes = [rank if factored else None for rank, factored in zip((RANK_IN, RANK_OUT), self.sides, strict=True)]
        weight = planted((CO, CI, *self.kernel), *planes, groups=self.group)
        if self.kind == "ConvTranspose":
            weight = np.concatenate([np.swapaxes(w, 0, 1) for w in np.split(weight, self.group)])
        constants = {"w": weight}
        if self.bias:
            constants["b"] = np.linspace(-1, 1, CO * self.group, dtype=np.float32)
        node = helper.make_node(self.kind, ["x", *constants], ["y"], "conv", group=self.group, **self.attributes)
        free = [None] * len(self.size)
        graph = helper.make_graph(
            [node],
            "one",
            [
                helper.make_tensor_value_info(
                    "x", TensorProto.FLOAT, ["N", CI * self.group, *(free if self.dynamic else self.size)]
                )
            ],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CO * self.group, *free])],
            [onnx.numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in constants.items()],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


@st.composite
def cases(draw: st.DrawFn, kind: str) -> Case:
    kernel = draw(st.sampled_from(KERNELS))
    rank = len(kernel)
    small = 5 if rank == 3 else 9
    size = tuple(draw(st.lists(st.integers(small, small + 3), min_size=rank, max_size=rank)))
    strides = draw(st.sampled_from([(1, 1, 1), (2, 2, 2), (2, 1, 2), (3, 2, 1)]))[:rank]
    attributes: dict[str, Any] = {"strides": strides}
    auto_pad = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    dilation = 1
    if not auto_pad.startswith("SAME"):  # ONNX Runtime knows no dilation there
        dilation = draw(st.sampled_from([1, 2]))
        attributes["dilations"] = (dilation,) * rank
    if auto_pad == "NOTSET":
        attributes["pads"] = draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank))
    else:
        attributes["auto_pad"] = auto_pad
    if kind == "ConvTranspose" and auto_pad == "NOTSET":
        attributes["output_padding"] = tuple(draw(st.integers(0, s - 1)) for s in strides)
    return Case(
        kind,
        kernel,
        size,
        draw(st.sampled_from([1, 1, 2, 4])),
        draw(st.booleans()),
        draw(st.sampled_from([(True, True), (True, True), (True, False), (False, True)])),
        draw(st.booleans()),
        attributes,
    )


def _holds(case: Case, planted: Planted, outputs_of: OutputsOf) -> None:
    model = case.model(planted)
    x = np.random.default_rng(1).standard_normal((2, CI * case.group, *case.size)).astype(np.float32)
    before = outputs_of(model, {"x": x})["y"]
    context = Context(target=load_target("ort-x86"), workdir=Path("unused"), objective="size")
    report = Tucker2(ranks="{}x{}".format(*case.ranks)).run(model, context)
    assert [c.site for c in report.changes] == ["conv"], report.skips
    assert [n.op_type for n in model.graph] == ["Conv"] * case.sides[0] + [case.kind] + ["Conv"] * case.sides[1]
    assert {n.metadata_props[ORIGIN] for n in model.graph} == {"conv"}
    after = outputs_of(model, {"x": x})["y"]
    assert after.shape == before.shape
    assert np.linalg.norm(after - before) <= 1e-5 * np.linalg.norm(before)
    assert report.changes[0].error == pytest.approx(0, abs=1e-10)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=cases("Conv"))
def test_convolution(case: Case, planted: Planted, outputs_of: OutputsOf) -> None:
    _holds(case, planted, outputs_of)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(case=cases("ConvTranspose"))
def test_transposed_convolution(case: Case, planted: Planted, outputs_of: OutputsOf) -> None:
    _holds(case, planted, outputs_of)
