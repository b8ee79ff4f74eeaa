"""The same share of channels for every group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcomp.allocation.targets import Resource
from onnxcomp.channels.applying import Decided, layers_of
from onnxcomp.channels.costs import CoupledCosts
from onnxcomp.channels.joint import step_of
from onnxcomp.channels.planning import Planner, coupled_layers
from onnxcomp.channels.scoring import GroupScores
from onnxcomp.contract import Context
from onnxcomp.cost import model_cost
from onnxcomp.decomposition.ranking import rank_step

__all__ = ["same_channels", "same_macs"]

_HALVINGS = 30


def same_channels(planner: Planner, model: ir.Model, share: float, context: Context) -> tuple[Decided, str]:
    """Keep a share of the channels of every group, rounded down."""
    groups, scores = planner.scores(model, context)
    return _removing(groups.count, scores.groups, _kept(scores.groups, share, rank_step(context))), ""


def same_macs(planner: Planner, model: ir.Model, share: float, context: Context) -> tuple[Decided, str]:
    """Keep the largest common share of channels with which no more than a share of the model's MACs is left.

    Parameters are counted where MACs are not known.

    Returns:
        What to do, and what the user should know.
    """
    groups, scores = planner.scores(model, context)
    offered, step, cost = scores.groups, rank_step(context), model_cost(model)
    layers = coupled_layers(layers_of(model), groups, offered, {}, {}, ())
    resource: Resource = "parameters" if cost.macs is None else "macs"
    whole = cost.parameters if cost.macs is None else cost.macs
    start = [0] * len(layers)

    def left(common: float) -> float:
        counts = [(own.size, count) for own, count in zip(offered, _kept(offered, common, step), strict=True)]
        return CoupledCosts(layers, counts, 0, resource, float(whole)).total([*start, *(1 for _ in counts)])

    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if left(middle) <= share * whole else (low, middle)
    note = "" if left(low) <= share * whole else f"out of reach: {left(low) / whole:.3g} of the {resource} are left"
    return _removing(groups.count, offered, _kept(offered, low, step)), note


def _kept(groups: Sequence[GroupScores], share: float, step: int) -> list[int]:
    """How many classes of each group stay: a multiple of the step, but of a group that is too small."""
    found: list[int] = []
    for own in groups:
        unit = step_of(own.size, step)
        found.append(min(max(int(share * own.size + 1e-9) // unit * unit, min(unit, own.size)), own.size))
    return found


def _removing(count: int, groups: Sequence[GroupScores], kept: Sequence[int]) -> Decided:
    removed = np.zeros(count + 1, np.bool_)
    for own, left in zip(groups, kept, strict=True):
        removed[own.order[: own.size - left]] = True
    return Decided(removed)
