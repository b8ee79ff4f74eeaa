"""What passes did to the channels of inner tensors: pruning removes some, equalization scales them all.

Two tensors can only be compared channel by channel. Which channels pruning kept is in the model's recipe. By how much
int8 scaled them, to quantize them better, no file says; which channels can be scaled at all follows from the base, and
by how much is measured: all tensors that share a channel share its factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.channels.applying import decided_by, reshape
from onnxcomp.comparison.recipes import Step
from onnxcomp.graph.fold.canonical import canonicalise
from onnxcomp.graph.fold.shapes import infer_shapes
from onnxcomp.graph.scaling import find_scaling

__all__ = ["Adapter", "Factors", "Kept", "kept_channels", "scales"]

Array = NDArray[Any]
Kept = dict[str, tuple[int, NDArray[np.int64]]]
# Factors of equalization lie in [1/8, 8]; what is fitted to noisy values may lie a little outside.
_LARGEST = 10.0


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
    model = _canonical(base)
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


def _canonical(base: ir.Model) -> ir.Model:
    model = base.clone()
    canonicalise(model)
    return model


def _nothing(node: ir.Node) -> None:
    """Refuse nothing: what had to stay is in the choices."""
    del node


@dataclass(eq=False, slots=True)
class Factors:
    """Sums over the data from which the factor of every class of channels is fitted.

    Attributes:
        labels: By tensor the class of each element, an array that broadcasts to its shape; 0 and -1 are fixed.
        cross: By class sum of base * other.
        power: By class sum of other ** 2.
    """

    labels: Mapping[str, NDArray[np.int64]]
    cross: NDArray[np.float64]
    power: NDArray[np.float64]

    def add(self, name: str, base: Array, other: Array, adapter: Adapter | None) -> None:
        """Count a tensor; both arrays are comparable but for factors."""
        labels = self._labels(name, base.ndim, adapter)
        over = tuple(axis for axis in range(base.ndim) if labels.shape[axis] == 1)
        x, y = base.astype(np.float64), other.astype(np.float64)
        for sums, product in ((self.cross, x * y), (self.power, y * y)):
            found = product.sum(axis=over, keepdims=True)
            np.add.at(sums, np.broadcast_to(labels, found.shape).ravel(), np.nan_to_num(found).ravel())

    def of(self, name: str, rank: int, adapter: Adapter | None) -> NDArray[np.float64]:
        """The factors of a tensor of so many axes, broadcasting."""
        known = (self.power > 0) & (self.cross > 0)
        factors = np.divide(self.cross, self.power, out=np.ones_like(self.power), where=known)
        factors[(factors > _LARGEST) | (factors < 1 / _LARGEST)] = 1
        factors[0] = factors[-1] = 1
        return factors[self._labels(name, rank, adapter)]

    def _labels(self, name: str, rank: int, adapter: Adapter | None) -> NDArray[np.int64]:
        labels = self.labels[name]
        labels = labels.reshape((1,) * (rank - labels.ndim) + labels.shape)
        if adapter is None or adapter.kept is None or labels.shape[adapter.axis] == 1:
            return labels
        return labels.take(adapter.kept, adapter.axis)


def scales(base: ir.Model, steps: Sequence[Step]) -> Factors | None:
    """What can have been scaled where the steps did so; None where none did."""
    if not any(step.spec.name == "int8" and step.spec.options.get("equalize", "auto") != "off" for step in steps):
        return None
    scaling = find_scaling(_canonical(base))
    size = scaling.count + 2  # 0 first, -1 last
    return Factors(scaling.tensors, np.zeros(size), np.zeros(size)) if scaling.count else None
