"""Feeds: samples for a model, streamed a batch at a time, in the same order every time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from copy import copy
from functools import cached_property
from math import prod
from typing import Self

import numpy as np
from numpy.typing import NDArray

from onnxcomp import progress
from onnxcomp.data.inputs import Batch, ModelInput
from onnxcomp.errors import DataError

__all__ = ["Feeds", "batch_rows", "rows_per_batch"]

# A batch is at most this many samples and about this many bytes: large enough to keep the runtime busy, small enough
# that the activations of a batch at 224x224 stay in the tens of megabytes.
_MAX_ROWS = 32
_MAX_BYTES = 4 << 20


class Feeds(ABC):
    """Calibration or evaluation samples for one model.

    Iterating twice gives the same batches. At most one batch is held in memory.

    Attributes:
        inputs: The model's inputs that are fed.
        source: Where the samples come from, as the user wrote it.
        synthetic: Whether the samples are made up; what is derived from them says nothing about accuracy.
        notes: What the user should know, one line each (samples dropped ...).
    """

    synthetic: bool = False

    def __init__(self, inputs: tuple[ModelInput, ...], source: str) -> None:
        self.inputs = inputs
        self.source = source
        self.notes: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples that :meth:`batches` yields."""

    @abstractmethod
    def _stream(self) -> Iterator[Batch]:
        """Yield all batches, in order."""

    def _read_labels(self) -> NDArray[np.int64] | None:
        """Return one class index a sample, or None where the source has none."""
        return None

    @cached_property
    def labels(self) -> NDArray[np.int64] | None:
        """Class indices, shape (len(self),), int64, in sample order; None where the source has none.

        Read on first use, so that data whose labels are wrong still calibrates.

        Raises:
            DataError: The labels are malformed or do not match the samples.
        """
        return self._read_labels()

    def divisible(self, batch: Batch) -> bool:
        """Whether a feed may be cut along its first axis: free for all inputs, and as long for one as for the other."""
        free = all(i.shape != () and i.fixed_batch is None for i in self.inputs)
        return free and len({values.shape[:1] for values in batch.values()}) == 1

    def batches(self, limit: int | None = None) -> Iterator[Batch]:
        """Yield feeds, input name to array, each as large as the model's batch axis allows.

        Args:
            limit: Stop after this many samples. Where the model fixes its batch, whole batches are yielded until the
                limit is reached.

        Raises:
            DataError: The source turns out to be damaged, or holds NaN or infinite values.
        """
        if limit is None:
            yield from self._stream()
            return
        left = limit
        for batch in self._stream():
            if left <= 0:
                return
            rows = batch_rows(batch, self.inputs)
            yield {k: v[:left] for k, v in batch.items()} if rows > left and self.divisible(batch) else batch
            left -= rows

    def watched(self, task: str, limit: int | None = None) -> Iterator[Batch]:
        """Yield :meth:`batches` as a task of that name, a step a sample (:mod:`onnxcomp.progress`)."""
        total = len(self) if limit is None else min(limit, len(self))
        with progress.task(task, total) as advance:
            for batch in self.batches(limit):
                yield batch
                advance(batch_rows(batch, self.inputs))

    def first(self, count: int = 1) -> Batch:
        """Return one feed of the first `count` samples of one shape, repeated where there are fewer; for timing.

        A model with a fixed batch gets its own first batch, whatever `count` is.
        """
        taken: list[Batch] = []
        for batch in self.batches(count):
            if taken and _trailing(batch) != _trailing(taken[0]):
                break
            taken.append(batch)
            if not self.divisible(batch):
                return taken[0]
        joined = {k: np.concatenate([b[k] for b in taken]) for k in taken[0]}
        return {k: np.resize(v, (count, *v.shape[1:])) if len(v) < count else v for k, v in joined.items()}

    def describe(self) -> str:
        """Return one line for reports: how many samples of what, from where."""
        kinds = ", ".join(f"{i.name} {i}" for i in self.inputs)
        what = "synthetic samples" if self.synthetic else "samples"
        return "; ".join([f"{len(self):,} {what} from {self.source} ({kinds})", *self.notes])

    def unlabelled(self) -> Self:
        """Return the same samples without labels: those of calibration data are nobody's business."""
        twin = copy(self)
        twin.labels = None
        return twin

    def require_labels(self) -> NDArray[np.int64]:
        """Return the labels.

        Raises:
            DataError: There are none.
        """
        if self.labels is None:
            raise DataError(
                f"{self.source}: has no labels; add an integer array 'labels' to the .npz, or labels.csv (file,label)"
                " to the folder"
            )
        return self.labels


def batch_rows(batch: Batch, inputs: tuple[ModelInput, ...]) -> int:
    """Return the number of samples in a feed: the extent of its first input's first axis, 1 for a scalar."""
    array = batch[inputs[0].name]
    return array.shape[0] if array.ndim else 1


def _trailing(batch: Batch) -> dict[str, tuple[int, ...]]:
    """Shapes without the first axis; a function may yield images of changing size."""
    return {name: values.shape[1:] for name, values in batch.items()}


def rows_per_batch(shapes: list[tuple[int, ...]], itemsizes: list[int]) -> int:
    """Return how many samples go into a batch when the model leaves it free; `shapes` are those of single samples."""
    sample = sum(prod(s) * b for s, b in zip(shapes, itemsizes, strict=True))
    return max(1, min(_MAX_ROWS, _MAX_BYTES // max(1, sample)))
