"""What a model is worth: accuracy on labelled samples, and how far its outputs are from another model's.

Everything runs in ONNX Runtime on the kernels that a deployment uses, and is summed up batch by batch: outputs are
    never kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.data import Feeds
from onnxcomp.data.feeds import batch_rows
from onnxcomp.errors import DataError, ModelError
from onnxcomp.runtime.session import open_session, output_names, run

__all__ = ["Quality", "evaluate", "scores_output"]

_ONE_SIDED_95 = 1.645


@dataclass(frozen=True, slots=True)
class Quality:
    """Accuracy of a model and its fidelity to a base model.

    Attributes:
        samples: Number of samples seen.
        top1: Fraction of samples whose label has the highest score, 0 to 1; None without labels or a classifier's
            output.
        top5: Fraction whose label is among the five highest; None too where there are five classes or fewer.
        agreement: Fraction of samples on which the highest score is the base's; None without a base.
        sqnr: Float output name to ``10 log10(sum base**2 / sum (output - base)**2)``, dB; +inf where equal, -inf
            where the output is NaN or infinite and the base is not, or the base is throughout.
        cosine: Float output name to its cosine with the base, all samples together; NaN where it is not finite.
        equal: Integer, boolean or string output name to the fraction of elements that equal the base's.
        drop_points: Percentage points of top-1 accuracy lost against the base; None without labels or base.
        drop_low: Lower end of the paired one-sided 95 % interval of that drop: a limit X is broken for certain only
            where ``drop_low > X``.
        finite: Whether all outputs were finite wherever the base's were (without a base: everywhere).
    """

    samples: int
    top1: float | None = None
    top5: float | None = None
    agreement: float | None = None
    sqnr: Mapping[str, float] = field(default_factory=dict[str, float])
    cosine: Mapping[str, float] = field(default_factory=dict[str, float])
    equal: Mapping[str, float] = field(default_factory=dict[str, float])
    drop_points: float | None = None
    drop_low: float | None = None
    finite: bool = True


def evaluate(
    model: ir.Model,
    feeds: Feeds,
    base: ir.Model | None = None,
    *,
    threads: int = 1,
    limit: int | None = None,
) -> Quality:
    """Run a model over the data and say how good it is.

    The scores are the first floating-point output with one row a sample and one axis of at least two classes; its
    other axes are 1 long ([N, classes], [N, 1, 1, classes], [N, classes, 1, 1]). Ties go to the class that comes
    first.

    Args:
        model: The model.
        feeds: The samples; labels, if they have any, give accuracy.
        base: The model to compare with, on the same samples; it needs outputs of the same names.
        threads: Intra-op threads.
        limit: At most that many samples.

    Raises:
        DataError: There are no samples, they do not fit, or a label is no class of the output.
        ModelError: ORT cannot run a model, or `model` lacks an output of `base`, or one has another shape there.
    """
    session = open_session(model, threads=threads)
    reference = None if base is None else open_session(base, threads=threads)
    names = output_names(session if reference is None else reference)
    missing = [name for name in names if name not in output_names(session)]
    if missing:
        raise ModelError(f"the model has no output '{missing[0]}', which the one that it is compared with has")
    tally = _Tally(feeds.labels)
    for feed in feeds.watched("evaluate", limit):
        outputs = dict(zip(names, run(session, feed, names), strict=True))
        wanted = None if reference is None else dict(zip(names, run(reference, feed, names), strict=True))
        tally.add(batch_rows(feed, feeds.inputs), outputs, wanted)
    if not tally.samples:
        raise DataError(f"{feeds.source}: no samples to evaluate on")
    return tally.quality()


class _Tally:
    """Running sums over the batches."""

    def __init__(self, labels: NDArray[np.int64] | None) -> None:
        self.samples = 0
        self._labels = labels
        self._fidelity: dict[str, _Fidelity] = {}
        self._finite = True
        self._right: list[NDArray[np.int64]] = []  # rank of the label, one a sample
        self._base_right: list[NDArray[np.int64]] = []
        self._agreeing = 0
        self._scores: str | None = None
        self._classes = 0

    def add(self, rows: int, outputs: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> None:
        """Count one batch of `rows` samples; `wanted` are the base's outputs."""
        for name, value in outputs.items():
            if wanted is not None:
                fidelity = self._fidelity.setdefault(name, _Fidelity())
                fidelity.add(name, np.asarray(value), np.asarray(wanted[name]))
            elif not _all_finite(np.asarray(value)):
                self._finite = False
        self._add_scores(rows, outputs, wanted)
        self.samples += rows

    def _add_scores(self, rows: int, outputs: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> None:
        if self.samples == 0:
            self._scores = scores_output(outputs, rows)
        if self._scores is None:
            return
        scores = np.asarray(outputs[self._scores], dtype=np.float64).reshape(rows, -1)
        self._classes = scores.shape[1]
        base = None if wanted is None else np.asarray(wanted[self._scores], dtype=np.float64).reshape(rows, -1)
        if base is not None:
            same = scores.argmax(axis=1) == base.argmax(axis=1)
            self._agreeing += int(np.count_nonzero(same & ~np.isnan(scores).any(axis=1)))
        if self._labels is not None:
            labels = self._labels[self.samples : self.samples + rows]
            self._check(labels)
            self._right.append(_ranks(scores, labels))
            if base is not None:
                self._base_right.append(_ranks(base, labels))

    def _check(self, labels: NDArray[np.int64]) -> None:
        wrong = labels[(labels < 0) | (labels >= self._classes)]
        if wrong.size:
            raise DataError(
                f"label {int(wrong[0])} is no class of output '{self._scores}', which has {self._classes}"
                f" (0 to {self._classes - 1}); a constant shift of the labels is set with label_offset"
            )

    def quality(self) -> Quality:
        """Return the result."""
        ranks = np.concatenate(self._right) if self._right else None
        base_ranks = np.concatenate(self._base_right) if self._base_right else None
        floats = {name: f for name, f in self._fidelity.items() if not f.discrete}
        drop, low = (None, None) if ranks is None or base_ranks is None else _drop(base_ranks == 0, ranks == 0)
        compared = bool(self._fidelity) and self._scores is not None
        return Quality(
            samples=self.samples,
            top1=None if ranks is None else float(np.mean(ranks == 0)),
            top5=None if ranks is None or self._classes <= 5 else float(np.mean(ranks < 5)),
            agreement=self._agreeing / self.samples if compared else None,
            sqnr={name: f.sqnr() for name, f in floats.items()},
            cosine={name: f.cosine() for name, f in floats.items()},
            equal={name: f.same / max(f.count, 1) for name, f in self._fidelity.items() if f.discrete},
            drop_points=drop,
            drop_low=low,
            finite=self._finite and all(f.finite for f in floats.values()),
        )


class _Fidelity:
    """Running sums of one output against the base's."""

    __slots__ = ("_cross", "_lost", "_noise", "_own", "_signal", "count", "discrete", "finite", "same")

    def __init__(self) -> None:
        self._signal = self._noise = self._own = self._cross = 0.0
        self.count = self.same = 0
        self._lost = False  # whether the base had values, and none of them was finite
        self.discrete = False
        self.finite = True

    def add(self, name: str, value: NDArray[Any], wanted: NDArray[Any]) -> None:
        if value.shape != wanted.shape:
            # Where a shape depends on the values (detections after suppression), nothing can be paired.
            raise ModelError(
                f"output '{name}' has shape {list(value.shape)} where the base has {list(wanted.shape)}; "
                "outputs whose shape depends on the data cannot be compared"
            )
        if not _is_float(wanted):
            self.discrete = True
            self.count += value.size
            self.same += int(np.count_nonzero(value == wanted))
            return
        own, base = value.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
        known = np.isfinite(base)
        if not known.all():
            self._lost |= not known.any()
            own, base = own[known], base[known]
        if not np.isfinite(own).all():
            self.finite = False
            return
        error = own - base
        self._signal += float(base @ base)
        self._noise += float(error @ error)
        self._own += float(own @ own)
        self._cross += float(own @ base)

    def sqnr(self) -> float:
        if not self.finite:
            return -math.inf
        if self._noise == 0:
            return -math.inf if self._lost and not self._signal else math.inf
        return 10 * math.log10(self._signal / self._noise) if self._signal else -math.inf

    def cosine(self) -> float:
        if not self.finite:
            return math.nan
        norms = math.sqrt(self._signal) * math.sqrt(self._own)
        return self._cross / norms if norms else float(self._signal == self._own)


def _is_float(value: NDArray[Any]) -> bool:
    # bfloat16 and the float8 types of ml_dtypes are of kind V and f.
    return value.dtype.kind == "f" or "float" in value.dtype.name


def _all_finite(value: NDArray[Any]) -> bool:
    return not _is_float(value) or bool(np.isfinite(value.astype(np.float32, copy=False)).all())


def scores_output(outputs: Mapping[str, Any], rows: int) -> str | None:
    """Return the first output with one score a class for every sample; a model of one sample may leave its axis out."""
    found = next((name for name, value in outputs.items() if _is_scores(value, rows)), None)
    if found is None and rows == 1:
        vectors = {
            name: value[None] for name, value in outputs.items() if isinstance(value, np.ndarray) and value.ndim == 1
        }
        found = next((name for name, value in vectors.items() if _is_scores(value, rows)), None)
    return found


def _is_scores(value: Any, rows: int) -> bool:
    if not isinstance(value, np.ndarray) or value.ndim < 2 or value.shape[0] != rows or not _is_float(value):
        return False
    long = [extent for extent in value.shape[1:] if extent != 1]
    return len(long) == 1 and long[0] > 1


def _ranks(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many classes come before the label, one a row; a row that holds NaN ranks it last."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    before = (scores > own) | ((scores == own) & earlier)
    ahead: NDArray[np.int64] = before.astype(np.int64).sum(axis=1)
    ahead[np.isnan(scores).any(axis=1)] = scores.shape[1]
    return ahead


def _drop(base_right: NDArray[np.bool_], right: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the paired drop of accuracy in percentage points and its one-sided 95 % lower bound."""
    difference = base_right.astype(np.float64) - right.astype(np.float64)
    drop = 100 * float(difference.mean())
    return drop, drop - 100 * _ONE_SIDED_95 * float(difference.std()) / math.sqrt(len(difference))
