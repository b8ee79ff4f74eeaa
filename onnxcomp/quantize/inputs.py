"""An image that is quantized channel by channel, on the grid of its own pixels where it has one.

The normalised channels of an image have steps of their own, so that one grid for all of them adds noise at the very
start of the network. Here each channel gets its own scale and zero point - with those of 8-bit pixels the rounding is
exact, but for a constant where no pixel is 0, which is a matter of the bias - and the first convolution takes them up
into its weight: x = s_c (t - a_c), so that

    W * x + b = (W s_c) * t + (b - sum W s_c a_c).

A convolution that pads needs the pads of x, not of t; they become a Pad node of their own. In floating point the model
computes the same as before. Once t is quantized with scale 1, :func:`merge` turns Mul, Add and QuantizeLinear into one
QuantizeLinear with a scale for each channel, which costs what the one for all costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.data import Feeds
from onnxcomp.graph.edit import ORIGIN, PASS, add_initializer, drop_unused, names_of, origin_of, unique_name
from onnxcomp.graph.sites import Site, conv_site, static_shape
from onnxcomp.numeric.lattice import channel_grid, lattice_step

__all__ = ["Spread", "merge", "spread_inputs"]

Float = NDArray[np.float64]

# Ratio of the channels' scales up to which only exact grids are worth their place.
_ALIKE = 1.25
# Values of a channel that are looked at for a lattice.
_PROBE = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """An input that was spread.

    Attributes:
        source: Name of the graph input.
        tensor: Name of t.
        low: The value of t that becomes the first level of its grid.
        exact: Whether all calibration values lie on the grid, but for a constant of each channel.
        facts: What a report says of it: of all channels together the range, their number and the largest scale.
        step: Of that grid: 1 where the input was spread; else t is the input itself, as all channels have one grid.
    """

    source: str
    tensor: str
    low: float
    exact: bool
    facts: Mapping[str, float | str] = field(default_factory=dict[str, "float | str"])
    step: float = 1.0

    @property
    def plain(self) -> bool:
        """Whether one grid does for all channels, so that the model was left as it is."""
        return self.tensor == self.source


def spread_inputs(
    model: ir.Model, feeds: Feeds, quantizes: Callable[[ir.Node], bool], *, limit: int | None = None
) -> tuple[Spread, ...]:
    """Give the channels of image inputs grids of their own; the model computes the same, in place.

    Args:
        model: A canonical model.
        feeds: The data.
        quantizes: Whether a convolution will be computed on integers.
        limit: At most that many samples.
    """
    sites = {source.name: site for source, site in _first_layers(model) if quantizes(site.node) and source.name}
    if not sites:
        return ()
    seen = {name: _Channels(site.channels_in) for name, site in sites.items()}
    for feed in feeds.watched("read inputs", limit):
        for name, channels in seen.items():
            channels.update(feed[name])
    spreads: list[Spread] = []
    taken = names_of(model.graph)
    for name, site in sites.items():
        scales, zeros, exact = seen[name].grids()
        alike = scales.max() < _ALIKE * scales.min()
        if not np.isfinite(scales).all() or (alike and not exact):
            continue  # one grid for all does as well then, and its range may follow a better rule
        if (scales == scales[0]).all() and (zeros == zeros[0]).all():
            spreads.append(Spread(name, name, -float(zeros[0] * scales[0]), exact, step=float(scales[0])))
        else:
            spreads.append(_rewrite(model.graph, site, scales, zeros, exact, taken))
    return tuple(spreads)


def _first_layers(model: ir.Model) -> Iterator[tuple[ir.Value, Site]]:
    """Inputs of several channels that only one convolution reads, and that."""
    for value in model.graph.inputs:
        users = list(value.uses())
        if len(users) != 1 or value.is_graph_output() or value.dtype != ir.DataType.FLOAT or value.is_initializer():
            continue
        node, index = users[0]
        if node.op_type != "Conv" or index != 0 or node.graph is not model.graph:
            continue
        site = conv_site(node)
        known = isinstance(site, Site) and site.geometry.auto_pad == "NOTSET" and site.channels_in > 1
        if known and isinstance(site, Site) and min(site.geometry.pads) >= 0:
            yield value, site


class _Channels:
    """Extremes of each channel of an input, and different values of its first samples."""

    def __init__(self, count: int) -> None:
        self.low, self.high = np.zeros(count), np.zeros(count)
        self._probes: list[list[NDArray[np.float32]]] = [[] for _ in range(count)]
        self._seen = 0

    def update(self, x: NDArray[Any]) -> None:
        rows = np.moveaxis(x, 1, 0).reshape(len(self.low), -1)
        self.low = np.minimum(self.low, rows.min(axis=1)) if self._seen else rows.min(axis=1).astype(np.float64)
        self.high = np.maximum(self.high, rows.max(axis=1)) if self._seen else rows.max(axis=1).astype(np.float64)
        if self._seen < _PROBE:
            for probes, row in zip(self._probes, rows, strict=True):
                probes.append(np.unique(row[:_PROBE]))
        self._seen += rows.shape[1]

    def grids(self) -> tuple[Float, NDArray[np.int64], bool]:
        """Scales and zero points, and whether every channel has the grid of its lattice."""
        steps = [self._step(probes, k) for k, probes in enumerate(self._probes)]
        grids = [channel_grid(low, high, step) for low, high, step in zip(self.low, self.high, steps, strict=True)]
        scales, zeros = np.array([g[0] for g in grids]), np.array([g[1] for g in grids])
        return scales, zeros, all(scale == step for scale, step in zip(scales, steps, strict=True))

    def _step(self, probes: list[NDArray[np.float32]], channel: int) -> float | None:
        values = np.unique(np.concatenate([*probes, np.array([self.low[channel], self.high[channel]], np.float32)]))
        return lattice_step(values.astype(np.float64))


def _rewrite(
    graph: ir.Graph, site: Site, scales: Float, zeros: NDArray[np.int64], exact: bool, taken: set[str]
) -> Spread:
    node, source = site.node, site.node.inputs[0]
    assert source is not None and source.name and node.inputs[1] is not None
    middle = round(float(zeros.mean()))
    offsets = (zeros - middle).astype(np.float64)
    rank = site.geometry.rank
    shape = (1, -1, *(1,) * rank)
    made: list[ir.Node] = []

    def add(op_type: str, value: ir.Value, constant: NDArray[np.generic]) -> ir.Value:
        base = f"{source.name}.{op_type.lower()}"
        operand = add_initializer(graph, unique_name(graph, f"{base}.by", taken), constant)
        new = ir.node(op_type, [value, operand], name=unique_name(graph, base, taken))
        new.metadata_props.update({ORIGIN: origin_of(node), PASS: "int8"})
        new.outputs[0].name = unique_name(graph, f"{base}.out", taken)
        new.outputs[0].type, new.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), _padded(value, constant, op_type)
        made.append(new)
        return new.outputs[0]

    value = source
    if any(site.geometry.pads) and offsets.any():
        pads = (0, 0, *site.geometry.pads[:rank], 0, 0, *site.geometry.pads[rank:])
        value = add("Pad", value, np.array(pads, np.int64))
        for name in ("pads", "auto_pad"):
            node.attributes.pop(name, None)
        node.attributes["pads"] = ir.AttrInt64s("pads", (0,) * 2 * rank)
    value = add("Mul", value, (1.0 / scales).astype(np.float32).reshape(shape))
    value = add("Add", value, offsets.astype(np.float32).reshape(shape))
    graph.insert_before(node, made)
    _take_up(graph, site, scales, offsets, taken)
    node.replace_input_with(0, value)
    assert value.name
    return Spread(source.name, value.name, float(-middle), exact, _facts(source.name, scales, zeros))


def _facts(source: str, scales: Float, zeros: NDArray[np.int64]) -> dict[str, float | str]:
    low, high = float((scales * -zeros).min()), float((scales * (255 - zeros)).max())
    return {"tensor": source, "low": low, "high": high, "scale": float(scales.max()), "channels": len(scales)}


def _padded(value: ir.Value, pads: NDArray[np.generic], op_type: str) -> ir.Shape | None:
    shape = static_shape(value)
    if op_type != "Pad" or not shape or value.shape is None:
        return value.shape
    more = pads.reshape(2, -1).sum(axis=0)
    return ir.Shape([d + int(more[i]) if isinstance(d, int) else d for i, d in enumerate(value.shape)])


def _take_up(graph: ir.Graph, site: Site, scales: Float, offsets: Float, taken: set[str]) -> None:
    """Let the convolution's weight and bias compute from t what they computed from x."""
    node, rank = site.node, site.geometry.rank
    groups = site.geometry.group
    per = site.channels_in // groups
    # Channel c of group g is row c - g * per of the weight's second axis.
    own = np.repeat(scales.reshape(groups, per), site.channels_out // groups, axis=0)
    weight = site.weight.astype(np.float64) * own.reshape(*own.shape, *(1,) * rank)
    moved = np.repeat(offsets.reshape(groups, per), site.channels_out // groups, axis=0)
    shift = (weight.reshape(*own.shape, prod(site.geometry.kernel)).sum(axis=2) * moved).sum(axis=1)
    bias = -shift + (0.0 if site.bias is None else site.bias.reshape(-1))
    old = [v for v in node.inputs[1:] if v is not None]
    base = old[0].name or "weight"
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    for index, (suffix, array) in enumerate((("spread", weight), ("spread.bias", bias)), start=1):
        name = unique_name(graph, f"{base}.{suffix}", taken)
        node.replace_input_with(index, add_initializer(graph, name, array.astype(np.float32)))
    drop_unused(graph, old)


def merge(model: ir.Model, spreads: tuple[Spread, ...]) -> None:
    """Turn Mul, Add and QuantizeLinear of each spread input into one QuantizeLinear with scales a channel, in place."""
    graph = model.graph
    taken = names_of(graph)
    for spread in (s for s in spreads if not s.plain):
        add = next(n for n in graph if n.op_type == "Add" and n.outputs[0].name == spread.tensor)
        pair = next(user for user, _ in add.outputs[0].uses())
        times = add.inputs[0].producer() if add.inputs[0] is not None else None
        assert times is not None and pair.op_type == "QuantizeLinear"
        factors, offsets, zero = (_constant(v) for v in (times.inputs[1], add.inputs[1], pair.inputs[2]))
        scale = (1.0 / factors.reshape(-1).astype(np.float64)).astype(np.float32)
        zeros = (offsets.reshape(-1) + zero.astype(np.float64)).astype(zero.dtype)
        new = [
            add_initializer(graph, unique_name(graph, f"{spread.source}.{what}", taken), array)
            for what, array in (("scale", scale), ("zero_point", zeros))
        ]
        old = [v for v in (times.inputs[1], add.inputs[1], *pair.inputs[1:]) if v is not None]
        pair.replace_input_with(0, times.inputs[0])
        pair.replace_input_with(1, new[0])
        pair.replace_input_with(2, new[1])
        pair.attributes["axis"] = ir.AttrInt64("axis", 1)
        graph.remove([add, times], safe=True)
        drop_unused(graph, old)


def _constant(value: ir.Value | None) -> NDArray[Any]:
    assert value is not None and value.const_value is not None
    array: NDArray[Any] = value.const_value.numpy()
    return array
