"""Feeds cut from arrays: which axis is what, how long a batch is, and whether the arrays fit the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcomp.data.casting import cast, check_castable
from onnxcomp.data.columns import Column
from onnxcomp.data.feeds import Feeds, rows_per_batch
from onnxcomp.data.inputs import Batch, ModelInput, did_you_mean
from onnxcomp.errors import DataError

__all__ = ["LABELS", "ArrayFeeds"]

LABELS = "labels"


@dataclass(frozen=True, slots=True)
class _Cut:
    """How one array is cut into feeds: `rows` of its first axis each, or one entry (axis dropped) if `whole`."""

    wanted: ModelInput
    column: Column
    whole: bool
    rows: int

    def feeds(self) -> Iterator[NDArray[np.generic]]:
        where = self.column.where
        for k, chunk in enumerate(self.column.chunks(self.rows)):
            values = cast(chunk, self.wanted, where, k * self.rows)
            yield values[0, ...] if self.whole else values  # an array, where [0] of a vector would be a number


class ArrayFeeds(Feeds):
    """Samples from arrays keyed by input name.

    Where an array has the rank of the model's input, its first axis enumerates samples and is cut into batches: of
    exactly the model's batch size where that is fixed (a last partial batch is dropped and noted), of a convenient
    size otherwise. Where it has one axis more, or the input is a scalar, its first axis enumerates whole feeds. Other
    arrays are ignored.

    Raises:
        DataError: An array is missing, empty, of the wrong rank, shape or dtype, or the arrays do not match each other.
    """

    def __init__(self, inputs: tuple[ModelInput, ...], columns: Mapping[str, Column], source: str) -> None:
        super().__init__(inputs, source)
        found = [_column_for(i, columns, source) for i in inputs]
        whole = [_check(i, c) for i, c in zip(inputs, found, strict=True)]
        _check_symbols(inputs, found, whole)
        rows, self._count = _plan(inputs, found, whole)
        self._cuts = [_Cut(i, c, w, r) for i, c, w, r in zip(inputs, found, whole, rows, strict=True)]
        self._offered = _offered(self._cuts[0], self._count)
        self._length = min(self._offered, _delivered(self._cuts[0], self._count))
        dropped = self._offered - self._length
        if dropped:
            self.notes = (f"{dropped} of {self._offered:,} samples dropped: the model's batch is fixed at {rows[0]}",)
        named = LABELS not in {i.name for i in inputs}
        self._labels_column = columns.get(LABELS) if named else None

    def __len__(self) -> int:
        return self._length

    def _stream(self) -> Iterator[Batch]:
        streams = [cut.feeds() for cut in self._cuts]
        names = [i.name for i in self.inputs]
        for _ in range(self._count):
            yield {name: next(stream) for name, stream in zip(names, streams, strict=True)}

    def _read_labels(self) -> NDArray[np.int64] | None:
        column = self._labels_column
        if column is None:
            return None
        where = column.where
        if column.dtype.kind not in "iu" or not column.shape:
            found = f"{column.dtype.name}{_text(column.shape)}"
            raise DataError(f"{where}: labels must be an array of integers (class indices), not {found}")
        values = column.whole().reshape(-1).astype(np.int64)
        if len(values) != self._offered:
            raise DataError(
                f"{where}: {len(values):,} labels for {self._offered:,} samples; one label a sample is needed"
            )
        if values.size and int(values.min()) < 0:
            raise DataError(f"{where}: label {int(values.min())} of sample {int(values.argmin())} is negative")
        return values[: self._length]


def _column_for(wanted: ModelInput, columns: Mapping[str, Column], source: str) -> Column:
    if wanted.name in columns:
        return columns[wanted.name]
    names = list(columns)
    held = ", ".join(names) if names else "nothing"
    raise DataError(
        f"{source}: has no array for input {wanted.name!r}; it has: {held}{did_you_mean(wanted.name, names)}"
    )


def _check(wanted: ModelInput, column: Column) -> bool:
    """Check one array against its input; return whether its first axis enumerates whole feeds."""
    check_castable(column.dtype, wanted, column.where)
    if wanted.shape is None:
        if not column.shape:
            raise DataError(f"{column.where}: is a single scalar; its first axis must enumerate samples")
        whole = False
    else:
        extra = len(column.shape) - len(wanted.shape)
        whole = extra == 1
        if extra not in (0, 1) or not column.shape:
            expected = f"{len(wanted.shape)} axes (samples first) or {len(wanted.shape) + 1} (whole feeds)"
            if not wanted.shape:
                expected = "one axis (a value a feed)"
            raise DataError(
                f"{column.where}: has shape {_text(column.shape)}; input {wanted.name!r} is {wanted},"
                f" so it needs {expected}"
            )
        model_axes = wanted.shape if whole else wanted.shape[1:]
        if any(isinstance(m, int) and m != d for m, d in zip(model_axes, column.shape[1:], strict=True)):
            shown = ",".join(["n", *("?" if d is None else str(d) for d in model_axes)])
            raise DataError(f"{column.where}: has shape {_text(column.shape)}; input {wanted.name!r} needs [{shown}]")
    if 0 in column.shape:
        raise DataError(f"{column.where}: is empty (shape {_text(column.shape)}); at least one sample is needed")
    return whole


def _check_symbols(inputs: tuple[ModelInput, ...], columns: list[Column], whole: list[bool]) -> None:
    """A symbolic axis that several inputs share must have one extent; batch axes are checked by the sample counts."""
    bound: dict[str, tuple[int, str]] = {}
    for wanted, column, w in zip(inputs, columns, whole, strict=True):
        axes = list(zip(wanted.shape or (), column.shape[1:] if w else column.shape, strict=False))
        for axis, extent in axes if w else axes[1:]:
            if not isinstance(axis, str):
                continue
            known, owner = bound.setdefault(axis, (extent, wanted.name))
            if known != extent:
                raise DataError(
                    f"{column.where}: axis {axis!r} is {extent}, but {known} in the data of input {owner!r}; the model"
                    " needs them equal"
                )


def _plan(inputs: tuple[ModelInput, ...], columns: list[Column], whole: list[bool]) -> tuple[list[int], int]:
    """Return the rows a feed takes of each array, and the number of feeds."""
    fixed = [1 if w else i.fixed_batch for i, w in zip(inputs, whole, strict=True)]
    lengths = [c.shape[0] for c in columns]
    sizes = set(fixed) - {None}
    if len(set(lengths)) == 1 and len(sizes) <= 1 and (not any(whole) or all(whole)):
        shapes = [c.shape[1:] for c in columns]
        rows = next(iter(sizes), None) or rows_per_batch(shapes, [i.dtype.itemsize for i in inputs])
        count = lengths[0] // rows if sizes else -(-lengths[0] // rows)
        if count == 0:
            raise DataError(
                f"{columns[0].where}: {lengths[0]} samples are fewer than the model's fixed batch of {rows}"
            )
        return [rows] * len(inputs), count
    counts = {n // b for n, b in zip(lengths, fixed, strict=True) if b is not None}
    of_size = {(b, n) for n, b in zip(lengths, fixed, strict=True)}
    count = next(iter(counts), 0)
    free_fit = count and all(n % count == 0 for n, b in zip(lengths, fixed, strict=True) if b is None)
    if len(counts) != 1 or len(of_size) != len({b for b, _ in of_size}) or not free_fit:
        held = ", ".join(f"{i.name} {_text(c.shape)}" for i, c in zip(inputs, columns, strict=True))
        raise DataError(f"{columns[0].where}: the inputs have different numbers of samples: {held}")
    return [b or n // count for n, b in zip(lengths, fixed, strict=True)], count


def _offered(cut: _Cut, count: int) -> int:
    """Number of samples the source holds, as its first input counts them."""
    if not cut.whole:
        return cut.column.shape[0]
    return count * (cut.column.shape[1] if cut.wanted.shape else 1)


def _delivered(cut: _Cut, count: int) -> int:
    if cut.whole:
        return _offered(cut, count)
    return min(count * cut.rows, cut.column.shape[0])


def _text(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"
