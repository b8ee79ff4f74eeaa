"""What a target is: a runtime on a kind of machine, and how it wants integers."""

from __future__ import annotations

import difflib
import platform
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Literal

from onnxcomp.errors import InputError

__all__ = ["ActivationType", "PairStyle", "Scheme", "Target", "load_target", "target_names"]

ActivationType = Literal["uint8", "int8"]
PairStyle = Literal["groups", "inputs"]

_MODULES = {
    "ort-x86": "onnxcomp.targets.ort_x86",
    "ort-arm": "onnxcomp.targets.ort_arm",
    "ort-mobile": "onnxcomp.targets.ort_mobile",
    "coreml": "onnxcomp.targets.coreml",
    "tensorrt": "onnxcomp.targets.tensorrt",
}


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a runtime wants an int8 model written.

    Operators are named by their ONNX type. Three sets say what the runtime computes on integers; any other operator
    stays float.

    Attributes:
        activation: Storage type of activations.
        symmetric: Whether activations must have zero point 0.
        pairs: Where pairs stand. ``groups``: around every operator on integers, its result included, as one kernel is
            made from what lies between a DequantizeLinear and a QuantizeLinear. ``inputs``: only where an operator on
            integers reads; the runtime looks for the fusion itself.
        weighted: Operators with a constant weight that have an integer kernel.
        output_required: Those of `weighted` that only fuse when their output is quantized too.
        arithmetic: Operators whose inputs and output may have different scales.
        passing: Operators that only move values, with an input and an output of the very same scale and zero point
            (``groups``), or around which no pair is needed (``inputs``).
        stored: Operators that are computed on the stored integers themselves, between the Q and the DQ, as they have no
            fused form.
        absorbed: Activations that vanish into the quantization after them when the range makes them redundant
            (``groups``), or that the runtime fuses into the operator before them (``inputs``).
        bias: Type in which biases are stored.
        folds_bias: Whether the runtime makes int32 of a float bias at load, so that small files may have those.
        conv_ranks: Numbers of spatial axes for which convolutions and pools have an integer kernel.
        channel_inputs: Whether a graph input may be quantized with a scale for each channel.
        narrow_weights: Whether the runtime makes int8 of weights of 4 bits and fewer at load.
        minimum_opset: The oldest opset in which the form is legal (per-channel scales need 13).
    """

    activation: ActivationType
    symmetric: bool
    weighted: frozenset[str]
    output_required: frozenset[str]
    arithmetic: frozenset[str]
    passing: frozenset[str]
    stored: frozenset[str] = frozenset()
    absorbed: frozenset[str] = frozenset({"Relu", "Clip"})
    pairs: PairStyle = "groups"
    bias: Literal["int32", "float32"] = "int32"
    folds_bias: bool = False
    conv_ranks: frozenset[int] = frozenset({1, 2, 3})
    channel_inputs: bool = False
    narrow_weights: bool = True
    minimum_opset: int = 13

    @property
    def levels(self) -> int:
        """Number of values that a range of activations is spread over; a symmetric one leaves out -128."""
        return 255 if self.symmetric else 256

    @property
    def joining(self) -> frozenset[str]:
        """Operators without weight that may be computed on integers."""
        return self.arithmetic | self.passing | self.stored


@dataclass(frozen=True, slots=True)
class Target:
    """A runtime on a kind of machine.

    Attributes:
        name: The name on the command line.
        title: The same for people.
        machines: What ``platform.machine()`` says, in lower case, on the machines this target describes.
        scheme: How int8 models are written for it; None where int8 is not to be had.
        no_int8: Why there is no scheme.
    """

    name: str
    title: str
    machines: frozenset[str]
    scheme: Scheme | None
    no_int8: str = ""

    @property
    def host(self) -> bool:
        """Whether this very machine is one of the target's, so that timing here means something."""
        return platform.machine().lower() in self.machines


def target_names() -> tuple[str, ...]:
    """The names that :func:`load_target` knows, the default first."""
    return tuple(_MODULES)


@cache
def load_target(name: str) -> Target:
    """Return the target of that name.

    Raises:
        InputError: There is none; the message names the nearest one.
    """
    if name not in _MODULES:
        near = difflib.get_close_matches(name, _MODULES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known targets: {', '.join(_MODULES)}"
        raise InputError(f"no target {name!r}; {hint}")
    target = import_module(_MODULES[name]).TARGET
    assert isinstance(target, Target)
    return target
