"""Tasks are heard by who listens, in order, from all threads, and cost next to nothing where nobody does."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from onnxcomp import progress


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, int]] = []

    def started(self, task: progress.Task) -> None:
        self.events.append(("started", task.name, task.total or 0))

    def advanced(self, task: progress.Task) -> None:
        self.events.append(("advanced", task.name, task.done))

    def ended(self, task: progress.Task) -> None:
        self.events.append(("ended", task.name, task.done))


def test_nested_tasks_are_heard_in_order() -> None:
    heard = Heard()
    with progress.listening(heard), progress.task("layers", total=2) as advance:
        with progress.task("sweep"):
            pass
        advance(2)
    assert heard.events == [
        ("started", "layers", 2),
        ("started", "sweep", 0),
        ("ended", "sweep", 0),
        ("advanced", "layers", 2),
        ("ended", "layers", 2),
    ]


def test_a_task_ends_with_the_exception_that_ends_it() -> None:
    heard = Heard()
    with progress.listening(heard), pytest.raises(KeyboardInterrupt), progress.task("layers"):
        raise KeyboardInterrupt
    assert heard.events[-1] == ("ended", "layers", 0)


def test_each_counts_what_it_goes_through_and_a_step_is_done_when_its_body_is() -> None:
    def stream() -> Iterator[str]:
        yield from "ab"

    heard = Heard()
    with progress.listening(heard):
        assert list(progress.each(["x"], "listed")) == ["x"]
        for item in progress.each(stream(), "streamed", total=5):
            heard.events.append(("body", item, 0))
    assert [event for event in heard.events if event[0] == "started"] == [
        ("started", "listed", 1),
        ("started", "streamed", 5),
    ]
    assert [event[:2] for event in heard.events[3:]] == [
        ("started", "streamed"),
        ("body", "a"),
        ("advanced", "streamed"),
        ("body", "b"),
        ("advanced", "streamed"),
        ("ended", "streamed"),
    ]


def test_an_abandoned_loop_ends_its_task() -> None:
    heard = Heard()
    with progress.listening(heard):
        for _ in progress.each(range(9), "searched"):
            break
    assert heard.events[-1] == ("ended", "searched", 0)


def test_threads_advance_without_losing_steps_and_open_nothing_of_their_own() -> None:
    heard = Heard()

    def work(advance: progress.Advance) -> None:
        with progress.task("inside a thread"):
            for _ in range(200):
                advance()

    with progress.listening(heard), progress.task("parallel", total=1600) as advance, ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [advance] * 8))
    assert heard.events[-1] == ("ended", "parallel", 1600)
    assert {name for _, name, _ in heard.events} == {"parallel"}


def test_where_nobody_listens_nothing_is_kept_and_a_listener_leaves_with_its_block() -> None:
    outer, inner = Heard(), Heard()
    with progress.listening(outer):
        with progress.listening(inner), progress.task("in"):
            pass
        with progress.task("out"):
            pass
    with progress.task("nobody") as advance:
        advance()
    assert {name for _, name, _ in inner.events} == {"in"}
    assert {name for _, name, _ in outer.events} == {"out"}


def test_tasks_are_in_the_log_with_their_steps(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "onnxcomp.progress"), progress.task("calibrate", total=3) as advance:
        advance()
    assert caplog.messages[0].startswith("calibrate: 1 of 3 steps in ")
