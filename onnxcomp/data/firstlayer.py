"""What the first convolution tells of the input's scale, where no node normalises the input."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["expected_scale"]

# What only moves values, as in front of a convolution that reads an image in four phases.
_MOVES = frozenset({"Cast", "Concat", "Identity", "Pad", "Reshape", "Slice", "SpaceToDepth", "Transpose"})
_MOST_NODES = 32
_MOST_TAPS = 2048

# Correlation of neighbouring pixels and of the colour channels in photographs.
_NEIGHBOURS, _CHANNELS = 0.95, 0.9


def expected_scale(value: ir.Value) -> float | None:
    """Return about how many times larger than unit variance an image input is, as its first convolution expects it.

    A trained layer keeps the spread of its products near that of its biases, and BatchNormalization folded into the
    layer makes it so: a bias is ``beta - gamma * mean / std``, a product's spread is ``gamma``. Biases far beyond what
    a unit-variance image could balance mean a larger input, such as pixels 0..255.

    Returns:
        The rms bias over the rms spread that an image of unit variance, with the correlations of photographs, gives
        the products; None where the input does not reach a Conv with constant weights and a bias through nodes that
        only move values.
    """
    conv = _first_convolution(value)
    if conv is None:
        return None
    weight, bias = (ir.convenience.get_const_tensor(v) if v is not None else None for v in conv.inputs[1:3])
    if weight is None or bias is None or not weight.dtype.is_floating_point():
        return None
    spread = _spread(weight.numpy().astype(np.float64))
    return None if not spread else float(np.sqrt(np.mean(bias.numpy().astype(np.float64) ** 2))) / spread


def _first_convolution(value: ir.Value) -> ir.Node | None:
    """The first Conv with a bias that the input reaches; None where something else than a move is met before."""
    queue, seen = [value], 0
    while queue and seen < _MOST_NODES:
        for user, position in queue.pop(0).uses():
            seen += 1
            if user.op_type == "Conv" and position == 0 and len(user.inputs) > 2:
                return user
            if user.op_type in _MOVES:
                queue.append(user.outputs[0])
            elif user.op_type != "Shape":
                return None
    return None


def _spread(weight: NDArray[np.float64]) -> float | None:
    """Rms over the filters of the standard deviation of their products with a correlated image of unit variance."""
    filters, channels, *kernel = weight.shape
    if not filters or not 0 < weight[0].size <= _MOST_TAPS:
        return None
    taps = np.indices(kernel).reshape(len(kernel), -1)
    distance = np.sqrt(((taps[:, :, None] - taps[:, None, :]) ** 2).sum(axis=0))
    colour = np.full((channels, channels), _CHANNELS) + (1 - _CHANNELS) * np.eye(channels)
    rows = weight.reshape(filters, -1)
    variances = np.einsum("fi,ij,fj->f", rows, np.kron(colour, _NEIGHBOURS**distance), rows, optimize=True)
    return float(np.sqrt(variances.mean()))
