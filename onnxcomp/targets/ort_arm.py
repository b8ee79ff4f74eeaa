"""ONNX Runtime's CPU provider on 64-bit ARM: it wants int8 activations and int8 weights."""

from __future__ import annotations

from onnxcomp.targets.target import Target

__all__ = ["TARGET"]

TARGET = Target(
    name="ort-arm",
    title="ONNX Runtime on 64-bit ARM",
    machines=frozenset({"aarch64", "arm64"}),
    scheme=None,
    no_int8="int8 for ort-arm is not built yet; use --target ort-x86",
)
