"""int8(calibration=minmax) reads less of the data, and writes the ranges that all of it gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxcomp.contract import Context
from onnxcomp.data import open_feeds
from onnxcomp.passes.int8 import Int8
from onnxcomp.quantize import observe
from onnxcomp.quantize.carried import RANGES, carried
from onnxcomp.targets.target import load_target

GRAPH = """g (float[N, 4, 8, 8] x) => (float[N, 8, 8, 8] y) {
  a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1)
  ar = Relu (a)
  b = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (ar, w2)
  s = Add (b, ar)
  sr = Relu (s)
  y = Conv <kernel_shape = [1, 1]> (sr, w3)
}"""
WEIGHTS: dict[str, tuple[int, ...]] = {"w1": (8, 4, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 8, 1, 1)}


def test_the_ranges_are_those_of_full_histograms(
    build: Callable[..., ir.Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(7).standard_normal((300, 4, 8, 8)).astype(np.float32)
    x[250] *= 3
    settings = Int8(calibration="minmax", equalize="off", rounding="nearest")
    found: list[ir.Model] = []
    for full in (False, True):
        model = build(GRAPH, WEIGHTS)
        if full:
            monkeypatch.setattr(observe, "_collect_extremes", vars(observe)["_collect"])
        feeds = open_feeds({"x": x}, model)
        settings.run(model, Context(load_target("ort-x86"), tmp_path, data=feeds))
        found.append(model)
    assert carried(found[0])
    assert found[0].metadata_props[RANGES] == found[1].metadata_props[RANGES]
