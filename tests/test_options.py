"""Type hints to values, and passes to specs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.contract import Context, Pass, PassReport
from onnxcomp.errors import OptionError, PassError
from onnxcomp.options import Bounds, coerce, describe, make_pass, replace_options, spec_of, summary_of
from onnxcomp.spec import parse_spec

KEEP = Annotated[float, Bounds(0, 1, open_low=True)]


@dataclass(frozen=True)
class Sample(Pass):
    """Does nothing, in many ways.

    More words.

    Attributes:
        rank: The rank rule;
            two lines of it.
        keep: Fraction kept.

    And an end.
    """

    name: ClassVar[str] = "sample"
    rank: Literal["vbmf", "energy"] = "energy"
    keep: KEEP | None = None
    count: int | Literal["auto"] = "auto"
    ranks: str = ""
    bits: Literal[2, 4, 8] = 8
    bias: bool = True
    tolerance: float = field(default=1e-3, metadata={"help": "Stop below this."})

    def __post_init__(self) -> None:
        if self.keep is not None and self.ranks:
            raise ValueError("keep and ranks exclude each other")

    def run(self, model: ir.Model, context: Context) -> PassReport:
        return PassReport()


@dataclass(frozen=True)
class Needy(Sample):
    """Needs an option."""

    name: ClassVar[str] = "needy"
    must: int = field(kw_only=True)


@dataclass(frozen=True)
class Odd(Sample):
    """Has a list."""

    name: ClassVar[str] = "odd"
    items: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, int, 3),
        ("3", int, 3),
        (3, float, 3.0),
        ("1e-3", float, 0.001),
        (64, str, "64"),
        ("32x64", str, "32x64"),
        (True, bool, True),
        (4, Literal[2, 4], 4),
        ("none", int | None, None),
        (None, int | None, None),
        ("auto", int | Literal["auto"], "auto"),
        (7, int | Literal["auto"], 7),
        (7, str | int, 7),
        (0.5, KEEP, 0.5),
        (1, KEEP | None, 1.0),
    ],
)
def test_values_that_fit(value: Any, hint: Any, expected: object) -> None:
    result = coerce(value, hint)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        (3.0, int, "3.0 is not an integer"),
        (True, int, "true is not an integer"),
        (True, float, "true is not a number"),
        (1, bool, "1 is not true or false"),
        ("yes", bool, "'yes' is not true or false"),
        ("nan", float, "'nan' is not a number"),
        (1.5, str, "1.5 is read as a number; put the text in quotes"),
        (None, int, "none is not an integer"),
        (0, KEEP, "0 is not a number in (0, 1]"),
        (1.5, KEEP | None, "1.5 is not a number in (0, 1] or none"),
        (-1, Annotated[int, Bounds(0)], "-1 is not an integer at least 0"),
        (5, Annotated[int, Bounds(high=5, open_high=True)], "5 is not an integer below 5"),
        ("vmbf", Literal["vbmf", "energy"], "'vmbf' is not one of vbmf, energy; did you mean 'vbmf'?"),
        (3, Literal[2, 4], "3 is not one of 2, 4"),
        (True, Literal[1, 2], "true is not one of 1, 2"),
    ],
)
def test_values_that_do_not(value: Any, hint: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        coerce(value, hint)
    assert str(caught.value) == message


def test_options_are_described() -> None:
    described = {option.name: option for option in describe(Sample)}
    assert list(described) == ["rank", "keep", "count", "ranks", "bits", "bias", "tolerance"]
    assert (described["rank"].type, described["rank"].default) == ("one of vbmf, energy", "energy")
    assert described["rank"].help == "The rank rule; two lines of it."
    assert (described["keep"].type, described["keep"].default) == ("a number in (0, 1] or none", "none")
    assert described["keep"].help == "Fraction kept."
    assert described["ranks"].default == '""'
    assert described["tolerance"].help == "Stop below this."
    assert {o.name: o.default for o in describe(Needy)}["must"] is None
    assert summary_of(Sample) == "Does nothing, in many ways."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "sample(rnk=vbmf)",
            "pass 'sample' has no option 'rnk'; did you mean 'rank'? "
            "(options: rank, keep, count, ranks, bits, bias, tolerance)\n  sample(rnk=vbmf)\n         ^",
        ),
        (
            "sample(bias=true, rank=vmbf)",
            "sample.rank: 'vmbf' is not one of vbmf, energy; did you mean 'vbmf'?\n"
            "  sample(bias=true, rank=vmbf)\n                         ^",
        ),
        (
            "sample(keep=1, ranks=3x3)",
            "sample: keep and ranks exclude each other\n  sample(keep=1, ranks=3x3)\n  ^",
        ),
    ],
)
def test_errors_have_a_caret(text: str, message: str) -> None:
    spec = parse_spec(text)
    with pytest.raises(OptionError) as caught:
        make_pass(Sample, spec.options, spec.source)
    assert str(caught.value) == message


def test_errors_without_a_text_have_none() -> None:
    with pytest.raises(OptionError) as caught:
        make_pass(Sample, {"keep": 2})
    assert str(caught.value) == "sample.keep: 2 is not a number in (0, 1] or none"
    with pytest.raises(OptionError, match="pass 'needy' needs the option 'must'"):
        make_pass(Needy, {})


def test_replaced_options_are_checked() -> None:
    base = Sample(rank="vbmf")
    assert replace_options(base, {"keep": 0.5}) == Sample(rank="vbmf", keep=0.5)
    with pytest.raises(OptionError, match="no option 'kep'; did you mean 'keep'"):
        replace_options(base, {"kep": 1})


def test_unsupported_hints_are_the_fault_of_the_pass() -> None:
    with pytest.raises(PassError, match="option 'items' has the unsupported type"):
        make_pass(Odd, {})


def test_specs_hold_what_differs_from_the_defaults() -> None:
    assert spec_of(Sample()) == "sample"
    assert spec_of(Sample(rank="vbmf", keep=0.5, bias=False)) == "sample(rank=vbmf, keep=0.5, bias=false)"
    assert spec_of(Needy(must=3)) == "needy(must=3)"


def test_a_pass_that_was_made_wrong_has_no_spec() -> None:
    with pytest.raises(OptionError, match=r"sample\.rank: 'nope' is not one of"):
        spec_of(Sample(rank="nope"))  # type: ignore[arg-type]


@given(
    st.builds(
        Sample,
        rank=st.sampled_from(["vbmf", "energy"]),
        keep=st.none() | st.floats(0, 1, exclude_min=True),
        count=st.just("auto") | st.integers(-(2**40), 2**40),
        bits=st.sampled_from([2, 4, 8]),
        bias=st.booleans(),
        tolerance=st.floats(allow_nan=False, allow_infinity=False),
    )
)
def test_passes_survive_their_spec(sample: Sample) -> None:
    spec = parse_spec(spec_of(sample))
    assert make_pass(Sample, spec.options) == sample


@given(st.text(max_size=12))
def test_text_options_survive_their_spec(text: str) -> None:
    spec = parse_spec(spec_of(Sample(ranks=text)))
    assert make_pass(Sample, spec.options) == Sample(ranks=text)
