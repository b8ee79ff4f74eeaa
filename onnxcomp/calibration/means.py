"""Means per channel of tensors, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.calibration.batches import bad_values
from onnxcomp.errors import DataError

__all__ = ["ChannelMeans"]


class ChannelMeans:
    """Sums and counts of the values of each channel.

    Args:
        model: The model that holds the tensors; for messages.
        names: The tensors.
        axis: The channel axis; negative counts from the end.
    """

    def __init__(self, model: ir.Model, names: Iterable[str], axis: int = 1) -> None:
        self.names = tuple(dict.fromkeys(names))
        self._model, self._axis = model, axis
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._counts = dict.fromkeys(self.names, 0)

    def add(self, values: Mapping[str, NDArray[Any]], number: int) -> None:
        """Count the values of all tensors on one more batch, the `number`-th.

        Raises:
            DataError: A tensor has no such axis, or holds NaN or infinite values.
        """
        axis = self._axis
        for name in self.names:
            value = values[name]
            if not -value.ndim <= axis < value.ndim:
                raise DataError(f"tensor '{name}' has {value.ndim} axes: there is no channel axis {axis}")
            others = tuple(k for k in range(value.ndim) if k != axis % value.ndim)
            total = np.atleast_1d(np.sum(value, axis=others, dtype=np.float64))
            if not np.isfinite(total).all():
                kind = "NaN" if np.isnan(total).any() else "infinity"
                raise DataError(bad_values(self._model, name, kind, number))
            self._sums[name] = self._sums[name] + total if name in self._sums else total
            self._counts[name] += value.size // max(value.shape[axis], 1)

    def result(self) -> dict[str, NDArray[np.float64]]:
        """Return each tensor's mean per channel, float64 [C]."""
        return {name: self._sums[name] / max(count, 1) for name, count in self._counts.items()}
