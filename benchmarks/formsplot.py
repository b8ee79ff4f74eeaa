"""The plot of forms against the allocator: error of the outputs over MACs and over latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curves import Axis, Point

__all__ = ["Panel", "draw"]

_TICKS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0)
_COLOURS = {"tucker2": "C0", "spatial": "C1", "channel": "C2", "depthwise": "C3", "cp": "C4", "structured": "C5"}


@dataclass(frozen=True)
class Panel:
    """Points over one axis; those of a form are joined by a line."""

    title: str
    axis: Axis
    points: tuple[Point, ...]


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Write an SVG, the same bytes for the same points; two panels a row."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "forms", "svg.fonttype": "none", "font.size": 9})
    rows = -(-len(panels) // 2)
    figure, grid = plt.subplots(rows, 2, figsize=(9, 3.4 * rows), squeeze=False, layout="constrained")
    places = list(grid.flat)
    for place in places[len(panels) :]:
        place.set_axis_off()
    for panel, place in zip(panels, places, strict=False):
        _fill(panel, place)
        place.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _fill(panel: Panel, place: Any) -> None:
    for form in dict.fromkeys(point.form for point in panel.points):
        line = sorted((point.cost(panel.axis), point.decibels) for point in panel.points if point.form == form)
        best = form == "decompose"
        style = {"color": "black", "lw": 2, "zorder": 3} if best else {"color": _COLOURS[form], "lw": 0.8}
        place.plot(*zip(*line, strict=True), marker="o" if best else "x", label=form, **style)
    costs = [point.cost(panel.axis) for point in panel.points]
    place.set_xlabel(f"{'MACs' if panel.axis == 'macs' else 'time'}, share of the original's")
    place.set_xscale("log")
    place.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
    place.set_xticks([], minor=True)
    place.set_xlim(min(costs) / 1.1, max(costs) * 1.1)
    place.set_ylabel("SQNR of the outputs, dB")
    place.set_title(panel.title, fontsize=9)
    place.grid(alpha=0.3)
