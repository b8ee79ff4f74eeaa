"""The fast path of minmax: the ranges of the full one."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxcomp.calibration import batches
from onnxcomp.calibration.extremes import BINNED, collect_extremes
from onnxcomp.calibration.ranges import collect_histograms, collect_means
from onnxcomp.data import Feeds, open_feeds
from onnxcomp.errors import DataError

TEXT = """
<ir_version: 8, opset_import: ["": 17]>
g (float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y)
<float[1] two = {2.0}> {
    a = Mul(x, two)
    r = Relu(a)
    y = Sqrt(r)
}
"""
X = np.random.default_rng(0).normal(size=(150, 2, 4, 4)).astype(np.float32)


def model(text: str = TEXT) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(text))


def feeds(data: np.ndarray = X) -> Feeds:
    return open_feeds({"x": data}, model())


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_BYTES", 10 * 2 * 2 * 4 * 4 * 4)


@pytest.mark.parametrize("limit", [None, 45, 7])
def test_extremes_are_those_of_all_samples(limit: int | None) -> None:
    found, _ = collect_extremes(model(), ["x", "a", "y"], feeds(), limit=limit)
    wanted = collect_histograms(model(), ["x", "a", "y"], feeds(), limit=limit)
    assert {n: (h.low, h.high) for n, h in found.items()} == {n: (h.low, h.high) for n, h in wanted.items()}


def test_counts_are_of_the_first_samples() -> None:
    found, _ = collect_extremes(model(), ["a", "y"], feeds())
    assert BINNED * 32 <= found["a"].total < 2 * BINNED * 32
    first = int(found["a"].total) // 32
    wanted = collect_histograms(model(), ["a", "y"], feeds(), limit=first)
    np.testing.assert_array_equal(found["a"].counts, wanted["a"].counts)
    assert found["y"].zeros == wanted["y"].zeros


def test_means_are_of_the_same_run() -> None:
    _, means = collect_extremes(model(), ["y"], feeds(), averaged=["a"], mean_samples=200)
    np.testing.assert_allclose(means["a"], collect_means(model(), ["a"], feeds())["a"], rtol=1e-12)


def test_a_tensor_that_is_empty_at_first() -> None:
    # NonZero gives a column for each positive value
    text = TEXT.replace("y = Sqrt(r)", "y = Sqrt(r)\n z = NonZero(r)\n k = Cast <to = 1> (z)")
    data = X.copy()
    data[:100] = -1
    found, _ = collect_extremes(model(text), ["k"], feeds(data))
    assert found["k"].total > 0
    assert found["k"].high == collect_histograms(model(text), ["k"], feeds(data))["k"].high


def test_bad_values_after_the_counted_samples_are_found() -> None:
    data = X.copy()
    data[140] = np.float32(3e38)
    with pytest.raises(DataError, match=r"tensor 'a' of node 'Mul' holds infinity on calibration batch"):
        collect_extremes(model(), ["a"], feeds(data))


def test_a_tensor_that_is_always_empty() -> None:
    text = TEXT.replace("y = Sqrt(r)", "y = Sqrt(r)\n z = NonZero(r)\n k = Cast <to = 1> (z)")
    with pytest.raises(DataError, match="tensor 'k' held no value"):
        collect_extremes(model(text), ["k"], feeds(-np.ones_like(X)))
