"""Products are computed in float64 and rounded once, unless that loses more than rounding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["rounded"]

_HALF_ROUNDING = {
    "float16": 2.0**-9,
    "bfloat16": 2.0**-6,
}  # relative L2 error of a cast that keeps its exponents, with a margin


def rounded(array: NDArray[np.float64], dtype: np.dtype[np.generic]) -> NDArray[np.generic] | None:
    """Cast, or None where that gives Inf or NaN, or loses more than rounding (half precision underflows early)."""
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(dtype)
    back = cast.astype(np.float64)
    if not np.isfinite(back).all():
        return None
    tolerance = _HALF_ROUNDING.get(dtype.name, 1.0)
    return None if np.linalg.norm(back - array) > tolerance * np.linalg.norm(array) else cast
