"""ONNX Runtime on phones through NNAPI or XNNPACK: fixed shapes, constant weights, scales and biases.

Activations are uint8 and weights int8 per channel: the NNAPI provider takes uint8 activations alone, and what it leaves
runs on the CPU provider, which has kernels for that pairing too. (XNNPACK's per-channel convolutions want int8
activations: for it, write the file of ort-arm.) Operators get pairs where the runtime's own table lists them
(onnxruntime/tools/mobile_helpers/nnapi_supported_ops.md) and the provider knows a quantized form of them
(``GetQuantizedOpType`` in onnxruntime/core/providers/nnapi). That takes outputs of integer products rounded as well,
so that Gemm and MatMul need one; Sigmoid is out, as NNAPI fixes its scale at 1/256; an AveragePool keeps the scale of
its input, as NNAPI demands.
"""

from __future__ import annotations

from onnxcomp.targets.target import Scheme, Target

__all__ = ["TARGET"]

TARGET = Target(
    name="ort-mobile",
    title="ONNX Runtime on phones (NNAPI, XNNPACK)",
    machines=frozenset(),
    scheme=Scheme(
        activation="uint8",
        symmetric=False,
        weighted=frozenset({"Conv", "Gemm", "MatMul"}),
        output_required=frozenset({"Conv", "Gemm", "MatMul"}),
        arithmetic=frozenset({"Add", "Mul", "Concat"}),
        passing=frozenset({"AveragePool", "MaxPool", "Resize", "Reshape", "Transpose"}),
        conv_ranks=frozenset({2}),
    ),
)
