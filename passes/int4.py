"""The int4 pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numeric.rounding import integer_levels
from onnxcomp.options import Bounds
from onnxcomp.quantize.forms import Form, integers
from onnxcomp.quantize.weightonly import WeightOnly

__all__ = ["Int4"]


@dataclass(frozen=True)
class Int4(WeightOnly):
    """Store weights in 4 bits, with a scale an output channel or block; compute in float (an eighth of the size).

    Weights become packed INT4 codes from -7 to 7 and float scales. In front of a convolution a Cast and a Mul turn them
    back, which ONNX Runtime does once, at load; a Gemm or MatMul computes on them (DequantizeLinear, fused to
    MatMulNBits). With data, rounding follows GPTQ order and coordinate descent on the layer's output, and makes up for
    the errors of earlier layers. Needs opset 21, to which the model is raised.

    Attributes:
        rounding: Nearest level, or the output's least error (gram); auto: gram where there are data.
        first_last: Float (keep), 8 bits or no exception for the first and the last layer; auto: none.
        block: How many weights in a row share a scale, at most; 0: all of an output channel. The longest divisor of the
            row that is no longer is taken; of products a power of two from 16.

    Sources: Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, 2023,
    algorithm 1.
    """

    name: ClassVar[str] = "int4"

    block: Annotated[int, Bounds(0, 1024)] = 0

    def levels(self) -> NDArray[np.float64]:
        """-7 to 7."""
        return integer_levels(4)

    def forms(self) -> Sequence[Form]:
        """INT4."""
        return (integers(4),)

    def product_bits(self) -> int | None:
        """4."""
        return 4

    def block_length(self) -> int:
        """The option."""
        return self.block
