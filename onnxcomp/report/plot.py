"""A curve as inline SVG: no library, no network, the colours of the page."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from math import ceil, floor, isfinite, log10

from onnxcomp.report.figures import Curve

__all__ = ["to_svg"]

_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 44
_DECADES = 8  # at most; what lies further down is at the foot


def to_svg(plot: Curve) -> str:
    """Draw a plot; empty where it has fewer than two points that can be drawn."""
    drawn = [(x, y) for x, y in plot.points if y > 0.0 and isfinite(y) and isfinite(x)]
    if len(drawn) < 2:
        return ""
    scale = _Scale.of(drawn)
    path = " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in sorted(drawn))
    x, y = plot.points[plot.marked]
    mark = f'<circle cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="5" fill="currentColor"/>'
    label = escape(f"{plot.up} over {plot.across}")
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    return "\n".join(
        [
            f'<svg {size} role="img" aria-label="{label}">',
            '<g fill="none" stroke="currentColor">',
            *scale.grid(),
            f'<polyline points="{path}" stroke-width="2"/>',
            "</g>",
            mark,
            '<g fill="currentColor" font-size="12">',
            *scale.labels(),
            _text(_LEFT + scale.wide / 2, _HEIGHT - 8, "middle", plot.across),
            _text(_WIDTH - _RIGHT - 6, _TOP + 16, "end", plot.up),
            "</g>",
            "</svg>",
        ]
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    """From shares and values to the picture; `low` and `high` are powers of ten."""

    most: float
    low: int
    high: int

    @classmethod
    def of(cls, points: list[tuple[float, float]]) -> _Scale:
        high = ceil(log10(max(y for _, y in points)))
        low = max(floor(log10(min(y for _, y in points))), high - _DECADES)
        return cls(max(1.0, *(x for x, _ in points)), min(low, high - 1), high)

    @property
    def wide(self) -> float:
        return _WIDTH - _LEFT - _RIGHT

    def x(self, share: float) -> float:
        return _LEFT + self.wide * share / self.most

    def y(self, value: float) -> float:
        tall = _HEIGHT - _TOP - _BOTTOM
        height = max(log10(value) if value > 0.0 else self.low, self.low) - self.low
        return _HEIGHT - _BOTTOM - tall * height / (self.high - self.low)

    def grid(self) -> list[str]:
        across = [_line(_LEFT, self.y(10.0**k), _WIDTH - _RIGHT, self.y(10.0**k)) for k in self._decades()]
        up = [_line(self.x(s), _TOP, self.x(s), _HEIGHT - _BOTTOM) for s in self._shares()]
        return [*across, *up]

    def labels(self) -> list[str]:
        left = [_text(_LEFT - 6, self.y(10.0**k) + 4, "end", f"{10.0**k:g}") for k in self._decades()]
        below = [_text(self.x(s), _HEIGHT - _BOTTOM + 16, "middle", f"{s:g}") for s in self._shares()]
        return [*left, *below]

    def _decades(self) -> range:
        return range(self.low, self.high + 1)

    def _shares(self) -> list[float]:
        return [quarter / 4 for quarter in range(int(4 * self.most) + 1)]


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke-opacity=".2"/>'


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
