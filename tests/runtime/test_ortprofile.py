"""The runtime's profile, made up: bodies, nodes without names, whole microseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcomp.errors import OnnxcompError
from onnxcomp.runtime.ortprofile import Trace, read_trace

Event = dict[str, Any]


def node(name: str, op_type: str, start: float, taken: float, kind: str = "float", blocks: int = 0) -> Event:
    """An event as the runtime writes it: both times are cut to whole microseconds."""
    tensors = [{kind: [1, 8]}]
    scheduling = {"main_thread": {"block_size": [1] * blocks}} if blocks else ""
    details = {
        "op_name": op_type,
        "provider": "CPUExecutionProvider",
        "node_index": "7",
        "input_type_shape": tensors,
        "output_type_shape": tensors,
        "thread_scheduling_stats": scheduling,
    }
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": int(start), "dur": int(taken), "args": details}


def session(name: str, start: float, taken: float) -> Event:
    return {"cat": "Session", "name": name, "ts": int(start), "dur": int(taken), "args": {}}


def trace(path: Path, events: list[Event], nodes: list[tuple[str, str]]) -> Trace:
    file = path / "trace.json"
    file.write_text(json.dumps(events), "utf-8")
    return read_trace(file, nodes)


def run_of(start: float, *events: Event, taken: float = 100) -> list[Event]:
    return [
        *events,
        session("SequentialExecutor::Execute", start, taken),
        session("model_run", start - 1, taken + 2),
    ]


def test_what_runs_in_a_body_is_not_counted_twice(tmp_path: Path) -> None:
    inside = [node("@2@", "Exp", 21, 3), session("SequentialExecutor::Execute", 21, 5), node("@3@", "Exp", 25, 3)]
    events = run_of(0, node("@0@", "Relu", 0, 10), *inside, node("@1@", "If", 20, 30), node("@4@", "Relu", 60, 5))
    found = trace(tmp_path, events, [("@0@", "Relu"), ("@1@", "If"), ("@4@", "Relu")])
    assert [kernel.name for kernel in found.kernels] == ["@0@", "@1@", "@4@"]
    assert found.inner.tolist() == [[0, 2, 0]]
    assert found.durations.tolist() == [[10, 30, 5]]
    # From beginning to beginning; the last one is longer than its duration by what the others are, 10 here.
    assert found.spans.tolist() == [[20, 40, 15]]


def test_a_node_without_a_name_goes_by_its_operator(tmp_path: Path) -> None:
    events = run_of(0, node("Relu_3", "Relu", 0, 10, "uint8"), node("Mul_4", "Mul", 20, 10, blocks=2))
    found = trace(tmp_path, events, [("", "Relu"), ("", "Mul")])
    assert [(k.op_type, k.floats, k.parallel, k.tensors, k.axes) for k in found.kernels] == [
        ("Relu", False, False, 2, 4),
        ("Mul", True, True, 2, 4),
    ]


def test_a_profile_of_another_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OnnxcompError, match="ran 1 nodes of its graph's 2"):
        trace(tmp_path, run_of(0, node("a", "Relu", 0, 1)), [("a", "Relu"), ("b", "Relu")])
    with pytest.raises(OnnxcompError, match="holds no run"):
        trace(tmp_path, [], [("a", "Relu")])


def test_times_below_a_microsecond_are_found_in_many_runs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    true = np.array([0.3, 2.7, 0.8, 1.5])
    events: list[Event] = []
    for start in np.cumsum(rng.uniform(50, 60, 2000)):
        begins = start + np.concatenate([[0.0], np.cumsum(true)[:-1]])
        kernels = [
            node(f"n{i}", "Relu", begin, taken) for i, (begin, taken) in enumerate(zip(begins, true, strict=True))
        ]
        events += run_of(start, *kernels, taken=float(true.sum()))
    found = trace(tmp_path, events, [(f"n{i}", "Relu") for i in range(4)])
    assert np.abs(found.spans.mean(axis=0)[:3] - true[:3]).max() < 0.05
    assert np.abs(found.durations.mean(axis=0)[:3] - true[:3]).max() > 0.25  # what the runtime says is cut
