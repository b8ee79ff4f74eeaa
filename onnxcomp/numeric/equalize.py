"""Factors of channels that make rounding to 8 bits cost least; the function of the network stays what it is.

Dividing channel c of all tensors of its class by d_c multiplies the weights that read it by d_c and divides those that
write it. Three rules choose d:

- :func:`balanced`: the largest weight that writes a channel and the largest one that reads it become equal (Nagel et
  al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019, eq. 11, over any number of layers).
- :func:`smoothed`: d_c = max|x_c|^a / max|w_c|^(1-a) (Xiao et al., SmoothQuant, 2023, eq. 4).
- :func:`least_noise`: minimizes the noise that rounding adds to the outputs of all layers, relative to their power.
  With a step per tensor and a step per output channel of a weight, the noise at a layer is, up to 1/12,

      (max_c R_c / d_c)^2 / 255^2  sum_c |W_c|^2 d_c^2  +  sum_o (max_c |W_oc| d_c)^2 / 127^2  sum_c E_c / d_c^2

  for its input's range R and energy E (the factors of the layer's outputs cancel). Maxima are taken as p-norms, which
  have gradients everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

__all__ = ["Ranged", "Reading", "balanced", "least_noise", "smoothed"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]

_NORM = 24
_ITERATIONS = 60
_ROUNDS = 100
_ACTIVATION_STEPS = 255
_WEIGHT_STEPS = 127


@dataclass(frozen=True, slots=True, eq=False)
class Ranged:
    """A quantized tensor: the class and the range of each of its channels, both of shape (n,).

    Attributes:
        classes: Class of each channel; classes below 1 have factor 1.
        ranges: Largest magnitude in each channel.
    """

    classes: Int
    ranges: Float


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A layer's weight, with rows for its O output channels and columns for the I inputs that a row reads.

    Attributes:
        reads: Class of each entry's input channel, shape (O, I) or one that broadcasts to it.
        writes: Class of each row's output channel, shape (O,).
        peaks: Largest magnitude of each entry over the kernel, shape (O, I).
        squares: Sum of squares of each entry over the kernel, shape (O, I).
        energy: Mean square of each entry's input channel about what the bias corrects, times the positions of the
            kernel, shape (O, I) or one that broadcasts to it.
        power: Mean square of the layer's outputs; 0 where the layer is silent (it then counts for nothing).
    """

    reads: Int
    writes: Int
    peaks: Float
    squares: Float
    energy: Float
    power: float


def balanced(layers: Sequence[Reading], count: int, *, limit: float = 8.0) -> Float:
    """Return factors that make the largest writing and the largest reading weight of every class equal.

    Classes are updated together, half of the way in the exponent, until nothing changes; so a depthwise layer, whose
    weights are read and written by one channel each, settles with both its neighbours.

    Args:
        layers: All layers.
        count: Number of classes, from 1.
        limit: Factors lie in [1/limit, limit].

    Returns:
        Factors of the classes, shape (count + 2,): index 0 and the last one, which is also index -1, hold 1.
    """
    factors = np.ones(count + 2)
    for _ in range(_ROUNDS):
        read, written = np.zeros(count + 2), np.zeros(count + 2)
        for layer in layers:
            scaled = layer.peaks * factors[layer.reads] / factors[layer.writes][:, None]
            classes = np.broadcast_to(layer.reads, scaled.shape)
            np.maximum.at(read, classes.reshape(-1), scaled.reshape(-1))
            np.maximum.at(written, layer.writes, scaled.max(axis=1, initial=0.0))
        both = (read > 0) & (written > 0)
        change = np.sqrt(np.sqrt(np.divide(written, read, out=np.ones_like(read), where=both)))
        updated = _fixed(np.clip(factors * change, 1 / limit, limit))
        if np.allclose(updated, factors, rtol=1e-4, atol=0.0):
            break
        factors = updated
    return factors


def smoothed(
    tensors: Sequence[Ranged], layers: Sequence[Reading], count: int, *, alpha: float = 0.5, limit: float = 8.0
) -> Float:
    """Return SmoothQuant's factors, scaled so that their geometric mean is 1; arguments as for :func:`least_noise`.

    A class without values or without a weight that reads it keeps factor 1.
    """
    ranges, read = np.zeros(count + 2), np.zeros(count + 2)
    for tensor in tensors:
        np.maximum.at(ranges, tensor.classes, tensor.ranges)
    for layer in layers:
        classes = np.broadcast_to(layer.reads, layer.peaks.shape)
        np.maximum.at(read, classes.reshape(-1), layer.peaks.reshape(-1))
    both = (ranges > 0) & (read > 0)
    both[[0, -1]] = False
    logs = np.zeros(count + 2)
    logs[both] = alpha * np.log(ranges[both]) - (1 - alpha) * np.log(read[both])
    for members in _tied(tensors, count):
        usable = members[both[members]]
        logs[usable] -= logs[usable].mean() if usable.size else 0.0
    return _fixed(np.clip(np.exp(logs), 1 / limit, limit))


def least_noise(
    tensors: Sequence[Ranged], layers: Sequence[Reading], count: int, *, limit: float = 8.0, weight_noise: float = 1.0
) -> Float:
    """Return factors that minimize the predicted noise (see the module).

    Args:
        tensors: The quantized activations.
        layers: The layers with weights.
        count: Number of classes, from 1.
        limit: Factors lie in [1/limit, limit].
        weight_noise: What the weights' noise counts, relative to rounding each to the nearest level.

    Returns:
        Factors as :func:`balanced`. Without any noise to lower they are all 1.
    """
    gains = _gains(layers, count)
    total = _Noise(
        [(t, gains[t.classes]) for t in tensors if t.ranges.any()], [x for x in layers if x.power > 0], weight_noise
    )
    start = np.zeros(count)
    before, _ = total(start)
    if not count or before <= 0:
        return np.ones(count + 2)
    bound = np.log(limit)

    def relative(logs: Float) -> tuple[float, Float]:
        value, gradient = total(logs)
        return value / before, gradient / before

    found = minimize(
        relative,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(-bound, bound)] * count,
        options={"maxiter": _ITERATIONS},
    )
    return _fixed(np.exp(np.concatenate([[0.0], found.x, [0.0]])))


@dataclass(frozen=True, slots=True, eq=False)
class _Noise:
    """The objective of :func:`least_noise` and its gradient, as a function of the factors' logarithms."""

    tensors: list[tuple[Ranged, Float]]
    layers: list[Reading]
    share: float

    def __call__(self, logs: Float) -> tuple[float, Float]:
        padded = np.concatenate([[0.0], logs, [0.0]])
        gradient = np.zeros_like(padded)
        value = 0.0
        for tensor, gains in self.tensors:
            value += self._of_tensor(tensor, gains, padded, gradient)
        for layer in self.layers:
            value += self._of_layer(layer, padded, gradient)
        return value, gradient[1:-1]

    def _of_tensor(self, tensor: Ranged, gains: Float, logs: Float, gradient: Float) -> float:
        own = logs[tensor.classes]
        top, shares = _soft_max(tensor.ranges * np.exp(-own))
        heard = gains * np.exp(2 * own)
        step = top[0] ** 2 / _ACTIVATION_STEPS**2
        np.add.at(gradient, tensor.classes, 2 * step * (heard - heard.sum() * shares))
        return float(step * heard.sum())

    def _of_layer(self, layer: Reading, logs: Float, gradient: Float) -> float:
        own = logs[layer.reads]
        top, shares = _soft_max(layer.peaks * np.exp(own))
        rows = layer.power * layer.peaks.shape[0]
        heard = np.broadcast_to(layer.energy * np.exp(-2 * own), layer.peaks.shape) / rows
        step = self.share * top**2 / _WEIGHT_STEPS**2
        summed = heard.sum(axis=1, keepdims=True)
        classes = np.broadcast_to(layer.reads, layer.peaks.shape)
        change = 2 * step * (summed * shares - heard)
        gradient += np.bincount(classes.reshape(-1) % gradient.size, change.reshape(-1), gradient.size)
        return float((step * summed).sum())


def _soft_max(values: Float) -> tuple[Float, Float]:
    """The p-norm of each row (last axis) as a smooth maximum, and each entry's share in it."""
    top = values.max(axis=-1, keepdims=True)
    squared = np.square(values / np.where(top > 0, top, 1.0))
    eighth = np.square(np.square(squared))
    powers = eighth * np.square(eighth)  # the 24th, many times faster than the operator **
    total = powers.sum(axis=-1, keepdims=True)
    return top * total ** (1 / _NORM), powers / np.where(total > 0, total, 1.0)


def _gains(layers: Sequence[Reading], count: int) -> Float:
    """What unit noise in a channel of a class adds to the outputs of all layers that read it, relative to theirs."""
    gains = np.zeros(count + 2)
    for layer in layers:
        if layer.power > 0:
            classes = np.broadcast_to(layer.reads, layer.squares.shape)
            weights = layer.squares / (layer.power * layer.squares.shape[0])
            gains += np.bincount(classes.reshape(-1) % gains.size, weights.reshape(-1), gains.size)
    gains[[0, -1]] = 0.0
    return gains


def _tied(tensors: Sequence[Ranged], count: int) -> list[Int]:
    """Classes that share tensors, directly or through others."""
    parents = np.arange(count + 1)
    for tensor in tensors:
        members = np.unique(tensor.classes[tensor.classes > 0])
        if members.size:
            roots = np.unique(parents[members])
            parents[np.isin(parents, roots)] = roots[0]
    return [np.flatnonzero(parents == root) for root in np.unique(parents[1:])]


def _fixed(factors: Float) -> Float:
    factors[[0, -1]] = 1.0
    return factors
