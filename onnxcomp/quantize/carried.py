"""Ranges that an int8 model carries, so that it can be written for another target without any data.

The entry ``onnxcomp.ranges`` of the model's metadata is a JSON object: tensor name to [low, high] or [low, high, peak],
numbers to 9 significant digits (a float32 exactly). An asymmetric scheme spreads 256 levels over [low, high]; a
symmetric one spreads 255 over [-peak, peak]; without a third number the peak is the larger end. There is an entry for
every tensor that the scheme of any target quantizes, whatever the target of the file. Past 4 KB the text is ``zlib85:``
and the same, compressed by zlib, in base85 (:func:`base64.b85encode`). ``onnxcomp.target`` says which target's scheme
the file follows.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

import onnx_ir as ir

from onnxcomp.errors import ModelError
from onnxcomp.numeric.histogram import Histogram
from onnxcomp.numeric.ranges import Method, Range, choose_range

__all__ = ["RANGES", "TARGET", "CarriedRange", "carried", "carry", "ranges_of_tensors"]

RANGES = "onnxcomp.ranges"
TARGET = "onnxcomp.target"

_DEFAULT: Method = "mse"
_COMPRESSED = "zlib85:"
_PLAIN_UP_TO = 4096
# What a compressed text may unpack to: a hostile file must not fill the memory.
_LONGEST = 64 << 20


@dataclass(frozen=True, slots=True)
class CarriedRange:
    """The range of a tensor for asymmetric schemes, [low, high], and for symmetric ones, [-peak, peak]."""

    low: float
    high: float
    peak: float


def ranges_of_tensors(
    histograms: Mapping[str, Histogram],
    chosen: Mapping[str, Range],
    *,
    symmetric: bool,
    method: str,
    percentile: float = 99.99,
) -> dict[str, CarriedRange]:
    """Return the ranges of tensors for every kind of scheme.

    Args:
        histograms: Of all tensors that any target quantizes.
        chosen: The ranges that the model was written with; what was chosen there is carried as it is.
        symmetric: Whether these are symmetric.
        method: The rule for the other tensors.
        percentile: For ``percentile``.
    """
    result: dict[str, CarriedRange] = {}
    for name, histogram in histograms.items():
        own = chosen.get(name)
        rule = cast("Method", method if own is None else own.method)
        if rule not in get_args(Method):  # the user gave the range itself
            if own is not None:
                result[name] = CarriedRange(own.low, own.high, max(-own.low, own.high))
                continue
            rule = _DEFAULT
        wide = own if own is not None and not symmetric else choose_range(histogram, rule, percent=percentile)
        even = (
            own
            if own is not None and symmetric
            else choose_range(histogram, rule, percent=percentile, levels=255, symmetric=True)
        )
        result[name] = CarriedRange(wide.low, wide.high, max(-even.low, even.high))
    return result


def carry(model: ir.Model, ranges: Mapping[str, CarriedRange], target: str) -> None:
    """Write ranges and the target's name into the model's metadata."""
    entries = {name: _numbers(entry) for name, entry in ranges.items()}
    text = json.dumps(entries, separators=(",", ":"))
    if len(text) > _PLAIN_UP_TO:
        text = _COMPRESSED + base64.b85encode(zlib.compress(text.encode(), 9)).decode()
    model.metadata_props[RANGES] = text
    model.metadata_props[TARGET] = target


def carried(model: ir.Model) -> dict[str, CarriedRange] | None:
    """Return the ranges that a model carries; None where it has none.

    Raises:
        ModelError: The entry is damaged.
    """
    text = model.metadata_props.get(RANGES)
    if text is None:
        return None
    try:
        if text.startswith(_COMPRESSED):
            packed = base64.b85decode(text.removeprefix(_COMPRESSED))
            text = zlib.decompressobj().decompress(packed, _LONGEST).decode()
        return {str(name): _range(entry) for name, entry in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError, IndexError, zlib.error) as error:
        raise ModelError(f"the model's metadata entry {RANGES} is damaged ({error}); give --stats") from None


def _numbers(entry: CarriedRange) -> list[float]:
    low, high, peak = (_short(value) for value in (entry.low, entry.high, entry.peak))
    return [low, high] if peak == max(-low, high) else [low, high, peak]


def _short(value: float) -> float:
    rounded = float(f"{value:.9g}")
    return int(rounded) if rounded == int(rounded) and abs(rounded) < 1e6 else rounded


def _range(entry: Any) -> CarriedRange:
    low, high = float(entry[0]), float(entry[1])
    peak = float(entry[2]) if len(entry) > 2 else max(-low, high)
    if not all(map(math.isfinite, (low, high, peak))) or low > high:
        raise ValueError(f"{entry} is no range")
    return CarriedRange(low, high, peak)
