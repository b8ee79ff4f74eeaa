"""NVIDIA TensorRT with explicit quantization: symmetric int8 only, biases in floating point.

The builder looks for the fusions itself, from pairs at the inputs of what is to run on integers; a pair behind every
convolution would keep its Relu and its residual Add from being fused into it. Operators restate NVIDIA's TensorRT
developer guide (Working with Quantized Types, explicit quantization) and the placement of NVIDIA's Model Optimizer.
"""

from __future__ import annotations

from onnxcomp.targets.target import Scheme, Target

__all__ = ["TARGET"]

TARGET = Target(
    name="tensorrt",
    title="NVIDIA TensorRT",
    machines=frozenset(),
    scheme=Scheme(
        activation="int8",
        symmetric=True,
        pairs="inputs",
        weighted=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
        output_required=frozenset(),
        arithmetic=frozenset({"Add", "Concat", "AveragePool", "GlobalAveragePool"}),
        passing=frozenset(
            {"MaxPool", "Resize", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather"}
        ),
        absorbed=frozenset({"Relu", "Clip", "LeakyRelu"}),
        bias="float32",
        narrow_weights=False,
    ),
)
