"""Ranges in a model's metadata."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.errors import ModelError
from onnxcomp.numeric.histogram import Histogram
from onnxcomp.numeric.ranges import Range, choose_range
from onnxcomp.quantize.carried import RANGES, TARGET, CarriedRange, carried, carry, ranges_of_tensors


def empty() -> ir.Model:
    return ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 17}), ir_version=9)


def normal(seed: int) -> Histogram:
    histogram = Histogram()
    histogram.add(np.random.default_rng(seed).standard_normal(4096).astype(np.float32))
    return histogram


float32 = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=0)


@given(st.dictionaries(st.text(max_size=8), st.tuples(float32, float32, float32), max_size=6))
def test_float32_numbers_come_back_exactly(entries: dict[str, tuple[float, float, float]]) -> None:
    model = empty()
    ranges = {name: CarriedRange(-low, high, peak) for name, (low, high, peak) in entries.items()}
    carry(model, ranges, "ort-x86")
    read = carried(model)
    assert read is not None
    assert {name: [np.float32(v) for v in (e.low, e.high, e.peak)] for name, e in read.items()} == {
        name: [np.float32(v) for v in (e.low, e.high, e.peak)] for name, e in ranges.items()
    }
    assert list(read) == list(ranges)
    assert model.metadata_props[TARGET] == "ort-x86"


def test_a_peak_that_says_nothing_new_is_left_out() -> None:
    model = empty()
    carry(model, {"a": CarriedRange(0.0, 2.5, 2.5), "b": CarriedRange(-3.0, 1.0, 2.0)}, "ort-arm")
    assert model.metadata_props[RANGES] == '{"a":[0,2.5],"b":[-3,1,2]}'


def test_many_ranges_are_compressed() -> None:
    model = empty()
    ranges = {f"/block.{k}/layer/Conv_output_0": CarriedRange(-k / 7, k / 3, k / 3) for k in range(300)}
    carry(model, ranges, "ort-x86")
    text = model.metadata_props[RANGES]
    assert text.startswith("zlib85:")
    assert len(text) < 5000
    assert carried(model) == {
        name: CarriedRange(*(float(f"{v:.9g}") for v in (e.low, e.high, e.peak))) for name, e in ranges.items()
    }


def test_a_model_without() -> None:
    assert carried(empty()) is None


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"a":[1]}', '{"a":["x",1]}', '{"a":[2,1]}', '{"a":[0,Infinity]}', "zlib85:abc", "zlib85:~~é", "7"],
)
def test_damaged_text(text: str) -> None:
    model = empty()
    model.metadata_props[RANGES] = text
    with pytest.raises(ModelError, match=r"metadata entry onnxcomp\.ranges is damaged"):
        carried(model)


def test_chosen_ranges_are_carried_as_they_are() -> None:
    histograms = {"a": normal(0), "b": normal(1), "c": normal(2)}
    chosen = {"a": choose_range(histograms["a"], "entropy"), "c": Range(-1.0, 5.0, "given")}
    found = ranges_of_tensors(histograms, chosen, symmetric=False, method="minmax")
    assert (found["a"].low, found["a"].high) == (chosen["a"].low, chosen["a"].high)
    assert found["a"].peak == choose_range(histograms["a"], "entropy", levels=255, symmetric=True).high
    assert (found["b"].low, found["b"].high) == (histograms["b"].low, histograms["b"].high)
    assert found["c"] == CarriedRange(-1.0, 5.0, 5.0)


def test_chosen_symmetric_ranges_are_the_peaks() -> None:
    histograms = {"a": normal(0)}
    chosen = {"a": choose_range(histograms["a"], "mse", levels=255, symmetric=True)}
    found = ranges_of_tensors(histograms, chosen, symmetric=True, method="mse")["a"]
    assert found.peak == chosen["a"].high
    assert (found.low, found.high) == (
        choose_range(histograms["a"], "mse").low,
        choose_range(histograms["a"], "mse").high,
    )


def test_the_text_is_json() -> None:
    model = empty()
    carry(model, {"größe": CarriedRange(-1e-30, 3e30, 3e30)}, "ort-x86")
    assert json.loads(model.metadata_props[RANGES]) == {"größe": [-1e-30, 3e30]}
