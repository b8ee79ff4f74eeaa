"""What an allocator chose from: the model's frontier, and the candidates of every layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import isfinite
from typing import Any, Literal

import numpy as np

from onnxcomp.numeric.hull import pareto
from onnxcomp.report.figures import Curve
from onnxcomp.report.table import Table
from onnxcomp.report.text import count, size

__all__ = ["candidates_table", "frontier_line", "frontier_table"]

Document = dict[str, Any]
Resource = Literal["macs", "bytes", "time_ms"]
_NAMES: dict[Resource, str] = {"macs": "MACs", "bytes": "bytes", "time_ms": "time"}
_ALL = 12
_APART = 0.9  # neighbours that are named beside the chosen point have at most so much, or as much more


def frontier_line(step: Document) -> str:
    """What was chosen and what was next to it, in one line; empty where nothing was allocated.

    Shares are of the layers that were chosen for, not of the whole model.
    """
    points = _points(step)
    chosen = _chosen(points)
    if chosen is None:
        return ""
    scarce = _scarce(points)
    now = _share(points, chosen, scarce)
    shares = [_share(points, point, scarce) for point in points]
    smaller = [i for i, share in enumerate(shares) if share <= _APART * now]
    larger = [i for i, share in enumerate(shares) if share >= now / _APART]
    beside = [min(smaller, key=lambda i: -shares[i])] if smaller else []
    beside += [min(larger, key=lambda i: shares[i])] if larger else []
    found = ", ".join(f"{shares[i]:.2f} at {_loss(points[i])}" for i in beside)
    verb = "chosen" if step["kept"] else "tried, then rolled back"
    line = f"{verb}: {now:.2f} of its layers' {_NAMES[scarce]} at an expected loss of {_loss(chosen)}"
    return f"{line}; next: {found}" if found else line


def frontier_table(step: Document) -> Table:
    """The frontier by falling cost, thinned around the chosen point; the plot has all of it."""
    points = _points(step)
    title = f"{step['spec']}: frontier"
    chosen = _chosen(points)
    if chosen is None:
        return Table(title, (), ())
    scarce = _scarce(points)
    rows = [
        (
            f"{_share(points, point, scarce):.3f}",
            count(point["macs"]),
            size(point["bytes"]),
            "" if point["time_ms"] is None else f"{float(point['time_ms']):.3g} ms",
            _loss(point),
            "chosen" if point is chosen else "",
        )
        for point in _thinned(points, points.index(chosen))
    ]
    columns = (f"share of {_NAMES[scarce]}", "MACs", "bytes", "time", "expected loss", "")
    filled = [i for i in range(len(columns)) if i != 3 or any(row[i] for row in rows)]
    plot = Curve(
        tuple((_share(points, point, scarce), float(point["loss"])) for point in points),
        points.index(chosen),
        f"share of {_NAMES[scarce]} of the layers",
        "expected loss",
        tuple(_amounts(point) for point in points),
    )
    return Table(
        title,
        tuple(columns[i] for i in filled),
        tuple(tuple(row[i] for i in filled) for row in rows),
        frozenset(range(len(filled) - 1)),
        plot,
        good=frozenset((line, len(filled) - 1) for line, row in enumerate(rows) if row[-1]),
    )


def _amounts(point: Document) -> str:
    """All that a point takes, in words."""
    macs = "" if point["macs"] is None else f"{count(point['macs'])} MACs, "
    time = "" if point["time_ms"] is None else f", {float(point['time_ms']):.3g} ms"
    return f"{macs}{size(point['bytes'])}{time}"


def candidates_table(step: Document) -> Table:
    """For every layer the candidates that no other one beats, the chosen one, and examples of those that were out."""
    offers: list[Document] = step.get("offers", [])
    scarce = _scarce(_points(step))
    sites: dict[str, list[Document]] = {}
    for offer in offers:
        sites.setdefault(offer["site"], []).append(offer)
    rows = [row for own in sites.values() for row in _site_rows(own, scarce)]
    columns = ("site", "form", "MACs", "parameters", "speed", "predicted error", "expected loss", "")
    filled = [i for i in range(len(columns)) if i != 4 or any(row[i] for row in rows)]
    return Table(
        f"{step['spec']}: candidates",
        tuple(columns[i] for i in filled),
        tuple(tuple(row[i] for i in filled) for row in rows),
        frozenset(range(2, len(filled) - 1)),
        good=frozenset((line, len(filled) - 1) for line, row in enumerate(rows) if row[-1] == "chosen"),
    )


def _site_rows(offers: Sequence[Document], scarce: Resource) -> Iterable[tuple[str, ...]]:
    allowed = [offer for offer in offers if not offer["why"]]
    costs = np.array([_cost(offer, scarce) for offer in allowed], np.float64)
    losses = np.array([float(offer["loss"]) for offer in allowed], np.float64)
    front = {id(allowed[i]) for i in pareto(costs, losses)}
    shown = [offer for offer in allowed if id(offer) in front or offer["chosen"]]
    for offer in sorted(shown, key=lambda offer: -_cost(offer, scarce)):
        yield _row(offer, "chosen" if offer["chosen"] else "")
    yield from _declined([offer for offer in offers if offer["why"]])


def _declined(offers: Sequence[Document]) -> Iterable[tuple[str, ...]]:
    """Of each form the candidate that would have lost least, for all that were out."""
    forms: dict[str, list[Document]] = {}
    for offer in offers:
        forms.setdefault(str(offer["form"]).split("(", 1)[0], []).append(offer)
    for own in forms.values():
        mildest = min(own, key=lambda offer: float(offer["loss"]))
        others = f" (and {len(own) - 1} more of this form)" if len(own) > 1 else ""
        yield _row(mildest, f"{mildest['why']}{others}")


def _row(offer: Document, remark: str) -> tuple[str, ...]:
    return (
        offer["site"],
        offer["form"],
        count(offer["macs"]),
        count(offer["parameters"]),
        "" if offer["time"] is None else f"{1 / max(float(offer['time']), 1e-9):.2f}x",
        f"{float(offer['error']):.3g}",
        _loss(offer),
        remark,
    )


def _points(step: Document) -> list[Document]:
    return [point for point in step.get("frontier", []) if isfinite(float(point["loss"]))]


def _chosen(points: Sequence[Document]) -> Document | None:
    return next((point for point in points if point["chosen"]), None)


def _scarce(points: Sequence[Document]) -> Resource:
    """What the allocator had to save: that in which its frontier is one, falling and convex all the way."""
    path = [point for point in points if not point["chosen"]]
    orders: tuple[Resource, ...] = ("time_ms", "macs", "bytes")
    known: list[Resource] = [resource for resource in orders if all(point[resource] is not None for point in points)]
    for resource in known:
        if _convex(path, resource):
            return resource
    return "macs" if "macs" in known else "bytes"


def _convex(path: Sequence[Document], resource: Resource) -> bool:
    steps = [
        (float(after["loss"]) - float(before["loss"]), _amount(before, resource) - _amount(after, resource))
        for before, after in pairwise(path)
    ]
    rounding = 1 + 1e-9
    return all(saved > 0 for _, saved in steps) and all(
        lost * after <= later * saved * rounding for (lost, saved), (later, after) in pairwise(steps)
    )


def _amount(point: Document, resource: Resource) -> float:
    return float(point[resource] or 0.0)


def _cost(offer: Document, scarce: Resource) -> float:
    """What a candidate takes of what was scarce."""
    if scarce == "time_ms" and offer["time"] is not None:
        return float(offer["time"])
    return float(offer["macs"] if scarce != "bytes" and offer["macs"] is not None else offer["bytes"])


def _share(points: Sequence[Document], point: Document, resource: Resource) -> float:
    """Of what the layers take as they are, which is the first point."""
    return _amount(point, resource) / (_amount(points[0], resource) or 1.0)


def _thinned(points: Sequence[Document], chosen: int) -> list[Document]:
    """The ends, the chosen point and those about it, with gaps that grow threefold."""
    if len(points) <= _ALL:
        return list(points)
    steps = [sign * 3**k for k in range(12) for sign in (-1, 1)]
    near = {chosen + step for step in steps} & set(range(len(points)))
    return [points[i] for i in sorted({0, chosen, len(points) - 1} | near)]


def _loss(entry: Document) -> str:
    return f"{float(entry['loss']):.2g}"
