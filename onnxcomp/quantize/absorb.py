"""High-bias absorption: what a channel always has, the next layer's bias takes over.

Where a channel in front of a Relu is never below c > 0, Relu(x - c) + c = Relu(x): c leaves the bias of the layer
before and enters that of the layers behind, through their weights (Nagel et al., Data-Free Quantization Through Weight
Equalization and Bias Correction, 2019, section 4.1.3). The range of the channel shrinks by c. There c is the mean of a
normal distribution less 3 standard deviations; here it is measured, and never above the smallest value seen, so that no
output changes on the calibration data. On other data a value below c comes out as c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.data import Feeds
from onnxcomp.errors import DataError
from onnxcomp.graph.edit import add_initializer, origin_of, unique_name
from onnxcomp.graph.holders import held_constant
from onnxcomp.graph.scaling import Refuse
from onnxcomp.graph.sites import is_default_domain
from onnxcomp.runtime.activations import stream

__all__ = ["Absorbed", "absorb"]

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Absorbed:
    """What was moved.

    Attributes:
        channels: For the layers before, by their names in the user's model, the number of channels that changed.
        lines: What a report should say.
    """

    channels: dict[str, int]
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Passage:
    """A layer, the Relu behind it, and all that read the Relu."""

    before: ir.Node
    behind: tuple[ir.Node, ...]


def absorb(
    model: ir.Model, feeds: Feeds, *, refuse: Refuse | None = None, threads: int = 1, samples: int = 128
) -> Absorbed:
    """Move what is always there from biases before a Relu to those behind it, in place.

    Both sides must be Conv or Gemm whose float32 constants nobody else reads; those behind must not pad: a border of
    zeros would lack what was moved.

    Args:
        model: A canonical model.
        feeds: Data for the smallest values, means and deviations of the channels.
        refuse: Why the constants of a node must stay as they are; None where they may change.
        threads: Intra-op threads.
        samples: At most that many samples are read.

    Raises:
        DataError: There are no samples, or they do not fit.
        ModelError: ORT cannot run the model.
    """
    passages = [p for node in model.graph if (p := _passage(node, refuse)) is not None]
    moved = _constant_parts(model, passages, feeds, threads, samples) if passages else []
    channels: dict[str, int] = {}
    for passage, parts in zip(passages, moved, strict=True):
        if parts.any():
            _add_to_bias(passage.before, -parts)
            for reader in passage.behind:
                _add_to_bias(reader, _through(reader, parts))
            channels[origin_of(passage.before)] = int(np.count_nonzero(parts))
    total = sum(channels.values())
    line = (
        f"absorbed what {total:,} channels of {len(channels)} layers always have; values below that, which the"
        " calibration data do not hold, would come out as it"
        if total
        else "nothing to absorb: no channel in front of a Relu is always clearly positive"
    )
    return Absorbed(channels, (line,))


def _passage(node: ir.Node, refuse: Refuse | None) -> _Passage | None:
    if not is_default_domain(node, "Conv", "Gemm") or not _ready(node, refuse):
        return None
    relu = _only_reader(node.outputs[0])
    if relu is None or not is_default_domain(relu, "Relu"):
        return None
    result = relu.outputs[0]
    readers = tuple(dict.fromkeys(use.node for use in result.uses()))
    if not readers or result.is_graph_output():
        return None
    fit = all(
        is_default_domain(reader, "Conv", "Gemm")
        and reader.graph is node.graph
        and list(reader.inputs).count(result) == 1
        and reader.inputs[0] is result
        and _ready(reader, refuse)
        and _unpadded(reader)
        for reader in readers
    )
    return _Passage(node, readers) if fit else None


def _ready(node: ir.Node, refuse: Refuse | None) -> bool:
    """Whether weight and bias are the node's own, and its bias is one value a channel where there is one."""
    if refuse is not None and refuse(node) is not None:
        return False
    given = [value for value in node.inputs[1:] if value is not None]
    if len(node.inputs) < 2 or node.inputs[1] is None or any(held_constant(value, "constant") for value in given):
        return False
    if node.op_type == "Gemm":
        attributes = node.attributes
        plain = attributes.get_float("alpha", 1.0) == attributes.get_float("beta", 1.0) == 1.0
        if not plain or attributes.get_int("transA", 0) != 0 or _weight(node).ndim != 2:
            return False
    return all(
        value.const_value is not None and value.const_value.shape.numpy() == (_outputs(node),) for value in given[1:]
    )


def _unpadded(node: ir.Node) -> bool:
    return node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID") and not any(
        node.attributes.get_ints("pads", ())
    )


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    producer = value.producer()
    if len(uses) != 1 or value.is_graph_output() or producer is None or uses[0].node.graph is not producer.graph:
        return None
    return uses[0].node


def _constant_parts(
    model: ir.Model, passages: Sequence[_Passage], feeds: Feeds, threads: int, samples: int
) -> list[Float]:
    """For each passage what is always there of each channel, shape (C,)."""
    names = [passage.before.outputs[0].name or "" for passage in passages]
    lowest: dict[str, Float] = {}
    sums: dict[str, Float] = {}
    squares: dict[str, Float] = {}
    count = 0
    for values in stream(model, names, feeds, limit=samples, threads=threads):
        count += 1
        for name in names:
            low, mean, square = _moments(values[name])
            lowest[name] = np.minimum(lowest.get(name, np.inf), low)
            sums[name], squares[name] = sums.get(name, 0.0) + mean, squares.get(name, 0.0) + square
    if not count:
        raise DataError(f"{feeds.source}: no samples to calibrate on")
    found: list[Float] = []
    for name in names:
        mean = sums[name] / count
        deviation = np.sqrt(np.maximum(squares[name] / count - mean**2, 0.0))
        part = np.minimum(mean - 3 * deviation, lowest[name])
        found.append(np.where(np.isfinite(part), np.maximum(part, 0.0), 0.0))
    return found


def _moments(value: NDArray[Any]) -> tuple[Float, Float, Float]:
    """Minimum, mean and mean square of each channel (axis 1)."""
    axes = tuple(axis for axis in range(value.ndim) if axis != 1)
    lowest: Float = value.min(axis=axes).astype(np.float64)
    return lowest, value.mean(axis=axes, dtype=np.float64), np.square(value, dtype=np.float64).mean(axis=axes)


def _through(node: ir.Node, parts: Float) -> Float:
    """What constant inputs add to the outputs of a layer without padding, shape (Co,)."""
    weight = _weight(node).astype(np.float64)
    if node.op_type == "Gemm":
        product: Float = weight @ parts if node.attributes.get_int("transB", 0) != 0 else parts @ weight
        return product
    group = node.attributes.get_int("group", 1)
    summed = weight.reshape(group, -1, weight.shape[1], int(np.prod(weight.shape[2:]))).sum(axis=3)
    result: Float = np.einsum("goc,gc->go", summed, parts.reshape(group, -1))
    return result.reshape(-1)


def _weight(node: ir.Node) -> NDArray[np.float32]:
    value = node.inputs[1]
    assert value is not None and value.const_value is not None
    array: NDArray[np.float32] = value.const_value.numpy()
    return array


def _outputs(node: ir.Node) -> int:
    shape = _weight(node).shape
    return int(shape[1] if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 0 else shape[0])


def _add_to_bias(node: ir.Node, change: Float) -> None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and bias.const_value is not None:
        array = (bias.const_value.numpy().astype(np.float64) + change).astype(np.float32)
        bias.const_value = ir.tensor(array, name=bias.name)
        return
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    name = unique_name(graph, f"{node.name or node.outputs[0].name}.bias")
    new = add_initializer(graph, name, change.astype(np.float32))
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, new)
