"""ONNX Runtime's CPU provider on 64-bit ARM.

The same operators as on x86 (:mod:`onnxcomp.targets.ort_x86`), but activations are int8, as are weights: the pairing
for which ARM has dot-product kernels. A tensor whose zero point is z on x86 has z - 128 here and the same scale, so
that both files compute the same numbers.
"""

from __future__ import annotations

from dataclasses import replace

from onnxcomp.targets.ort_x86 import SCHEME as X86
from onnxcomp.targets.target import Target

__all__ = ["TARGET"]

TARGET = Target(
    name="ort-arm",
    title="ONNX Runtime on 64-bit ARM",
    machines=frozenset({"aarch64", "arm64"}),
    scheme=replace(X86, activation="int8"),
)
