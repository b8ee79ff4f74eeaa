"""What became of every layer, as a table and as bars."""

from __future__ import annotations

from math import isfinite
from typing import Any

from onnxcomp.report.figures import Bars, Panels
from onnxcomp.report.table import Table
from onnxcomp.report.text import count, decibels, ratio, size

__all__ = ["layers_table"]

Document = dict[str, Any]
_SEEN = 1e-3  # of the longest bar: shorter ones are left out
_LOUD = 200.0  # dB; what is more is no noise but rounding of doubles


def layers_table(document: Document) -> Table:
    """Lay out the layers that have a cost, a time or an error; empty where the document has none."""
    layers = [layer for layer in document["layers"] if _matters(layer)]
    rows = [
        (
            layer["name"],
            layer["op_type"],
            " + ".join(layer["passes"]) or "as it was" if layer["nodes"] else "gone",
            *_pair(layer, "bytes", size),
            *_pair(layer, "macs", count),
            *_times(layer),
            "" if layer["sqnr"] is None else decibels(float(layer["sqnr"])),
        )
        for layer in layers
    ]
    columns = (
        *("layer", "operator", "rewritten by", "bytes before", "after", "smaller", "MACs before", "after", "fewer"),
        *("ms before", "after", "faster", "SQNR of its output"),
    )
    filled = [i for i in range(len(columns)) if i < 9 or any(row[i] for row in rows)]
    return Table(
        "Layers",
        tuple(columns[i] for i in filled),
        tuple(tuple(row[i] for i in filled) for row in rows),
        frozenset(range(3, len(filled))),
        Panels(tuple(_panels(layers))),
    )


def _matters(layer: Document) -> bool:
    costs = [layer[side][what] for side in ("before", "after") for what in ("bytes", "macs")]
    times = [layer["before_ms"], layer["after_ms"]]
    return any(costs) or bool(layer["passes"]) or any(time is not None for time in times) or layer["sqnr"] is not None


def _pair(layer: Document, what: str, shown: Any) -> tuple[str, str, str]:
    before, after = layer["before"][what], layer["after"][what]
    return shown(before), shown(after), ratio(before, after)


def _times(layer: Document) -> tuple[str, str, str]:
    before, after = layer["before_ms"], layer["after_ms"]
    return _milliseconds(before), _milliseconds(after), ratio(before, after)


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3g} ms"


def _panels(layers: list[Document]) -> list[tuple[str, Bars]]:
    sides = ("before", "after")
    costs = {what: {side: [layer[side][what] for layer in layers] for side in sides} for what in ("bytes", "macs")}
    times = {side: [layer[f"{side}_ms"] for layer in layers] for side in sides}
    noises = [_noise(layer["sqnr"]) for layer in layers]
    noises = [None if k and noise == noises[k - 1] else noise for k, noise in enumerate(noises)]  # it is passed on
    return [
        ("size", _bars(layers, costs["bytes"], "bytes")),
        ("MACs", _bars(layers, costs["macs"], "MACs")),
        ("latency", _bars(layers, times, "ms")),
        ("error", _bars(layers, {"noise of its output": noises}, "noise / signal", log=True)),
    ]


def _bars(layers: list[Document], values: dict[str, list[Any]], unit: str, *, log: bool = False) -> Bars:
    """Bars of the layers that have one to see."""
    sizes = [max((own[k] or 0.0 for own in values.values()), default=0.0) for k in range(len(layers))]
    least = 0.0 if log else _SEEN * max(sizes, default=0.0)
    shown = [k for k, size in enumerate(sizes) if size > least]
    series = tuple((name, tuple(own[k] for k in shown)) for name, own in values.items())
    return Bars(tuple(layers[k]["name"] for k in shown), series, unit, log)


def _noise(sqnr: Any) -> float | None:
    """Noise power relative to the signal's; a bar that grows with the error, as decibels do not."""
    value = None if sqnr is None else float(sqnr)
    return 10 ** (-value / 10) if value is not None and isfinite(value) and value < _LOUD else None
