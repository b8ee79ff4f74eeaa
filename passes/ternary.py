"""The ternary pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxcomp.quantize.forms import Form, integers
from onnxcomp.quantize.weightonly import WeightOnly

__all__ = ["Ternary"]


@dataclass(frozen=True)
class Ternary(WeightOnly):
    """Store weights as -1, 0 or 1 times a scale an output channel, in 2 bits; compute in float (a 15th of the size).

    Codes are packed INT2, which needs opset 25, to which the model is raised. Threshold and scale of a channel are
    those of least squared error, of the weights or, with data, of the layer's output. For the rest see int4. Few
    networks bear this without training; look at the accuracy.

    Attributes:
        rounding: Nearest level, or the output's least error (gram); auto: gram where there are data.
        first_last: Float (keep), 8 bits or no exception for the first and the last layer; auto: 8 bits.

    Sources: Li and Liu, Ternary Weight Networks, 2016, eq. 3 (whose threshold of 0.7 E|w| approximates the optimum that
    is searched here).
    """

    name: ClassVar[str] = "ternary"
    storage_bits: ClassVar[int] = 2

    def levels(self) -> NDArray[np.float64]:
        """-1, 0, 1."""
        return np.array([-1.0, 0.0, 1.0])

    def forms(self) -> Sequence[Form]:
        """INT2."""
        return (integers(2),)
