"""NVIDIA TensorRT with explicit quantization: symmetric int8 only, biases in floating point."""

from __future__ import annotations

from onnxcomp.targets.target import Target

__all__ = ["TARGET"]

TARGET = Target(
    name="tensorrt",
    title="NVIDIA TensorRT",
    machines=frozenset(),
    scheme=None,
    no_int8="int8 for tensorrt is not built yet; use --target ort-x86",
)
