"""All that may be done to a model at once: forms of layers, counts of channels, blocks; and the picks that pay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcomp.allocation.targets import Resource
from onnxcomp.channels.costs import CoupledCosts, Layer
from onnxcomp.channels.scoring import GroupScores
from onnxcomp.graph.blocks import Block
from onnxcomp.numeric import coupled

__all__ = ["Joint", "Options", "counts_of", "step_of"]

Float = NDArray[np.float64]

# Numbers of channels that are offered for each group, evenly spread.
_COUNTS = 16
# Groups of no more of the runtime's blocks of channels than this are cut in half blocks.
_NARROW = 2

# Prices of the frontier that the report shows, in units of all losses for all of the resource.
_LOWEST, _HIGHEST, _PRICES = 1e-6, 10.0, 24


@dataclass(frozen=True, eq=False)
class Options:
    """What may be done.

    Attributes:
        layers: Every weighted layer, with its forms.
        groups: The groups that may be pruned.
        counts: For each, the numbers of classes that may be kept, the first of them all.
        losses: For each, what these are expected to cost the worst output, as relative squared errors.
        blocks: The blocks that may be dropped; no two of them overlap.
        drops: What dropping each is expected to cost.
    """

    layers: tuple[Layer, ...]
    groups: tuple[GroupScores, ...]
    counts: tuple[tuple[int, ...], ...]
    losses: tuple[Float, ...]
    blocks: tuple[Block, ...] = ()
    drops: tuple[float, ...] = ()


class Joint:
    """The options as costs and losses, for one resource.

    Args:
        options: The options.
        resource: What is scarce.
        whole: What the model takes of it.
        added: What fitting the layers may add to that.
    """

    def __init__(self, options: Options, resource: Resource, whole: float, added: float = 0.0) -> None:
        self.options = options
        self.resource: Resource = resource
        self.whole = whole
        self._added = added
        self._costs = CoupledCosts(options.layers, options.counts, len(options.blocks), resource, whole)
        forms = [np.array([np.inf if c.why else c.loss for c in layer.choices]) for layer in options.layers]
        blocks = [np.array([0.0, drop]) for drop in options.drops]
        self._losses: list[Float] = [*forms, *options.losses, *blocks]

    @property
    def untouched(self) -> list[int]:
        """The picks that leave everything as it is."""
        return [0] * len(self._losses)

    def within(self, budget: float) -> list[int] | None:
        """The picks that lose least and bring the whole model to `budget` or less; None where none are found."""
        return coupled.within(self._losses, self._costs.of, self._costs.total, budget - self._added)

    def losing(self, allowed: float) -> list[int]:
        """The picks that take least and are expected to lose `allowed` at most."""
        return coupled.losing(self._losses, self._costs.of, self._costs.total, allowed)

    def least(self) -> list[int]:
        """The picks that take least, whatever they lose."""
        free = [np.where(np.isfinite(loss), 0.0, np.inf) for loss in self._losses]
        return coupled.trade(free, self._costs.of, self.untouched, 1.0)

    def path(self) -> list[list[int]]:
        """Picks at rising prices, from nothing changed to the least: some of the frontier."""
        scale = max(sum(float(loss[np.isfinite(loss)].max()) for loss in self._losses), 1e-12) / (self.whole or 1.0)
        found = [self.untouched]
        for price in np.geomspace(_LOWEST, _HIGHEST, _PRICES) * scale:
            picks = coupled.trade(self._losses, self._costs.of, found[-1], float(price))
            if picks != found[-1]:
                found.append(picks)
        return found

    def total(self, picks: Sequence[int]) -> float:
        """What the whole model takes with these picks."""
        return self._costs.total(picks)

    def loss(self, picks: Sequence[int]) -> float:
        """The relative squared error that is expected of the worst output."""
        return float(sum(loss[pick] for loss, pick in zip(self._losses, picks, strict=True)))


def step_of(size: int, step: int) -> int:
    """The step in which the classes of a group are counted: half the usual one in small groups."""
    return step if size > _NARROW * step else max(step // 2, 1)


def counts_of(size: int, step: int) -> tuple[int, ...]:
    """The numbers of classes of a group that may be kept: all, and multiples of its step."""
    unit = step_of(size, step)
    below = list(range(unit, size, unit))
    if len(below) > _COUNTS:
        at = np.linspace(0, len(below) - 1, _COUNTS).round().astype(np.int64)
        below = [below[i] for i in at]
    return (size, *reversed(below))
