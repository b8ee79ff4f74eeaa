"""How far a long computation is: library code tells, and whoever listens shows it.

Anything that may take over a second opens a task and advances it; where nobody listens that costs a microsecond::

    with progress.task("calibrate", total=len(batches)) as advance:
        for batch in batches:
            observe(batch)
            advance()

    for site in progress.each(sites, "decompose"):
        ...

Tasks nest. The listener belongs to the context that it was set in: code that runs in other threads may advance a task
that was opened by the listening thread, while tasks that other threads open themselves are heard by nobody.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, TypeVar

__all__ = ["Advance", "Listener", "Task", "each", "listening", "task"]

_log = logging.getLogger(__name__)
_Item = TypeVar("_Item")


@dataclass(eq=False, slots=True)
class Task:
    """Something that takes a while.

    Attributes:
        name: What is done, as a person reads it; names of layers come from models and are not to be trusted.
        total: Number of steps; None where nobody knows.
        done: Steps done so far; may exceed the total where that was an estimate.
    """

    name: str
    total: int | None
    done: int = 0


class Advance(Protocol):
    """What a task yields: called after each step, or after several at once; from any thread."""

    def __call__(self, steps: int = 1, /) -> None:
        """Count steps."""


class Listener(Protocol):
    """Who shows tasks; its methods are called by the threads that work, and should return at once."""

    def started(self, task: Task) -> None:
        """A task began, inside of all those that have not ended."""

    def advanced(self, task: Task) -> None:
        """A task did some steps."""

    def ended(self, task: Task) -> None:
        """A task ended, by an exception perhaps."""


_LISTENER: ContextVar[Listener | None] = ContextVar("onnxcomp_progress", default=None)


def _ignore(_steps: int = 1, /) -> None:
    """Advance what nobody watches."""


@contextmanager
def listening(listener: Listener) -> Generator[None]:
    """Let a listener hear of all tasks that are opened inside, in place of any other."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


@contextmanager
def task(name: str, total: int | None = None) -> Generator[Advance]:
    """Open a task.

    Args:
        name: What is done, in a word or two, such as ``calibrate``.
        total: Number of steps; None where it is not known.

    Yields:
        A function to call after each step, or with a number of steps after several.
    """
    listener = _LISTENER.get()
    logged = _log.isEnabledFor(logging.DEBUG)
    if listener is None and not logged:
        yield _ignore
        return
    opened, started = Task(name, total), time.perf_counter()
    if listener is not None:
        listener.started(opened)
    try:
        yield _counter(opened, listener)
    finally:
        if listener is not None:
            listener.ended(opened)
        if logged:
            _log.debug("%s: %s in %.3f s", name, _steps(opened), time.perf_counter() - started)


def each(items: Iterable[_Item], name: str, total: int | None = None) -> Iterator[_Item]:
    """Go through items as one task, a step an item.

    Args:
        items: What to go through.
        name: What is done with them.
        total: Number of items, where they do not know it themselves.
    """
    known = len(items) if total is None and isinstance(items, Sized) else total
    with task(name, known) as advance:
        for item in items:
            yield item
            advance()


def _counter(opened: Task, listener: Listener | None) -> Advance:
    """What advances a task; threads take turns."""
    lock = threading.Lock()

    def advance(steps: int = 1, /) -> None:
        with lock:
            opened.done += steps
        if listener is not None:
            listener.advanced(opened)

    return advance


def _steps(opened: Task) -> str:
    of = "" if opened.total is None or opened.total == opened.done else f" of {opened.total}"
    return f"{opened.done}{of} step{'' if opened.done == 1 and not of else 's'}"
