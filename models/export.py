"""Write a trained network as ONNX, node by node, under names of our own."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

__all__ = ["Exporter"]

_OPSET = 17
_IR_VERSION = 8


class Exporter:
    """Collects nodes and initializers; the graph reads ``input`` and must end with a tensor named ``logits``."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []

    def conv(self, name: str, data: str, conv: nn.Conv2d, folded: nn.BatchNorm2d | None = None) -> str:
        """Write a convolution, with `folded` merged into its weight and bias."""
        weight, bias = conv.weight.detach().double(), conv.bias
        if folded is not None:
            scale, shift = _affine(folded)
            weight = weight * scale[:, None, None, None]
            bias = shift
        inputs = [data, self._constant(f"{name}.weight", weight)]
        if bias is not None:
            inputs.append(self._constant(f"{name}.bias", bias))
        attributes = {
            "kernel_shape": list(conv.kernel_size),
            "strides": list(conv.stride),
            "pads": [*map(int, conv.padding), *map(int, conv.padding)],
        }
        return self._add("Conv", name, inputs, f"{name}_out", attributes)

    def batch_norm(self, name: str, data: str, norm: nn.BatchNorm2d) -> str:
        """Write an inference BatchNormalization."""
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError(f"{name}: a BatchNorm without running statistics cannot be exported")
        parts = {"scale": norm.weight, "bias": norm.bias, "mean": norm.running_mean, "var": norm.running_var}
        inputs = [data, *(self._constant(f"{name}.{k}", v) for k, v in parts.items())]
        return self._add("BatchNormalization", name, inputs, f"{name}_out", {"epsilon": norm.eps})

    def gemm(self, name: str, data: str, linear: nn.Linear, output: str | None = None) -> str:
        """Write a fully connected layer."""
        inputs = [data, self._constant(f"{name}.weight", linear.weight), self._constant(f"{name}.bias", linear.bias)]
        return self._add("Gemm", name, inputs, output or f"{name}_out", {"transB": 1})

    def node(self, op_type: str, name: str, *inputs: str, **attributes: int | list[int]) -> str:
        """Write a node without weights."""
        return self._add(op_type, name, list(inputs), f"{name}_out", attributes)

    def model(self, side: int) -> onnx.ModelProto:
        """Return the checked model, for images of shape (N, 1, side, side)."""
        graph = helper.make_graph(
            self._nodes,
            self._name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 1, side, side])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
            self._initializers,
            doc_string="Handwritten digits, trained from scratch by models/train.py of onnxcomp.",
        )
        opsets = [helper.make_opsetid("", _OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="onnxcomp-models")
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _constant(self, name: str, values: Tensor) -> str:
        array: NDArray[np.float32] = values.detach().numpy().astype(np.float32)
        self._initializers.append(numpy_helper.from_array(array, name))
        return name

    def _add(self, op_type: str, name: str, inputs: list[str], output: str, attributes: dict[str, object]) -> str:
        self._nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return (scale, shift), float64, of an inference BatchNormalization."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a BatchNorm without running statistics cannot be folded")
    with torch.no_grad():
        scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        return scale, norm.bias.double() - norm.running_mean.double() * scale
