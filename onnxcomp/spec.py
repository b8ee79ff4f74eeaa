"""Pipelines as text: ``tucker2(rank=vbmf),palettize(bits=4)`` to pass specs and back.

The grammar, blanks allowed between tokens::

    pipeline := spec ("," spec)*
    spec     := name [ "(" [ option ("," option)* [","] ] ")" ]
    option   := name "=" value
    value    := number | "true" | "false" | bare word | '"' text '"'

A bare word is made of letters, digits and ``. : _ -`` (``pattern=2:4``, ``ranks=32x64``); one that reads as a number is
a number. Anything else goes in double quotes, where a backslash escapes the next character. Round trips are exact in
both directions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite

from onnxcomp.contract import Value
from onnxcomp.errors import SpecError

__all__ = ["PassSpec", "Source", "parse_pipeline", "parse_spec", "read_bare", "render_pipeline", "render_value"]

# A number must not run on into a bare word: 32x64, 2:4, 3.1.4 and 007 are words.
_NUMBER = r"[-+]?(?:0|[1-9]\d*)(?:\.\d*)?(?:[eE][-+]?\d+)?|[-+]?\.\d+(?:[eE][-+]?\d+)?"
_BARE = r"[A-Za-z0-9_.:-]+"
_NAME = r"[A-Za-z_][A-Za-z0-9_-]*"
_TOKEN = re.compile(
    rf"""\s*(?:
    (?P<number>(?:{_NUMBER})(?![A-Za-z0-9_.:+-]))
  | (?P<word>{_BARE})
  | (?P<string>"(?:[^"\\]|\\.)*")
  | (?P<mark>[(),=])
  | (?P<end>\Z)
)""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_KEYWORDS = {"true": True, "false": False}
_LARGEST = 2**63


@dataclass(frozen=True, slots=True)
class Source:
    """Where a spec was written, so that later errors can point at it.

    Attributes:
        text: The whole pipeline as the user typed it.
        column: Where the name of the pass starts in it.
        options: Where the name and the value of each option start.
    """

    text: str
    column: int
    options: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])

    def point(self, column: int) -> str:
        """Return the text with a caret under a column, as two indented lines."""
        return f"  {_one_line(self.text)}\n  {' ' * column}^"


@dataclass(frozen=True, slots=True)
class PassSpec:
    """The name of one pass and its options, as written; nothing is known yet about whether the pass has such options.

    Raises:
        ValueError: The name is not a word, or an option's value cannot be written (NaN, infinity, 64 bits and more).
    """

    name: str
    options: Mapping[str, Value] = field(default_factory=dict[str, Value])
    source: Source | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for word in (self.name, *self.options):
            if not re.fullmatch(_NAME, word):
                raise ValueError(f"{word!r} cannot be the name of a pass or an option")
        for key, value in self.options.items():
            written = isfinite(value) if isinstance(value, float) else isinstance(value, str) or abs(value) < _LARGEST
            if not written:
                raise ValueError(f"{self.name}.{key}: {value} cannot be written in a spec")

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return f"{self.name}({', '.join(f'{key}={render_value(value)}' for key, value in self.options.items())})"


def render_value(value: Value) -> str:
    """Write an option's value so that the parser reads the same value and type back."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return repr(value)
    if re.fullmatch(_BARE, value) and isinstance(read_bare(value), str):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def read_bare(text: str) -> Value:
    """Read an unquoted value: a number, true, false, or the text itself."""
    if not re.fullmatch(_NUMBER, text, re.ASCII):
        return _KEYWORDS.get(text, text)
    if re.fullmatch(r"[-+]?\d+", text, re.ASCII):
        return int(text) if len(text.lstrip("+-")) < 20 and abs(int(text)) < _LARGEST else text
    value = float(text)
    return value if isfinite(value) else text


def render_pipeline(specs: tuple[PassSpec, ...]) -> str:
    """Write a pipeline so that `parse_pipeline` reads the same specs back."""
    return ",".join(map(str, specs))


def parse_pipeline(text: str) -> tuple[PassSpec, ...]:
    """Parse a comma-separated pipeline.

    Raises:
        SpecError: The text does not follow the grammar; the message points at the column.
    """
    parser = _Parser(text)
    specs = [parser.spec()]
    while parser.accept(","):
        specs.append(parser.spec())
    parser.finish("',' or the end of the pipeline")
    return tuple(specs)


def parse_spec(text: str) -> PassSpec:
    """Parse the spec of a single pass; raise SpecError where there is none or more than one."""
    parser = _Parser(text)
    spec = parser.spec()
    parser.finish("the end (one pass here)")
    return spec


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    column: int


class _Parser:
    def __init__(self, text: str) -> None:
        self._source = text
        self._tokens = list(self._lex())
        self._index = 0

    def _lex(self) -> Iterator[_Token]:
        position = 0
        while True:
            match = _TOKEN.match(self._source, position)
            if match is None or match.lastgroup is None:
                raise self._unexpected(position)
            kind = match.lastgroup
            yield _Token(kind, match.group(kind), match.start(kind))
            if kind == "end":
                return
            position = match.end()

    def _unexpected(self, position: int) -> SpecError:
        while self._source[position].isspace():
            position += 1
        character = self._source[position]
        if character == '"':
            return self._error(position, "the quote is never closed")
        return self._error(
            position, f"unexpected character {character!r}; put values with such characters in double quotes"
        )

    def _error(self, column: int, problem: str) -> SpecError:
        return SpecError(_one_line(self._source), column, problem)

    def _take(self, expected: str) -> _Token:
        token = self._tokens[self._index]
        if token.kind == "end":
            raise self._error(token.column, f"expected {expected}, found the end")
        self._index += 1
        return token

    def _expect_mark(self, mark: str, expected: str) -> None:
        token = self._take(expected)
        if token.kind != "mark" or token.text != mark:
            raise self._error(token.column, f"expected {expected}, found {token.text!r}")

    def _name(self, expected: str) -> _Token:
        token = self._take(expected)
        if token.kind != "word" or not re.fullmatch(_NAME, token.text):
            raise self._error(token.column, f"expected {expected}, found {token.text!r}")
        return token

    def accept(self, mark: str) -> bool:
        token = self._tokens[self._index]
        if token.kind == "mark" and token.text == mark:
            self._index += 1
            return True
        return False

    def finish(self, expected: str) -> None:
        token = self._tokens[self._index]
        if token.kind != "end":
            raise self._error(token.column, f"expected {expected}, found {token.text!r}")

    def spec(self) -> PassSpec:
        name = self._name("a pass name")
        options: dict[str, Value] = {}
        columns: dict[str, tuple[int, int]] = {}
        if self.accept("("):
            while not self.accept(")"):
                key = self._name("an option name")
                if key.text in options:
                    raise self._error(key.column, f"option {key.text!r} of {name.text!r} is given twice")
                self._expect_mark("=", f"'=' after {key.text!r}")
                columns[key.text] = (key.column, self._tokens[self._index].column)
                options[key.text] = self._value(key.text)
                if not self.accept(")"):
                    self._expect_mark(",", "',' or ')'")
                    continue
                break
        return PassSpec(name.text, options, Source(self._source, name.column, columns))

    def _value(self, key: str) -> Value:
        token = self._take(f"a value for {key!r}")
        match token.kind:
            case "word" | "number":
                return read_bare(token.text)
            case "string":
                return re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL)
            case _:
                raise self._error(token.column, f"expected a value for {key!r}, found {token.text!r}")


def _one_line(text: str) -> str:
    """Replace line breaks and tabs by single blanks, so that columns keep their place under a caret."""
    return re.sub(r"\s", " ", text)
