"""From a written option value to a dataclass field of a pass, and back.

The fields of a pass say everything: their type hints which values fit, their defaults what happens with nothing said,
and ``Annotated[..., Bounds(...)]`` the range of a number. Hints may be built from str, int, float, bool, Literal, None
and unions.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from onnxcomp.contract import Pass, Value
from onnxcomp.errors import OptionError, PassError
from onnxcomp.spec import PassSpec, Source, render_value

__all__ = [
    "Bounds",
    "Option",
    "attribute_docs",
    "coerce",
    "describe",
    "did_you_mean",
    "make_pass",
    "pass_spec_of",
    "replace_options",
    "spec_of",
    "summary_of",
]

_MISSING = dataclasses.MISSING


@dataclass(frozen=True, slots=True)
class Bounds:
    """The range of a numeric option, as metadata of its type hint: ``Annotated[float, Bounds(0, 1, open_low=True)]``.

    Attributes:
        low: Smallest value allowed; None for no limit.
        high: Largest value allowed; None for no limit.
        open_low: Whether `low` itself is excluded.
        open_high: Whether `high` itself is excluded.
    """

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value lies in the range."""
        above = self.low is None or (value > self.low if self.open_low else value >= self.low)
        below = self.high is None or (value < self.high if self.open_high else value <= self.high)
        return above and below

    def __str__(self) -> str:
        if self.high is None:
            return "" if self.low is None else f"{'above' if self.open_low else 'at least'} {self.low:.10g}"
        if self.low is None:
            return f"{'below' if self.open_high else 'at most'} {self.high:.10g}"
        return f"{'(' if self.open_low else '['}{self.low:.10g}, {self.high:.10g}{')' if self.open_high else ']'}"


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a pass, for documentation and checking.

    Attributes:
        name: Field name.
        type: The values that fit, in words.
        default: The default as it is written in a spec; None where the option is required.
        help: One line from the field's metadata or the class docstring; empty where there is none.
    """

    name: str
    type: str
    default: str | None
    help: str


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the closest known word, or an empty string where none is close."""
    close = get_close_matches(word.lower(), list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def coerce(value: Value | None, hint: Any) -> Value | None:
    """Return the value as the type hint wants it.

    An int fits a float hint, text that reads as a number fits a numeric hint, an int fits a str hint and the word
    ``none`` fits None.

    Raises:
        ValueError: It does not fit; the message says what would.
    """
    for alternative in _alternatives(hint):
        found, result = _fit(value, *alternative)
        if found:
            return result
    shown = "none" if value is None else repr(value) if isinstance(value, str) else render_value(value)
    hinted = did_you_mean(value, _words(hint)) if isinstance(value, str) else ""
    if isinstance(value, float) and any(kind is str for kind, _ in _alternatives(hint)):
        raise ValueError(f"{shown} is read as a number; put the text in quotes")
    raise ValueError(f"{shown} is not {_in_words(hint)}{hinted}")


def describe(pass_type: type[Pass]) -> tuple[Option, ...]:
    """Return every option of a pass, in the order of its fields; PassError where a field's hint is not supported."""
    helps: dict[str, str] = {}
    for base in reversed(pass_type.__mro__):  # what a pass inherits is told where it is declared
        helps |= attribute_docs(vars(base).get("__doc__") or "")
    hints = _hints(pass_type)
    return tuple(
        Option(
            field.name,
            _in_words(hints[field.name]),
            None if (default := _default(field)) is _MISSING else _render(default),
            field.metadata.get("help", helps.get(field.name, "")),
        )
        for field in _options_of(pass_type)
    )


def summary_of(pass_type: type[Pass]) -> str:
    """Return the first line of the docstring of a pass."""
    return (pass_type.__doc__ or "").strip().split("\n", 1)[0].strip()


def make_pass(pass_type: type[Pass], options: Mapping[str, Value | None], source: Source | None = None) -> Pass:
    """Build a pass from written options.

    Raises:
        OptionError: An option is unknown, missing or does not fit; with `source` the message has a caret under it.
    """
    values = _checked(pass_type, options, source)
    required = [f.name for f in dataclasses.fields(pass_type) if _default(f) is _MISSING and f.name not in values]
    if required:
        raise _option_error(f"pass {pass_type.name!r} needs the option {required[0]!r}", source, None)
    return _built(pass_type, values, source)


def replace_options(base: Pass, options: Mapping[str, Value | None], source: Source | None = None) -> Pass:
    """Return the pass with some options replaced, checked as `make_pass` checks them; for per-layer overrides.

    An option drops the pass's own alternatives to it (`Pass.alternatives`).
    """
    void = {name for group in base.alternatives if group & options.keys() for name in group}
    current = {field.name: getattr(base, field.name) for field in dataclasses.fields(base) if field.init}
    current |= {field.name: _default(field) for field in dataclasses.fields(base) if field.name in void}
    return _built(type(base), current | _checked(type(base), options, source), source)


def spec_of(instance: Pass) -> str:
    """Return the spec of a pass as text: its name and the options that differ from their defaults.

    Raises:
        OptionError: A field holds what its own type hint refuses (Python does not check when it is made).
    """
    return str(pass_spec_of(instance))


def pass_spec_of(instance: Pass) -> PassSpec:
    """Return the spec of a pass, as `spec_of` does, before it is written out."""
    hints = _hints(type(instance))
    options: dict[str, Value] = {}
    for field in _options_of(type(instance)):
        value = getattr(instance, field.name)
        try:
            value = coerce(value, hints[field.name])
        except ValueError as error:
            raise OptionError(f"{instance.name}.{field.name}: {error}") from None
        if value != _default(field) or type(value) is not type(_default(field)):
            options[field.name] = "none" if value is None else value
    return PassSpec(instance.name, options)


def _checked(
    pass_type: type[Pass], options: Mapping[str, Value | None], source: Source | None
) -> dict[str, Value | None]:
    hints = _hints(pass_type)
    known = [field.name for field in dataclasses.fields(pass_type) if field.init]
    values: dict[str, Value | None] = {}
    for key, value in options.items():
        columns = source.options.get(key) if source else None
        if key not in known:
            listed = f" (options: {', '.join(known)})" if known else " (it has none)"
            problem = f"pass {pass_type.name!r} has no option {key!r}{did_you_mean(key, known)}{listed}"
            raise _option_error(problem, source, columns and columns[0])
        try:
            values[key] = coerce(value, hints[key])
        except ValueError as error:
            raise _option_error(f"{pass_type.name}.{key}: {error}", source, columns and columns[1]) from None
    return values


def _built(pass_type: type[Pass], values: Mapping[str, Any], source: Source | None) -> Pass:
    try:
        return pass_type(**values)
    except (OptionError, ValueError) as error:  # a pass may refuse combinations in __post_init__
        text = str(error)
        prefix = "" if text.startswith(pass_type.name) else f"{pass_type.name}: "
        blamed = next((key for key in values if text.startswith(f"{pass_type.name}.{key}:")), "")
        columns = source.options.get(blamed) if source else None
        raise _option_error(prefix + text, source, columns and columns[1]) from None


def _option_error(problem: str, source: Source | None, column: int | None) -> OptionError:
    if source is None:
        return OptionError(problem)
    return OptionError(f"{problem}\n{source.point(source.column if column is None else column)}")


def _options_of(pass_type: type[Pass]) -> list[dataclasses.Field[Any]]:
    """The fields that are options: all but those marked ``metadata={"option": False}``, which text cannot say."""
    return [field for field in dataclasses.fields(pass_type) if field.metadata.get("option", True)]


def _hints(pass_type: type[Pass]) -> dict[str, Any]:
    try:
        hints = get_type_hints(pass_type, include_extras=True)
    except NameError as error:
        raise PassError(f"pass {pass_type.name!r}: the type of an option cannot be read: {error}") from error
    for field in _options_of(pass_type):
        for kind, _ in _alternatives(hints[field.name]):
            if kind not in (str, int, float, bool, NoneType) and get_origin(kind) is not Literal:
                raise PassError(f"pass {pass_type.name!r}: option {field.name!r} has the unsupported type {kind!r}")
    return hints


def _alternatives(hint: Any, bounds: Bounds | None = None) -> list[tuple[Any, Bounds | None]]:
    """Flatten a hint into its alternatives, each with its bounds; text last, because everything fits it."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *metadata = get_args(hint)
        own = next((item for item in metadata if isinstance(item, Bounds)), bounds)
        return _alternatives(inner, own)
    if origin in (Union, UnionType):
        flat = [pair for arg in get_args(hint) for pair in _alternatives(arg, bounds)]
        rank = {NoneType: 0, bool: 2, int: 3, float: 4, str: 5}
        return sorted(flat, key=lambda pair: rank.get(pair[0], 1))
    return [(NoneType if hint is None else hint, bounds)]


def _fit(value: Value | None, kind: Any, bounds: Bounds | None) -> tuple[bool, Value | None]:
    if kind is NoneType:
        return value is None or value == "none", None
    if get_origin(kind) is Literal:
        return next(
            ((True, word) for word in get_args(kind) if word == value and type(word) is type(value)), (False, None)
        )
    if kind is bool:
        return isinstance(value, bool), value
    if kind is str:
        if isinstance(value, int) and not isinstance(value, bool):
            return True, str(value)
        return isinstance(value, str), value
    number = _number(value, kind)
    return number is not None and (bounds is None or bounds.holds(number)), number


def _number(value: Value | None, kind: type) -> int | float | None:
    if isinstance(value, str):
        try:
            value = int(value) if kind is int else float(value)
        except ValueError:
            return None
    if value is None or isinstance(value, bool) or not isfinite(value):
        return None
    if kind is int:
        return value if isinstance(value, int) else None
    return float(value)


def _words(hint: Any) -> list[str]:
    return [str(word) for kind, _ in _alternatives(hint) if get_origin(kind) is Literal for word in get_args(kind)]


def _in_words(hint: Any) -> str:
    parts: list[str] = []
    for kind, bounds in sorted(_alternatives(hint), key=lambda pair: pair[0] is NoneType):
        limit = f" {'in ' if str(bounds)[:1] in '([' else ''}{bounds}" if bounds else ""
        if get_origin(kind) is Literal:
            words = get_args(kind)
            parts.append(("one of " if len(words) > 1 else "") + ", ".join(map(str, words)))
        else:
            names = {str: "text", int: "an integer", float: "a number", bool: "true or false", NoneType: "none"}
            parts.append(names[kind] + (limit if kind in (int, float) else ""))
    return " or ".join(parts)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not _MISSING:
        return field.default_factory()
    return field.default


def _render(value: Value | None) -> str:
    return "none" if value is None else render_value(value)


def attribute_docs(docstring: str) -> dict[str, str]:
    """Read the ``Attributes:`` section of a Google-style docstring."""
    found: dict[str, str] = {}
    current, indent, inside = "", -1, False
    for line in docstring.splitlines():
        stripped = line.strip()
        if stripped in ("Attributes:", "Args:"):
            inside, indent = True, -1
            continue
        if not inside or not stripped:
            continue
        depth = len(line) - len(line.lstrip())
        indent = depth if indent < 0 else indent
        entry = re.match(r"(\w+):\s*(.*)", stripped)
        if depth < indent or (depth == indent and entry is None):
            inside = False
        elif depth == indent and entry is not None:
            current = entry.group(1)
            found[current] = entry.group(2)
        elif current:
            found[current] += " " + stripped
    return {name: text.replace("`", "") for name, text in found.items()}
