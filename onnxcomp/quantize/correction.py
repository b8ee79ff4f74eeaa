"""Bias correction: what rounding the weights does to the mean of a layer's output, taken back by the bias.

With the weight error D = W - W_q and the mean input patch m, the output's mean moves by -D m (Nagel et al., Data-Free
Quantization Through Weight Equalization and Bias Correction, 2019, eq. 14). Activations behind a Relu have large means:
this is a good part of the error that weights cause. The mean patch is the channel's mean times the share of output
positions at which that kernel element lies on the input rather than on its padding.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxcomp.graph.geometry import Geometry

__all__ = ["conv_shift", "product_shift"]


def conv_shift(
    error: NDArray[np.float32], means: NDArray[np.float64], geometry: Geometry, sizes: tuple[int | None, ...]
) -> NDArray[np.float32]:
    """Return what a convolution's bias has to be raised by, shape (Co,).

    Args:
        error: W - W_q, shape (Co, Ci/group, *kernel).
        means: Mean of each input channel, shape (Ci,).
        geometry: Of the convolution.
        sizes: The input's spatial sizes; None where unknown (then padding is not accounted for).
    """
    groups = error.reshape(geometry.group, -1, error.shape[1], prod(geometry.kernel))
    shift: NDArray[np.float64] = np.einsum(
        "gocs,gc,s->go", groups, means.reshape(geometry.group, -1), _coverage(geometry, sizes).reshape(-1)
    )
    return shift.reshape(-1).astype(np.float32)


def product_shift(error: NDArray[np.float32], means: NDArray[np.float64], axis: int) -> NDArray[np.float32]:
    """Return what a matrix product's bias has to be raised by, shape (N,); `error` has its N outputs along `axis`."""
    shift: NDArray[np.float64] = error @ means if axis == 0 else means @ error
    return shift.astype(np.float32)


def _coverage(geometry: Geometry, sizes: tuple[int | None, ...]) -> NDArray[np.float64]:
    """Share of the output positions at which each kernel element lies inside the input, shape of the kernel."""
    share = np.ones(geometry.kernel)
    if len(sizes) != geometry.rank or geometry.auto_pad != "NOTSET":
        return share
    for axis, size in enumerate(sizes):
        if size is None:
            continue
        kernel, stride, dilation = geometry.kernel[axis], geometry.strides[axis], geometry.dilations[axis]
        before, after = geometry.pads[axis], geometry.pads[axis + geometry.rank]
        count = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
        at = np.arange(max(count, 1))[:, None] * stride - before + np.arange(kernel)[None, :] * dilation
        inside = ((at >= 0) & (at < size)).mean(axis=0)
        share *= inside.reshape([-1 if k == axis else 1 for k in range(geometry.rank)])
    return share
