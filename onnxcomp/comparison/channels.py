"""Tensors are compared channel by channel: which of them pruning has left, and how others become comparable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.channels.applying import decided_by, reshape
from onnxcomp.comparison.recipes import Step
from onnxcomp.graph.fold.canonical import canonicalise
from onnxcomp.graph.fold.shapes import infer_shapes

__all__ = ["Adapter", "Kept", "kept_channels"]

Array = NDArray[Any]
Kept = dict[str, tuple[int, NDArray[np.int64]]]


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """How a tensor of the other model becomes comparable.

    Attributes:
        axis: Of its channels.
        kept: Channels of the base that are left, ascending; None: all.
        factors: What the other tensor has to be multiplied by, broadcasting; None: 1.
    """

    axis: int = 1
    kept: NDArray[np.int64] | None = None
    factors: NDArray[np.float64] | None = None

    def of_base(self, array: Array) -> Array:
        """The channels of a base tensor that are left."""
        return array if self.kept is None else array.take(self.kept, self.axis)

    def of_other(self, array: Array) -> Array:
        """The other tensor, channel by channel as in the base."""
        return array if self.factors is None else (array * self.factors).astype(array.dtype)

    def filled(self, base: Array, comparable: Array) -> Array:
        """The other tensor with the base's own values for the channels that it lacks."""
        if self.kept is None:
            return comparable
        whole = base.copy()
        index: list[Any] = [slice(None)] * base.ndim
        index[self.axis] = self.kept
        whole[tuple(index)] = comparable
        return whole


def kept_channels(base: ir.Model, steps: Sequence[Step]) -> Kept:
    """By tensor of the base which channels the steps left, ascending, and the axis that they lie on.

    Steps that removed channels are carried out again on the base. A recipe that does not fit it tells nothing.

    Args:
        base: The base; not modified.
        steps: What was done to it.
    """
    found: dict[str, tuple[int, NDArray[np.int64]]] = {}
    structural = [s for s in steps if any(key in c for c in s.choices.values() for key in ("outputs", "dropped"))]
    if not structural:
        return found
    model = base.clone()
    canonicalise(model)
    for step in structural:
        try:
            kept = reshape(model, decided_by(model, step.choices, _nothing), _nothing)
        except (ValueError, IndexError):
            return {}
        infer_shapes(model)
        for name, (axis, indices) in kept.items():
            before = found.get(name)
            found[name] = axis, indices if before is None else before[1][indices]
    return found


def _nothing(node: ir.Node) -> None:
    """Refuse nothing: what had to stay is in the choices."""
    del node
