"""What values an input plausibly takes, told from the constants that the model applies to it first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.data.firstlayer import expected_scale

__all__ = ["Span", "index_bound", "input_span"]

_FOLLOW = frozenset({"Cast", "Transpose", "Identity", "Reshape"})
_MOST_STEPS = 16
_BEYOND_NORMALISED = 8.0  # no spread or centre of a normalised or unit input is larger


@dataclass(frozen=True, slots=True)
class Span:
    """Plausible values of an input: clipped to [low, high], centred on `mean`, with a spread (one sigma) of `std`."""

    low: float
    high: float
    mean: float
    std: float
    why: str


_NORMALISED = Span(-2.7, 2.7, 0.0, 1.0, "taken as normalised")
_UNIT = Span(0.0, 1.0, 0.5, 0.25, "taken as 0..1")
_PIXELS = Span(0.0, 255.0, 127.5, 64.0, "taken as 0..255")


def input_span(value: ir.Value) -> Span:
    """Return the plausible span of an image-like input.

    Integers are pixels. A QuantizeLinear on the input gives its range exactly. Otherwise the model's own leading
    normalisation (Sub, Add, Mul, Div or inference BatchNormalization by constants) says what the raw input is centred
    on and spread by: a spread or centre above 8 means pixels 0..255, one inside the unit interval 0..1. Without any,
    the input is taken to be normalised already: zero mean, unit variance, as ImageNet normalisation gives (its extremes
    are -2.1 and 2.6).
    """
    if value.dtype is not None and value.dtype.is_integer():
        return _PIXELS
    image = value
    scale, shift, touched = 1.0, 0.0, False  # the tensor at hand is scale * input + shift
    for _ in range(_MOST_STEPS):
        node = _only_user(value)
        if node is None:
            break
        if node.op_type == "QuantizeLinear":
            return _quantized_span(node, scale, shift)
        step = (1.0, 0.0) if node.op_type in _FOLLOW else _affine(node, value)
        if step is None:
            break
        touched = touched or node.op_type not in _FOLLOW
        scale, shift = scale * step[0], shift * step[0] + step[1]
        value = node.outputs[0]
    if not touched:
        return _PIXELS if (expected_scale(image) or 0.0) > _BEYOND_NORMALISED else _NORMALISED
    if scale == 0 or not np.isfinite(scale):
        return _NORMALISED
    spread, centre = abs(1 / scale), -shift / scale
    if max(spread, abs(centre)) > _BEYOND_NORMALISED:
        return _PIXELS
    return _UNIT if spread <= 1 and 0 <= centre <= 1 and (spread, centre) != (1.0, 0.0) else _NORMALISED


def index_bound(value: ir.Value) -> int | None:
    """Return how many rows the table has that an integer input indexes (Gather from an initializer), or None."""
    bounds: list[int] = []
    for node, position in value.uses():
        if node.op_type == "Cast":
            found = index_bound(node.outputs[0])
        elif node.op_type == "Gather" and position == 1:
            table = node.inputs[0]
            axis = node.attributes.get_int("axis", 0)
            rows = (
                table.shape[axis] if table is not None and table.shape is not None and table.is_initializer() else None
            )
            found = rows if isinstance(rows, int) else None
        else:
            continue
        if found is not None:
            bounds.append(found)
    return min(bounds, default=None)


def _only_user(value: ir.Value) -> ir.Node | None:
    users = [use.node for use in value.uses()]
    return users[0] if len(users) == 1 else None


def _constant(value: ir.Value | None) -> NDArray[np.float64] | None:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None or tensor.size == 0 or not (tensor.dtype.is_floating_point() or tensor.dtype.is_integer()):
        return None
    return tensor.numpy().astype(np.float64)


def _affine(node: ir.Node, data: ir.Value) -> tuple[float, float] | None:
    """Return (a, b) of the map ``a * data + b`` that a node applies, averaged over channels; None where it is none."""
    if node.op_type == "BatchNormalization":
        return _batch_norm(node)
    if node.op_type not in {"Add", "Sub", "Mul", "Div"} or len(node.inputs) != 2:
        return None
    first = node.inputs[0] is data
    constant = _constant(node.inputs[1] if first else node.inputs[0])
    if constant is None:
        return None
    c = float(constant.mean())
    if node.op_type == "Mul":
        return c, 0.0
    if node.op_type == "Div":
        return (1 / c, 0.0) if first and c else None
    if node.op_type == "Add":
        return 1.0, c
    return (1.0, -c) if first else (-1.0, c)


def _batch_norm(node: ir.Node) -> tuple[float, float] | None:
    gamma, beta, mean, var = (_constant(v) for v in node.inputs[1:5])
    if gamma is None or beta is None or mean is None or var is None:
        return None
    # only mean and var describe the input; gamma and beta describe what the model makes of it
    std = np.sqrt(var + node.attributes.get_float("epsilon", 1e-5))
    return 1 / float(std.mean()), -float((mean / std).mean())


def _quantized_span(node: ir.Node, scale: float, shift: float) -> Span:
    step = _constant(node.inputs[1])
    zero = _constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if step is None or step.size != 1 or scale == 0:
        return _NORMALISED
    output = node.outputs[0].dtype
    signed = output in {ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT4}
    levels = 2 ** (output.bitwidth if output is not None else 8)
    lowest = -(levels // 2) if signed else 0
    centre = float(zero.mean()) if zero is not None else 0.0
    ends = sorted(((q - centre) * float(step.mean()) - shift) / scale for q in (lowest, lowest + levels - 1))
    return Span(ends[0], ends[1], sum(ends) / 2, (ends[1] - ends[0]) / 4, "the range of the input's QuantizeLinear")
