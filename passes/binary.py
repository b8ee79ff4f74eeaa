"""The binary pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxcomp.quantize.forms import Form, signs
from onnxcomp.quantize.weightonly import WeightOnly

__all__ = ["Binary"]


@dataclass(frozen=True)
class Binary(WeightOnly):
    """Store weights as a sign times a scale an output channel, in 1 bit; compute in float (a 27th of the size).

    ONNX has no type of 1 bit: four signs make a 4-bit number, and a table turns it back at load. Hardly any network
    bears this without training; look at the accuracy, or set a budget. For the rest see int4.

    Attributes:
        rounding: Nearest level, or the output's least error (gram); auto: gram where there are data.
        first_last: Float (keep), 8 bits or no exception for the first and the last layer; auto: 8 bits.

    Sources: Rastegari et al., XNOR-Net, 2016, eq. 5 and 6 (Binary Weight Networks: the best scale is E|w|).
    """

    name: ClassVar[str] = "binary"

    def levels(self) -> NDArray[np.float64]:
        """-1 and 1."""
        return np.array([-1.0, 1.0])

    def forms(self) -> Sequence[Form]:
        """Four signs in a 4-bit number."""
        return (signs,)
