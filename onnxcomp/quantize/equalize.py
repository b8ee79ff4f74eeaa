"""Equalization before int8: rescale channels so that rounding costs less, without changing what the model computes.

The classes of channels come from `onnxcomp.graph.scaling`, the factors from `onnxcomp.numeric.equalize`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.contract import Skip
from onnxcomp.data import Feeds
from onnxcomp.errors import DataError
from onnxcomp.graph.edit import origin_of
from onnxcomp.graph.labels import Labels
from onnxcomp.graph.scaling import Refuse, Scaling, Slot, find_scaling
from onnxcomp.numeric.equalize import Ranged, Reading, balanced, least_noise, smoothed
from onnxcomp.quantize.channels import Channels, collect_channels

__all__ = ["Equalized", "Rule", "equalize"]

T = TypeVar("T", bound=np.generic)
Rule = Literal["off", "weights", "smooth", "activations"]

# Entries of a layer's weight (kernels taken together) that count; of larger layers every n-th row does.
_ENTRIES = 1 << 21


@dataclass(frozen=True, slots=True)
class Equalized:
    """What was rescaled.

    Attributes:
        nodes: The nodes whose constants changed, by their names in the user's model.
        lowest: Smallest factor.
        highest: Largest factor.
        skips: Nodes with weights that could not take part on one side or both, and why.
        lines: What a report should say.
    """

    nodes: tuple[str, ...] = ()
    lowest: float = 1.0
    highest: float = 1.0
    skips: tuple[Skip, ...] = ()
    lines: tuple[str, ...] = ()


def equalize(
    model: ir.Model,
    feeds: Feeds | None,
    rule: Rule,
    *,
    refuse: Refuse | None = None,
    threads: int = 1,
    samples: int = 128,
    limit: float = 8.0,
    alpha: float = 0.5,
    weight_noise: float = 1.0,
) -> Equalized:
    """Rescale channels in place; in exact arithmetic the outputs stay what they are.

    Args:
        model: A canonical model with inferred shapes; its float32 constants change.
        feeds: Data for the channels' ranges; ``weights`` needs none.
        rule: ``weights``: the largest weights that write and read a channel become equal (Nagel et al., 2019);
            ``smooth``: SmoothQuant's factors (Xiao et al., 2023); ``activations``: the least predicted noise over
            activations and weights; ``off``: nothing happens.
        refuse: Why the constants of a node must stay as they are; None where they may change.
        threads: Intra-op threads.
        samples: At most that many samples are read.
        limit: Factors lie in [1/limit, limit].
        alpha: For ``smooth``: how much of an activation's range the weights take over, from 0 to 1.
        weight_noise: For ``activations``: what the weights' rounding counts (less than 1 where they are rounded
            better than to the nearest level).

    Raises:
        DataError: The rule needs data and there are none, they do not fit, or a tensor is not finite on them.
        ModelError: ORT cannot run the model.
    """
    if rule == "off":
        return Equalized()
    scaling = find_scaling(model, refuse)
    if not scaling.count:
        return Equalized(skips=scaling.skips, lines=("nothing to equalize: no channel can be scaled",))
    if rule == "weights":
        factors = balanced(_readings(scaling, None), scaling.count, limit=limit)
    else:
        if feeds is None:
            raise DataError(f"equalize={rule} needs calibration data: give --data, or equalize=weights")
        seen = collect_channels(model, scaling, feeds, threads=threads, samples=samples)
        tensors = [Ranged(s.classes.reshape(-1), s.ranges.reshape(-1)) for s in seen.ranged.values()]
        layers = _readings(scaling, seen)
        factors = (
            smoothed(tensors, layers, scaling.count, alpha=alpha, limit=limit)
            if rule == "smooth"
            else least_noise(tensors, layers, scaling.count, limit=limit, weight_noise=weight_noise)
        )
    return _apply(scaling, factors, rule)


def _apply(scaling: Scaling, factors: NDArray[np.float64], rule: Rule) -> Equalized:
    """Write the factors into the constants, all of them or, where a product leaves float32, none."""
    scaled = [(slot, _scaled(slot, factors)) for slot in scaling.slots]
    bad = next((slot for slot, array in scaled if not np.isfinite(array).all()), None)
    if bad is not None:
        reason = f"not equalized: a constant of {origin_of(bad.node)} times its factor does not fit float32"
        return Equalized(skips=scaling.skips, lines=(reason,))
    for slot, array in scaled:
        value = slot.node.inputs[slot.index]
        assert value is not None
        value.const_value = ir.tensor(array, name=value.name)
        value.shape = ir.Shape(array.shape)
    nodes = tuple(dict.fromkeys(origin_of(slot.node) for slot, _ in scaled if slot.role == "weight"))
    used = factors[1:-1]
    low, high = float(used.min()), float(used.max())
    what = f"{scaling.count:,} groups of channels of {len(nodes)} layers"
    line = f"equalized ({rule}): {what}, factors {low:.2g} to {high:.2g}"
    return Equalized(nodes, low, high, scaling.skips, (line,))


def _scaled(slot: Slot, factors: NDArray[np.float64]) -> NDArray[np.float32]:
    array = _constant(slot).astype(np.float64)
    if slot.multiply is not None:
        array = array * factors[slot.multiply]
    if slot.divide is not None:
        array = array / factors[slot.divide]
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _constant(slot: Slot) -> NDArray[np.float32]:
    value = slot.node.inputs[slot.index]
    assert value is not None and value.const_value is not None
    array: NDArray[np.float32] = value.const_value.numpy()
    return array


def _readings(scaling: Scaling, seen: Channels | None) -> list[Reading]:
    """Every weight as rows of outputs; without statistics energy and power are 1."""
    return [_reading(slot, seen) for slot in scaling.slots if slot.role == "weight"]


def _reading(slot: Slot, seen: Channels | None) -> Reading:
    node, weight = slot.node, _constant(slot)
    rows = _rows(node, weight)
    step = -(-rows.shape[0] * rows.shape[1] // _ENTRIES)
    rows = rows[::step].reshape(-1, rows.shape[1], prod(rows.shape[2:]))
    energy, power = np.ones((1, 1)), 1.0
    if seen is not None:
        energy = seen.energy[node][_rows(node, _sources(node, weight.shape))[::step]] * rows.shape[2]
        power = seen.power[node]
    return Reading(
        _classes(slot.multiply, node, weight.shape)[::step],
        _classes(slot.divide, node, weight.shape)[::step, 0],
        np.abs(rows).max(axis=2).astype(np.float64),
        np.square(rows, dtype=np.float64).sum(axis=2),
        energy,
        power,
    )


def _classes(labels: Labels | None, node: ir.Node, shape: tuple[int, ...]) -> Labels:
    """Classes of a weight's entries, shape (O, I)."""
    plain = np.zeros((1, 1), np.int64) if labels is None else labels.reshape(labels.shape[:2])
    return _rows(node, np.broadcast_to(plain, shape[:2]))


def _sources(node: ir.Node, shape: tuple[int, ...]) -> Labels:
    """Number of the input channel of each entry, in the weight's own layout."""
    first, second = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    if node.op_type == "Conv":
        rows = shape[0] // node.attributes.get_int("group", 1)
        second = second + first // rows * shape[1]
    by_columns = node.op_type == "Conv" or _by_rows(node)
    return np.broadcast_to(second if by_columns else first, shape[:2])


def _rows(node: ir.Node, array: NDArray[T]) -> NDArray[T]:
    """A weight's first two axes as (outputs, inputs that an output reads)."""
    if node.op_type == "ConvTranspose":
        group = node.attributes.get_int("group", 1)
        blocks = array.reshape(group, -1, *array.shape[1:]).swapaxes(1, 2)
        return blocks.reshape(-1, *blocks.shape[2:])
    return array if node.op_type == "Conv" or _by_rows(node) else array.swapaxes(0, 1)


def _by_rows(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
