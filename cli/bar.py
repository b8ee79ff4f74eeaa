"""The bar on a terminal: the stage of a command, and beneath it how far the longest of its tasks is."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as Line
from rich.table import Column
from rich.text import Text

from onnxcomp.progress import Task
from onnxcomp.report.text import printable

__all__ = ["Bar"]

_TICK_S = 0.25
# Letters of a line: below, the bar is short; above, it does not grow.
_NARROW, _WIDE = 60, 110


class Bar:
    """Shows stages and tasks on stderr, two lines at most, and leaves nothing behind.

    A thread of its own draws four times a second; those who work only count, so that what they time is not disturbed.

    Args:
        stages: Number of stages that are planned; more may come.
        console: Where to; None: stderr.
    """

    def __init__(self, stages: int, console: Console | None = None) -> None:
        self._progress = _lines(console or Console(stderr=True))
        self._stages = stages
        self._stage = self._progress.add_task("load", total=stages, stage=True, count="")
        self._entered = 0
        self._tasks: list[Task] = []
        self._shown: tuple[Task, TaskID] | None = None
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._clock = threading.Thread(target=self._draw, name="onnxcomp-bar", daemon=True)

    def enter(self, stage: str) -> None:
        """Begin the next stage."""
        with self._lock:
            total = max(self._stages, self._entered + 1)
            self._progress.update(
                self._stage, description=printable(stage), completed=self._entered, total=total, refresh=True
            )
            self._entered += 1

    def above(self, line: str) -> None:
        """Print a line over the bar."""
        self._progress.console.print(Text(f"onnxcomp: {line}"), soft_wrap=True)

    def started(self, task: Task) -> None:
        """Show a task, unless it is part of another."""
        with self._lock:
            self._tasks.append(task)

    def advanced(self, task: Task) -> None:
        """Its count is read when the bar is drawn."""

    def ended(self, task: Task) -> None:
        """Show the task no longer."""
        with self._lock:
            self._tasks.remove(task)

    def __enter__(self) -> Self:
        try:
            self._progress.start()
            self._clock.start()
        except BaseException:  # Ctrl-C, with the cursor hidden already
            self._progress.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        try:
            self._clock.join()
        finally:
            self._finish()

    def _finish(self) -> None:
        try:
            self._progress.stop()  # shows the cursor again
        except (OSError, ValueError):  # the terminal is gone
            return

    def _draw(self) -> None:
        try:
            while not self._done.wait(_TICK_S):
                self.look()
                self._progress.refresh()
        except (OSError, ValueError):  # the terminal is gone
            return

    def look(self) -> RenderableType:
        """Put the outermost task on the second line; return what is to be drawn."""
        self._follow()
        return self._progress.get_renderable()

    def _follow(self) -> None:
        with self._lock:
            outer = self._tasks[0] if self._tasks else None
            inner = self._tasks[-1] if self._tasks else None
        if self._shown is not None and self._shown[0] is not outer:
            self._progress.remove_task(self._shown[1])
            self._shown = None
        if outer is None or inner is None:
            return
        total = None if outer.total is None else max(outer.total, outer.done)
        part = "" if inner is outer else f": {inner.name}{_count(inner, ' ')}"
        if self._shown is None:
            name = f"  {printable(outer.name)}"
            self._shown = outer, self._progress.add_task(name, total=total, stage=False, count=_count(outer, ""))
        self._progress.update(
            self._shown[1],
            description=f"  {printable(outer.name)}{printable(part)}",
            completed=outer.done,
            total=total,
            count=_count(outer, ""),
            refresh=False,
        )


class _Clock(ProgressColumn):
    """Time taken by the command, time left of a task."""

    def __init__(self) -> None:
        super().__init__()
        self._taken, self._left = TimeElapsedColumn(), TimeRemainingColumn(compact=True)

    def render(self, task: Line) -> Text:
        """The time, and which of the two it is."""
        if task.fields["stage"]:
            return self._taken.render(task)
        left = self._left.render(task)
        return left + Text(" left", style="dim") if any(map(str.isdigit, left.plain)) else left


def _lines(console: Console) -> Progress:
    """Two lines that fit into the terminal, in characters that it has."""
    plain = not console.encoding.startswith("utf")
    narrow = console.width < _NARROW
    wide = console.width > _WIDE
    name = Column(
        ratio=None if wide else 1, width=48 if wide else None, no_wrap=True, overflow="crop" if plain else "ellipsis"
    )
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=name),
        BarColumn(bar_width=8 if narrow else 24),
        TextColumn("{task.fields[count]}", markup=False, justify="right"),
        _Clock(),
        console=console,
        transient=True,
        auto_refresh=False,
        expand=not wide,
        redirect_stdout=False,  # it is the result, and may go elsewhere
        get_time=time.monotonic,
        speed_estimate_period=300,
    )


def _count(task: Task, before: str) -> str:
    if task.total is None:
        return f"{before}{task.done}" if task.done else ""
    return f"{before}{task.done}/{max(task.total, task.done)}"
