"""What is held does not depend on how many samples there are, and a limit of bytes changes no figure."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onnxcomp
from onnxcomp.compare import compare_models
from onnxcomp.comparison import attribution, measuring
from onnxcomp.data import Feeds


def endless(count: int) -> Any:
    def feeds() -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(0)
        for _ in range(count):
            yield {"x": rng.standard_normal((16, 8, 8, 8)).astype(np.float32)}

    return feeds


def test_memory_is_flat_in_the_samples(net: ir.Model, changed: Any) -> None:
    other = changed(net, ws=0.9 * np.asarray(net.graph.initializers["ws"].const_value))
    peaks: list[int] = []
    for count in (8, 8, 40):  # the first is for what is imported and cached
        feeds = onnxcomp.open_feeds(endless(count), net)
        tracemalloc.start()
        found = compare_models(net, other, feeds, samples=None, attribute=4)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.samples == found.outputs.samples == 16 * count
    assert peaks[2] < 1.2 * peaks[1]


def test_fewer_bytes_give_the_same_figures(
    net: ir.Model, quantized: ir.Model, feeds: Feeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compare_models(net, quantized, feeds, attribute=8)
    monkeypatch.setattr(measuring, "_BYTES", 3 * 16 * 64 * 4 * 2)  # two tensors of one sample
    monkeypatch.setattr(attribution, "_BYTES", 1)
    cut = compare_models(net, quantized, feeds, attribute=8)
    assert [entry.tensor for entry in cut.layers] == [entry.tensor for entry in whole.layers]
    for one, two in zip(whole.layers, cut.layers, strict=True):
        assert figures(one) == pytest.approx(figures(two), rel=0.02, abs=1e-4)


def figures(entry: Any) -> list[float]:
    return [value for value in astuple(entry) if isinstance(value, float)]
