from __future__ import annotations

import math

import pytest

from onnxcomp.errors import InputError
from onnxcomp.evaluate import Quality
from onnxcomp.gate.limits import Limits
from onnxcomp.gate.line import Line
from onnxcomp.gate.quality import quality_lines

GOOD = Quality(
    samples=200, top1=0.79, agreement=0.97, sqnr={"a": 40.0, "b": 25.0}, drop_points=1.0, drop_low=-0.4, finite=True
)


def judged(quality: Quality, **limits: float) -> dict[str, Line]:
    return {line.name: line for line in quality_lines(quality, Limits(**limits))}  # type: ignore[arg-type]


def test_what_holds_and_what_does_not() -> None:
    kept = judged(GOOD, min_accuracy=79.0, max_drop=1.0, min_agreement=97.0, min_sqnr=25.0)
    assert {line.verdict for line in kept.values()} == {"pass"}
    assert set(kept) == {"min_accuracy", "max_drop", "min_agreement", "min_sqnr", "finite"}
    broken = judged(GOOD, min_accuracy=79.5, max_drop=0.99, min_agreement=97.1, min_sqnr=25.1)
    assert [line.verdict for line in broken.values()] == ["fail"] * 4 + ["pass"]
    assert broken["min_sqnr"].where == ("b",)
    assert "output b, the worst of 2" in broken["min_sqnr"].why


def test_outputs_of_integers_that_changed_leave_a_doubt() -> None:
    classes = Quality(samples=9, agreement=1.0, sqnr={"boxes": math.inf}, equal={"class": 0.25, "count": 1.0})
    line = judged(classes, min_sqnr=40.0)["min_sqnr"]
    assert (line.verdict, line.where) == ("inconclusive", ("class",))
    assert "not judged: class (25.00 % equal)" in line.why
    same = Quality(samples=9, sqnr={"boxes": math.inf}, equal={"class": 1.0})
    assert judged(same, min_sqnr=40.0)["min_sqnr"].verdict == "pass"


def test_intervals_are_told() -> None:
    lines = judged(GOOD, min_accuracy=70, max_drop=2)
    drop, accuracy = lines["max_drop"], lines["min_accuracy"]
    assert "80.00 % -> 79.00 %; -0.67 to +2.67 points with 95 % confidence, 200 pairs" in drop.why
    assert drop.figures["low"] < drop.figures["value"] < drop.figures["high"]
    assert "72.8 to 84.1 %" in accuracy.why  # Wilson


def test_outputs_that_are_no_numbers_fail_whatever_is_asked() -> None:
    bad = Quality(samples=4, top1=0.0, sqnr={"y": -math.inf}, finite=False)
    lines = judged(bad, min_sqnr=-1000.0)
    assert (lines["min_sqnr"].verdict, lines["finite"].verdict, lines["finite"].where) == ("fail", "fail", ("y",))


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"min_accuracy": 1.0}, "min_accuracy needs a classifier with labelled data"),
        ({"max_drop": 1.0}, "max_drop needs a classifier with labelled data"),
        ({"min_agreement": 1.0}, "min_agreement needs a classifier"),
        ({"min_sqnr": 1.0}, "min_sqnr needs an output of floating-point numbers"),
    ],
)
def test_limits_that_the_model_cannot_answer_are_refused(limits: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        judged(Quality(samples=3), **limits)
