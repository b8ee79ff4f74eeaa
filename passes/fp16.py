"""The fp16 pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from onnxcomp.contract import Context, Pass, PassReport, Saves
from onnxcomp.quantize.half import halve_weights
from onnxcomp.quantize.halfmodel import halve_model

__all__ = ["Fp16"]


@dataclass(frozen=True)
class Fp16(Pass):
    """Store weights as half-precision floats, or compute the whole model in them (half the size).

    With ``scope=weights`` each float32 initializer of 256 elements or more becomes float16 behind a Cast, which the
    runtime computes once, at load: any target runs it at the speed it had. With ``scope=model`` every operator that can
    computes in float16; inputs and outputs of the model stay float, and so does, between two Casts, an operator without
    float16 form, one with a body (If, Loop, Scan), and one that reads or writes values over half of 65504 on up to 32
    samples. That is for GPUs, TensorRT and CoreML: CPUs mostly lack such kernels, and the runtime casts to and fro.

    Refused, with the reason: weights over 65504, NaN or Inf; initializers that a caller may override; with
    ``scope=model``, models with functions, and quantized ones but for tensorrt, where a pair becomes half with its
    layer.

    Attributes:
        scope: What becomes half: weights, or the model.

    Sources: IEEE 754-2019, binary16.
    """

    name: ClassVar[str] = "fp16"
    saves: ClassVar[Saves] = "bytes"

    scope: Literal["weights", "model"] = "weights"

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Rewrite in place."""
        return halve_weights(model, context) if self.scope == "weights" else halve_model(model, context)
