from __future__ import annotations

import pytest

from onnxcomp.budget import Budget
from onnxcomp.errors import InputError
from onnxcomp.evaluate import Quality


def _quality(top1: float | None = None, **sqnr: float) -> Quality:
    return Quality(100, top1, top1, None, sqnr, dict.fromkeys(sqnr, 1.0))


def test_an_empty_budget_is_false_and_holds() -> None:
    assert not Budget() and Budget(max_drop=0.0) and Budget(min_sqnr=-3.0)
    assert Budget().failures(_quality(0.9), _quality(0.1)) == ()


@pytest.mark.parametrize(
    ("top1", "limit", "failures"),
    [
        (0.92, 1.0, ()),
        (0.90, 1.0, ("top-1 drops 2.00 points, more than the 1 allowed",)),
        (0.95, 0.0, ()),
        (0.915, 0.25, ("top-1 drops 0.50 points, more than the 0.25 allowed",)),
    ],
)
def test_drop_is_in_points(top1: float, limit: float, failures: tuple[str, ...]) -> None:
    assert Budget(max_drop=limit).failures(_quality(0.92), _quality(top1)) == failures


def test_the_worst_output_counts() -> None:
    after = _quality(None, y=30.0, z=12.34)
    assert Budget(min_sqnr=12.0).failures(_quality(), after) == ()
    message = "the worst output has an SQNR of 12.3 dB, less than the 20 dB asked for"
    assert Budget(min_sqnr=20.0).failures(_quality(), after) == (message,)


def test_both_limits_may_fail() -> None:
    assert len(Budget(0.1, 40.0).failures(_quality(0.9), _quality(0.8, y=10.0))) == 2


def test_a_drop_needs_labels() -> None:
    with pytest.raises(InputError, match="--max-drop needs labelled evaluation data of a classifier"):
        Budget(max_drop=1.0).failures(_quality(), _quality(0.9))


@pytest.mark.parametrize(
    ("limits", "top1", "noise", "slack"),
    [
        ({"min_sqnr": 20.0}, None, 0.001, 10.0),
        ({"min_sqnr": 20.0}, None, 0.1, 0.1),
        ({"min_sqnr": 20.0}, None, 0.0, float("inf")),
        ({"max_drop": 1.0}, 0.90, 0.01, 0.5),
        ({"max_drop": 1.0}, 0.915, 0.01, 2.0),
        ({"max_drop": 1.0}, 0.92, 0.01, 4.0),
        ({"max_drop": 1.0}, 0.93, 0.01, 4.0),
        ({"max_drop": 1.0}, 0.50, 0.01, 0.25),
        ({"max_drop": 1.0, "min_sqnr": 20.0}, 0.92, 0.1, 0.1),
        ({"max_drop": 1.0, "min_sqnr": 20.0}, 0.90, 0.001, 0.5),
    ],
)
def test_slack_is_the_room_for_noise(limits: dict[str, float], top1: float | None, noise: float, slack: float) -> None:
    """A drop of accuracy goes with the noise; next to none, or a gain, says that there is room, and not how much."""
    before = _quality(0.92 if top1 is not None else None)
    assert Budget(**limits).slack(before, _quality(top1), noise) == pytest.approx(slack)


def test_no_budget_has_all_the_room() -> None:
    assert Budget().slack(_quality(), _quality(), 1.0) == float("inf")
