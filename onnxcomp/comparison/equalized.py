"""By how much int8 scaled the channels of inner tensors, to quantize them better; no file says.

Which channels can be scaled at all follows from the base, and by how much is measured: all tensors that share a channel
share its factor. But a layer whose channel is wrong by a factor looks the same. What tells them apart are the weights
that read the channel: equalization makes them smaller by the factor by which the channel is larger.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.comparison.channels import Adapter
from onnxcomp.comparison.recipes import Step
from onnxcomp.errors import ModelError
from onnxcomp.graph.fold.canonical import canonicalise
from onnxcomp.graph.scaling import Scaling, Slot, find_scaling
from onnxcomp.runtime.activations import Tap

__all__ = ["Factors", "scales"]

Array = NDArray[Any]
Float = NDArray[np.float64]
# Factors of equalization lie in [1/8, 8]; what is fitted to noisy values may lie a little outside.
_LARGEST = 10.0
# The weights that read a channel have the last word where they differ from the values by more than so many standard
# errors; where fewer outputs read it, they have none.
_CERTAIN = 3.0
_READERS = 4
# Standard error of a median over the median deviation and the root of the count, for a normal distribution; its least.
_MEDIAN = 1.2533 * 1.4826
_FLOOR = 1e-4
_SWEEPS = 5


@dataclass(eq=False, slots=True)
class Factors:
    """Sums over the data from which the factor of every class of channels is fitted.

    Attributes:
        scaling: Which channels of the base can be scaled; class 0 is the first entry of all sums, class -1 the last.
        cross: By class sum of base * other.
        signal: By class sum of base ** 2. Noise is in the other model: a fit of it to the base has no bias.
    """

    scaling: Scaling
    cross: Float
    signal: Float

    @property
    def labels(self) -> Mapping[str, NDArray[np.int64]]:
        """By tensor the class of each element, broadcasting; 0 and -1 are fixed."""
        return self.scaling.tensors

    def add(self, name: str, base: Array, other: Array, adapter: Adapter | None) -> None:
        """Count a tensor; both arrays are comparable but for factors."""
        labels = self.labels_of(name, base.ndim, adapter)
        over = tuple(axis for axis in range(base.ndim) if labels.shape[axis] == 1)
        x, y = base.astype(np.float64), other.astype(np.float64)
        for sums, product in ((self.cross, x * y), (self.signal, x * x)):
            found = product.sum(axis=over, keepdims=True)
            np.add.at(sums, np.broadcast_to(labels, found.shape).ravel(), np.nan_to_num(found).ravel())

    def labels_of(self, name: str, rank: int, adapter: Adapter | None) -> NDArray[np.int64]:
        """The classes of a tensor of so many axes, broadcasting."""
        labels = self.labels[name]
        labels = labels.reshape((1,) * (rank - labels.ndim) + labels.shape)
        if adapter is None or adapter.kept is None or labels.shape[adapter.axis] == 1:
            return labels
        return labels.take(adapter.kept, adapter.axis)

    def settled(self, other: ir.Model, threads: int) -> Float:
        """What each class of the other model has to be multiplied by, by the values and by the weights that read it."""
        factors = np.divide(self.signal, self.cross, out=np.ones_like(self.cross), where=self.cross > 0)
        factors[(factors > _LARGEST) | (factors < 1 / _LARGEST)] = 1
        factors[0] = factors[-1] = 1
        weights = list(_weights(self.scaling, other, threads))
        for _ in range(_SWEEPS if weights else 0):
            sums, certain = np.zeros_like(factors), np.zeros_like(factors)
            for slot, before, after in weights:
                classes, logs, errors = _by_weights(slot, before, after, factors)
                np.add.at(sums, classes, logs / errors**2)
                np.add.at(certain, classes, 1 / errors**2)
            logs = np.divide(sums, certain, out=np.zeros_like(sums), where=certain > 0)
            apart = np.abs(logs) * np.sqrt(certain) > _CERTAIN
            apart[0] = apart[-1] = False
            factors[apart] *= np.exp(logs[apart])
        return factors


def scales(base: ir.Model, steps: Sequence[Step]) -> Factors | None:
    """What can have been scaled where the steps did so; None where none did."""
    if not any(step.spec.name == "int8" and step.spec.options.get("equalize", "auto") != "off" for step in steps):
        return None
    model = base.clone()
    canonicalise(model)
    scaling = find_scaling(model)
    size = scaling.count + 2
    return Factors(scaling, np.zeros(size), np.zeros(size)) if scaling.count else None


def _weights(scaling: Scaling, other: ir.Model, threads: int) -> Iterator[tuple[Slot, Float, Float]]:
    """The weights that read free channels, in the base and in the other model, where both have the same layer."""
    nodes = {node.name: node for node in other.graph if node.name}
    for slot in scaling.slots:
        twin, value = nodes.get(slot.node.name or ""), slot.node.inputs[slot.index]
        if slot.role != "weight" or slot.multiply is None or twin is None or value is None or value.const_value is None:
            continue
        stored = twin.inputs[slot.index] if len(twin.inputs) > slot.index else None
        if twin.op_type != slot.node.op_type or stored is None or not stored.name:
            continue
        try:
            array = Tap(other, [stored.name], threads=threads).read({})[stored.name]
        except ModelError:
            continue  # it is computed from the data
        before = value.const_value.numpy()
        if array.shape == before.shape:
            yield slot, before.astype(np.float64), array.astype(np.float64)


def _by_weights(slot: Slot, before: Float, after: Float, factors: Float) -> tuple[NDArray[np.int64], Float, Float]:
    """What the weights of a layer make of the factors of the channels that it reads.

    Of its outputs, some of which may be wrong, the median counts. Where the outputs are scaled as well, what all inputs
    have in common is not theirs.

    Returns:
        By input channel its class, the logarithm of its factor over `factors`, and the standard error of that.
    """
    assert slot.multiply is not None
    rest = tuple(range(2, before.ndim))
    power, cross = np.square(before).sum(axis=rest), (before * after).sum(axis=rest)
    reads = np.broadcast_to(_flat(slot.multiply), power.shape)
    writes = np.broadcast_to(0 if slot.divide is None else _flat(slot.divide), power.shape)
    if not (reads == reads[:1]).all():
        power, cross, reads, writes = power.T, cross.T, reads.T, writes.T
    ratio = np.divide(cross, power, out=np.full_like(power, np.nan), where=(power > 0) & (cross > 0))
    logs = np.log(ratio * factors[writes] / factors[reads])
    heard = np.isfinite(logs).sum(axis=0) >= _READERS
    if not (reads == reads[:1]).all() or not heard.any():
        heard[:] = False  # grouped: an input is read by few
    classes, logs = reads[0][heard], logs[:, heard]
    if not heard.any():
        return classes, np.zeros(0), np.zeros(0)
    middle = np.nanmedian(logs, axis=0)
    spread = np.nanmedian(np.abs(logs - middle), axis=0)
    errors = np.maximum(_MEDIAN * spread / np.sqrt(np.isfinite(logs).sum(axis=0)), _FLOOR)
    return classes, middle - np.median(middle) if (writes > 0).any() else middle, errors


def _flat(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    return labels.reshape(labels.shape[:2]) if labels.ndim > 2 else labels
