"""Ranges and energies of single channels over calibration data, for equalization."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.data import Feeds
from onnxcomp.errors import DataError
from onnxcomp.graph.labels import Labels
from onnxcomp.graph.reshaping import full_rank
from onnxcomp.graph.scaling import Scaling
from onnxcomp.runtime.activations import Tap

__all__ = ["Channels", "Span", "collect_channels"]

# What a batch's activations may take.
_BATCH_BYTES = 32 << 20
# Such an operator and the one before it become one integer kernel: what lies between them is never rounded.
_FUSED = ("Relu", "Clip")


@dataclass(slots=True, eq=False)
class Span:
    """The largest magnitude that the elements of each label of a tensor take.

    Attributes:
        classes: Labels of the tensor at its rank.
        ranges: Of the same shape.
    """

    classes: Labels
    ranges: NDArray[np.float64]


@dataclass(slots=True, eq=False)
class Channels:
    """Statistics over the data.

    Attributes:
        ranged: Span of every tensor that may be quantized and has a free channel.
        energy: Variance of each input channel of the nodes with weights, shape (Ci,): rounding the weights moves the
            mean of the outputs as well, but that the bias takes back.
        power: Mean square of the outputs of the same nodes.
    """

    ranged: dict[str, Span] = field(default_factory=dict[str, Span])
    energy: dict[ir.Node, NDArray[np.float64]] = field(default_factory=dict[ir.Node, NDArray[np.float64]])
    power: dict[ir.Node, float] = field(default_factory=dict[ir.Node, float])


def collect_channels(
    model: ir.Model, scaling: Scaling, feeds: Feeds, *, threads: int = 1, samples: int | None = None
) -> Channels:
    """Run the data through the model and keep what equalization reads of it; memory does not grow with the samples.

    Args:
        model: The model; not modified.
        scaling: Its classes of channels.
        feeds: The data.
        threads: Intra-op threads.
        samples: At most that many samples; None: all.

    Raises:
        DataError: There are no samples, they do not fit, or a tensor holds NaN or infinite values on them.
        ModelError: ORT cannot run the model.
    """
    nodes = list(dict.fromkeys(slot.node for slot in scaling.slots if slot.role == "weight"))
    ranged = {name: labels for name, labels in scaling.tensors.items() if name in _rounded(model)}
    sources = {node: node.inputs[0].name or "" for node in nodes if node.inputs[0] is not None}
    results = {node: node.outputs[0].name or "" for node in nodes}
    found = Channels()
    sums: dict[str, NDArray[np.float64]] = {}
    squares: dict[str, NDArray[np.float64]] = {}
    batches = 0
    for values in _batches(model, [*ranged, *sources.values(), *results.values()], feeds, threads, samples):
        batches += 1
        _check(values)
        for name, labels in ranged.items():
            _widen(found.ranged, name, labels, values[name])
        for name, axis in {sources[node]: _channel_axis(node) for node in nodes}.items():
            mean, square = _moments(values[name], axis)
            sums[name], squares[name] = sums.get(name, 0.0) + mean, squares.get(name, 0.0) + square
        for node, name in results.items():
            mean_square = float(np.mean(np.square(values[name], dtype=np.float64)))
            found.power[node] = found.power.get(node, 0.0) + mean_square
    if not batches:
        raise DataError(f"{feeds.source}: no samples to calibrate on")
    for node, name in sources.items():
        found.power[node] /= batches
        found.energy[node] = np.maximum(squares[name] / batches - np.square(sums[name] / batches), 0.0)
    return found


def _rounded(model: ir.Model) -> set[str]:
    """Names of the tensors that int8 may quantize: all but those that only an activation reads."""
    names: set[str] = set()
    for node in model.graph:
        for value in node.outputs:
            readers = [use.node for use in value.uses()]
            if value.name and not (readers and all(reader.op_type in _FUSED for reader in readers)):
                names.add(value.name)
    return names


def _widen(spans: dict[str, Span], name: str, labels: Labels, value: NDArray[Any]) -> None:
    ranked = full_rank(labels, value.ndim)
    # Along an axis of extent 1 all have the same label.
    axes = tuple(axis for axis, extent in enumerate(ranked.shape) if extent == 1)
    peaks = np.maximum(value.max(axis=axes, keepdims=True), -value.min(axis=axes, keepdims=True)).astype(np.float64)
    if name not in spans:
        spans[name] = Span(ranked, peaks)
    else:
        np.maximum(spans[name].ranges, peaks, out=spans[name].ranges)


def _moments(value: NDArray[Any], axis: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and mean square of each channel."""
    others = tuple(k for k in range(value.ndim) if k != axis % value.ndim)
    return value.mean(axis=others, dtype=np.float64), np.square(value, dtype=np.float64).mean(axis=others)


def _channel_axis(node: ir.Node) -> int:
    return -1 if node.op_type == "MatMul" else 1


def _check(values: Mapping[str, NDArray[Any]]) -> None:
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise DataError(f"tensor '{name}' is not finite on the calibration data; check them and the model")


def _batches(
    model: ir.Model, names: list[str], feeds: Feeds, threads: int, samples: int | None
) -> Iterator[dict[str, NDArray[Any]]]:
    """Values of the tensors, with feeds cut so that they stay small."""
    tap = Tap(model, names, threads=threads)
    rows = None
    for feed in feeds.watched("read channels", samples):
        free = all(given.shape != () and given.fixed_batch is None for given in feeds.inputs)
        if not free or len({array.shape[:1] for array in feed.values()}) != 1:
            yield tap.read(feed)
            continue
        if rows is None:
            one = tap.read({name: array[:1] for name, array in feed.items()})
            rows = max(1, _BATCH_BYTES // max(1, sum(value.nbytes for value in one.values())))
        for start in range(0, len(next(iter(feed.values()))), rows):
            yield tap.read({name: array[start : start + rows] for name, array in feed.items()})
