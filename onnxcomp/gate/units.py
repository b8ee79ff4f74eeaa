"""Numbers as people write limits: ``4MB``, ``1.5M``, ``12 ms``, ``0.5 %``, ``1.2x``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Unit", "byte_size", "counted", "decibels", "megabytes", "milliseconds", "percentage", "points", "ratio"]

_NUMBER = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?)\s*([^\d\s]*)\s*", re.ASCII | re.IGNORECASE)
_BYTES = {"b": 1, "kb": 2**10, "mb": 2**20, "gb": 2**30, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Unit:
    """How a kind of number is read.

    Attributes:
        example: What a user may write.
        factors: Unit in lower case to what it multiplies; "" is what a bare number means.
        least: Smallest value that makes sense.
        above: Whether it has to be more than `least`.
        most: Largest value that makes sense.
        whole: Whether fractions are cut off: of bytes, parameters and MACs there are only whole ones.
    """

    example: str
    factors: Mapping[str, float]
    least: float = 0.0
    above: bool = False
    most: float = math.inf
    whole: bool = False

    def parse(self, text: str | float) -> float:
        """Read a value.

        Raises:
            ValueError: It is no number, has another unit, or is out of range; the message says what would do.
        """
        match = _NUMBER.fullmatch(str(text))
        factor = None if match is None else self.factors.get(match[2].lower())
        if isinstance(text, bool) or match is None or factor is None:
            raise ValueError(f"{str(text)!r} is not a number such as {self.example}")
        value = float(match[1]) * factor
        if not math.isfinite(value) or value < self.least or (self.above and value == self.least) or value > self.most:
            raise ValueError(f"{str(text)!r} is out of range: {self._range()}")
        return float(math.floor(value)) if self.whole else value

    def _range(self) -> str:
        if self.most < math.inf:
            return f"it lies between {self.least:g} and {self.most:g}"
        if self.least == -math.inf:
            return "it has to be finite"
        return f"it has to be {'more than' if self.above else 'at least'} {self.least:g}"


byte_size = Unit("4MB or 100KB", {"": 1, **_BYTES}, above=True, whole=True)
megabytes = Unit("64 or 64MB", {"": 2**20, **_BYTES}, above=True, whole=True)
counted = Unit("300000, 1.5M or 3G", {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}, whole=True)
milliseconds = Unit("12 or 12ms", {"": 1, "ms": 1, "s": 1e3, "us": 1e-3, "µs": 1e-3}, above=True)
ratio = Unit("1.2 or 1.2x", {"": 1, "x": 1}, above=True)
percentage = Unit("70 or 70%", {"": 1, "%": 1}, most=100.0)
slowdown = Unit("10 or 10%", {"": 1, "%": 1})
points = Unit("0.5", {"": 1, "%": 1, "points": 1, "pp": 1}, most=100.0)
decibels = Unit("20 or 20dB", {"": 1, "db": 1}, least=-math.inf)
