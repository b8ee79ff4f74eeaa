"""Figures that go with a table: what they show, not how it is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

__all__ = ["Bars", "Curve", "Figure", "Panels"]

_LEAST = 2  # points that make a curve


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

    def __post_init__(self) -> None:
        if any(len(values) != len(self.labels) for _, values in self.series):
            raise ValueError(f"bars: every series has one value for each of the {len(self.labels)} labels")

    @property
    def drawable(self) -> bool:
        """Whether there is any bar."""
        values = (value for _, own in self.series for value in own if value is not None)
        return any(isfinite(value) and value != 0.0 for value in values)


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

    @property
    def drawable(self) -> bool:
        """Whether two points can be drawn at least."""
        return sum(isfinite(x) and isfinite(y) and y > 0.0 for x, y in self.points) >= _LEAST


@dataclass(frozen=True, slots=True)
class Panels:
    """Several figures of bars over the same things, of which a reader sees one at a time.

    Attributes:
        figures: (name, bars); the names are what a reader chooses from.
    """

    figures: tuple[tuple[str, Bars], ...]

    @property
    def drawable(self) -> bool:
        """Whether any of them can be drawn."""
        return any(bars.drawable for _, bars in self.figures)


Figure = Bars | Curve | Panels
