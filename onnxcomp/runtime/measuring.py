"""Run sessions in turns, with the runtime's profiler and without it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from onnxcomp import progress
from onnxcomp.errors import InputError, ModelError
from onnxcomp.runtime.attribution import Attribution, attribute
from onnxcomp.runtime.optimised import open_dumped, tokenised
from onnxcomp.runtime.ortprofile import TracedKernel, read_trace
from onnxcomp.runtime.profilercost import ProfilerCost
from onnxcomp.runtime.session import checked_feed, open_with
from onnxcomp.runtime.settings import SessionSettings
from onnxcomp.runtime.timing import collector_off

__all__ = ["Effort", "Measured", "Subject", "adjustment_of", "calm", "measure"]

Times: TypeAlias = NDArray[np.float64]

_TURN_S = 5e-3  # so long one session runs before the next one has its turn
_MOST_IN_A_TURN = 16
_LEAST_ROUNDS = 3
_ROUNDS = 8  # at least, where so many runs are wanted
# The runtime stops writing at a million events, and holds some kilobytes of each in memory until then.
_EVENTS = 60_000
_CALM = (0.1, 0.4)  # shares of the runs, the fastest first
_FEW = 3
# The chains' cost may be off by so much for a model with other kernels; a larger difference has another cause.
_ADJUSTMENT = 1.35
_NOTICEABLE = 0.05  # of a run
_TYPICAL = TracedKernel("", "Conv", "", 4, 12, floats=True, parallel=False)
_EVENTS_BESIDE = 2  # a run writes two events besides those of its kernels


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    Attributes:
        runs: Runs of each model with the profiler, and as many without it; twice as many where they were disturbed.
        warmup: Runs of each before anything is measured.
        budget_s: Seconds after which no further round starts; at least 3 rounds are done, if so many runs are wanted.

    Raises:
        InputError: No runs, a negative warm-up, or no time.
    """

    runs: int = 500
    warmup: int = 10
    budget_s: float = 5.0

    def __post_init__(self) -> None:
        if self.runs < 1:
            raise InputError(f"{self.runs} runs measure nothing; ask for 1 at least")
        if self.warmup < 0:
            raise InputError(f"a warm-up of {self.warmup} runs makes no sense; 0 or more")
        if not 0 < self.budget_s < math.inf:
            raise InputError(f"a time limit of {self.budget_s:g} s makes no sense; more than 0")


@dataclass(slots=True)
class _Recorded:
    """A session that is run again and again on one feed."""

    session: ort.InferenceSession
    feed: dict[str, NDArray[Any]]
    calls: int = 0
    seconds: list[list[float]] = field(default_factory=list[list[float]])
    kept: list[list[int]] = field(default_factory=list[list[int]])

    def warm(self, count: int) -> float:
        """Run some times; return the seconds of the fastest run."""
        return min([self._timed() for _ in range(max(count, 1))])

    def turn(self, count: int) -> None:
        """Run `count` times, behind one run that finds the caches full of other models if there are several."""
        if count > 1:
            self._timed()
        first = self.calls
        self.seconds.append([self._timed() for _ in range(count)])
        self.kept.append(list(range(first, first + count)))

    def milliseconds(self, first: int = 0, step: int = 1) -> Times:
        """The times of all runs of all turns, or of every second turn and the like, float64 [runs]."""
        return np.concatenate([np.array(own) for own in self.seconds[first::step]]) * 1e3

    def _timed(self) -> float:
        start = time.perf_counter()
        self.session.run(None, self.feed)
        taken = time.perf_counter() - start
        self.calls += 1
        return taken


@dataclass(frozen=True, slots=True)
class Measured:
    """The runs of one model; times in milliseconds.

    Attributes:
        attributions: Where each kernel comes from, in the order in which they run.
        kernels: What the runtime's profiler says of each.
        times: Of each kernel, the profiler's own cost taken out, float64 [profiled runs, kernels].
        costs: What was taken out, as chains of small nodes tell it, float64 [profiled runs, kernels].
        adjustment: What that was multiplied with, so that it fits the model; see :func:`adjustment_of`.
        raw: Of each kernel, as the runtime gives it, float64 [profiled runs, kernels].
        profiled: Of each run with the profiler, float64 [profiled runs].
        outside: What of that lies outside of the kernels, float64 [profiled runs].
        rounds: Which of the profiled runs each round had, int64 each.
        wall: Of each run without the profiler, float64 [runs].
        check: Those of `wall` that had no part in the adjustment.
    """

    attributions: tuple[Attribution, ...]
    kernels: tuple[TracedKernel, ...]
    times: Times
    costs: Times
    adjustment: float
    raw: Times
    profiled: Times
    outside: Times
    rounds: tuple[NDArray[np.int64], ...]
    wall: Times
    check: Times


class Subject:
    """A model that is measured, in a session with the profiler and one without.

    Args:
        model: The model; not modified.
        feed: Input name to array.
        settings: How sessions are opened.
        folder: Where the runtime may write; must not exist.

    Raises:
        InputError: The settings let nodes run side by side.
        ModelError, DataError: The runtime cannot load the model or run it on the feed.
    """

    def __init__(
        self, model: ir.Model, feed: Mapping[str, NDArray[Any]], settings: SessionSettings, folder: Path
    ) -> None:
        if settings.inter_op_threads > 1:
            raise InputError("nodes that run side by side cannot be timed one by one; profile with 1 inter-op thread")
        folder.mkdir()
        plain = open_with(model, settings)
        own = checked_feed(plain, feed)
        twin = tokenised(model)
        traced, graph = open_dumped(twin, settings, folder / "trace")
        kernels = list(graph.graph)
        if not kernels:
            raise ModelError("the runtime has nothing to compute in this model, and there is nothing to profile")
        self.attributions = attribute(model, kernels)
        self.plain, self.traced = _Recorded(plain, own), _Recorded(traced, own)
        self._nodes = [(kernel.name or "", kernel.op_type) for kernel in kernels]
        self.events = len(kernels) + _EVENTS_BESIDE
        if any(_has_body(kernel) for kernel in kernels):
            self.events = _count_events(_Recorded(open_with(twin, settings, trace=folder / "probe"), own))

    def disturbed(self, cost: ProfilerCost) -> bool:
        """Whether the profiler does not explain by how much runs with it and without it differ."""
        slow, fast = (times[calm(times)].mean() for times in (self.traced.milliseconds(), self.plain.milliseconds()))
        explained = cost.of(_TYPICAL) * (self.events - _EVENTS_BESIDE) / 1e3
        most = explained * _ADJUSTMENT + _NOTICEABLE * fast
        return not explained / _ADJUSTMENT - _NOTICEABLE * fast <= slow - fast <= most

    def finish(self, cost: ProfilerCost) -> Measured:
        """End the profile and read it.

        What the profiler costs differs a little from model to model. How much is seen where the model runs with it and
        without it: the even rounds adjust the cost to the model, within limits, and the odd rounds check the result.
        """
        trace = read_trace(Path(str(self.traced.session.end_profiling())), self._nodes)
        each = np.array([cost.of(kernel) for kernel in trace.kernels])
        rows = np.concatenate([np.array(own, np.int64) for own in self.traced.kept])
        ends = np.cumsum([len(own) for own in self.traced.kept])
        spans = trace.spans[rows] / 1e3
        costs = (each + each.mean() * trace.inner[rows]) / 1e3  # those of kernels in bodies are not told one by one
        adjustment = adjustment_of(self.traced.seconds, self.plain.seconds, float(costs.sum(axis=1).mean()) / 1e3)
        profiled = self.traced.milliseconds()
        return Measured(
            self.attributions,
            trace.kernels,
            spans - adjustment * costs,
            costs,
            adjustment,
            trace.durations[rows] / 1e3,
            profiled,
            profiled - spans.sum(axis=1) - cost.run / 1e3,
            tuple(np.split(np.arange(len(rows)), ends[:-1])),
            self.plain.milliseconds(),
            self.plain.milliseconds(1, 2) if len(self.plain.seconds) > 1 else self.plain.milliseconds(),
        )


def adjustment_of(profiled: Sequence[Sequence[float]], plain: Sequence[Sequence[float]], cost: float) -> float:
    """What the profiler's cost has to be multiplied with to fit a model, within limits; 1 with too few rounds.

    Args:
        profiled: Times of the runs with the profiler, round by round, in seconds; only every second round is used.
        plain: The same without it.
        cost: Of a run, as chains of small nodes tell it, in seconds.
    """
    if len(plain) < _LEAST_ROUNDS or cost <= 0.0:
        return 1.0
    slow, fast = (np.concatenate([np.array(own) for own in rounds[::2]]) for rounds in (profiled, plain))
    more = float(slow[calm(slow)].mean() - fast[calm(fast)].mean())
    return float(np.clip(more / cost, 1 / _ADJUSTMENT, _ADJUSTMENT))


def calm(times: Times) -> NDArray[np.int64]:
    """Which runs nothing disturbed: those from the fastest tenth to the fourth tenth; all, where they are a few.

    Whatever else a machine does makes runs slower, never faster, and on a busy one that may be most of them. A median
    of each kernel would do much the same were it not for the whole microseconds of the runtime's profile.

    Args:
        times: Of each run.

    Returns:
        Their places, int64, rising.
    """
    order = np.argsort(times, kind="stable")
    count = len(order)
    first, end = int(count * _CALM[0]), int(count * _CALM[1])
    return np.sort(order[first:end] if end - first >= _FEW else order[: max(end, _FEW)])


def measure(subjects: Sequence[Subject], effort: Effort, cost: ProfilerCost | None = None) -> None:
    """Let all sessions of all subjects run in turns, in an order that turns round every round.

    Args:
        subjects: What is measured.
        effort: How much.
        cost: What the profiler costs. Where runs with it and without it differ by more than that explains, something
            else ran, and as much again is measured, once. None: that is not looked at.
    """
    with collector_off():
        _in_turns(subjects, effort)
        if cost is not None and effort.runs >= _ROUNDS and any(subject.disturbed(cost) for subject in subjects):
            _in_turns(subjects, effort)


def _in_turns(subjects: Sequence[Subject], effort: Effort) -> None:
    sessions = [session for subject in subjects for session in (subject.plain, subject.traced)]
    turn = _turn(min(session.warm(effort.warmup) for session in sessions), effort.runs)
    rounds = _rounds(subjects, effort, turn)
    with progress.task("profile", total=rounds) as advance:
        stop = time.perf_counter() + effort.budget_s
        for done in range(rounds):
            if done >= _LEAST_ROUNDS and time.perf_counter() > stop:
                break
            for session in sessions:
                session.turn(turn)
            sessions.reverse()
            advance()


def _turn(fastest: float, runs: int) -> int:
    """Runs in a turn: few enough for several rounds."""
    return max(1, min(math.ceil(_TURN_S / max(fastest, 1e-7)), _MOST_IN_A_TURN, runs // _ROUNDS))


def _rounds(subjects: Sequence[Subject], effort: Effort, turn: int) -> int:
    """As many as give the runs wanted, fewer where the runtime's profile would grow too long."""
    events = max(subject.events for subject in subjects)
    return max(1, min(math.ceil(effort.runs / turn), _EVENTS // (events * (turn + 1))))


def _has_body(kernel: ir.Node) -> bool:
    bodies = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in bodies for attribute in kernel.attributes.values())


def _count_events(probe: _Recorded) -> int:
    """How many events one run writes, where loops decide."""
    probe.warm(1)
    return len(json.loads(Path(str(probe.session.end_profiling())).read_text("utf-8")))
