"""ONNX Runtime's profile of its runs, read into arrays.

The runtime writes one event a kernel: when it began and how long it took, both cut to whole microseconds. A duration is
therefore half a microsecond short on average, and useless for kernels that take no more; but the differences between
the beginnings of neighbours are right on average, as the cuts fall anywhere. :attr:`Trace.spans` are these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from onnxcomp.errors import OnnxcompError

__all__ = ["Trace", "TracedKernel", "read_trace"]

_SUFFIX = "_kernel_time"
_RUN, _EXECUTION = "model_run", "SequentialExecutor::Execute"
_KEPT = {"op_name", "provider", "input_type_shape", "output_type_shape", "thread_scheduling_stats"}
_CUT = 0.5  # microseconds that cutting takes off on average


@dataclass(frozen=True, slots=True)
class TracedKernel:
    """What the profile says of one kernel of the main graph.

    Attributes:
        name: The node's name in the runtime's graph.
        op_type: Its operator.
        provider: The execution provider that ran it.
        tensors: Number of its inputs and outputs.
        axes: Number of axes of all of these together.
        floats: Whether any of these holds floating-point numbers.
        parallel: Whether its work was put before the threads.
    """

    name: str
    op_type: str
    provider: str
    tensors: int
    axes: int
    floats: bool
    parallel: bool


@dataclass(frozen=True, slots=True)
class Trace:
    """The runs of a session, in microseconds.

    Attributes:
        kernels: Those of the main graph, in the order in which they ran.
        spans: From the beginning of a kernel to that of the next one, float64 [runs, kernels].
        durations: As the runtime gives them, whole numbers, float64 [runs, kernels].
        inner: Kernels of bodies that ran inside of each kernel, int64 [runs, kernels]; their time is part of its.
    """

    kernels: tuple[TracedKernel, ...]
    spans: NDArray[np.float64]
    durations: NDArray[np.float64]
    inner: NDArray[np.int64]


@dataclass(slots=True)
class _Run:
    """The events of one run."""

    outer: list[dict[str, Any]]
    inner: list[int]
    end: float


def read_trace(path: Path, nodes: Sequence[tuple[str, str]]) -> Trace:
    """Read a profile.

    Args:
        path: The runtime's file.
        nodes: Name and operator of the nodes of the main graph of the runtime's own model, in order: what else the
            profile holds ran inside of bodies.

    Raises:
        OnnxcompError: The runs do not follow these nodes.
    """
    with path.open(encoding="utf-8") as file:
        events = cast("list[dict[str, Any]]", json.load(file, object_hook=_slim))
    runs = list(_runs(events, [_expected(*node) for node in nodes]))
    if not runs:
        raise OnnxcompError("the runtime's profile holds no run")
    begins = np.array([[event["ts"] for event in run.outer] for run in runs], np.float64)
    durations = np.array([[event["dur"] for event in run.outer] for run in runs], np.float64)
    ends = np.array([run.end for run in runs])
    kernels = tuple(_kernel(event) for event in runs[0].outer)
    inner = np.array([run.inner for run in runs], np.int64)
    return Trace(kernels, _spans(begins, durations, ends), durations, inner)


def _slim(found: dict[str, Any]) -> dict[str, Any]:
    """Drop what nobody reads while it is parsed: a profile has a kilobyte an event."""
    return {key: value for key, value in found.items() if key in _KEPT} if "op_name" in found else found


def _expected(name: str, op_type: str) -> re.Pattern[str]:
    """What the profile calls a node; one without a name goes by its operator and its place."""
    return re.compile(re.escape(f"{name}{_SUFFIX}") if name else rf"{re.escape(op_type)}_\d+{_SUFFIX}")


def _runs(events: Iterable[dict[str, Any]], nodes: Sequence[re.Pattern[str]]) -> Iterator[_Run]:
    run = _Run([], [], 0.0)
    nested = 0
    for event in events:
        name = str(event["name"])
        if name == _EXECUTION:
            run.end = event["ts"] + event["dur"] + _CUT
        elif name == _RUN:
            if len(run.outer) != len(nodes):
                raise OnnxcompError(
                    f"the runtime ran {len(run.outer)} nodes of its graph's {len(nodes)} in the order that it wrote;"
                    " this model cannot be profiled"
                )
            yield run
            run, nested = _Run([], [], 0.0), 0
        elif name.endswith(_SUFFIX):
            # What runs in a body is written before the node that the body belongs to.
            if len(run.outer) < len(nodes) and nodes[len(run.outer)].fullmatch(name):
                run.outer.append(event)
                run.inner.append(nested)
                nested = 0
            else:
                nested += 1


def _spans(
    begins: NDArray[np.float64], durations: NDArray[np.float64], ends: NDArray[np.float64]
) -> NDArray[np.float64]:
    """From beginning to beginning; the last kernel takes longer than its duration by as much as the others do."""
    inside = np.diff(begins, axis=1)
    last = ends - begins[:, -1]
    if inside.shape[1]:
        gap = float(np.median((inside - durations[:, :-1]).mean(axis=1)))
        last = np.minimum(last, durations[:, -1] + gap)
    return np.concatenate([inside, last[:, None]], axis=1)


def _kernel(event: dict[str, Any]) -> TracedKernel:
    details = event["args"]
    tensors = [*_tensors(details["input_type_shape"]), *_tensors(details["output_type_shape"])]
    return TracedKernel(
        str(event["name"]).removesuffix(_SUFFIX),
        str(details["op_name"]),
        str(details["provider"]),
        len(tensors),
        sum(axes for _, axes in tensors),
        any("float" in kind or kind == "double" for kind, _ in tensors),
        _blocks(details.get("thread_scheduling_stats")),
    )


def _blocks(scheduling: object) -> bool:
    """Whether a loop was cut into blocks; the profile says so where there is more than one thread."""
    found = cast("dict[str, dict[str, Any]]", scheduling) if isinstance(scheduling, dict) else {}
    return bool(found.get("main_thread", {}).get("block_size"))


def _tensors(described: Iterable[dict[str, Any]]) -> Iterator[tuple[str, int]]:
    for one in described:
        for kind, shape in one.items():
            yield kind, len(shape)
