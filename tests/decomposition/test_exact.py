"""At the rank that a weight really has, each chain is the layer: in ONNX Runtime, over the whole geometry."""

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
from onnxcomp.decomposition.base import Decomposition
from onnxcomp.graph.edit import ORIGIN
from onnxcomp.graph.sites import static_shape
from onnxcomp.passes.channel import Channel
from onnxcomp.passes.lowrank import Lowrank
from onnxcomp.passes.spatial import Spatial
from onnxcomp.passes.tucker2 import Tucker2
from onnxcomp.targets.target import load_target

Array = NDArray[np.float32]
OutputsOf = Callable[[ir.Model, Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]
CI, CO, RANK = 12, 20, 5
KERNELS = [(3, 3), (5, 5), (2, 4), (3, 3, 3), (1, 3, 2), (2, 1, 3)]
LINES = [(3,), (5,), (1, 3)]


@dataclass(frozen=True)
class Case:
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    group: int
    bias: bool
    dynamic: bool
    attributes: dict[str, Any]

    def model(self, weight: Array) -> ir.Model:
        """One convolution."""
        constants = {"w": weight}
        if self.bias:
            constants["b"] = np.linspace(-1, 1, len(weight), dtype=np.float32)
        node = helper.make_node("Conv", ["x", *constants], ["y"], "conv", group=self.group, **self.attributes)
        free = [None] * len(self.size)
        shape = ["N", weight.shape[1] * self.group, *(free if self.dynamic else self.size)]
        graph = helper.make_graph(
            [node],
            "one",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", len(weight), *free])],
            [onnx.numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in constants.items()],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


@st.composite
def cases(draw: st.DrawFn, kernels: list[tuple[int, ...]]) -> Case:
    kernel = draw(st.sampled_from(kernels))
    rank = len(kernel)
    small = 12 if max(kernel) > 4 else 5 if rank == 3 else 9
    size = tuple(draw(st.lists(st.integers(small, small + 3), min_size=rank, max_size=rank)))
    attributes: dict[str, Any] = {"strides": draw(st.sampled_from([(1, 1, 1), (2, 2, 2), (2, 1, 2), (1, 3, 2)]))[:rank]}
    auto_pad = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if not auto_pad.startswith("SAME"):  # ONNX Runtime knows no dilation there
        attributes["dilations"] = draw(st.sampled_from([(1, 1, 1), (2, 1, 2), (1, 2, 1)]))[:rank]
    if auto_pad == "NOTSET":
        attributes["pads"] = draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank))
    else:
        attributes["auto_pad"] = auto_pad
    group = draw(st.sampled_from([1, 1, 2, 4]))
    return Case(kernel, size, group, draw(st.booleans()), draw(st.booleans()), attributes)


def _separable(
    kernel: tuple[int, ...], lead: int, group: int, rank: int = RANK, shape: tuple[int, int] = (CO, CI)
) -> Array:
    """A weight whose taps along axis `lead` are apart from the others, with that many channels between."""
    rng = np.random.default_rng(0)
    inner = [k if a == lead else 1 for a, k in enumerate(kernel)]
    outer = [1 if a == lead else k for a, k in enumerate(kernel)]
    weights = [
        (rng.standard_normal((shape[0], rank, 1, *outer)) * rng.standard_normal((1, rank, shape[1], *inner))).sum(1)
        for _ in range(group)
    ]
    joined = np.concatenate(weights)
    return np.asarray(joined / (joined.std() * np.sqrt(np.prod(joined.shape[1:]))), np.float32)


def _holds(form: Decomposition, model: ir.Model, size: tuple[int, ...], outputs_of: OutputsOf, ops: int = 2) -> None:
    channels = static_shape(model.graph.inputs[0])[1]
    assert channels is not None
    x = np.random.default_rng(1).standard_normal((2, channels, *size)).astype(np.float32)
    before = outputs_of(model, {"x": x})["y"]
    report = form.run(
        model, Context(target=load_target("ort-x86"), workdir=Path("unused"), objective="macs", replay={"conv": {}})
    )
    assert [c.site for c in report.changes] == ["conv"], report.skips
    assert len(model.graph) == ops
    assert {n.metadata_props[ORIGIN] for n in model.graph} == {"conv"}
    after = outputs_of(model, {"x": x})["y"]
    assert after.shape == before.shape
    assert np.linalg.norm(after - before) <= 1e-5 * np.linalg.norm(before)
    assert report.changes[0].error == pytest.approx(0, abs=1e-10)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=cases(KERNELS), order=st.sampled_from(["vh", "hv", None]))
def test_spatial(case: Case, order: Any, outputs_of: OutputsOf) -> None:
    lead = next(a for a, k in enumerate(case.kernel) if k > 1)
    weight = _separable(case.kernel, lead, case.group)
    # With the taps of the other axes first, rank 5 is not enough in general.
    rank = RANK if order != "hv" else min(CI * int(np.prod(case.kernel)) // case.kernel[lead], CO * case.kernel[lead])
    _holds(Spatial(rank=rank, order=order), case.model(weight), case.size, outputs_of)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(case=cases(KERNELS + LINES))
def test_channel(case: Case, outputs_of: OutputsOf) -> None:
    rng = np.random.default_rng(0)
    parts = [
        np.einsum("or,r...->o...", rng.standard_normal((CO, RANK)), rng.standard_normal((RANK, CI, *case.kernel)))
        for _ in range(case.group)
    ]
    weight = (np.concatenate(parts) / np.sqrt(RANK * CI * np.prod(case.kernel))).astype(np.float32)
    _holds(Channel(rank=RANK), case.model(weight), case.size, outputs_of)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(case=cases([(1, 1), (1,), (1, 1, 1)]))
def test_lowrank_on_pointwise_convolutions(case: Case, outputs_of: OutputsOf) -> None:
    weight = _separable(case.kernel, 0, case.group)
    _holds(Lowrank(rank=RANK), case.model(weight), case.size, outputs_of)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(case=cases([(5, 5), (7, 5), (5, 1, 6)]), rank=st.integers(1, 3), order=st.sampled_from(["vh", "hv"]))
def test_spatial_on_depthwise_convolutions(case: Case, rank: int, order: Any, outputs_of: OutputsOf) -> None:
    whole = Case(case.kernel, case.size, 6, case.bias, case.dynamic, case.attributes)
    weight = _separable(case.kernel, 0, 6, rank, (1, 1))
    _holds(Spatial(rank=rank, order=order), whole.model(weight), case.size, outputs_of, ops=3 * rank - 1)


@pytest.mark.parametrize("form", [Spatial(rank=999), Channel(rank=20), Tucker2(ranks="12x20")])
def test_full_ranks(form: Decomposition, outputs_of: OutputsOf) -> None:
    """A full rank is the layer, or leaves it alone where the chain would be the layer and one node more."""
    case = Case((3, 3), (9, 9), 1, True, False, {"pads": [1, 0, 2, 1]})
    weight = np.random.default_rng(0).standard_normal((CO, CI, 3, 3)).astype(np.float32)
    if isinstance(form, Spatial):
        _holds(form, case.model(weight), case.size, outputs_of)
        return
    report = form.run(case.model(weight), Context(target=load_target("ort-x86"), workdir=Path("unused")))
    assert report.skips[0].reason.endswith(("rank 20 reaches the full 20", "rank 12x20 reaches the full 12x20"))
