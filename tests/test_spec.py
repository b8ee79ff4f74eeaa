"""Pipelines as text, both ways."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.errors import SpecError
from onnxcomp.spec import PassSpec, parse_pipeline, parse_spec, read_bare, render_pipeline, render_value

NAMES = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=8).filter(
    lambda word: re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", word) is not None
)
NUMBER_LIKE = st.text(string.digits + "xeE.:+-_", min_size=1, max_size=8)
VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**63) + 1, 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    NUMBER_LIKE,
    st.text(max_size=10),
)
SPECS = st.builds(PassSpec, NAMES, st.dictionaries(NAMES, VALUES, max_size=4))


@given(st.lists(SPECS, min_size=1, max_size=4))
def test_specs_survive_text(specs: list[PassSpec]) -> None:
    again = parse_pipeline(render_pipeline(tuple(specs)))
    assert again == tuple(specs)
    assert [[type(v) for v in s.options.values()] for s in again] == [
        [type(v) for v in s.options.values()] for s in specs
    ]


@given(st.text(string.ascii_lowercase + string.digits + '(),=." :x-\n\\', max_size=24))
def test_text_survives_specs_or_is_refused_with_a_column(text: str) -> None:
    try:
        specs = parse_pipeline(text)
    except SpecError as error:
        assert 0 <= error.column <= len(text)
        assert str(error).endswith("\n  " + " " * error.column + "^")
    else:
        assert parse_pipeline(render_pipeline(specs)) == specs


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("vbmf", "vbmf"),
        ("32x64", "32x64"),
        ("2:4", "2:4"),
        ("1e3", 1000.0),
        ("1e", "1e"),
        ("-0.5", -0.5),
        ("+3", 3),
        (".5", 0.5),
        ("5.", 5.0),
        ("007", "007"),
        ("0", 0),
        ("-", "-"),
        ("1.2.3", "1.2.3"),
        ("1e999", "1e999"),
        ("true", True),
        ("True", "True"),
        ("none", "none"),
        ("nan", "nan"),
        ('"true"', "true"),
        ('"1"', "1"),
        (r'"a\"b\\c"', 'a"b\\c'),
        ('"a,b)(="', "a,b)(="),
        ("9223372036854775808", "9223372036854775808"),
    ],
)
def test_values(text: str, value: object) -> None:
    (spec,) = parse_pipeline(f"p(o={text})")
    assert spec.options["o"] == value
    assert type(spec.options["o"]) is type(value)


def test_layout_does_not_matter() -> None:
    plain = parse_pipeline("tucker2(rank=vbmf,keep=0.5),int8")
    assert parse_pipeline(" tucker2 ( rank = vbmf ,\n keep=0.5, ) , int8 ") == plain
    assert parse_pipeline("tucker2(rank=vbmf,keep=0.5),int8()") == plain
    assert [str(s) for s in plain] == ["tucker2(rank=vbmf, keep=0.5)", "int8"]


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("", 0, "expected a pass name, found the end"),
        ("a(", 2, "expected an option name, found the end"),
        ("a(b)", 3, "expected '=' after 'b', found ')'"),
        ("a(b=)", 4, "expected a value for 'b', found ')'"),
        ("a(b=1,b=2)", 6, "option 'b' of 'a' is given twice"),
        ("a b", 2, "expected ',' or the end of the pipeline, found 'b'"),
        ("a,,b", 2, "expected a pass name, found ','"),
        ("a,", 2, "expected a pass name, found the end"),
        ("a(b=1)c", 6, "found 'c'"),
        ("a(b=1 c=2)", 6, "expected ',' or ')', found 'c'"),
        ("a(b=1;c=2)", 5, "unexpected character ';'"),
        ('a(b="x)', 4, "the quote is never closed"),
        ("3x", 0, "expected a pass name, found '3x'"),
        ("a(,)", 2, "expected an option name, found ','"),
        ("ä", 0, "unexpected character 'ä'"),
    ],
)
def test_errors_point_at_the_column(text: str, column: int, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_pipeline(text)
    assert words in str(caught.value)
    assert caught.value.column == column


def test_a_caret_stays_in_place_after_a_line_break() -> None:
    with pytest.raises(SpecError, match=re.escape("\n  a, b?\n      ^")):
        parse_pipeline("a,\nb?".replace("\n", "\t"))


def test_a_single_spec() -> None:
    assert parse_spec("int8(calibration=mse)") == PassSpec("int8", {"calibration": "mse"})
    with pytest.raises(SpecError, match="one pass here"):
        parse_spec("a,b")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 2**63, -(2**70)])
def test_what_cannot_be_written_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="cannot be written"):
        PassSpec("p", {"o": value})


@pytest.mark.parametrize("name", ["", "a b", "3a", "a.b", "ä"])
def test_names_are_words(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name"):
        PassSpec(name)


@given(VALUES)
def test_rendered_values_are_bare_only_where_they_read_back(value: str | float | bool) -> None:
    text = render_value(value)
    if not text.startswith('"'):
        assert read_bare(text) == value
