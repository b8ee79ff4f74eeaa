"""ONNX Runtime on phones through NNAPI or XNNPACK: fixed shapes, constant weights, scales and biases."""

from __future__ import annotations

from onnxcomp.targets.target import Target

__all__ = ["TARGET"]

TARGET = Target(
    name="ort-mobile",
    title="ONNX Runtime on phones (NNAPI, XNNPACK)",
    machines=frozenset(),
    scheme=None,
    no_int8="int8 for ort-mobile is not built yet; use --target ort-x86",
)
