"""What benchmarks that compare written files share: outputs, their error, accuracy, and time side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from onnxcomp.runtime.timing import interleaved, median_interval

__all__ = ["Array", "lost_points", "outputs", "session", "speedups", "sqnr", "top1"]

Array = NDArray[Any]
_TWO_SIDED_95 = 1.96


def session(path: Path, optimized_to: Path | None = None, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if optimized_to is not None:
        options.optimized_model_filepath = str(optimized_to)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def speedups(sessions: list[ort.InferenceSession], name: str, image: Array, budget: float, base: int = 0) -> list[str]:
    """The time of file `base` over that of each one: the median over interleaved rounds, with its 95 % interval."""

    def call(current: ort.InferenceSession) -> Any:
        return lambda: current.run(None, {name: image})

    times = interleaved([call(s) for s in sessions], 200, budget, lambda done: False)
    ratios = [times[base] / row for row in times]
    return [f"{np.median(r):.2f} ({low:.2f} to {high:.2f})" for r in ratios for low, high in [median_interval(r)]]


def outputs(current: ort.InferenceSession, name: str, pictures: Array) -> list[Array]:
    first = current.get_inputs()[0].shape[0]
    step = first if isinstance(first, int) else (250 if pictures.shape[-1] < 64 else 16)
    parts = [current.run(None, {name: pictures[i : i + step]}) for i in range(0, len(pictures), step)]
    return [np.concatenate([np.atleast_1d(part[k]) for part in parts]) for k in range(len(parts[0]))]


def sqnr(base: list[Array], own: list[Array]) -> float:
    """dB of the worst output."""
    found = []
    for wanted, value in zip(base, own, strict=True):
        noise = float(np.square(value.astype(np.float64) - wanted).sum())
        found.append(10 * np.log10(float(np.square(wanted, dtype=np.float64).sum()) / noise) if noise else np.inf)
    return min(found)


def top1(base: list[Array], own: list[Array], labels: Array | None) -> tuple[str, str]:
    """Accuracy, and the drop in points with its paired 95 % interval (normal approximation)."""
    if labels is None:
        return "", ""
    lost, half = lost_points(base, own, labels)
    return f"{100 * _right(own, labels).mean():.2f}", f"{lost:.2f} ({lost - half:.2f} to {lost + half:.2f})"


def lost_points(base: list[Array], own: list[Array], labels: Array) -> tuple[float, float]:
    """Percentage points of top-1 that are lost, and half their paired 95 % interval."""
    lost = _right(base, labels) - _right(own, labels)
    return 100 * float(lost.mean()), 100 * _TWO_SIDED_95 * float(lost.std()) / len(lost) ** 0.5


def _right(scores: list[Array], labels: Array) -> Array:
    return (scores[0].reshape(len(labels), -1).argmax(1) == labels).astype(float)
