from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.gate import units
from onnxcomp.gate.units import Unit


@pytest.mark.parametrize(
    ("unit", "text", "value"),
    [
        (units.byte_size, "4MB", 4 * 2**20),
        (units.byte_size, " 1.5 gb ", 1.5 * 2**30),
        (units.byte_size, "100KiB", 100 * 1024),
        (units.byte_size, "1000", 1000),
        (units.byte_size, "1.5B", 1),
        (units.megabytes, "64", 64 * 2**20),
        (units.megabytes, "512KB", 512 * 1024),
        (units.counted, "1.5M", 1_500_000),
        (units.counted, "3G", 3e9),
        (units.counted, "0", 0),
        (units.milliseconds, "12 ms", 12),
        (units.milliseconds, "0.5s", 500),
        (units.milliseconds, "1e3us", 1),
        (units.ratio, "1.2x", 1.2),
        (units.percentage, "70 %", 70),
        (units.points, "0.5", 0.5),
        (units.decibels, "-3dB", -3),
    ],
)
def test_numbers_as_people_write_them(unit: Unit, text: str, value: float) -> None:
    assert unit.parse(text) == value


@pytest.mark.parametrize(
    ("unit", "text", "words"),
    [
        (units.byte_size, "0", "more than 0"),
        (units.byte_size, "-3MB", "more than 0"),
        (units.byte_size, "4XB", "not a number such as 4MB or 100KB"),
        (units.byte_size, "", "not a number"),
        (units.byte_size, "4 M B", "not a number"),
        (units.counted, "-1", "at least 0"),
        (units.milliseconds, "1e999", "more than 0"),
        (units.percentage, "101", "between 0 and 100"),
        (units.percentage, "nan", "not a number"),
        (units.decibels, "inf", "not a number"),
        (units.decibels, "1e400", "finite"),
        (units.ratio, "٣", "not a number"),
        (units.ratio, True, "not a number"),
    ],
)
def test_what_is_no_number_or_makes_no_sense(unit: Unit, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        unit.parse(text)


@given(st.floats(1e-3, 1e9))
def test_a_number_is_read_as_it_is(value: float) -> None:
    assert math.isclose(units.ratio.parse(value), value)
    assert math.isclose(units.ratio.parse(repr(value)), value)
