"""Figures that go with a table: what they show, not how it is drawn."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Bars", "Curve", "Figure"]


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars of one or more series over the same labels, such as milliseconds before and after of every layer.

    Attributes:
        labels: What each group of bars stands for.
        series: (name, values), as many values as labels; None: not known, no bar.
        unit: Of the values, such as ``ms``; what the axis says.
        log: Whether the axis is logarithmic; values of 0 are not drawn then.
    """

    labels: tuple[str, ...]
    series: tuple[tuple[str, tuple[float | None, ...]], ...]
    unit: str
    log: bool = False


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve over a share, on a logarithmic scale.

    Attributes:
        points: (share, value); values of 0 are not drawn.
        marked: Index of the point that is marked.
        across: What the share is of.
        up: What the value is.
        notes: A line about each point, for where a reader can point at it; empty: none.
    """

    points: tuple[tuple[float, float], ...]
    marked: int
    across: str
    up: str
    notes: tuple[str, ...] = ()


Figure = Bars | Curve
