from __future__ import annotations

import resource
from collections.abc import Iterator

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.calibration import batches
from onnxcomp.calibration.ranges import collect_histograms, collect_means, collect_ranges
from onnxcomp.data import Feeds, open_feeds
from onnxcomp.errors import DataError, ModelError
from onnxcomp.numeric.histogram import Histogram
from onnxcomp.numeric.ranges import METHODS, Method, choose_range
from onnxcomp.runtime.activations import Tap

TEXT = """
<ir_version: 8, opset_import: ["": 17]>
g (float[BATCH, 2, 4, 4] x) => (float[BATCH, 2, 4, 4] y)
<float[1] two = {2.0}, int64[1] zero = {0}> {
    a = <RULE>
    r = Relu(a)
    y = Log(r)
}
"""
X = np.random.default_rng(0).normal(size=(70, 2, 4, 4)).astype(np.float32)


def model(rule: str = "Mul(x, two)", batch: str = "N") -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(TEXT.replace("<RULE>", rule).replace("BATCH", batch)))


def feeds(array: NDArray[np.float32] = X, batch: str = "N") -> Feeds:
    return open_feeds({"x": array}, model(batch=batch))


@pytest.mark.parametrize("method", METHODS)
def test_ranges_are_those_of_all_values_at_once(method: Method) -> None:
    found = collect_ranges(model(), ["a", "r"], feeds(), method)
    for name, values in {"a": X * 2, "r": np.maximum(X * 2, 0)}.items():
        whole = Histogram()
        whole.add(values)
        assert found[name] == choose_range(whole, method)


def test_minmax_is_exact_and_inputs_may_be_asked_for() -> None:
    found = collect_ranges(model(), ["x", "a"], feeds(), "minmax")
    assert list(found) == ["x", "a"]
    assert (found["a"].low, found["a"].high) == (float(2 * X.min()), float(2 * X.max()))
    assert (found["x"].low, found["x"].high) == (float(X.min()), float(X.max()))


def test_options_reach_the_rule() -> None:
    found = collect_ranges(model(), ["a"], feeds(), "percentile", percentile=90.0, symmetric=True, levels=255)["a"]
    assert found.low == -found.high
    assert found.high < 2 * np.abs(X).max() * 0.8


def test_the_limit_counts_samples() -> None:
    found = collect_ranges(model(), ["a"], feeds(), "minmax", limit=3)["a"]
    assert found.high == float(2 * X[:3].max())


@pytest.mark.parametrize("batch", ["N", "7"])
def test_the_size_of_batches_does_not_matter(monkeypatch: pytest.MonkeyPatch, batch: str) -> None:
    whole = collect_ranges(model(), ["a", "r"], feeds(), "mse")
    monkeypatch.setattr(batches, "BATCH_BYTES", 1000)
    assert collect_ranges(model(batch=batch), ["a", "r"], feeds(batch=batch), "mse") == whole


def test_large_batches_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    read = Tap.read

    def spy(tap: Tap, feed: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        rows.append(len(feed["x"]))
        return read(tap, feed)

    monkeypatch.setattr(Tap, "read", spy)
    monkeypatch.setattr(batches, "BATCH_BYTES", 10 * 2 * 4 * 4 * 4)
    collect_histograms(model(), ["a"], feeds())
    assert max(rows) == 10
    assert sum(rows[1:]) == len(X)  # the first run only measures


def test_infinity_names_tensor_operator_and_batch() -> None:
    with pytest.raises(DataError, match=r"tensor 'y' of node 'Log' holds infinity on calibration batch 0"):
        collect_ranges(model(), ["a", "y"], feeds(), "minmax")


def test_nan_in_a_later_batch_is_found() -> None:
    # sqrt of a negative number, in sample 40 of batches of 32
    data = np.abs(X)
    data[40] = -1.0
    named = model("Sqrt(x)")
    named.graph.node(0).name = "root"
    with pytest.raises(DataError, match=r"tensor 'a' of node 'root' holds NaN on calibration batch 1; check the data"):
        collect_ranges(named, ["a"], feeds(data), "mse")


def test_an_unknown_tensor_is_the_models_fault() -> None:
    with pytest.raises(ModelError, match="no tensor 'nothing'"):
        collect_ranges(model(), ["nothing"], feeds(), "minmax")


class NoFeeds(Feeds):
    """Feeds without samples."""

    def __init__(self) -> None:
        super().__init__(feeds().inputs, "an empty source")

    def __len__(self) -> int:
        return 0

    def _stream(self) -> Iterator[dict[str, NDArray[np.generic]]]:
        return iter(())


def test_no_samples() -> None:
    with pytest.raises(DataError, match="an empty source: no samples to calibrate on"):
        collect_ranges(model(), ["a"], NoFeeds(), "minmax")


def test_a_tensor_that_is_always_empty() -> None:
    with pytest.raises(DataError, match="tensor 'a' held no value"):
        collect_ranges(model("Slice(x, zero, zero)", batch="N"), ["a"], feeds(), "minmax")


def test_means_per_channel() -> None:
    found = collect_means(model(), ["a", "x"], feeds())
    np.testing.assert_allclose(found["a"], (2 * X.astype(np.float64)).mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(found["x"], X.astype(np.float64).mean(axis=(0, 2, 3)), rtol=1e-6)
    last = collect_means(model(), ["a"], feeds(), axis=-1)["a"]
    np.testing.assert_allclose(last, (2 * X.astype(np.float64)).mean(axis=(0, 1, 2)), rtol=1e-6)


def test_means_need_the_axis_and_finite_values() -> None:
    with pytest.raises(DataError, match="tensor 'a' has 4 axes: there is no channel axis 7"):
        collect_means(model(), ["a"], feeds(), axis=7)
    with pytest.raises(DataError, match="tensor 'y' of node 'Log' holds"):
        collect_means(model(), ["y"], feeds())


def test_memory_does_not_grow_with_the_samples() -> None:
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    g (float[N, 1] x) => (float[N, M] y) { y = Add(x, one) }
    """
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((1, 65536), np.float32), "one"))
    wide = ir.from_proto(proto)
    # 4,000 samples give 1 GB of activations.
    source = open_feeds({"x": np.ones((4000, 1), np.float32)}, wide)
    collect_histograms(wide, ["y"], source, limit=64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    collect_histograms(wide, ["y"], source)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
