"""How far the outputs of two models are from each other, on the models as they run in deployment."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp import progress
from onnxcomp.comparison.reading import cast_feed, is_float_dtype, slices
from onnxcomp.comparison.sums import Sums, ratio_to_decibels
from onnxcomp.data import Feeds
from onnxcomp.data.feeds import batch_rows
from onnxcomp.errors import DataError, InputError
from onnxcomp.evaluate import scores_output
from onnxcomp.runtime.session import open_session, output_names, run

__all__ = ["Flip", "OutputNoise", "Outputs", "compare_outputs"]

# Samples whose class changed that are listed: those that the base was surest of.
_LISTED = 100


@dataclass(frozen=True, slots=True)
class OutputNoise:
    """One output of both models.

    Attributes:
        name: Its name.
        dtype: Element type in the base.
        sqnr: 10 log10(signal power / noise power), dB; inf where equal, -inf where values are lost; None where it is
            discrete.
        cosine: Cosine between both, over all samples; NaN where values are lost; None where it is discrete.
        max_error: Largest absolute error; None where it is discrete.
        relative: That over the largest absolute value of the base.
        bias: Mean of other - base over all elements.
        equal: Share of the elements that are equal; None where it is continuous.
        lost: Elements that are NaN or infinite where the base's are finite.
        unknown: Elements that are NaN or infinite in the base.
    """

    name: str
    dtype: str
    sqnr: float | None = None
    cosine: float | None = None
    max_error: float | None = None
    relative: float | None = None
    bias: float | None = None
    equal: float | None = None
    lost: int = 0
    unknown: int = 0


@dataclass(frozen=True, slots=True, order=True)
class Flip:
    """A sample whose highest score is another class's than in the base.

    Attributes:
        margin: By how much the base's class leads the next in the base; 0 where no class leads.
        sample: Index of the sample, from 0.
        base: Class in the base; -1 where scores are NaN.
        other: Class in the other model; -1 where scores are NaN.
    """

    margin: float
    sample: int
    base: int
    other: int


@dataclass(frozen=True, slots=True)
class Outputs:
    """All outputs.

    Attributes:
        outputs: Those that both models have, in the base's order.
        missing: Outputs that could not be compared, and why.
        samples: Number of samples seen.
        agreement: Share of the samples with the same class on top; None where no output holds scores.
        flipped: Number of samples with another class on top.
        flips: Some of them, the largest margins first.
    """

    outputs: tuple[OutputNoise, ...]
    missing: Mapping[str, str]
    samples: int
    agreement: float | None
    flipped: int
    flips: tuple[Flip, ...]


def compare_outputs(
    base: ir.Model, other: ir.Model, feeds: Feeds, *, rows: int | None = None, threads: int = 1
) -> Outputs:
    """Run both models over all samples.

    Args:
        base: The model to compare with.
        other: The other model.
        feeds: The data.
        rows: Batches are cut to so many samples, where they can be; None: they stay as they are.
        threads: Intra-op threads.

    Raises:
        InputError: The models have no output in common.
        DataError: There are no samples, or they do not fit a model.
        ModelError: ORT cannot run a model.
    """
    ours, theirs = (open_session(model, threads=threads) for model in (base, other))
    names = [name for name in output_names(ours) if name in output_names(theirs)]
    if not names:
        both = f"{', '.join(output_names(ours))} against {', '.join(output_names(theirs))}"
        raise InputError(f"the models cannot be compared: outputs {both}")
    tally = _Tally(names)
    with progress.task("compare outputs", len(feeds)) as advance:
        for feed in slices(feeds, None, rows):
            count = batch_rows(feed, feeds.inputs)
            left, right = run(ours, feed, names), run(theirs, cast_feed(other, feed), names)
            tally.add(count, dict(zip(names, left, strict=True)), dict(zip(names, right, strict=True)))
            advance(count)
    if not tally.samples:
        raise DataError(f"{feeds.source}: no samples to compare on")
    missing = {name: "the other model has no such output" for name in output_names(ours) if name not in names}
    missing |= {name: "the base has no such output" for name in output_names(theirs) if name not in names}
    return tally.result(missing)


@dataclass(eq=False, slots=True)
class _Equal:
    count: int = 0
    same: int = 0


class _Tally:
    def __init__(self, names: list[str]) -> None:
        self.samples = 0
        self._names = names
        self._sums = {name: Sums() for name in names}
        self._equal = {name: _Equal() for name in names}
        self._dtypes: dict[str, str] = {}
        self._missing: dict[str, str] = {}
        self._scores: str | None = None
        self._flipped = 0
        self._flips: list[Flip] = []

    def add(self, rows: int, base: Mapping[str, Any], other: Mapping[str, Any]) -> None:
        """Count one batch."""
        for name in self._names:
            self._count(name, base[name], other[name])
        if self.samples == 0:
            self._scores = scores_output(base, rows)
        if self._scores is not None and self._scores not in self._missing:
            self._classes(rows, np.asarray(base[self._scores]), np.asarray(other[self._scores]))
        self.samples += rows

    def _count(self, name: str, base: Any, other: Any) -> None:
        if not isinstance(base, np.ndarray) or not isinstance(other, np.ndarray):
            self._missing[name] = "not a tensor"
            return
        left: NDArray[Any] = base
        right: NDArray[Any] = other
        self._dtypes[name] = left.dtype.name
        if left.shape != right.shape:
            self._missing.setdefault(name, f"shape {list(left.shape)} against {list(right.shape)}")
        elif is_float_dtype(left.dtype) and is_float_dtype(right.dtype):
            self._sums[name].add(left, right)
        else:
            self._equal[name].count += left.size
            self._equal[name].same += int(np.count_nonzero(left == right))

    def _classes(self, rows: int, base: NDArray[Any], other: NDArray[Any]) -> None:
        left, right = base.reshape(rows, -1).astype(np.float64), other.reshape(rows, -1).astype(np.float64)
        ours, theirs = (np.where(np.isnan(s).any(axis=1), -1, s.argmax(axis=1)) for s in (left, right))
        changed = ours != theirs
        self._flipped += int(np.count_nonzero(changed))
        for row in np.flatnonzero(changed):
            second, first = np.sort(left[row])[-2:]
            margin = float(first - second) if ours[row] >= 0 and first > second else 0.0
            flip = Flip(margin, self.samples + int(row), int(ours[row]), int(theirs[row]))
            (heapq.heappush if len(self._flips) < _LISTED else heapq.heappushpop)(self._flips, flip)

    def result(self, missing: Mapping[str, str]) -> Outputs:
        """The result."""
        compared = tuple(self._output(name) for name in self._names if name not in self._missing)
        scored = self._scores is not None and self._scores not in self._missing
        return Outputs(
            compared,
            {**self._missing, **missing},
            self.samples,
            1 - self._flipped / self.samples if scored else None,
            self._flipped,
            tuple(sorted(self._flips, reverse=True)),
        )

    def _output(self, name: str) -> OutputNoise:
        sums, equal = self._sums[name], self._equal[name]
        if equal.count or (not sums.count and not sums.lost and not sums.unknown):
            return OutputNoise(name, self._dtypes[name], equal=equal.same / max(equal.count, 1))
        return OutputNoise(
            name,
            self._dtypes[name],
            ratio_to_decibels(sums.ratio),
            sums.cosine,
            sums.largest,
            sums.largest / sums.range if sums.range else 0.0,
            sums.drift / max(sums.count, 1),
            None,
            sums.lost,
            sums.unknown,
        )
