"""Casts of user data to the dtype of a model's input that never change a value unnoticed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxcomp.data.inputs import ModelInput
from onnxcomp.errors import DataError

__all__ = ["cast", "check_castable"]


def check_castable(found: np.dtype[np.generic], wanted: ModelInput, where: str) -> None:
    """Raise DataError when no value of dtype `found` may be fed to `wanted`.

    Floats go to floats of any width and integers (and booleans) to anything numeric, value by value (see :func:`cast`);
    floats never become integers, and text goes only to string inputs.
    """
    if found.hasobject or found.names is not None:
        raise DataError(
            f"{where}: holds Python objects or records, not a plain array; such data are never unpickled."
            " Store it as a numeric array"
        )
    text = wanted.dtype.kind in "OUST"
    if text and found.kind in "US":
        return
    if text or not (_is_integral(found) or (_is_float(found) and _is_float(wanted.dtype))):
        raise DataError(f"{where}: {found.name} values do not go into input {wanted.name!r}, which is {wanted}")


def cast(rows: NDArray[np.generic], wanted: ModelInput, where: str, first: int) -> NDArray[np.generic]:
    """Return `rows` in the dtype of `wanted`, C-contiguous.

    Args:
        rows: Samples, first axis first; dtype accepted by :func:`check_castable`.
        wanted: The model's input.
        where: Name of the array, for messages.
        first: Index of the first of `rows` in the whole array, for messages.

    Raises:
        DataError: A value is NaN or infinite, overflows the target dtype, or (integers) is not represented exactly.
    """
    if rows.dtype.kind in "US":
        return rows
    if _is_float(rows.dtype):
        _refuse(~np.isfinite(rows), where, first, "is NaN or infinite")
    with np.errstate(over="ignore"):
        out = np.ascontiguousarray(rows, dtype=wanted.dtype)
    if out.ndim != rows.ndim:  # ascontiguousarray turns a scalar into a vector
        out = out.reshape(rows.shape)
    if rows.dtype == wanted.dtype:
        return out
    if _is_integral(rows.dtype):
        with np.errstate(invalid="ignore"):
            back = out.astype(rows.dtype)
        _refuse(back != rows, where, first, f"has no exact {wanted.dtype.name} value")
    else:
        _refuse(~np.isfinite(out), where, first, f"is too large for {wanted.dtype.name}")
    return out


def _is_integral(dtype: np.dtype[np.generic]) -> bool:
    """Whether a dtype holds integers or booleans, those of ml_dtypes (kind V) included."""
    return dtype.kind in "biu" or (dtype.kind == "V" and dtype.names is None and "int" in dtype.name)


def _is_float(dtype: np.dtype[np.generic]) -> bool:
    """Whether a dtype is a real float, those of ml_dtypes (kind V) included."""
    return dtype.kind == "f" or (dtype.kind == "V" and dtype.names is None and "float" in dtype.name)


def _refuse(bad: NDArray[np.bool_], where: str, first: int, problem: str) -> None:
    if not bad.any():
        return
    index = tuple(int(i) for i in np.argwhere(bad)[0])
    place = (
        f"sample {first + index[0]}, element {list(index[1:])}" if len(index) > 1 else f"sample {first + sum(index)}"
    )
    raise DataError(f"{where}: {int(bad.sum())} value(s) in one batch wrong; the first ({place}) {problem}")
