"""The int8 pass: thin; the work is in onnxcomp.quantize."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import onnx_ir as ir

from onnxcomp.contract import Context, Pass, PassReport, Value
from onnxcomp.errors import InputError, OptionError
from onnxcomp.options import Bounds, replace_options
from onnxcomp.quantize.layers import Layers, Settings
from onnxcomp.quantize.overrides import check_names, read_overrides, tensor_names
from onnxcomp.quantize.rewrite import quantize, rehearse

__all__ = ["Int8"]

_PERCENTILE = 99.99
# What a recipe cannot say of a single layer: all are calibrated in one run over the data.
_WHOLE_MODEL = ("equalize", "smooth", "absorb", "inputs", "samples", "overrides", "sensitivity")
_IDLE_PERCENTILE = "int8.percentile counts with calibration=percentile only; give that as well{}"


@dataclass(frozen=True)
class Int8(Pass):
    """Compute on 8-bit integers: calibrated activations and int8 weights, placed so that the runtime fuses them.

    Writes QuantizeLinear/DequantizeLinear pairs around Conv, Gemm and MatMul with constant weights and around what lies
    between them (residual Add, Concat, pools ...). Weights are int8 per output channel; activations and biases are what
    the target takes: uint8 and int32 (ort-x86, ort-mobile), int8 and int32 (ort-arm), int8 with zero point 0 and float
    (tensorrt, where pairs stand at the inputs of layers only). What the runtime has no integer kernel for stays float,
    and so does what lies before the first and behind the last weighted node.
    Refused, with the reason: weights that are not constant, not float32 or not finite, bodies of If, Loop and Scan,
    models that are quantized already, targets without an int8 form.

    Attributes:
        calibration: Rule for activation ranges. ``auto`` takes for each tensor the rule that costs least at the layers
            that read it, or ``mse`` or ``minmax`` for all if that brings the outputs closer to the original's on up to
            256 samples.
        percentile: For ``calibration=percentile``: percent of a tensor's values inside its range.
        weights: Rule for weight scales: least squared error, or the largest weight.
        bias_correction: Let biases make up for what rounding the weights does to a layer's mean output; ``auto``: where
            there are real data.
        reduce_range: 7-bit weights; ``auto``: where this processor's int8 products saturate (x86 without VNNI) and the
            model is for it.
        samples: Calibrate on at most that many samples; 0 takes all.
        overrides: JSON file of tensors whose scale and zero point, range or weight scales are given: the
            TensorQuantOverrides of onnxruntime. What the target cannot hold is refused.
        rounding: To the nearest level, or so that each layer's output changes least, in network order, each layer for
            the inputs that it really gets (``gram``, which fits biases too); ``auto``: gram where there are real data.
        weight_bits: Bits of the weights; below 8 the file shrinks and the arithmetic stays. 3 lie in 4, 5 to 7 in 8.
        equalize: Rescale channels first, which changes no output: so that rounding adds the least noise that can be
            foreseen (``activations``), or so that the largest weights on both sides of a channel are equal
            (``weights``); ``auto``: activations where there are real data.
        smooth: SmoothQuant's factors in their place, with this alpha; 0: not.
        absorb: Move the part of a channel that a Relu always lets pass into the next bias.
        inputs: ``auto``: an image that one convolution reads is quantized with a scale for each channel where biases
            are fitted (``rounding``), exact for 8-bit pixels but for a constant; ``tensor``: one scale for all.
        sensitivity: Measure what each layer alone does to the outputs, and report it; ``auto``: where a budget is set.

    Sources: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
    2018 (the scheme); Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019,
    eq. 11 (equalize=weights), section 4.1.3 (absorb), eq. 14 (bias correction); Frantar et al., GPTQ, 2023, algorithm 1
    (rounding=gram); Xiao et al., SmoothQuant, 2023, eq. 4 (smooth).
    """

    name: ClassVar[str] = "int8"
    idempotent: ClassVar[bool] = True

    calibration: Literal["auto", "minmax", "percentile", "entropy", "mse"] = "auto"
    percentile: Annotated[float, Bounds(50, 100)] = _PERCENTILE
    weights: Literal["mse", "minmax"] = "mse"
    bias_correction: Literal["auto", "on", "off"] = "auto"
    reduce_range: Literal["auto", "on", "off"] = "auto"
    samples: Annotated[int, Bounds(0)] = 0
    overrides: str = ""
    rounding: Literal["auto", "nearest", "gram"] = "auto"
    weight_bits: Annotated[int, Bounds(2, 8)] = 8
    equalize: Literal["auto", "off", "weights", "activations"] = "auto"
    smooth: Annotated[float, Bounds(0, 1, open_high=True)] = 0.0
    absorb: bool = False
    inputs: Literal["auto", "tensor"] = "auto"
    sensitivity: Literal["auto", "on", "off"] = "auto"

    def requires(self, model: ir.Model, context: Context) -> None:
        """Raise InputError where the target has no int8 scheme, or an option is given that would count for nothing."""
        if context.target.scheme is None:
            raise InputError(context.target.no_int8)
        bits = [self.weight_bits]
        by_percentile = self.calibration == "percentile"
        for override in context.overrides:
            options = override.options or {}
            bits.append(self._layer(options).weight_bits)
            layer_by_percentile = options.get("calibration", self.calibration) == "percentile"
            by_percentile = by_percentile or layer_by_percentile
            if "percentile" in options and not layer_by_percentile:
                raise OptionError(_IDLE_PERCENTILE.format(f" for the layer {override.match!r}"))
            whole = [name for name in options if name in _WHOLE_MODEL]
            if whole:
                raise OptionError(f"int8.{whole[0]} holds for the whole model, not for the layer {override.match!r}")
        if min(bits) <= 4 and not context.target.scheme.narrow_weights:
            title = context.target.title
            raise InputError(f"int8(weight_bits={min(bits)}): {title} has no Cast of packed weights; use weight_bits=8")
        if self.smooth and self.equalize != "auto":
            raise OptionError("int8.smooth takes the place of int8.equalize; give one of them")
        if self.percentile != _PERCENTILE and not by_percentile:
            raise OptionError(_IDLE_PERCENTILE.format(""))
        if self.overrides:
            check_names(read_overrides(self.overrides), tensor_names(model), self.overrides)

    def explicit(self) -> bool:
        """Whether fewer bits than 8 were asked for."""
        return self.weight_bits < 8

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Quantize in place."""
        return quantize(model, context, self._layers(context))

    def rehearse(self, model: ir.Model, context: Context) -> ir.Model:
        """Return the model with its pairs at made-up ranges, uncalibrated; one that has pairs is returned as it is."""
        return rehearse(model, context, self._layers(context))

    def _layers(self, context: Context) -> Layers:
        return Layers(self._settings(), self._layer, context)

    def _layer(self, options: Mapping[str, Value]) -> Settings:
        """The settings of a layer that a recipe gives these options of its own."""
        own = replace_options(self, options)
        assert isinstance(own, Int8)
        return own._settings()

    def _settings(self) -> Settings:
        return Settings(
            self.calibration,
            self.percentile,
            self.weights,
            self.bias_correction,
            self.reduce_range,
            self.samples or None,
            self.overrides,
            self.rounding,
            self.weight_bits,
            self.equalize,
            self.smooth,
            self.absorb,
            self.inputs,
            self.sensitivity,
        )
