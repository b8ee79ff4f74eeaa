"""The int8 pass: thin; the work is in onnxcomp.quantize."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from onnxcomp.contract import Context, Pass, PassReport
from onnxcomp.errors import InputError
from onnxcomp.quantize.rewrite import Settings, quantize, rehearse

__all__ = ["Int8"]


@dataclass(frozen=True)
class Int8(Pass):
    """Compute on 8-bit integers: calibrated Q/DQ pairs, int8 weights, int32 biases, placed so that the runtime fuses them."""

    name: ClassVar[str] = "int8"

    calibration: Literal["auto", "minmax", "percentile", "entropy", "mse"] = "auto"
    percentile: float = 99.99
    weights: Literal["mse", "minmax"] = "mse"
    bias_correction: Literal["auto", "on", "off"] = "auto"
    reduce_range: Literal["auto", "on", "off"] = "auto"
    samples: int = 0

    def requires(self, model: ir.Model, context: Context) -> None:
        """Raise InputError where the target has no int8 scheme."""
        if context.target.scheme is None:
            raise InputError(context.target.no_int8)

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Quantize in place."""
        return quantize(model, context, self._settings())

    def rehearse(self, model: ir.Model, context: Context) -> ir.Model:
        """Return the model with the same pairs at made-up ranges; nothing is calibrated."""
        return rehearse(model, context, self._settings())

    def _settings(self) -> Settings:
        return Settings(
            self.calibration, self.percentile, self.weights, self.bias_correction, self.reduce_range, self.samples or None
        )
