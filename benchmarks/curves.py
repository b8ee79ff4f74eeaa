"""What an allocator reaches between the points that were compiled: interpolation over MACs or time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["Axis", "Curve", "Point"]

Axis = Literal["macs", "time"]


@dataclass(frozen=True)
class Point:
    """A compiled file: shares of the original's MACs and time, points of top-1 lost, SQNR of the outputs in dB."""

    form: str
    macs: float
    time: float
    lost: float
    decibels: float

    def cost(self, axis: Axis) -> float:
        return self.macs if axis == "macs" else self.time


class Curve:
    """The points of one allocator that no other one of it beats, over the logarithm of a cost."""

    def __init__(self, points: Sequence[Point], axis: Axis) -> None:
        self._axis: Axis = axis
        front: list[Point] = []
        for point in sorted(points, key=lambda point: point.cost(axis)):
            if not front or point.decibels > front[-1].decibels:
                front.append(point)
        self._front = front

    def told(self, other: Point) -> str:
        """Drop and dB at the cost of another point.

        Above the dearest point they are that one's, which costs less ("<"). Below the cheapest one nothing is known.
        """
        costs = [point.cost(self._axis) for point in self._front]
        cost = other.cost(self._axis)
        if not np.isfinite(other.decibels):
            return "changes nothing"
        if not costs or cost < costs[0]:
            return "-"
        at = np.log(costs)
        lost = np.interp(np.log(cost), at, [point.lost for point in self._front])
        decibels = np.interp(np.log(cost), at, [point.decibels for point in self._front])
        mark = "<" if cost > costs[-1] else ""
        verdict = "" if decibels > other.decibels else " (the form alone is better)"
        return f"{mark}{lost:.2f} / {decibels:.1f}{verdict}"
