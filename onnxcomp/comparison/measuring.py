"""Sums over the data of every tensor of the base: against the other model, and against what the layer would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp import progress
from onnxcomp.comparison.channels import Adapter
from onnxcomp.comparison.equalized import Factors
from onnxcomp.comparison.forced import splice
from onnxcomp.comparison.matching import Pair
from onnxcomp.comparison.reading import Batch, cast_feed, groups_of, slices
from onnxcomp.comparison.sums import Sums
from onnxcomp.data import Feeds
from onnxcomp.data.feeds import batch_rows
from onnxcomp.runtime.activations import Tap

__all__ = ["Measured", "Reader", "Subjects", "comparable", "fed_value", "fit_factors", "measure"]

Array = NDArray[Any]
# Bytes of inner tensors that are alive at a time: of the base, of the other model and of the base fed with the other's.
_BYTES = 192 << 20
_KINDS = 3
# The factors of equalized channels are fitted on so many samples.
_FITTING = 32


@dataclass(frozen=True, slots=True, eq=False)
class Subjects:
    """What is compared.

    Attributes:
        base: The base, with inferred types.
        other: The other model, with inferred types.
        pairs: By tensor of the base its counterpart.
        adapters: By tensor of the base how the counterpart becomes comparable, where it is not as it is.
        feeds: The data.
        sizes: Bytes of every tensor of the base, for a sample if `cut`, else for a batch.
        cut: Whether batches can be cut.
        limit: At most that many samples.
        threads: Intra-op threads.
    """

    base: ir.Model
    other: ir.Model
    pairs: Mapping[str, Pair]
    adapters: Mapping[str, Adapter]
    feeds: Feeds
    sizes: Mapping[str, int]
    cut: bool
    limit: int | None
    threads: int


@dataclass(eq=False, slots=True)
class Measured:
    """What was found.

    Attributes:
        sums: By tensor of the base.
        misfits: Base tensors whose counterpart has another shape, and both shapes.
        samples: Number of samples seen.
    """

    sums: dict[str, Sums]
    misfits: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    samples: int


class Reader:
    """Reads the counterparts of tensors of the base, decoded where they are codes."""

    def __init__(self, subjects: Subjects, names: Sequence[str]) -> None:
        self._subjects = subjects
        self._pairs = [subjects.pairs[name] for name in names]
        codes = [p.codes for p in self._pairs if p.codes is not None]
        constants = [name for c in codes for name in (c.scale, c.zero_point)]
        self._tap = Tap(
            subjects.other, [*(p.other for p in self._pairs), *constants], threads=subjects.threads, arena=False
        )

    def read(self, feed: Mapping[str, Array]) -> Batch:
        """By name of the base's tensor."""
        found = self._tap.read(cast_feed(self._subjects.other, feed))
        values: Batch = {}
        for pair in self._pairs:
            value = found[pair.other]
            if pair.codes is not None:
                shifted = value.astype(np.float32) - found[pair.codes.zero_point].astype(np.float32)
                value = shifted * found[pair.codes.scale]
            values[pair.tensor] = value
        return values


def comparable(base: Array, other: Array, adapter: Adapter | None) -> tuple[Array, Array] | None:
    """Both arrays where they can be compared element by element; None where their shapes do not fit.

    Axes of extent 1 may be missing on either side.
    """
    left = base if adapter is None else adapter.of_base(base)
    if left.shape != other.shape:
        if _long(left.shape) != _long(other.shape):
            return None
        other = other.reshape(left.shape)
    return left, other if adapter is None else adapter.of_other(other)


def fed_value(base: Array, both: tuple[Array, Array] | None, adapter: Adapter | None) -> Array:
    """What stands for a tensor of the base where the other model's is fed: its own where nothing can be compared."""
    if both is None:
        return base
    own = both[1].astype(base.dtype, copy=False)
    return own if adapter is None else adapter.filled(base, own)


def _long(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(extent for extent in shape if extent != 1)


def fit_factors(subjects: Subjects, factors: Factors) -> None:
    """Measure by how much channels were scaled, into `factors`."""
    names = [name for name in subjects.pairs if name in factors.labels]
    limit = min(_FITTING, subjects.limit or _FITTING)
    for group in groups_of(names, subjects.sizes, _BYTES // _KINDS):
        tap, reader = Tap(subjects.base, group, threads=subjects.threads, arena=False), Reader(subjects, group)
        for feed in slices(subjects.feeds, limit, _rows(subjects, group)):
            ours, theirs = tap.read(feed), reader.read(feed)
            for name in group:
                adapter = subjects.adapters.get(name)
                both = comparable(ours[name], theirs[name], adapter)
                if both is not None:
                    factors.add(name, *both, adapter)


def measure(subjects: Subjects, names: Sequence[str], ends: set[str]) -> Measured:
    """Go over the data.

    Args:
        subjects: What is compared.
        names: Tensors of the base, in its order.
        ends: Those of them at which layers end; the layers behind are computed from the other model's values of them.
    """
    measured = Measured({name: Sums() for name in names}, {}, 0)
    spliced, fed = splice(subjects.base, ends)
    groups = groups_of(names, subjects.sizes, _BYTES // _KINDS)
    with progress.task("compare layers", total=None) as advance:
        for group in groups:
            run = _Run(subjects, group, spliced, fed)
            measured.samples = 0
            for feed in slices(subjects.feeds, subjects.limit, _rows(subjects, group)):
                run.add(feed, measured)
                measured.samples += batch_rows(feed, subjects.feeds.inputs)
                advance()
    return measured


def _rows(subjects: Subjects, group: Sequence[str]) -> int | None:
    """How many samples of a group of tensors fit in memory at a time; None where batches stay as they are."""
    if not subjects.cut:
        return None
    return max(1, _BYTES // _KINDS // max(1, sum(subjects.sizes[name] for name in group)))


class _Run:
    """One group of tensors."""

    def __init__(self, subjects: Subjects, group: list[str], spliced: ir.Model, fed: Mapping[str, str]) -> None:
        self._subjects, self._group = subjects, group
        self._forced = Tap(spliced, group, threads=subjects.threads, arena=False)
        needed = self._forced.needs
        self._fed = {name: source for name, source in fed.items() if source in needed}
        self._base = Tap(
            subjects.base, list(dict.fromkeys([*group, *self._fed])), threads=subjects.threads, arena=False
        )
        wanted = dict.fromkeys([*(name for name in group if name in subjects.pairs), *self._fed])
        self._other = Reader(subjects, list(wanted))

    def add(self, feed: Batch, measured: Measured) -> None:
        """Count one batch."""
        ours, theirs = self._base.read(feed), self._other.read(feed)
        pairs: dict[str, tuple[Array, Array]] = {}
        for name, value in theirs.items():
            both = comparable(ours[name], value, self._subjects.adapters.get(name))
            if both is None:
                measured.misfits.setdefault(name, (ours[name].shape, value.shape))
            else:
                pairs[name] = both
        adapters = self._subjects.adapters
        fed = {s: fed_value(ours[name], pairs.get(name), adapters.get(name)) for name, s in self._fed.items()}
        forced = self._forced.read({**feed, **fed})
        for name in self._group:
            adapter = adapters.get(name)
            base, other = pairs.get(name, (ours[name], None))
            f = forced[name] if adapter is None or other is None else adapter.of_base(forced[name])
            measured.sums[name].add(base, other, f if f.shape == base.shape else None)
