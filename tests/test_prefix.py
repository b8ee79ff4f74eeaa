"""The least number of remedies with which a limit holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.prefix import least_prefix

Shares = st.lists(st.floats(0.01, 10), min_size=1, max_size=40).map(lambda s: sorted(s, reverse=True))


def _searched(
    shares: list[float], truth: list[float], floor: float, allowed: float, trials: int = 6
) -> tuple[int | None, list[int]]:
    """What the search returns where remedies take away `truth` of the noise, and what it measured."""
    measured: list[int] = []

    def trial(number: int) -> tuple[float, bool]:
        assert 1 <= number <= len(shares)
        measured.append(number)
        noise = floor + sum(truth[number:])
        return noise, noise <= allowed

    return least_prefix(shares, floor + sum(truth), allowed, trial, trials=trials), measured


@given(Shares, st.data())
def test_no_more_than_it_takes_whatever_was_expected(shares: list[float], data: st.DataObject) -> None:
    truth = data.draw(st.permutations(shares))
    allowed = data.draw(st.floats(0, 0.99)) * sum(truth)
    found, measured = _searched(shares, truth, 0.0, allowed, trials=40)
    least = next(k for k in range(1, len(truth) + 1) if sum(truth[k:]) <= allowed)
    assert found == least and len(measured) == len(set(measured)) <= 20


@given(Shares, st.floats(0, 0.99))
def test_a_good_expectation_needs_two_trials(shares: list[float], part: float) -> None:
    _, measured = _searched(shares, shares, 0.0, part * sum(shares))
    assert len(measured) <= 3


@given(Shares, st.data())
def test_what_is_returned_was_seen_to_hold_in_few_trials(shares: list[float], data: st.DataObject) -> None:
    truth = data.draw(st.permutations(shares))
    floor = data.draw(st.floats(0, 5))
    allowed = data.draw(st.floats(0, 1)) * (floor + sum(truth)) * 0.99
    found, measured = _searched(shares, truth, floor, allowed)
    assert len(measured) <= 6
    if found is None:
        assert floor > allowed and len(shares) in measured
    else:
        assert found in measured and floor + sum(truth[found:]) <= allowed


def test_nothing_can_be_done() -> None:
    assert _searched([], [], 1.0, 0.5) == (None, [])
    assert _searched([1.0], [1.0], 2.0, 1.0) == (None, [1])


def test_unknown_shares_count_alike() -> None:
    found, measured = _searched([0.0] * 8, [1.0] * 8, 0.0, 4.5)
    assert found == 4 and len(measured) == 2


def test_an_infinite_noise_is_halved() -> None:
    found, measured = _searched([1.0] * 16, [float("inf"), *[1.0] * 15], 0.0, 20.0)
    assert found == 1 and measured == [8, 4, 2, 1]
