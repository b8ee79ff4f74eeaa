"""Codes of fewer than 8 bits as initializers: two or four in a byte on disk, and the opset that their types need.

numpy has no such types; those of ``ml_dtypes`` stand in, one code a byte in memory. A tensor made from such an array
(:func:`onnxcomp.graph.edit.add_initializer`) is written as packed raw data, the first code in the lowest bits, which is
the order of the ONNX specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.graph.fold.opset import raise_opset

__all__ = ["admit", "narrow"]

_TYPES: Mapping[tuple[int, bool], Any] = {
    (8, True): np.int8,
    (8, False): np.uint8,
    (4, True): ml_dtypes.int4,
    (4, False): ml_dtypes.uint4,
    (2, True): ml_dtypes.int2,
    (2, False): ml_dtypes.uint2,
}
# The first opset and IR version that have the type (ONNX operator changelog: Cast-21, Cast-25).
_SINCE: Mapping[int, tuple[int, int]] = {8: (1, 3), 4: (21, 10), 2: (25, 13)}


def narrow(codes: NDArray[Any], bits: int, *, signed: bool = True) -> NDArray[Any]:
    """The codes in the smallest type of ONNX that holds `bits` bits.

    Args:
        codes: Whole numbers of any type.
        bits: 2 to 8; 3 lie in 4, 5 to 7 in 8.
        signed: Whether codes may be negative.

    Returns:
        An array of int2, uint2, int4, uint4, int8 or uint8, of the shape of `codes`.

    Raises:
        ValueError: Fewer than 2 bits, more than 8, or a code that the type does not hold.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"{bits} bits, not 2 to 8")
    width = 2 if bits == 2 else 4 if bits <= 4 else 8
    low, high = (-(2 ** (width - 1)), 2 ** (width - 1) - 1) if signed else (0, 2**width - 1)
    if codes.size and (codes.min() < low or codes.max() > high):
        raise ValueError(f"codes from {codes.min()} to {codes.max()} do not fit {width} bits ({low} to {high})")
    return codes.astype(np.int16).astype(_TYPES[width, signed])


def admit(model: ir.Model, bits: int) -> str | None:
    """Raise opset and IR version of a model, in place, to the first that have a type of `bits` bits.

    Args:
        model: Any model; one that is new enough is left alone.
        bits: As for :func:`narrow`.

    Returns:
        None where the type may be used now; else the reason why the model, untouched, cannot be converted.
    """
    opset, ir_version = _SINCE[2 if bits == 2 else 4 if bits <= 4 else 8]
    reason = raise_opset(model, opset)
    if reason is None:
        model.ir_version = max(model.ir_version, ir_version)
    return reason
