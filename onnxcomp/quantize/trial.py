"""Comparing quantized versions of a model by what they do to its outputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcomp.data import Feeds
from onnxcomp.runtime.activations import Tap

__all__ = ["output_errors"]


def output_errors(
    model: ir.Model, others: Sequence[ir.Model], feeds: Feeds, *, limit: int, threads: int = 1
) -> list[float]:
    """Return for each of `others` its relative squared error on the worst output (0 exact, 1 all signal lost).

    Outputs that are not floating point do not count; without any that are, all errors are 0.

    Args:
        model: The original.
        others: Models of the same signature.
        feeds: The data.
        limit: At most that many samples.
        threads: Intra-op threads.
    """
    names = [
        v.name for v in model.graph.outputs if v.name and v.dtype == ir.DataType.FLOAT and v.producer() is not None
    ]
    if not names:
        return [0.0] * len(others)
    base, *taps = [Tap(m, names, threads=threads) for m in (model, *others)]
    signal = dict.fromkeys(names, 0.0)
    noise = [dict.fromkeys(names, 0.0) for _ in others]
    for feed in feeds.watched("try", limit):
        wanted = base.read(feed)
        for name in names:
            signal[name] += float(np.sum(np.square(wanted[name], dtype=np.float64)))
        for sums, tap in zip(noise, taps, strict=True):
            for name, value in tap.read(feed).items():
                sums[name] += float(np.sum(np.square(value - wanted[name], dtype=np.float64)))
    return [max(sums[name] / max(signal[name], np.finfo(np.float64).tiny) for name in names) for sums in noise]
