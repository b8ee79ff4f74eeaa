"""Calibration as a function: a model and data in, statistics out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from onnxcomp.calibration.statsfile import Statistics
from onnxcomp.data import Preprocess, open_feeds
from onnxcomp.graph.fold import fold
from onnxcomp.intake import checked_model
from onnxcomp.quantize.observe import gather

__all__ = ["calibrate"]


def calibrate(
    model: str | Path | ir.Model | onnx.ModelProto,
    data: Any,
    *,
    preprocess: Preprocess | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    samples: int | None = None,
    threads: int = 1,
) -> Statistics:
    """Run data through a model once and keep what int8 for any target reads of it.

    Args:
        model: A path, an onnx-ir model or a ModelProto; never modified.
        data: Calibration data: a path (.npz, .npy, folder of images, ``module:function``), arrays by input name, a
            callable or Feeds.
        preprocess: How a folder of images becomes the model's input.
        shapes: Concrete shapes for inputs with unknown dimensions.
        samples: Use at most that many samples; None: all.
        threads: Intra-op threads. Another number may change the last bits of the statistics.

    Returns:
        The statistics, for ``onnxcomp.optimize(stats=...)`` and
        :func:`onnxcomp.calibration.statsfile.save_statistics`.

    Raises:
        InputError: The model or the data are wrong, or there is nothing in the model that any target would quantize.
    """
    loaded = checked_model(model)
    feeds = open_feeds(data, loaded, preprocess=preprocess, shapes=shapes).unlabelled()
    canonical = loaded.clone()
    fold(canonical)
    return gather(canonical, feeds, threads=threads, samples=samples)
