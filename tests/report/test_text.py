"""Numbers and names for people."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.report.text import count, decibels, percent, printable, ratio, size


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KB"), (1_048_576, "1 MB"), (1_048_575, "1024 KB"), (3 << 40, "3072 GB")],
)
def test_sizes(value: int, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "?"), (0, "0"), (999, "999"), (1000, "1 k"), (41_110_000, "41.1 M"), (999_600, "1 M"), (10**13, "10 T")],
)
def test_counts(value: int | None, text: str) -> None:
    assert count(value) == text


def test_the_rest() -> None:
    assert percent(0.92601) == "92.60 %"
    assert (ratio(10, 4), ratio(0, 4), ratio(4, 0), ratio(None, 1)) == ("2.50x", "", "", "")
    assert (decibels(31.25), decibels(float("inf"))) == ("31.2 dB", "exact")


@given(st.text())
def test_nothing_printable_can_steer(text: str) -> None:
    shown = printable(text)
    assert all(c == "\n" or c.isprintable() for c in shown)
    assert "\x1b" not in shown
    shown.encode("utf-8")
