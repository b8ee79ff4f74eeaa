"""ONNX Runtime's CPU provider on x86-64.

Activations are uint8 with a zero point, weights int8 and symmetric: the only pairing for which x86 has a fast kernel.
int8 activations are rewritten to uint8 at load, but only where a tensor has a single reader, so residual branches would
stay float. The operator sets restate the selectors that the provider registers for QuantizeLinear/DequantizeLinear
groups (onnxruntime/core/optimizer/qdq_transformer); tests check every entry against the installed runtime.
"""

from __future__ import annotations

from onnxcomp.targets.target import Scheme, Target

__all__ = ["SCHEME", "TARGET"]

SCHEME = Scheme(
    activation="uint8",
    symmetric=False,
    weighted=frozenset({"Conv", "Gemm", "MatMul"}),
    output_required=frozenset({"Conv"}),
    arithmetic=frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"}),
    passing=frozenset(
        {"MaxPool", "Resize", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather"}
    ),
    stored=frozenset({"Pad"}),
    folds_bias=True,
    channel_inputs=True,
)
TARGET = Target(
    name="ort-x86",
    title="ONNX Runtime on x86-64",
    machines=frozenset({"x86_64", "amd64"}),
    scheme=SCHEME,
)
