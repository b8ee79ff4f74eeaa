"""Where a model spends its time: every kernel that the runtime runs, named by nodes of the user's own model.

Times come from the runtime's profiler, whose own cost is measured (:mod:`onnxcomp.runtime.profilercost`) and taken out.
Whether that worked is seen by runs without the profiler, made in turns with the others: :class:`Agreement` sets side by
side what the profile adds up to and what these take.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.runtime.attribution import Attribution
from onnxcomp.runtime.latency import Percentiles
from onnxcomp.runtime.machine import Machine, this_machine
from onnxcomp.runtime.measuring import Effort, Measured, Subject, calm, measure
from onnxcomp.runtime.ortprofile import TracedKernel
from onnxcomp.runtime.profilercost import profiler_cost
from onnxcomp.runtime.settings import SessionSettings

__all__ = [
    "Agreement",
    "KernelTime",
    "LayerTime",
    "Profile",
    "by_layer",
    "profile_model",
    "profile_of",
]

_DISAGREEMENT = 0.1  # a profile that parts from the clock by more is warned of
Times: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class KernelTime:
    """One kernel that the runtime runs.

    Attributes:
        layer: The node of the user's model that it is named after.
        nodes: The nodes of the profiled model that it computes; empty where it only changes a layout or a type.
        kernel: The runtime's operator.
        provider: The execution provider that ran it.
        arithmetic: ``integer`` or ``float``.
        ms: Milliseconds a run: the mean over the calm runs (:func:`onnxcomp.runtime.measuring.calm`).
        p50: Half of all runs took no longer; these three are whole microseconds before the profiler is taken out.
        p90: 90 % of all runs took no longer.
        p99: 99 % of all runs took no longer.
        share: Of the profile's total, 0 to 1.
    """

    layer: str
    nodes: tuple[str, ...]
    kernel: str
    provider: str
    arithmetic: str
    ms: float
    p50: float
    p90: float
    p99: float
    share: float


@dataclass(frozen=True, slots=True)
class LayerTime:
    """All kernels of one node of the user's model.

    Attributes:
        layer: The node.
        origins: All nodes of the user's model that these kernels compute, `layer` first.
        kernels: The runtime's operators, in the order in which they run.
        passes: The passes that rewrote any of it.
        arithmetic: ``integer``, ``float`` or ``mixed``.
        ms: Milliseconds a run.
        share: Of the profile's total, 0 to 1.
    """

    layer: str
    origins: tuple[str, ...]
    kernels: tuple[str, ...]
    passes: tuple[str, ...]
    arithmetic: str
    ms: float
    share: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """Whether the profile adds up to what a run takes.

    Attributes:
        profile_ms: All kernels and what lies outside of them, milliseconds a calm run.
        wall_ms: A calm run without the profiler, milliseconds; of those that had no part in `adjustment`.
        difference: By what share the first parts from the second; above 0: it is more.
        unadjusted: The same, with the profiler's cost as chains of small nodes tell it.
        adjustment: By what that was multiplied, so that the cost fits the model; 1 / 1.35 to 1.35.
        profiler_ms: What the profiler costs a run in its kernels, milliseconds; it was taken out.
        raw_ms: The kernels' times as the runtime gives them, the profiler's cost inside, milliseconds a run.
    """

    profile_ms: float
    wall_ms: float
    difference: float
    unadjusted: float
    adjustment: float
    profiler_ms: float
    raw_ms: float

    @property
    def holds(self) -> bool:
        """Whether the two part by 10 % at most."""
        return abs(self.difference) <= _DISAGREEMENT


@dataclass(frozen=True, slots=True)
class Profile:
    """Where a model spends its time.

    Attributes:
        kernels: In the order in which they run.
        layers: The slowest first.
        outside_ms: Milliseconds a run that lie outside of the kernels: the runtime's own share.
        total_ms: All kernels and what lies outside, milliseconds a run.
        agreement: Whether the total can be trusted.
        wall: Runs without the profiler, single ones.
        runs: Their number.
        profiled_runs: Number of runs with the profiler.
        warmup: Runs before any was measured.
        settings: Of the sessions.
        machine: What it was measured on.
    """

    kernels: tuple[KernelTime, ...]
    layers: tuple[LayerTime, ...]
    outside_ms: float
    total_ms: float
    agreement: Agreement
    wall: Percentiles
    runs: int
    profiled_runs: int
    warmup: int
    settings: SessionSettings
    machine: Machine


def profile_model(
    model: ir.Model,
    feed: Mapping[str, NDArray[Any]],
    *,
    settings: SessionSettings | None = None,
    effort: Effort | None = None,
) -> Profile:
    """Profile a model on one feed.

    Args:
        model: The model; not modified.
        feed: Input name to array; its size is the batch.
        settings: How sessions are opened; one thread on the CPU unless given.
        effort: How much is measured.

    Raises:
        InputError: The settings let nodes run side by side.
        ModelError, DataError: The runtime cannot load the model or run it on the feed.
    """
    settings, effort = settings or SessionSettings(), effort or Effort()
    machine = this_machine()
    with tempfile.TemporaryDirectory(prefix="onnxcomp-", ignore_cleanup_errors=True) as folder:
        subject = Subject(model, feed, settings, Path(folder) / "profile")
        cost = profiler_cost(settings)
        measure([subject], effort, cost)
        measured = subject.finish(cost)
    return profile_of(measured, settings, effort, machine)


def profile_of(measured: Measured, settings: SessionSettings, effort: Effort, machine: Machine) -> Profile:
    """Sum up what was measured of one model."""
    chosen = calm(measured.profiled)
    each = np.maximum(measured.times[chosen].mean(axis=0), 0.0)
    outside = max(float(measured.outside[chosen].mean()), 0.0)
    total = float(each.sum()) + outside
    kernels = tuple(
        _kernel(attribution, traced, float(ms), measured.times[:, k], total)
        for k, (attribution, traced, ms) in enumerate(zip(measured.attributions, measured.kernels, each, strict=True))
    )
    return Profile(
        kernels,
        _layers(measured.attributions, kernels, total),
        outside,
        total,
        _agreement(measured, chosen, total),
        percentiles(measured.wall),
        len(measured.wall),
        len(measured.profiled),
        effort.warmup,
        settings,
        machine,
    )


def _agreement(measured: Measured, chosen: NDArray[np.int64], total: float) -> Agreement:
    wall = float(measured.check[calm(measured.check)].mean())
    cost = float(measured.costs[chosen].sum(axis=1).mean())
    unadjusted = total + (measured.adjustment - 1.0) * cost
    return Agreement(
        total,
        wall,
        total / wall - 1.0,
        unadjusted / wall - 1.0,
        measured.adjustment,
        measured.adjustment * cost,
        float(measured.raw[chosen].sum(axis=1).mean()),
    )


def by_layer(attributions: Iterable[Attribution]) -> dict[str, list[int]]:
    """The kernels of each layer, by their place."""
    places: dict[str, list[int]] = {}
    for k, attribution in enumerate(attributions):
        places.setdefault(attribution.layer, []).append(k)
    return places


def percentiles(times: Times) -> Percentiles:
    """Of times in milliseconds."""
    p50, p90, p99 = (float(value) for value in np.percentile(times, (50, 90, 99)))
    return Percentiles(p50, p90, p99)


def _kernel(attribution: Attribution, traced: TracedKernel, ms: float, times: Times, total: float) -> KernelTime:
    spread = percentiles(np.maximum(times, 0.0))
    integer = attribution.quantized or not traced.floats
    return KernelTime(
        attribution.layer,
        attribution.nodes,
        attribution.kernel,
        traced.provider,
        "integer" if integer else "float",
        ms,
        spread.p50,
        spread.p90,
        spread.p99,
        ms / total,
    )


def _layers(
    attributions: tuple[Attribution, ...], kernels: tuple[KernelTime, ...], total: float
) -> tuple[LayerTime, ...]:
    layers: list[LayerTime] = []
    for layer, places in by_layer(attributions).items():
        ms = sum(kernels[k].ms for k in places)
        kinds = {kernels[k].arithmetic for k in places}
        layers.append(
            LayerTime(
                layer,
                tuple(dict.fromkeys(origin for k in places for origin in attributions[k].origins)),
                tuple(kernels[k].kernel for k in places),
                tuple(dict.fromkeys(name for k in places for name in attributions[k].passes)),
                kinds.pop() if len(kinds) == 1 else "mixed",
                ms,
                ms / total,
            )
        )
    return tuple(sorted(layers, key=lambda layer: -layer.ms))
