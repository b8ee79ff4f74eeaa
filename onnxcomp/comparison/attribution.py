"""Which share of the error at the outputs each layer brings, measured.

The layers of the base give way to those of the other model one after the other, from the inputs on. With E the error
at the outputs in the end and d_k what the k-th step changes there, E = sum d_k, so that the shares <d_k, E> / <E, E>
add up to 1, whatever the layers do to each other's errors: one that makes up for errors before it has a share below 0.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp import progress
from onnxcomp.comparison.forced import splice
from onnxcomp.comparison.measuring import Reader, Subjects, comparable, fed_value
from onnxcomp.comparison.reading import Batch, slices
from onnxcomp.cost import model_cost
from onnxcomp.runtime.activations import Tap

__all__ = ["affordable", "measured_shares"]

Array = NDArray[Any]
# Multiply-accumulates of the base in all runs together: some seconds on one core.
_MACS = 2 * 10**11
# Bytes of the other model's tensors that are held.
_BYTES = 192 << 20
_SAMPLES = 64
_FEWEST = 2


def affordable(subjects: Subjects, ends: Sequence[str], layers: int) -> int:
    """On how many samples shares can be measured; 0 where even a few would take too long or too much memory.

    Args:
        subjects: What is compared.
        ends: The tensors at which layers end.
        layers: How many layers add any error.
    """
    cost = model_cost(subjects.base)
    each = max(1, cost.macs or cost.parameters) * max(1, layers)
    samples = min(_SAMPLES, _MACS // each, _BYTES // _held(subjects, ends))
    return samples if samples >= _FEWEST else 0


def _held(subjects: Subjects, ends: Sequence[str]) -> int:
    """Bytes of the named tensors for one sample."""
    rows = 1 if subjects.cut else next((i.fixed_batch for i in subjects.feeds.inputs if i.fixed_batch), 1)
    return max(1, sum(subjects.sizes[name] for name in ends) // rows)


def measured_shares(
    subjects: Subjects, ends: Sequence[str], adding: Collection[str], outputs: Sequence[str], samples: int
) -> dict[str, float]:
    """Measure the shares; several outputs count by their noise over their signal.

    Args:
        subjects: What is compared.
        ends: The tensors at which layers end, in the order of the base.
        adding: Those of layers that add any error; the others have no share.
        outputs: Floating-point outputs of both models that end layers.
        samples: On so many samples.

    Returns:
        By the tensor that ends the layer; empty where there is no error, or one that is not finite.
    """
    walk = _Walk(subjects, ends, outputs, samples)
    before, after = walk.outputs(0), walk.outputs(len(ends))
    error = [{name: late[name] - early[name] for name in outputs} for early, late in zip(before, after, strict=True)]
    signal = {name: sum(_dot(early[name], early[name]) for early in before) for name in outputs}
    known = [name for name in outputs if signal[name] > 0]
    total = sum(_dot(own[name], own[name]) / signal[name] for own in error for name in known)
    if not np.isfinite(total) or total <= 0:
        return {}
    shares: dict[str, float] = {}
    with progress.task("attribute", len(adding)) as advance:
        for index, end in enumerate(ends):
            if end not in adding:
                continue
            now = walk.outputs(index + 1)
            moved = sum(
                _dot(late[name] - early[name], own[name]) / signal[name]
                for early, late, own in zip(before, now, error, strict=True)
                for name in known
            )
            shares[end] = moved / total
            before = now
            advance()
    return shares


def _dot(left: Array, right: Array) -> float:
    return float(np.einsum("i,i", left.ravel(), right.ravel()))


class _Walk:
    """Outputs of the base with the first of its layers taken from the other model."""

    def __init__(self, subjects: Subjects, ends: Sequence[str], outputs: Sequence[str], samples: int) -> None:
        self._subjects, self._ends, self._outputs = subjects, list(ends), list(outputs)
        own, other = Tap(subjects.base, ends, threads=subjects.threads, arena=False), Reader(subjects, ends)
        rows = max(1, _BYTES // max(1, sum(subjects.sizes.values()))) if subjects.cut else None
        self._feeds: list[Batch] = []
        self._values: list[Batch] = []
        for feed in slices(subjects.feeds, samples, rows):
            self._feeds.append(feed)
            self._values.append(self._fed(own.read(feed), other.read(feed)))

    def _fed(self, base: Batch, other: Batch) -> Batch:
        adapters = self._subjects.adapters
        return {
            name: fed_value(base[name], comparable(base[name], other[name], adapters.get(name)), adapters.get(name))
            for name in self._ends
        }

    def outputs(self, count: int) -> list[Mapping[str, Array]]:
        """The outputs in float64, a batch each, where the first `count` of the tensors are the other model's."""
        ends = set(self._ends[:count])
        spliced, fed = splice(self._subjects.base, ends)
        rest = [name for name in self._outputs if name not in ends]
        tap = Tap(spliced, rest, threads=self._subjects.threads)
        found: list[Mapping[str, Array]] = []
        for feed, values in zip(self._feeds, self._values, strict=True):
            given = {source: values[name] for name, source in fed.items() if source in tap.needs}
            whole = {**tap.read({**feed, **given}), **{name: values[name] for name in ends.intersection(self._outputs)}}
            found.append({name: whole[name].astype(np.float64) for name in self._outputs})
        return found
