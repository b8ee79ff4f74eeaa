"""What a model costs, its multiply-accumulates as far as they can be told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.cost import Cost, model_cost, node_macs
from onnxcomp.errors import OnnxcompError
from onnxcomp.gate.examination import Unfit
from onnxcomp.graph.fold.shapes import infer_shapes
from onnxcomp.runtime.activations import Tap

__all__ = ["cost_of"]


def cost_of(model: ir.Model, feed: Callable[[], Mapping[str, NDArray[Any]]]) -> tuple[Cost, bool]:
    """Return parameters as they are in the file and the MACs, and whether shapes of a run were needed for these.

    Shapes are inferred where the file lacks them. Behind operators that only the runtime knows nothing can be: shapes
    are then those of a run. MACs are None where even that says nothing.

    Args:
        model: The model; not modified.
        feed: Returns one feed of one sample; what it raises means that nothing can be run.
    """
    cost = model_cost(model)
    if cost.macs is not None:
        return cost, False
    twin = model.clone()
    with suppress(onnx.shape_inference.InferenceError):
        infer_shapes(twin)
    macs = model_cost(twin).macs
    ran = False
    if macs is None:
        with suppress(OnnxcompError, Unfit):
            _take_shapes(twin, feed())
            macs = model_cost(twin).macs
            ran = macs is not None
    return dataclasses.replace(cost, macs=macs), ran


def _take_shapes(model: ir.Model, feed: Mapping[str, NDArray[Any]]) -> None:
    """Set the shapes of what the layers of unknown cost read and write to those of a run."""
    unknown = [node for node in model.graph if node_macs(node) is None]
    values = {
        value.name: value
        for node in unknown
        for value in (*node.inputs[:1], *node.outputs[:1])
        if value is not None and value.name
    }
    for name, array in Tap(model, list(values)).read(dict(feed)).items():
        values[name].shape = ir.Shape(array.shape)
