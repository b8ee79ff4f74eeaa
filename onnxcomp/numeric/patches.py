"""Patches of a convolution: the columns that its weight matrix multiplies, for any number of spatial axes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

__all__ = ["output_shape", "patches", "patches_at", "sample_positions"]

Array = NDArray[np.floating]


def output_shape(
    spatial: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
) -> tuple[int, ...]:
    """Spatial output shape of a convolution (ONNX Conv, explicit pads: all begins, then all ends).

    Raises:
        ValueError: Numbers of axes that differ, or a kernel larger than the padded input.
    """
    rank = len(spatial)
    if not len(kernel) == len(strides) == len(dilations) == rank or len(pads) != 2 * rank:
        raise ValueError(f"kernel, strides, dilations and pads do not fit {rank} spatial axes")
    sizes = tuple(
        (spatial[a] + pads[a] + pads[a + rank] - (kernel[a] - 1) * dilations[a] - 1) // strides[a] + 1
        for a in range(rank)
    )
    if min(sizes, default=1) < 1:
        raise ValueError(f"a kernel of {tuple(kernel)} does not fit an input of {tuple(spatial)}")
    return sizes


def patches(
    x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int]
) -> Array:
    """Unfold a batch: (N, Ci, *spatial) to (N, positions, Ci * prod(kernel)), of the input's type.

    Positions are in row-major order of the output; the last axis is channel-major, so that ``p @ weight.reshape(Co,
    -1).T`` is the convolution. Pads are zeros; a negative pad crops.
    """
    windows = _windows(x, kernel, strides, dilations, pads)
    rank = len(kernel)
    positions = prod(windows.shape[2 : 2 + rank])
    moved = np.moveaxis(windows, 1, 1 + rank)
    return moved.reshape(x.shape[0], positions, x.shape[1] * prod(kernel))


def patches_at(
    x: Array,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    positions: NDArray[np.intp],
) -> Array:
    """Unfold only some positions of each image, without unfolding the rest.

    Args:
        x: (N, Ci, *spatial).
        kernel: Kernel size an axis.
        strides: Stride an axis.
        dilations: Dilation an axis.
        pads: All begins, then all ends.
        positions: Flat output positions of each image, (N, P).

    Returns:
        (N * P, Ci * prod(kernel)), image by image.
    """
    windows = _windows(x, kernel, strides, dilations, pads)
    rank = len(kernel)
    index = np.unravel_index(positions.ravel(), windows.shape[2 : 2 + rank])
    image = np.repeat(np.arange(x.shape[0]), positions.shape[1])
    chosen: Array = np.moveaxis(windows, 1, 1 + rank)[(image, *index)]
    return chosen.reshape(positions.size, x.shape[1] * prod(kernel))


def sample_positions(rng: np.random.Generator, images: int, positions: int, count: int) -> NDArray[np.intp]:
    """Draw `count` different flat positions for each image: (images, count), ascending; all where count suffices."""
    if count >= positions:
        return np.broadcast_to(np.arange(positions, dtype=np.intp), (images, positions))
    drawn = np.argpartition(rng.random((images, positions)), count - 1, axis=1)[:, :count]
    return np.sort(drawn, axis=1)


def _windows(
    x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int]
) -> Array:
    """A view (N, Ci, *output, *kernel) of the padded input."""
    rank = x.ndim - 2
    output_shape(x.shape[2:], kernel, strides, dilations, pads)  # refuses what does not fit
    padded = _padded(x, pads)
    spans = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    windows = sliding_window_view(padded, spans, axis=tuple(range(2, 2 + rank)))
    steps = [slice(None, None, s) for s in strides]
    taps = [slice(None, None, d) for d in dilations]
    return windows[:, :, *steps, *taps]


def _padded(x: Array, pads: Sequence[int]) -> Array:
    rank = x.ndim - 2
    crop = [slice(max(-pads[a], 0), x.shape[2 + a] - max(-pads[a + rank], 0)) for a in range(rank)]
    x = x[:, :, *crop]
    if max(pads, default=0) <= 0:
        return x
    return np.pad(x, [(0, 0), (0, 0), *((max(pads[a], 0), max(pads[a + rank], 0)) for a in range(rank))])
