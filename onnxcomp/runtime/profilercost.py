"""What the runtime's profiler itself costs, measured here and now, so that it can be taken out of a profile.

Chains of small nodes run with the profiler and without it, in turns. The difference, shared out over the nodes, is the
profiler's: a few microseconds a node, more for every tensor and axis that it writes down, and more where it watches
threads. The chains differ in these, which tells the parts from each other.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from scipy.optimize import nnls

from onnxcomp.runtime.ortprofile import TracedKernel, read_trace
from onnxcomp.runtime.session import open_with
from onnxcomp.runtime.settings import SessionSettings
from onnxcomp.runtime.timing import collector_off

__all__ = ["ProfilerCost", "profiler_cost"]

_NODES = 40
_ROUNDS = 32
_LEAST_ROUNDS = 6
_LIMIT_S = 0.25  # for a chain, where threads wait for cores
_RUNS = 3  # of a chain in a turn, behind one that warms it up
_OPSET = 17
# Operators in turn, as models have them: a node that follows one of its own kind runs faster than any in a model.
_CHAINS = (
    (("Neg", "Sigmoid", "Transpose", "Relu", "Softmax", "Exp"), (1, 64)),
    (("Conv", "Relu", "Add", "MaxPool", "Sigmoid"), (1, 64, 14, 14)),
    (("Conv", "Sum"), (1, 8, 8, 8)),
)
_SHARED_OUT = (("MatMul",), (1, 64, 64))  # enough work for several threads
_SUMMANDS = 8


@dataclass(frozen=True, slots=True)
class ProfilerCost:
    """Microseconds that the profiler takes.

    Attributes:
        run: For each run.
        node: For each kernel, whatever it is.
        tensor: For each input and output.
        axis: For each axis of these.
        parallel: Where its work was put before the threads.
    """

    run: float
    node: float
    tensor: float
    axis: float
    parallel: float

    def of(self, kernel: TracedKernel) -> float:
        """Microseconds for a kernel."""
        parts = zip((self.node, self.tensor, self.axis, self.parallel), _traits(kernel), strict=True)
        return sum(cost * count for cost, count in parts)


def profiler_cost(settings: SessionSettings) -> ProfilerCost:
    """Measure the profiler in sessions of these settings; takes a third of a second."""
    plain = replace(settings, optimization="off")  # nothing may be fused or folded
    chains = (*_CHAINS, _SHARED_OUT) if settings.threads > 1 else _CHAINS
    found = [_measured(operators, shape, _NODES, plain) for operators, shape in chains]
    found.append(_measured(*_CHAINS[0], 1, plain))
    counts = np.array([row for row, _ in found])
    run, node, tensor, axis, parallel = (float(part) for part in nnls(counts, np.array([cost for _, cost in found]))[0])
    return ProfilerCost(run, node, tensor, axis, parallel)


def _traits(kernel: TracedKernel) -> tuple[float, float, float, float]:
    return 1.0, float(kernel.tensors), float(kernel.axes), float(kernel.parallel)


def _measured(
    operators: tuple[str, ...], shape: tuple[int, ...], length: int, settings: SessionSettings
) -> tuple[list[float], float]:
    """How often a run of a chain has what the profiler takes time for, and how long it takes for all, microseconds."""
    model, value = _chain(operators, shape, length), np.full(shape, 0.1, np.float32)
    with tempfile.TemporaryDirectory(prefix="onnxcomp-", ignore_cleanup_errors=True) as folder:
        plain, profiled = open_with(model, settings), open_with(model, settings, trace=Path(folder) / "chain")
        more: list[float] = []
        with collector_off():
            stop = time.perf_counter() + _LIMIT_S
            while len(more) < _LEAST_ROUNDS or (len(more) < _ROUNDS and time.perf_counter() < stop):
                without = _taken(plain, value)
                more.append(_taken(profiled, value) - without)
        nodes = [(_name(i), operators[i % len(operators)]) for i in range(length)]
        trace = read_trace(Path(str(profiled.end_profiling())), nodes)
    counts = np.array([_traits(kernel) for kernel in trace.kernels]).sum(axis=0)
    return [1.0, *(float(count) for count in counts)], max(float(np.median(more)) * 1e6, 0.0)


def _taken(session: ort.InferenceSession, value: NDArray[np.float32]) -> float:
    """Seconds of the median run, behind one that warms the caches."""
    session.run(None, {"v0": value})
    times: list[float] = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        session.run(None, {"v0": value})
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _name(i: int) -> str:
    """As long as the names are that the runtime gives: every letter is copied."""
    return f"@{i}@0_in_a_chain"


def _chain(operators: tuple[str, ...], shape: tuple[int, ...], length: int) -> bytes:
    channels = shape[1]
    constants = {
        "same": np.full(shape, 0.1, np.float32),
        "weight": np.full((channels, channels, 1, 1), 0.01, np.float32),
        "bias": np.zeros(channels, np.float32),
        "matrix": np.full(shape[-2:], 0.01, np.float32),
    }
    more = {"Sum": ["same"] * (_SUMMANDS - 1), "Add": ["same"], "Conv": ["weight", "bias"], "MatMul": ["matrix"]}
    attributes: dict[str, dict[str, Any]] = {
        "MaxPool": {"kernel_shape": [1, 1]},
        "Transpose": {"perm": list(range(len(shape)))},
    }
    nodes: list[NodeProto] = []
    for i in range(length):
        kind = operators[i % len(operators)]
        inputs = [f"v{i}", *more.get(kind, ())]
        nodes.append(helper.make_node(kind, inputs, [f"v{i + 1}"], name=_name(i), **attributes.get(kind, {})))
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("v0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"v{length}", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items() if name in read],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    return bytes(model.SerializeToString())
