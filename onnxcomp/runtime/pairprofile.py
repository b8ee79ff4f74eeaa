"""Two models profiled against each other: how much faster one is as a whole, and which layers made it so.

The speed-up is measured without the profiler, in turns and over several sessions (:mod:`onnxcomp.runtime.latency`).
The layers are measured with it, all sessions in turns. Layers are matched by the node of the user's model that they
stand for; where the runtime fused the two models differently, such as an activation into its convolution in one and not
in the other, what is compared is the smallest group of nodes that neither model's kernels reach across.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.comparison.reading import cast_feed, check_inputs
from onnxcomp.numeric.bootstrap import Interval, median_interval
from onnxcomp.runtime.attribution import Attribution
from onnxcomp.runtime.latency import Call, PairedSpeed, paired_speed
from onnxcomp.runtime.machine import this_machine
from onnxcomp.runtime.measuring import Effort, Measured, Subject, calm, measure
from onnxcomp.runtime.profilercost import profiler_cost
from onnxcomp.runtime.profiling import Profile, profile_of
from onnxcomp.runtime.session import open_with, runner
from onnxcomp.runtime.settings import SessionSettings

__all__ = ["Group", "LayerPair", "PairProfile", "Verdict", "groups_of", "profile_layers", "profile_pair", "verdict"]

Verdict = Literal["faster", "slower", "same", "inconclusive"]
Feed: TypeAlias = Mapping[str, NDArray[Any]]
Times: TypeAlias = NDArray[np.float64]

_WIDE = 0.1  # an interval that holds 1 and is wider, as a share of the ratio, says nothing
_ALIKE = 0.02  # sessions of one and the same model differ by so much
_SPEED_SHARE = 0.6  # of the time goes into the speed-up, the rest into the layers
_TELLABLE_MS = 2e-3  # the profile's own resolution is half a microsecond a kernel
_LEAST_SERIES = 6  # rounds without which a layer's interval means nothing


@dataclass(frozen=True, slots=True)
class Group:
    """Kernels of two models that compute the same nodes of the user's model.

    Attributes:
        layer: The node that the group is named after.
        origins: All nodes of the user's model in it.
        base: Places of its kernels in the base; empty: it is not there.
        other: The same in the other model.
    """

    layer: str
    origins: tuple[str, ...]
    base: tuple[int, ...]
    other: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LayerPair:
    """A layer before and after.

    Attributes:
        layer: The node of the user's model that it is named after.
        origins: All nodes of the user's model in it.
        base_kernels: The runtime's operators in the base, in the order in which they run; empty: it is not there.
        other_kernels: The same in the other model.
        passes: The passes that rewrote any of it in the other model.
        base_ms: Milliseconds a run of the base.
        other_ms: Milliseconds a run of the other model.
        speedup: Median over the rounds of base time / other time with its 95 % interval; None where the layer is in
            one model only, takes under 2 microseconds, or had too few rounds.
        base_series: Milliseconds in each round, float64 [rounds].
        other_series: The same of the other model.
    """

    layer: str
    origins: tuple[str, ...]
    base_kernels: tuple[str, ...]
    other_kernels: tuple[str, ...]
    passes: tuple[str, ...]
    base_ms: float
    other_ms: float
    speedup: Interval | None
    base_series: Times
    other_series: Times

    @property
    def change_ms(self) -> float:
        """Milliseconds a run that the other model takes more."""
        return self.other_ms - self.base_ms


@dataclass(frozen=True, slots=True)
class PairProfile:
    """Two models against each other.

    Attributes:
        base: Profile of the base.
        other: Profile of the other model.
        speed: How much faster the other model is.
        verdict: What may be concluded of it.
        layers: The largest change first, whichever way.
    """

    base: Profile
    other: Profile
    speed: PairedSpeed
    verdict: Verdict
    layers: tuple[LayerPair, ...]


def profile_pair(
    base: ir.Model,
    other: ir.Model,
    feed: Feed,
    *,
    settings: SessionSettings | None = None,
    effort: Effort | None = None,
    seed: int = 0,
) -> PairProfile:
    """Profile two models on one feed.

    Args:
        base: The reference; not modified.
        other: The model that should be faster; not modified.
        feed: Input name to array, for both.
        settings: How sessions are opened; one thread on the CPU unless given.
        effort: How much is measured; 3/5 of its time go into the speed-up, the rest into the layers.
        seed: Seed of the bootstrap.

    Raises:
        InputError: The models have different inputs, or the settings let nodes run side by side.
        ModelError, DataError: The runtime cannot load a model or run it on the feed.
    """
    settings, effort = settings or SessionSettings(), effort or Effort(budget_s=10.0)
    check_inputs(base, other)
    feeds = [cast_feed(model, feed) for model in (base, other)]
    machine = this_machine()
    limit = effort.budget_s * (1 - _SPEED_SHARE)
    ours, theirs = _traced((base, other), feeds, settings, replace(effort, budget_s=limit))
    speed = paired_speed(
        _opener(base, feeds[0], settings),
        _opener(other, feeds[1], settings),
        rounds=effort.runs,
        budget_s=effort.budget_s * _SPEED_SHARE,
        seed=seed,
    )
    return PairProfile(
        profile_of(ours, settings, effort, machine),
        profile_of(theirs, settings, effort, machine),
        speed,
        verdict(speed.ratio, speed.low, speed.high),
        _layers(ours, theirs, seed),
    )


def verdict(ratio: float, low: float, high: float) -> Verdict:
    """Say what may be concluded of a speed-up and its interval.

    Args:
        ratio: Base time / other time.
        low: Lower end of its interval.
        high: Upper end.
    """
    if low >= 1.0 - _ALIKE and high <= 1.0 + _ALIKE:
        return "same"
    if low > 1.0:
        return "faster"
    if high < 1.0:
        return "slower"
    return "same" if high - low <= _WIDE * ratio else "inconclusive"


def groups_of(base: Sequence[Attribution], other: Sequence[Attribution]) -> tuple[Group, ...]:
    """Match the kernels of two models: the finest grouping in which no kernel of either lies in two groups.

    Args:
        base: The kernels of the base, in the order in which they run.
        other: Those of the other model.

    Returns:
        Groups in the order of the base, then what only the other model has.
    """
    root = _joined(attribution.origins for attribution in (*base, *other))
    order = dict.fromkeys(root[attribution.layer] for attribution in (*base, *other))
    members: dict[str, list[str]] = {key: [] for key in order}
    for origin, key in root.items():
        members[key].append(origin)
    found: list[Group] = []
    for key, origins in members.items():
        ours, theirs = (
            tuple(k for k, attribution in enumerate(side) if root[attribution.layer] == key) for side in (base, other)
        )
        layers = dict.fromkeys([*(base[k].layer for k in ours), *(other[k].layer for k in theirs)])
        found.append(Group(next(iter(layers)), tuple(dict.fromkeys((*layers, *origins))), ours, theirs))
    return tuple(found)


def _joined(parts: Iterable[tuple[str, ...]]) -> dict[str, str]:
    """Every name with the one that stands for all names it shares a part with, directly or by way of others."""
    parent: dict[str, str] = {}

    def top(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for part in parts:
        for name in part:
            parent.setdefault(name, name)
            parent[top(name)] = top(part[0])
    return {name: top(name) for name in parent}


def profile_layers(
    base: ir.Model,
    other: ir.Model,
    feed: Feed,
    *,
    settings: SessionSettings | None = None,
    effort: Effort | None = None,
    seed: int = 0,
) -> tuple[LayerPair, ...]:
    """The layers of `profile_pair` alone, without what tells how much faster the whole model is."""
    settings, effort = settings or SessionSettings(), effort or Effort()
    check_inputs(base, other)
    feeds = [cast_feed(model, feed) for model in (base, other)]
    return _layers(*_traced((base, other), feeds, settings, effort), seed)


def _traced(
    models: tuple[ir.Model, ir.Model], feeds: Sequence[Feed], settings: SessionSettings, effort: Effort
) -> tuple[Measured, Measured]:
    """Both models run in turns."""
    with tempfile.TemporaryDirectory(prefix="onnxcomp-", ignore_cleanup_errors=True) as folder:
        subjects = [
            Subject(model, own, settings, Path(folder) / str(k))
            for k, (model, own) in enumerate(zip(models, feeds, strict=True))
        ]
        cost = profiler_cost(settings)
        measure(subjects, effort, cost)
        base, other = (subject.finish(cost) for subject in subjects)
        del subjects
    return base, other


def _layers(base: Measured, other: Measured, seed: int) -> tuple[LayerPair, ...]:
    groups = groups_of(base.attributions, other.attributions)
    pairs = [_layer(group, base, other, seed) for group in groups]
    return tuple(sorted(pairs, key=lambda pair: -abs(pair.change_ms)))


def _layer(group: Group, base: Measured, other: Measured, seed: int) -> LayerPair:
    ours, theirs = _series(base, group.base), _series(other, group.other)
    speedup = None
    told = min(np.median(ours), np.median(theirs)) >= _TELLABLE_MS and min(ours.min(), theirs.min()) > 0.0
    if told and len(ours) >= _LEAST_SERIES:
        speedup = median_interval(ours / theirs, seed=seed)
    return LayerPair(
        group.layer,
        group.origins,
        tuple(base.attributions[k].kernel for k in group.base),
        tuple(other.attributions[k].kernel for k in group.other),
        tuple(dict.fromkeys(name for k in group.other for name in other.attributions[k].passes)),
        _milliseconds(base, group.base),
        _milliseconds(other, group.other),
        speedup,
        ours,
        theirs,
    )


def _milliseconds(measured: Measured, places: tuple[int, ...]) -> float:
    return float(np.maximum(measured.times[calm(measured.profiled)][:, places].mean(axis=0), 0.0).sum())


def _series(measured: Measured, places: tuple[int, ...]) -> Times:
    """Milliseconds of some kernels in each round: the mean of its runs, float64 [rounds]."""
    return np.array([measured.times[runs][:, places].sum(axis=1).mean() for runs in measured.rounds])


def _opener(model: ir.Model, feed: Feed, settings: SessionSettings) -> Callable[[], Call]:
    return lambda: runner(open_with(model, settings), feed)
