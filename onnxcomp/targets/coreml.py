"""ONNX Runtime's CoreML provider: its operator lists hold neither QuantizeLinear nor DequantizeLinear."""

from __future__ import annotations

from onnxcomp.targets.target import Target

__all__ = ["TARGET"]

TARGET = Target(
    name="coreml",
    title="ONNX Runtime's CoreML provider",
    machines=frozenset(),
    scheme=None,
    no_int8=(
        "the CoreML provider has no quantized operators, so that an int8 model would run on the CPU;"
        " leave out int8: for coreml there are structural passes (tucker2 ...) and fp16"
    ),
)
