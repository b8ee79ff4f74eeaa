"""The weight of a site as rows, one for each output channel, and the way back to the order it is stored in.

Rounding works on rows (output channels, what they read); scales belong to rows, or to blocks of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcomp.graph.sites import Site

__all__ = ["Layout", "block_of", "is_product"]

Float = NDArray[np.float64]

# Shorter blocks spend as much on scales as on codes.
_SHORTEST = 8
# MatMulNBits takes blocks of a power of two, 16 at least (onnxruntime, qdq_selectors.cc).
_SHORTEST_OF_PRODUCT = 16


def is_product(site: Site) -> bool:
    """Whether the site is a Gemm or MatMul."""
    return site.kind in ("Gemm", "MatMul")


def block_of(site: Site, wanted: int) -> int:
    """The length of the blocks that a row of a site falls into: the largest that is no longer than wanted and fits.

    0, one scale a row, where none fits: rows of no such divisor, and ConvTranspose, whose rows are not contiguous. A
    product has blocks of a power of two.
    """
    if not wanted or site.geometry.transposed:
        return 0
    d = site.weight[0].size
    if is_product(site):
        fits = [b for b in (16, 32, 64, 128, 256) if b <= wanted and d % b == 0]
        return max(fits, default=0)
    fits = [b for b in range(_SHORTEST, wanted + 1) if d % b == 0]
    return max(fits, default=0)


@dataclass(frozen=True)
class Layout:
    """Maps the weight of a site to rows and back.

    Attributes:
        site: The site.
        block: Entries of a row that share a scale; 0: all.
    """

    site: Site
    block: int = 0

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape that the node reads."""
        shape: tuple[int, ...] = self.site.weight.shape
        return (shape[1], shape[0]) if is_product(self.site) else shape

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the codes, which the scales of :meth:`scales` fit by broadcasting."""
        shape, group = self.weight_shape, self.site.geometry.group
        if self.site.geometry.transposed and group > 1:
            return (group, shape[0] // group, *shape[1:])
        if self.block and is_product(self.site):
            return (shape[0] // self.block, self.block, shape[1])
        if self.block:
            return (shape[0], -1, self.block)
        return shape

    def rows(self) -> Float:
        """The weight as (Co, d), float64, groups one after the other; d is channel-major."""
        weight, group = self.site.weight, self.site.geometry.group
        if self.site.geometry.transposed:
            parts = weight.reshape(group, -1, *weight.shape[1:])
            weight = np.swapaxes(parts, 1, 2).reshape(group * weight.shape[1], -1, *weight.shape[2:])
        return weight.reshape(len(weight), -1).astype(np.float64)

    def stored(self, rows: Float) -> Float:
        """Rows, (Co, d), in the order and shape in which they are stored."""
        shape, group = self.weight_shape, self.site.geometry.group
        if is_product(self.site):
            rows = rows.T
        elif self.site.geometry.transposed:
            parts = rows.reshape(group, shape[1], shape[0] // group, *shape[2:])
            rows = np.swapaxes(parts, 1, 2)
        return np.ascontiguousarray(rows).reshape(self.stored_shape)

    def scales(self, scales: Float) -> NDArray[np.float32]:
        """Scales, (Co,) or (Co, d / block), in the shape that multiplies stored codes."""
        small = scales.astype(np.float32)
        rank, group = len(self.weight_shape), self.site.geometry.group
        if scales.ndim == 2:
            return small.T[:, None, :].copy() if is_product(self.site) else small[..., None]
        if is_product(self.site):
            return small[None]
        if not self.site.geometry.transposed:
            return small.reshape(-1, *(1,) * (rank - 1))
        spatial = (1,) * (rank - 2)
        return small.reshape((group, 1, -1, *spatial) if group > 1 else (1, -1, *spatial))
