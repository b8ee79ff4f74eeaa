"""What a model takes when channels, forms of layers and blocks are chosen together: their costs multiply.

A layer that loses a share of its inputs and a share of its outputs keeps the product of what is left, and so does each
matrix of a decomposed layer; a block that is dropped takes its layers along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxcomp.allocation.menu import Choice
from onnxcomp.allocation.problem import Setting, group_shape
from onnxcomp.allocation.targets import Resource
from onnxcomp.cost import Cost
from onnxcomp.decomposition.base import Decomposition
from onnxcomp.graph.sites import Site

__all__ = ["CoupledCosts", "Layer"]

Float = NDArray[np.float64]
Picks = Sequence[int]

# Channels, in units of a layer's own, at which a form is costed besides; its cost is bilinear in both sides. With fewer
# channels some of its ranks would be full and their matrices gone.
_MORE = 2
# What one number of a bias takes.
_OF_BIAS: dict[Resource, float] = {"parameters": 1.0, "bytes": 4.0}


@dataclass(frozen=True, eq=False)
class Layer:
    """A weighted layer.

    Attributes:
        site: The layer in the original.
        ms: Its time, milliseconds; None where nothing was timed.
        ins: For each group, how many of its input channels one class is, (groups,); zeros for a depthwise layer, of
            which `outs` tells all.
        outs: The same of its output channels, (groups,).
        choices: What it may become; the first one is what it is.
        blocks: For each block, whether it holds the layer, (blocks,).
    """

    site: Site
    ms: float | None
    ins: Float
    outs: Float
    choices: tuple[Choice, ...]
    blocks: NDArray[np.bool_]


class CoupledCosts:
    """Costs by picks: one a layer (of its choices), then one a group (of its counts), then one a block (0 or 1: goes).

    Args:
        layers: The layers.
        counts: For each group the numbers of classes that may be kept, the first of them all.
        resource: What is scarce.
        whole: What the model takes of it.
        blocks: Number of blocks.
    """

    def __init__(
        self, layers: Sequence[Layer], counts: Sequence[Sequence[int]], blocks: int, resource: Resource, whole: float
    ) -> None:
        self.whole = whole
        self._shape = (len(layers), len(counts), blocks)
        self._removed = [own[0] - np.asarray(own, np.float64) for own in counts]
        self._ins = np.array([own.ins / own.site.channels_in for own in layers]).reshape(len(layers), len(counts))
        self._outs = np.array([own.outs / own.site.channels_out for own in layers]).reshape(len(layers), len(counts))
        self._held = np.array([own.blocks for own in layers], np.bool_).reshape(len(layers), blocks)
        self._parts = [np.array([_bilinear(own, choice, resource) for choice in own.choices]) for own in layers]
        alone = float(sum(parts[0].sum() for parts in self._parts))
        # Layers alone can take longer than together: caches and threads are their own.
        scale = whole / alone if resource == "ms" and alone > whole > 0.0 else 1.0
        self._parts = [parts * scale for parts in self._parts]
        self._fixed = whole - alone * scale

    def total(self, picks: Picks) -> float:
        """What the whole model takes."""
        ins, outs = self._left(picks)
        chosen = np.array([parts[pick] for parts, pick in zip(self._parts, picks, strict=False)]).reshape(-1, 4)
        return self._fixed + float((_amounts(chosen, ins, outs) * self._alive(picks)).sum())

    def of(self, variable: int, picks: Picks) -> Float:
        """What every option of a variable takes with all other picks as they are, but for what none of them changes."""
        layers, groups, _ = self._shape
        ins, outs = self._left(picks)
        alive = self._alive(picks)
        if variable < layers:
            own: Float = _amounts(self._parts[variable], ins[variable], outs[variable]) * alive[variable]
            return own
        chosen = np.array([parts[pick] for parts, pick in zip(self._parts, picks, strict=False)]).reshape(-1, 4)
        if variable < layers + groups:
            return self._of_group(variable - layers, picks[variable], chosen, ins, outs, alive)
        held = self._held[:, variable - layers - groups]
        others = self._alive([*picks[:variable], 0, *picks[variable + 1 :]])
        return np.array([float((_amounts(chosen, ins, outs) * others)[held].sum()), 0.0])

    def _of_group(self, group: int, pick: int, chosen: Float, ins: Float, outs: Float, alive: Float) -> Float:
        mine = (self._ins[:, group] > 0) | (self._outs[:, group] > 0)
        removed = self._removed[group] - self._removed[group][pick]
        less_in = ins[mine, None] - self._ins[mine, group, None] * removed
        less_out = outs[mine, None] - self._outs[mine, group, None] * removed
        amounts = _amounts(chosen[mine, None, :], less_in, less_out) * alive[mine, None]
        return np.asarray(amounts.sum(axis=0), np.float64)

    def _left(self, picks: Picks) -> tuple[Float, Float]:
        """Shares of the input and output channels of each layer that are left."""
        layers, groups, _ = self._shape
        own = picks[layers : layers + groups]
        removed = np.array([counts[pick] for counts, pick in zip(self._removed, own, strict=True)], np.float64)
        return 1.0 - self._ins @ removed, 1.0 - self._outs @ removed

    def _alive(self, picks: Picks) -> Float:
        dropped = np.asarray(picks[len(picks) - self._shape[2] :], np.bool_)
        return np.asarray(~(self._held & dropped).any(axis=1), np.float64)


def _amounts(parts: Float, ins: Float, outs: Float) -> Float:
    """Bilinear amounts, parts (..., 4) at shares of inputs and outputs."""
    found: Float = parts[..., 0] + parts[..., 1] * ins + parts[..., 2] * outs + parts[..., 3] * ins * outs
    return found


def _bilinear(layer: Layer, choice: Choice, resource: Resource) -> Float:
    """The coefficients (4,) of 1, the share of inputs, the share of outputs, and their product in a choice's amount."""
    full = _amount(layer, choice, choice.cost, resource)
    if choice.scored is None:
        offsets = _OF_BIAS.get(resource, 0.0) * (0 if layer.site.bias is None else len(layer.site.bias))
        return np.array([0.0, 0.0, offsets, full - offsets])
    form, setting = choice.scored.form, choice.scored.setting
    assert isinstance(form, Decomposition), "layers are decomposed"
    corners = [_cost(form, setting, layer.site, *sides) for sides in ((_MORE, 1), (1, _MORE), (_MORE, _MORE))]
    more_ins, more_outs, more = (_amount(layer, choice, cost, resource) for cost in corners)
    product = (more - more_ins - more_outs + full) / (_MORE - 1) ** 2
    by_ins = (more_ins - full) / (_MORE - 1) - product
    by_outs = (more_outs - full) / (_MORE - 1) - product
    return np.array([full - by_ins - by_outs - product, by_ins, by_outs, product])


def _cost(form: Decomposition, setting: Setting, site: Site, ins: int, outs: int) -> Cost:
    """What a form costs at a site with more channels; ranks that are full stay full."""
    larger = _widened(site, ins, outs)
    full, limits = (form.full(group_shape(own), setting.order) for own in (site, larger))
    ranks = (most if rank >= own else rank for rank, own, most in zip(setting.ranks, full, limits, strict=True))
    return form.cost(larger, replace(setting, ranks=tuple(ranks)))


def _amount(layer: Layer, choice: Choice, cost: Cost, resource: Resource) -> float:
    if resource == "bytes":
        return float(cost.bytes)
    if resource == "parameters":
        return float(cost.parameters)
    if resource == "macs":
        return float(cost.macs or 0)
    time = 0.0 if layer.ms is None else layer.ms * (1.0 if choice.time is None else choice.time)
    whole = choice.cost
    share = cost.macs / whole.macs if cost.macs and whole.macs else cost.parameters / max(whole.parameters, 1)
    return time * share


def _widened(site: Site, ins: int, outs: int) -> Site:
    """The site with several times its channels, of no particular weights."""
    first, second = (ins, outs) if site.geometry.transposed else (outs, ins)
    shape = (first * site.weight.shape[0], second * site.weight.shape[1], *site.weight.shape[2:])
    bias = None if site.bias is None else np.zeros(outs * len(site.bias), np.float32)
    return replace(site, weight=np.broadcast_to(np.float32(0), shape), bias=bias)
