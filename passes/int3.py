"""The int3 pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numeric.rounding import integer_levels
from onnxcomp.options import Bounds
from onnxcomp.quantize.forms import Form, bits_in_planes, integers
from onnxcomp.quantize.weightonly import WeightOnly

__all__ = ["Int3"]


@dataclass(frozen=True)
class Int3(WeightOnly):
    """Store weights in 3 bits, with a scale an output channel or block; compute in float (a tenth of the size).

    Codes go from -4 to 3, or from -3 to 4 where that suits a channel better (its scale is negative then). ONNX has no
    type of 3 bits: those of a large convolution lie in three planes of single bits, which foldable operators put
    together at load; a small one, and a Gemm or MatMul, has INT4 codes. For the rest see int4.

    Attributes:
        rounding: Nearest level, or the output's least error (gram); auto: gram where there are data.
        first_last: Float (keep), 8 bits or no exception for the first and the last layer; auto: 8 bits.
        block: How many weights in a row share a scale, at most; 0: all of an output channel.

    Sources: Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, 2023,
    algorithm 1.
    """

    name: ClassVar[str] = "int3"

    block: Annotated[int, Bounds(0, 1024)] = 0

    def levels(self) -> NDArray[np.float64]:
        """-4 to 3; a row may have the mirror image."""
        return integer_levels(3, symmetric=False)

    def forms(self) -> Sequence[Form]:
        """Planes of bits, or INT4."""
        return (bits_in_planes(3), integers(4))

    def product_bits(self) -> int | None:
        """3, which lie in 4."""
        return 3

    def block_length(self) -> int:
        """The option."""
        return self.block
