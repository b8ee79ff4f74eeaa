"""The pow2 pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numeric.rounding import power_levels
from onnxcomp.options import Bounds
from onnxcomp.quantize.forms import Form, table_of
from onnxcomp.quantize.weightonly import WeightOnly

__all__ = ["Pow2"]


@dataclass(frozen=True)
class Pow2(WeightOnly):
    """Store weights as zero or a power of two, of either sign, times a scale an output channel; compute in float.

    With 4 bits the levels are 0 and 1, 1/2 ... 1/64 of both signs: dense where most weights are. Codes are the numbers
    of levels, packed UINT4 (UINT8 for 5 bits), and a table turns them back at load. For the rest see int4.

    Attributes:
        rounding: Nearest level, or the output's least error (gram); auto: gram where there are data.
        first_last: Float (keep), 8 bits or no exception for the first and the last layer; auto: none, 8 bits where
            the others have 3.
        bits: 2^bits - 1 levels.

    Sources: Zhou et al., Incremental Network Quantization, 2017, section 2.1 (the levels); Miyashita et al.,
    Convolutional Neural Networks using Logarithmic Data Representation, 2016. Here the scale of a channel is free, and
    rounding needs no training.
    """

    name: ClassVar[str] = "pow2"

    bits: Annotated[int, Bounds(3, 5)] = 4

    def levels(self) -> NDArray[np.float64]:
        """Zero and powers of two."""
        return power_levels(self.bits)

    def forms(self) -> Sequence[Form]:
        """Numbers of levels and a table."""
        return (table_of(self.levels()),)
