from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.data import open_feeds
from onnxcomp.errors import DataError, ModelError
from onnxcomp.evaluate import Quality, evaluate

RNG = np.random.default_rng(0)
X = RNG.normal(size=(75, 8)).astype(np.float32)
LABELS = RNG.integers(0, 8, 75)


def model(body: str, outputs: str = "float[N, 8] y", constants: str = "", inputs: str = "float[N, 8] x") -> ir.Model:
    text = f"""
    <ir_version: 8, opset_import: ["": 17]>
    g ({inputs}) => ({outputs}) <float[1] tenth = {{0.1}}, float[1] big = {{1000.0}}{constants}> {{ {body} }}
    """
    return ir.from_proto(onnx.parser.parse_model(text))


SAME = "y = Identity(x)"
WORSE = "s = Sin(x) \n b = Mul(s, tenth) \n y = Add(x, b)"


def score(
    body: str, base: str | None = None, labels: NDArray[np.int64] | None = LABELS, x: NDArray[np.float32] = X
) -> Quality:
    arrays: dict[str, NDArray[Any]] = {"x": x} if labels is None else {"x": x, "labels": labels}
    built = model(body)
    return evaluate(built, open_feeds(arrays, built), None if base is None else model(base))


def test_accuracy_of_a_classifier() -> None:
    quality = score(SAME)
    order = np.argsort(-X, axis=1)
    assert quality.samples == 75
    assert quality.top1 == np.mean(order[:, 0] == LABELS)
    assert quality.top5 == np.mean(np.any(order[:, :5] == LABELS[:, None], axis=1))
    assert quality.agreement is None
    assert quality.drop_points is None
    assert quality.finite


def test_fidelity_to_a_base() -> None:
    quality = score(WORSE, SAME)
    y = X + 0.1 * np.sin(X)
    noise, signal = np.sum((y - X) ** 2.0), np.sum(X**2.0)
    assert quality.sqnr["y"] == pytest.approx(10 * math.log10(signal / noise), abs=1e-3)
    assert quality.cosine["y"] == pytest.approx(np.sum(X * y) / np.sqrt(np.sum(X * X) * np.sum(y * y)), abs=1e-6)
    assert quality.agreement == np.mean(X.argmax(1) == y.argmax(1))


def test_an_equal_model_is_perfect() -> None:
    quality = score(SAME, SAME)
    assert quality.sqnr["y"] == math.inf
    assert quality.cosine["y"] == pytest.approx(1.0)
    assert (quality.agreement, quality.drop_points, quality.drop_low) == (1.0, 0.0, 0.0)


def test_the_drop_is_paired_with_a_one_sided_bound() -> None:
    quality = score("y = Neg(x)", SAME, labels=X.argmax(1))
    assert (quality.top1, quality.drop_points, quality.drop_low) == (0.0, 100.0, 100.0)
    labels = np.where(np.arange(75) < 30, X.argmax(1), X.argmin(1))  # the base gets 30 right, the other 45
    quality = score("y = Neg(x)", SAME, labels=labels)
    difference = np.where(np.arange(75) < 30, 1.0, -1.0)
    assert quality.drop_points == pytest.approx(-20.0)
    assert quality.drop_low == pytest.approx(-20.0 - 164.5 * difference.std() / math.sqrt(75))


def test_without_labels_there_is_no_accuracy() -> None:
    quality = score(WORSE, SAME, labels=None)
    assert (quality.top1, quality.top5, quality.drop_points) == (None, None, None)
    assert quality.agreement is not None


def test_ties_go_to_the_first_class_so_that_a_constant_output_is_not_right() -> None:
    quality = score("z = Sub(x, x) \n y = Abs(z)", labels=np.full(75, 5))
    assert quality.top1 == 0.0
    assert quality.top5 == 0.0
    assert score("z = Sub(x, x) \n y = Abs(z)", labels=np.zeros(75, np.int64)).top1 == 1.0


@pytest.mark.parametrize("shape", ["1, 1, 8", "8, 1, 1", "1, 8"])
def test_scores_may_have_axes_of_one(shape: str) -> None:
    rank = shape.count(",") + 1
    dims = ", ".join(["0", *shape.split(", ")])
    built = model("y = Reshape(x, shape)", f"float[N, {shape}] y", f", int64[{rank + 1}] shape = {{{dims}}}")
    quality = evaluate(built, open_feeds({"x": X, "labels": LABELS}, built))
    assert quality.top1 == np.mean(X.argmax(1) == LABELS)


def test_one_sample_may_come_without_its_axis() -> None:
    built = model("y = Squeeze(x)", "float[8] y", inputs="float[1, 8] x")
    quality = evaluate(built, open_feeds({"x": X, "labels": LABELS}, built), built)
    assert quality.top1 == np.mean(X.argmax(1) == LABELS)
    assert quality.agreement == 1.0


def test_scores_with_a_batch_axis_go_before_a_vector() -> None:
    built = model(
        "v = Squeeze(x) \n n = Neg(v) \n y = Identity(x)", "float[8] n, float[1, 8] y", inputs="float[1, 8] x"
    )
    quality = evaluate(built, open_feeds({"x": X, "labels": LABELS}, built))
    assert quality.top1 == np.mean(X.argmax(1) == LABELS)


def test_a_map_is_no_classifier() -> None:
    built = model("y = Reshape(x, shape)", "float[N, 4, 2] y", ", int64[3] shape = {0, 4, 2}")
    quality = evaluate(built, open_feeds({"x": X, "labels": LABELS}, built), built)
    assert (quality.top1, quality.agreement) == (None, None)
    assert quality.sqnr == {"y": math.inf}


def test_few_classes_have_no_top5() -> None:
    built = model(
        "y = Slice(x, start, stop, axis)", "float[N, 3] y", ", int64[1] start={0}, int64[1] stop={3}, int64[1] axis={1}"
    )
    quality = evaluate(built, open_feeds({"x": X, "labels": LABELS % 3}, built))
    assert quality.top1 is not None
    assert quality.top5 is None


def test_integer_outputs_are_compared_by_equality() -> None:
    outputs = "int64[N, 1] k, float[N, 8] y"
    base = model("k = ArgMax<axis = 1>(x) \n y = Identity(x)", outputs)
    other = model("y = Neg(x) \n k = ArgMax<axis = 1>(y)", outputs)
    feeds = open_feeds({"x": X}, base)
    assert evaluate(base, feeds, base).equal == {"k": 1.0}
    quality = evaluate(other, feeds, base)
    assert quality.equal == {"k": 0.0}
    assert set(quality.sqnr) == {"y"}


@pytest.mark.parametrize("label", [8, -1])
def test_labels_out_of_range(label: int) -> None:
    labels = LABELS.copy()
    labels[50] = label
    with pytest.raises(DataError, match=r"label"):
        score(SAME, labels=labels)


def test_a_nan_output_is_loud() -> None:
    quality = score("l = Sqrt(x) \n y = Identity(l)", SAME)
    assert not quality.finite
    assert quality.sqnr["y"] == -math.inf
    assert math.isnan(quality.cosine["y"])
    assert quality.agreement == 0.0
    assert quality.top1 == 0.0
    assert not score("l = Sqrt(x) \n y = Identity(l)").finite


def test_infinities_that_the_base_has_too_are_no_failure() -> None:
    masked = "n = Relu(x) \n y = Log(n)"
    quality = score(masked, masked)
    assert quality.finite
    assert quality.sqnr["y"] == math.inf


def test_nothing_equals_a_base_that_is_no_number_throughout() -> None:
    assert score(SAME, "n = Log(x) \n m = Mul(n, big) \n y = Sub(m, m)", x=-np.abs(X)).sqnr == {"y": -math.inf}


def test_the_limit_counts_samples_and_their_labels() -> None:
    built = model(SAME)
    quality = evaluate(built, open_feeds({"x": X, "labels": LABELS}, built), limit=10)
    assert quality.samples == 10
    assert quality.top1 == np.mean(X[:10].argmax(1) == LABELS[:10])


def test_a_fixed_batch() -> None:
    built = model(SAME, "float[5, 8] y", inputs="float[5, 8] x")
    quality = evaluate(built, open_feeds({"x": X, "labels": LABELS}, built))
    assert (quality.samples, quality.top1) == (75, np.mean(X.argmax(1) == LABELS))


def test_a_missing_output_is_named() -> None:
    base, other = model(SAME), model("z = Identity(x)", "float[N, 8] z")
    with pytest.raises(ModelError, match="no output 'y'"):
        evaluate(other, open_feeds({"x": X}, base), base)


def test_an_output_of_another_shape_is_refused() -> None:
    base = model(SAME)
    other = model("y = Transpose<perm = [1, 0]>(x)", "float[A, B] y")
    with pytest.raises(ModelError, match=r"output 'y' has shape \[8, 32\] where the base has \[32, 8\]"):
        evaluate(other, open_feeds({"x": X}, base), base)
