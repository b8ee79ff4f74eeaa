"""Accuracy, and how far the outputs are from the base's."""

from __future__ import annotations

import math
from collections.abc import Iterator

from onnxcomp.errors import InputError
from onnxcomp.evaluate import Quality
from onnxcomp.gate.limits import Limits, in_words
from onnxcomp.gate.line import Line, Outcome, listed
from onnxcomp.report.text import decibels, percent

__all__ = ["LABELLED", "PAIRED", "quality_lines"]

LABELLED = ("min_accuracy", "max_drop")
"""Limits that need labels."""
PAIRED = ("max_drop", "min_agreement", "min_sqnr")
"""Limits that need the base's outputs."""

_TWO_SIDED, _ONE_SIDED = 1.96, 1.645
_ROUNDING = 1e-9  # 100 x 0.29 is less than 29


def quality_lines(quality: Quality, limits: Limits) -> Iterator[Line]:
    """Judge what an evaluation found; against the base where it had one.

    Raises:
        InputError: A limit needs a classifier with labels and there is none.
    """
    for name in LABELLED:
        if getattr(limits, name) is not None and quality.top1 is None:
            raise InputError(
                f"the limit {name} needs a classifier with labelled data: no output has a score a class for each sample"
            )
    if limits.min_accuracy is not None:
        yield _accuracy(quality, limits.min_accuracy)
    if limits.max_drop is not None:
        yield _drop(quality, limits.max_drop)
    if limits.min_agreement is not None:
        yield _agreement(quality, limits.min_agreement)
    if limits.min_sqnr is not None:
        yield _sqnr(quality, limits.min_sqnr)
    yield _finite(quality)


def _accuracy(quality: Quality, limit: float) -> Line:
    assert quality.top1 is not None
    own = 100 * quality.top1
    # Wilson, Probable inference, the law of succession, and statistical inference, JASA 22, 1927.
    low, high = _wilson(quality.top1, quality.samples)
    why = f"{100 * low:.1f} to {100 * high:.1f} % with 95 % confidence, {quality.samples:,} samples"
    figures = {"limit": limit, "value": own, "low": 100 * low, "high": 100 * high}
    verdict = _kept(own >= limit - _ROUNDING)
    return Line("min_accuracy", in_words("min_accuracy", limit), percent(quality.top1), verdict, why, (), figures)


def _drop(quality: Quality, limit: float) -> Line:
    assert quality.top1 is not None and quality.drop_points is not None and quality.drop_low is not None
    drop = quality.drop_points
    margin = (drop - quality.drop_low) * _TWO_SIDED / _ONE_SIDED
    before = percent(quality.top1 + drop / 100)
    interval = f"{_signed(drop - margin)} to {_signed(drop + margin)} points with 95 % confidence"
    why = f"{before} -> {percent(quality.top1)}; {interval}, {quality.samples:,} pairs"
    figures = {"limit": limit, "value": drop, "low": drop - margin, "high": drop + margin}
    verdict = _kept(drop <= limit + _ROUNDING)
    return Line("max_drop", in_words("max_drop", limit), f"{drop:.2f} points", verdict, why, (), figures)


def _agreement(quality: Quality, limit: float) -> Line:
    if quality.agreement is None:
        raise InputError("the limit min_agreement needs a classifier: no output has one score a class for each sample")
    own = 100 * quality.agreement
    verdict = _kept(own >= limit - _ROUNDING)
    why = f"same top-1 class as the base, {quality.samples:,} samples"
    figures = {"limit": limit, "value": own}
    return Line(
        "min_agreement", in_words("min_agreement", limit), percent(quality.agreement), verdict, why, (), figures
    )


def _sqnr(quality: Quality, limit: float) -> Line:
    asked = in_words("min_sqnr", limit)
    if not quality.sqnr:
        raise InputError("the limit min_sqnr needs an output of floating-point numbers, and the model has none")
    worst = min(quality.sqnr, key=lambda name: quality.sqnr[name])
    value = quality.sqnr[worst]
    why = f"output {worst}" + (f", the worst of {len(quality.sqnr)}" if len(quality.sqnr) > 1 else "")
    figures = {"limit": limit, "value": value}
    if value == -math.inf:
        why += ": NaN or infinite where the base is not, or the base is NaN, infinite or zero throughout"
    where = tuple(name for name, own in quality.sqnr.items() if own < limit)
    verdict = _kept(not where)
    changed = {name: share for name, share in quality.equal.items() if share < 1}
    if changed:
        # No noise can be told of integers, and no signal; of what a user asked for, nothing is known.
        told = listed([f"{name} ({percent(share)} equal)" for name, share in changed.items()])
        why += f"; not floats, and not judged: {told}"
        verdict = "inconclusive" if verdict == "pass" else verdict
        where = where or tuple(changed)
    return Line("min_sqnr", asked, decibels(value), verdict, why, where, figures)


def _finite(quality: Quality) -> Line:
    if quality.finite:
        return Line("finite", "no NaN, no Inf", "finite", "pass")
    where = tuple(name for name, own in quality.sqnr.items() if own == -math.inf)
    return Line("finite", "no NaN, no Inf", "NaN or Inf", "fail", "an output is NaN or infinite on these data", where)


def _kept(holds: bool) -> Outcome:
    return "pass" if holds else "fail"


def _wilson(share: float, count: int) -> tuple[float, float]:
    z = _TWO_SIDED
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return middle - reach, middle + reach


def _signed(value: float) -> str:
    return f"{value:+.2f}"
