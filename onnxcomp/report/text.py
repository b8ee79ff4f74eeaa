"""Numbers and names as a person reads them; names come from models, so they are never trusted."""

from __future__ import annotations

__all__ = ["count", "decibels", "one_line", "percent", "printable", "ratio", "size"]

_KILO = 1024


def printable(text: str) -> str:
    """Return the text with control and format characters spelled out, so that a name cannot steer a terminal."""
    return "".join(c if c == "\n" or c.isprintable() else _spelled(c) for c in text)


def one_line(text: str) -> str:
    """Return the text as `printable` does, with line breaks spelled out too: for what must stay a line or a cell."""
    return printable(text).replace("\n", r"\n")


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def size(value: int) -> str:
    """Bytes, in units of 1024: ``1.2 MB``."""
    if value < _KILO:
        return f"{value} B"
    number, units = value / _KILO, ["KB", "MB", "GB"]
    while number >= _KILO and len(units) > 1:
        number /= _KILO
        units.pop(0)
    return f"{number:.3g} {units[0]}" if number < 1000 else f"{number:.0f} {units[0]}"


def count(value: int | None) -> str:
    """A count with a unit: ``41.1 M``; ``?`` where it is unknown."""
    if value is None:
        return "?"
    number, units = float(value), ["", " k", " M", " G", " T"]
    while abs(number) >= 999.5 and len(units) > 1:
        number /= 1000
        units.pop(0)
    return f"{number:.3g}{units[0]}" if units[0] else str(value)


def percent(value: float) -> str:
    """A fraction as a percentage: ``92.60 %``."""
    return f"{100 * value:.2f} %"


def ratio(before: float | None, after: float | None) -> str:
    """How many times smaller: ``3.9x``; empty where that means nothing."""
    return f"{before / after:.2f}x" if before and after else ""


def decibels(value: float) -> str:
    """A signal-to-noise ratio: ``41.3 dB``, ``exact`` where there is no noise at all."""
    return "exact" if value == float("inf") else f"{value:.1f} dB"
