"""The geometry of a convolution: kernel, strides, dilations, pads and groups, and the arithmetic on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

__all__ = ["Geometry", "same_pads"]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Spatial attributes of Conv or ConvTranspose, all explicit (auto_pad resolved), one entry a spatial axis.

    Attributes:
        kernel: Kernel size an axis.
        strides: Stride an axis.
        dilations: Dilation an axis.
        pads: Explicit pads in ONNX order, all begins then all ends.
        group: Number of groups.
        output_padding: Extra output an axis; ConvTranspose only.
        auto_pad: "NOTSET", or SAME_UPPER / SAME_LOWER where the input size is unknown and pads cannot be made explicit
            (then `pads` is all zeros and auto_pad is what counts).
        transposed: Whether this is a ConvTranspose.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    group: int = 1
    output_padding: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"
    transposed: bool = False

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def pointwise(self) -> bool:
        """Whether every kernel axis is 1."""
        return prod(self.kernel) == 1

    def attributes(self) -> dict[str, int | str | tuple[int, ...]]:
        """The ONNX attributes of a node with this geometry."""
        out: dict[str, int | str | tuple[int, ...]] = {
            "kernel_shape": self.kernel,
            "strides": self.strides,
            "dilations": self.dilations,
            "group": self.group,
        }
        if self.auto_pad == "NOTSET":
            out["pads"] = self.pads
        else:
            out["auto_pad"] = self.auto_pad
        if self.transposed and any(self.output_padding):
            out["output_padding"] = self.output_padding
        return out

    def pointlike(self) -> Geometry:
        """A 1x1 node of the same number of axes and groups: no stride, dilation or pads."""
        ones = (1,) * self.rank
        return replace(
            self,
            kernel=ones,
            strides=ones,
            dilations=ones,
            pads=(0,) * (2 * self.rank),
            output_padding=(),
            auto_pad="NOTSET",
            transposed=False,
        )


def same_pads(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], *, upper: bool
) -> tuple[int, ...]:
    """Return the explicit pads of auto_pad SAME for an input of these spatial sizes, all begins then all ends.

    ONNX Conv-11: total = max((ceil(in/s) - 1)·s + (k-1)·d + 1 - in, 0); SAME_UPPER puts the odd one at the end.
    """
    totals = [
        max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return tuple(small + large) if upper else tuple(large + small)
