"""What the report tells of a plan: every candidate that was on offer, and the frontier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from onnxcomp.allocation.targets import Resource, Totals
from onnxcomp.channels.costs import CoupledCosts
from onnxcomp.channels.joint import Joint, Options
from onnxcomp.contract import FrontierPoint, Offer
from onnxcomp.graph.edit import origin_of
from onnxcomp.numeric.hull import hull

__all__ = ["frontier_of", "offers_of"]

_RESOURCES: tuple[Resource, ...] = ("macs", "parameters", "bytes", "ms")


def offers_of(options: Options, totals: Totals, picks: Sequence[int]) -> tuple[Offer, ...]:
    """Every candidate beside all others as they are: forms of layers, numbers of channels of groups, blocks.

    A group is named after the first layer that writes it, and takes what all layers take that hold its channels.
    """
    costs = _costs(options, totals)
    untouched = [0] * len(picks)
    variables = (*_forms(options), *_counts(options), *_drops(options))
    found: list[Offer] = []
    for variable, (name, choices) in enumerate(variables):
        taken = {resource: own.of(variable, untouched) for resource, own in costs.items()}
        ms = taken.get("ms")
        for index, (words, error, loss, why) in enumerate(choices, 1):
            found.append(
                Offer(
                    site=name,
                    form=words,
                    macs=round(float(taken["macs"][index])) if "macs" in taken else None,
                    parameters=round(float(taken["parameters"][index])),
                    bytes=round(float(taken["bytes"][index])),
                    time=float(ms[index] / ms[0]) if ms is not None and ms[0] else None,
                    site_ms=float(ms[0]) if ms is not None else None,
                    error=error,
                    loss=loss,
                    chosen=index == picks[variable],
                    why=why,
                )
            )
    return tuple(found)


def frontier_of(options: Options, totals: Totals, joint: Joint, picks: Sequence[int]) -> tuple[FrontierPoint, ...]:
    """The frontier in what was scarce, as prices of it find it, and what was chosen among it, by falling cost."""
    costs = _costs(options, totals)
    path = joint.path()
    amounts, losses = np.array([joint.total(own) for own in path]), np.array([joint.loss(own) for own in path])
    corners = [path[index] for index in hull(amounts, losses)]
    points = [_point(costs, joint, own, chosen=False) for own in corners if tuple(own) != tuple(picks)]
    points.append(_point(costs, joint, picks, chosen=True))
    return tuple(sorted(points, key=lambda point: (point.loss, -point.bytes)))


Choices = list[tuple[str, float, float, str]]


def _forms(options: Options) -> Iterator[tuple[str, Choices]]:
    for layer in options.layers:
        yield layer.site.name, [(own.spec, own.error, own.loss, own.why) for own in layer.choices[1:]]


def _counts(options: Options) -> Iterator[tuple[str, Choices]]:
    for group, counts, losses in zip(options.groups, options.counts, options.losses, strict=True):
        named = group.group.producers or group.group.consumers
        choices: Choices = []
        for count, loss in zip(counts[1:], losses[1:], strict=True):
            error = float(group.errors[:, group.size - count].max(initial=0.0))
            choices.append((f"{count} of {group.size} channels", error, float(loss), ""))
        yield origin_of(named[0]), choices


def _drops(options: Options) -> Iterator[tuple[str, Choices]]:
    for block, loss in zip(options.blocks, options.drops, strict=True):
        yield block.name, [("without the block", loss, loss, "")]


def _costs(options: Options, totals: Totals) -> dict[Resource, CoupledCosts]:
    """Costs in every resource that is known."""
    found: dict[Resource, CoupledCosts] = {}
    for resource in _RESOURCES:
        whole = totals.of(resource)
        if not np.isnan(whole):
            found[resource] = CoupledCosts(options.layers, options.counts, len(options.blocks), resource, whole)
    return found


def _point(costs: dict[Resource, CoupledCosts], joint: Joint, picks: Sequence[int], *, chosen: bool) -> FrontierPoint:
    taken = {resource: own.total(picks) for resource, own in costs.items()}
    return FrontierPoint(
        macs=round(taken["macs"]) if "macs" in taken else None,
        bytes=round(taken["bytes"]),
        time_ms=taken.get("ms"),
        loss=joint.loss(picks),
        chosen=chosen,
    )
