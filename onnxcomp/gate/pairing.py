"""The layers of a model and of its base, timed in turns by the runtime's profiler."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxcomp.errors import DataError, ModelError
from onnxcomp.gate.examination import Examination, Unfit
from onnxcomp.gate.layers import LayerTimes
from onnxcomp.runtime.measuring import Effort, Measured, Subject, measure
from onnxcomp.runtime.pairprofile import groups_of
from onnxcomp.runtime.profilercost import ProfilerCost, profiler_cost
from onnxcomp.runtime.settings import SessionSettings

__all__ = ["layer_times"]

_EFFORT = Effort(runs=150, warmup=3, budget_s=4.0)


def layer_times(exam: Examination, attempt: int) -> LayerTimes:
    """Time the layers of both models in newly opened sessions; an odd attempt opens the model first.

    Raises:
        ModelError: The base does not run.
        Unfit: The model does not.
    """
    base = exam.paired()
    settings = SessionSettings(threads=exam.given.threads)
    specimens = [base, exam.own] if attempt % 2 == 0 else [exam.own, base]
    with tempfile.TemporaryDirectory(prefix="onnxcomp-", ignore_cleanup_errors=True) as folder:
        subjects: list[Subject] = []
        for specimen in specimens:
            try:
                subjects.append(Subject(specimen.model, exam.feed, settings, Path(folder) / str(len(subjects))))
            except DataError as error:
                raise exam.misfit(error) from error
            except ModelError as error:
                if specimen is base:
                    raise ModelError(f"--against: {error}") from None
                raise Unfit(str(error)) from error
        measure(subjects, _EFFORT)
        cost = _cost(settings)
        found = [subject.finish(cost) for subject in subjects]
    if attempt % 2:
        found.reverse()
    ours, theirs = found
    groups = groups_of(ours.attributions, theirs.attributions)
    rounds = min(len(ours.rounds), len(theirs.rounds))
    return LayerTimes(
        tuple(group.layer for group in groups),
        np.stack([_series(ours, group.base)[:rounds] for group in groups]),
        np.stack([_series(theirs, group.other)[:rounds] for group in groups]),
    )


@cache
def _cost(settings: SessionSettings) -> ProfilerCost:
    """What the profiler costs, measured once: it is the same for both models and for every attempt."""
    return profiler_cost(settings)


def _series(measured: Measured, places: tuple[int, ...]) -> NDArray[np.float64]:
    """Milliseconds of some kernels in each round, float64 [rounds]: the median of the round's runs."""
    return np.array([np.median(measured.times[runs][:, places].sum(axis=1)) for runs in measured.rounds])
