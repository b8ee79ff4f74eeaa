"""The weights of the convolutions of a file: the bytes that they are decoded from, their values, and which are 2:4.

Read from the written file with onnx alone, so that nothing of what onnxcomp says about it is taken on trust.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from common import Array

__all__ = ["ConvWeights", "conv_weights"]


@dataclass(frozen=True)
class ConvWeights:
    """What the Conv nodes of a file read as weights.

    `arrays` are the weights as the runtime decodes them, by node; `bytes` counts every constant that any of them is
    computed from once.
    """

    arrays: dict[str, Array]
    bytes: int

    @property
    def zeros(self) -> float:
        """The share of weights that are 0."""
        entries = sum(array.size for array in self.arrays.values())
        return sum(array.size - np.count_nonzero(array) for array in self.arrays.values()) / entries

    @property
    def two_of_four(self) -> str:
        """How many Convs TensorRT's sparse kernels take, of all."""
        return f"{sum(map(_by_channel, self.arrays.values()))}/{len(self.arrays)}"

    @property
    def two_of_four_in_rows(self) -> str:
        """How many Convs are 2:4 along rows of channels and kernel taps in one line, whatever the channel; of all."""
        return f"{sum(map(_in_rows, self.arrays.values()))}/{len(self.arrays)}"


def conv_weights(path: Path) -> ConvWeights:
    """Decode the weights of a file in the runtime.

    Raises:
        KeyError: A weight is computed from an input of the model.
    """
    model = onnx.load(path)
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    names = list(dict.fromkeys(node.input[1] for node in convs))
    nodes, tensors = _sources(model.graph, names)
    values = _decoded(model, names, nodes, tensors)
    size = sum(ir.from_proto(tensor).nbytes for tensor in tensors.values())
    return ConvWeights({node.name or node.output[0]: values[node.input[1]] for node in convs}, size)


def _sources(graph: onnx.GraphProto, names: list[str]) -> tuple[list[onnx.NodeProto], dict[str, onnx.TensorProto]]:
    """The nodes that compute some values, in the graph's order, and the constants that these are computed from."""
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    waiting, seen, tensors = list(names), set[str](), dict[str, onnx.TensorProto]()
    while waiting:
        name = waiting.pop()
        if not name or name in seen:
            continue
        seen.add(name)
        if name in initializers:
            tensors[name] = initializers[name]
        elif makers[name].op_type == "Constant":
            tensors[name] = makers[name].attribute[0].t
        else:
            waiting.extend(makers[name].input)
    computing = [node for node in graph.node if node.op_type != "Constant" and seen.intersection(node.output)]
    return computing, tensors


def _decoded(
    model: onnx.ModelProto, names: list[str], nodes: list[onnx.NodeProto], tensors: dict[str, onnx.TensorProto]
) -> dict[str, Array]:
    values: dict[str, Array] = {name: onnx.numpy_helper.to_array(tensors[name]) for name in names if name in tensors}
    asked = [name for name in names if name not in tensors]
    if not asked:
        return values
    constants = []
    for name, tensor in tensors.items():
        constants.append(onnx.TensorProto())
        constants[-1].CopyFrom(tensor)
        constants[-1].name = name
    outputs = [onnx.ValueInfoProto(name=name) for name in asked]
    part = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "weights", [], outputs, constants),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[Array] = [np.asarray(value) for value in session.run(asked, {})]
    return values | dict(zip(asked, found, strict=True))


def _by_channel(weight: Array) -> bool:
    """Whether at most 2 of every 4 consecutive input channels are not 0, for each output channel and kernel tap."""
    rows, channels = weight.shape[:2]
    return not channels % 4 and _sparse(weight.reshape(rows, channels // 4, 4, -1).swapaxes(2, 3))


def _in_rows(weight: Array) -> bool:
    columns = math.prod(weight.shape[1:])
    whole = weight.reshape(len(weight), columns)[:, : columns // 4 * 4]
    return _sparse(whole.reshape(len(weight), -1, 4))


def _sparse(groups: Array) -> bool:
    return bool((np.count_nonzero(groups, axis=-1) <= 2).all())
