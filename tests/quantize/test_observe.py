"""Statistics stand for the data they were taken from: the same ranges, the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxcomp import modelio
from onnxcomp.calibration.statsfile import Statistics, load_statistics, save_statistics
from onnxcomp.contract import Context, PassReport
from onnxcomp.data import Feeds, open_feeds
from onnxcomp.errors import DataError, InputError, OptionError
from onnxcomp.passes.int8 import Int8
from onnxcomp.quantize.observe import gather, observable
from onnxcomp.targets.target import load_target

Builder = Callable[..., ir.Model]

# A residual block (whose Add is watched through its Relu), a Concat, a pool, a Pad and a head.
GRAPH = """g (float[N, 4, 8, 8] x) => (float[N, 5] y)
<int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}, int64[2] flat = {0, -1}>
{
  a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
  ar = Relu (a)
  b = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (ar, w2, b2)
  s = Add (b, ar)
  sr = Relu (s)
  c = Conv <kernel_shape = [1, 1]> (sr, w3)
  d = Conv <kernel_shape = [1, 1]> (sr, w4)
  e = Concat <axis = 1> (c, d)
  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (e)
  q = Pad (p, pads)
  f = Conv <kernel_shape = [3, 3]> (q, w5)
  fr = Relu (f)
  h = GlobalAveragePool (fr)
  i = Reshape (h, flat)
  y = Gemm <transB = 1> (i, w6, b6)
}"""
WEIGHTS: dict[str, tuple[int, ...]] = {
    "w1": (8, 4, 3, 3),
    "b1": (8,),
    "w2": (8, 8, 3, 3),
    "b2": (8,),
    "w3": (4, 8, 1, 1),
    "w4": (4, 8, 1, 1),
    "w5": (8, 8, 3, 3),
    "w6": (5, 8),
    "b6": (5,),
}


@pytest.fixture
def model(build: Builder) -> ir.Model:
    """The graph above."""
    return build(GRAPH, WEIGHTS)


@pytest.fixture
def feeds(model: ir.Model) -> Feeds:
    """Fifty random images, in two batches."""
    x = np.random.default_rng(7).standard_normal((50, 4, 8, 8)).astype(np.float32)
    return open_feeds({"x": x}, model)


@pytest.fixture
def statistics(model: ir.Model, feeds: Feeds, tmp_path: Path) -> Statistics:
    """What calibration says of them, by way of a file."""
    path = tmp_path / "stats.npz"
    save_statistics(gather(model, feeds), path)
    return load_statistics(path)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[ir.Model, PassReport]]:
    """Quantize a clone by what the context is given."""

    def go(
        model: ir.Model, *, target: str = "ort-x86", options: dict[str, Any] | None = None, **context: Any
    ) -> tuple[ir.Model, PassReport]:
        copy = model.clone()
        report = Int8(**(options or {})).run(copy, Context(load_target(target), tmp_path, **context))
        return copy, report

    return go


def plain(**options: Any) -> dict[str, Any]:
    """Options with which int8 reads nothing of the data but ranges and means."""
    return {"rounding": "nearest", "inputs": "tensor", "equalize": "off", **options}


@pytest.mark.parametrize("target", ["ort-x86", "ort-arm", "tensorrt"])
@pytest.mark.parametrize("rule", ["minmax", "percentile", "entropy", "mse"])
def test_the_same_file_as_from_the_data(
    run: Any, model: ir.Model, feeds: Feeds, statistics: Statistics, rule: str, target: str
) -> None:
    from_data, _ = run(model, target=target, options=plain(calibration=rule), data=feeds)
    from_stats, report = run(model, target=target, options=plain(calibration=rule), statistics=statistics)
    assert report.changes
    assert modelio.to_bytes(from_stats) == modelio.to_bytes(from_data)
    assert "ranges are those of the statistics: 50 samples" in report.notes


def test_auto_without_data_takes_mse_and_says_so(run: Any, model: ir.Model, statistics: Statistics) -> None:
    chosen, report = run(model, options=plain(), statistics=statistics)
    named, _ = run(model, options=plain(calibration="mse"), statistics=statistics)
    assert modelio.to_bytes(chosen) == modelio.to_bytes(named)
    assert any(note.startswith("calibration=auto took mse") for note in report.notes)


def test_auto_with_data_chooses_as_without_statistics(
    run: Any, model: ir.Model, feeds: Feeds, statistics: Statistics
) -> None:
    both, _ = run(model, options=plain(), statistics=statistics, data=feeds)
    alone, _ = run(model, options=plain(), data=feeds)
    assert modelio.to_bytes(both) == modelio.to_bytes(alone)


def test_made_up_data_do_not_count_where_there_are_statistics(
    run: Any, model: ir.Model, feeds: Feeds, statistics: Statistics
) -> None:
    with_both, report = run(model, options=plain(), statistics=statistics, stand_in=feeds)
    without, _ = run(model, options=plain(), statistics=statistics)
    assert modelio.to_bytes(with_both) == modelio.to_bytes(without)
    assert not any("made-up" in note for note in report.notes)


def changed(model: ir.Model) -> ir.Model:
    """The model with another weight in its fifth layer, as a pass before int8 might leave it."""
    copy = model.clone()
    value = copy.graph.initializers["w5"]
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(0.5), name="w5")
    return copy


def test_what_an_earlier_pass_changed_is_not_in_the_statistics(
    run: Any, model: ir.Model, statistics: Statistics
) -> None:
    with pytest.raises(InputError, match=r"hold nothing of \d of \d+ tensors .* such as 'fr':\na pass before int8"):
        run(changed(model), options=plain(calibration="mse"), statistics=statistics)


def test_data_make_up_for_what_changed(run: Any, model: ir.Model, feeds: Feeds, statistics: Statistics) -> None:
    mixed, report = run(changed(model), options=plain(calibration="mse"), statistics=statistics, data=feeds)
    fresh, _ = run(changed(model), options=plain(calibration="mse"), data=feeds)
    assert modelio.to_bytes(mixed) == modelio.to_bytes(fresh)
    assert any("that the statistics do not hold were calibrated on the data" in note for note in report.notes)


def test_a_number_of_samples_belongs_to_calibrate(run: Any, model: ir.Model, statistics: Statistics) -> None:
    with pytest.raises(OptionError, match=r"int8.samples=20 counts with --data only"):
        run(model, options=plain(samples=20), statistics=statistics)


def test_neither_data_nor_statistics(run: Any, model: ir.Model) -> None:
    with pytest.raises(DataError, match="int8 needs calibration data"):
        run(model)


def test_all_targets_tensors_are_observed(model: ir.Model) -> None:
    # q is moved from e, but is what TensorRT's convolution reads; a, s and f vanish into the Relu behind them.
    assert observable(model) == ["x", "ar", "b", "sr", "c", "d", "e", "q", "fr"]


def test_statistics_are_of_one_model(model: ir.Model, statistics: Statistics) -> None:
    statistics.check(model, "stats.npz")
    with pytest.raises(InputError, match=r"stats.npz holds statistics of another model"):
        statistics.check(changed(model), "stats.npz")


def test_nothing_to_calibrate(build: Builder, feeds: Feeds) -> None:
    empty = build("g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) { y = Relu (x) }", {})
    with pytest.raises(InputError, match="there is nothing to calibrate"):
        gather(empty, feeds)
