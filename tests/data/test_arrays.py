from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxcomp.data import Feeds, open_feeds
from onnxcomp.errors import DataError

ModelOf = Callable[..., ir.Model]
RNG = np.random.default_rng(0)


def images(count: int) -> NDArray[np.float32]:
    return RNG.random((count, 3, 8, 8), np.float32)


def joined(feeds: Feeds, name: str = "x") -> NDArray[np.generic]:
    return np.concatenate([b[name] for b in feeds.batches()])


def test_free_batch_axis_keeps_every_sample_in_order_and_iterates_twice(model_of: ModelOf) -> None:
    x = images(70)
    feeds = open_feeds({"x": x}, model_of(x=["N", 3, 8, 8]))
    assert len(feeds) == 70
    assert [len(b["x"]) for b in feeds.batches()] == [32, 32, 6]
    np.testing.assert_array_equal(joined(feeds), x)
    np.testing.assert_array_equal(joined(feeds), x)
    assert feeds.labels is None and not feeds.synthetic and feeds.notes == ()


def test_large_samples_make_small_batches(model_of: ModelOf) -> None:
    x = np.zeros((9, 3, 512, 512), np.float32)
    feeds = open_feeds({"x": x}, model_of(x=["N", 3, "H", "W"]))
    assert max(b["x"].nbytes for b in feeds.batches()) <= 4 << 20
    assert joined(feeds).shape == x.shape


def test_fixed_batch_is_exact_and_the_rest_is_dropped_and_told(model_of: ModelOf) -> None:
    x, y = images(11), np.arange(11)
    feeds = open_feeds({"x": x, "labels": y}, model_of(x=[4, 3, 8, 8]))
    assert [b["x"].shape for b in feeds.batches()] == [(4, 3, 8, 8)] * 2
    assert len(feeds) == 8
    assert feeds.labels is not None and feeds.labels.tolist() == list(range(8))
    assert "3 of 11 samples dropped" in feeds.describe()


def test_limit_counts_samples_and_never_cuts_a_fixed_batch(model_of: ModelOf) -> None:
    free = open_feeds({"x": images(70)}, model_of(x=["N", 3, 8, 8]))
    assert [len(b["x"]) for b in free.batches(33)] == [32, 1]
    assert list(free.batches(0)) == []
    fixed = open_feeds({"x": images(12)}, model_of(x=[4, 3, 8, 8]))
    assert [len(b["x"]) for b in fixed.batches(5)] == [4, 4]


def test_one_axis_more_enumerates_whole_feeds(model_of: ModelOf) -> None:
    x = RNG.random((5, 2, 3, 8, 8), np.float32)
    feeds = open_feeds({"x": x, "labels": np.arange(10).reshape(5, 2)}, model_of(x=["N", 3, 8, 8]))
    assert len(feeds) == 10
    for batch, wanted in zip(feeds.batches(), x, strict=True):
        np.testing.assert_array_equal(batch["x"], wanted)
    assert feeds.labels is not None and feeds.labels.tolist() == list(range(10))


def test_scalar_inputs_take_one_value_a_feed(model_of: ModelOf) -> None:
    model = model_of(x=["N", 4], threshold=[])
    x, t = RNG.random((6, 4), np.float32), np.arange(3.0)
    batches = list(open_feeds({"x": x, "threshold": t}, model).batches())
    assert [b["threshold"].shape for b in batches] == [()] * 3
    assert all(isinstance(b["threshold"], np.ndarray) for b in batches)  # the runtime takes no number of NumPy's
    assert [float(b["threshold"]) for b in batches] == [0, 1, 2]
    np.testing.assert_array_equal(np.concatenate([b["x"] for b in batches]), x)


def test_inputs_with_different_fixed_batches_pair_up_by_feeds(model_of: ModelOf) -> None:
    model = model_of(x=[1, 4], boxes=[10, 4])
    feeds = open_feeds({"x": RNG.random((3, 4)), "boxes": RNG.random((30, 4))}, model)
    assert [(b["x"].shape, b["boxes"].shape) for b in feeds.batches()] == [((1, 4), (10, 4))] * 3
    assert len(feeds) == 3


def test_first_cuts_repeats_or_keeps_the_fixed_batch(model_of: ModelOf) -> None:
    x = images(3)
    free = open_feeds({"x": x}, model_of(x=["N", 3, 8, 8]))
    np.testing.assert_array_equal(free.first(1)["x"], x[:1])
    np.testing.assert_array_equal(free.first(7)["x"], x[[0, 1, 2, 0, 1, 2, 0]])
    fixed = open_feeds({"x": x}, model_of(x=[2, 3, 8, 8]))
    np.testing.assert_array_equal(fixed.first(1)["x"], x[:2])


def test_batch_axes_of_other_names_are_cut_together(model_of: ModelOf) -> None:
    feeds = open_feeds({"a": np.arange(40.0)[:, None], "b": -np.arange(40.0)}, model_of(a=["N", 1], b=[None]))
    assert {k: v.tolist() for k, v in feeds.first(2).items()} == {"a": [[0], [1]], "b": [0, -1]}
    assert [len(b["b"]) for b in feeds.batches(33)] == [32, 1]


def test_inputs_with_initializers_need_no_data(model_of: ModelOf) -> None:
    model = model_of(x=["N", 2], bias=[2])
    bias = next(v for v in model.graph.inputs if v.name == "bias")
    bias.const_value = ir.tensor(np.zeros(2, np.float32), name="bias")
    model.graph.register_initializer(bias)
    assert set(open_feeds({"x": np.zeros((1, 2))}, model).first()) == {"x"}


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (np.float64, TensorProto.FLOAT),
        (np.float32, TensorProto.FLOAT16),
        (np.uint8, TensorProto.FLOAT),
        (np.bool_, TensorProto.FLOAT),
        (np.int64, TensorProto.INT32),
        (np.uint8, TensorProto.BOOL),
        (np.dtype(">f4"), TensorProto.FLOAT),
        (np.float32, TensorProto.BFLOAT16),
    ],
)
def test_casts_that_keep_the_values(model_of: ModelOf, found: np.dtype[np.generic], wanted: int) -> None:
    x = np.array([[0, 1], [1, 1]]).astype(found)
    batch = open_feeds({"x": x}, model_of(x=(["N", 2], wanted))).first(2)["x"]
    assert batch.dtype == helper.tensor_dtype_to_np_dtype(wanted) and batch.dtype.isnative
    np.testing.assert_array_equal(batch.astype(np.float64), x.astype(np.float64))


@pytest.mark.parametrize(
    ("x", "wanted", "message"),
    [
        (np.array([[0.5, 1.0]]), TensorProto.INT64, "float64 values do not go into input 'x', which is int64"),
        (np.array([[300, 1]]), TensorProto.UINT8, "no exact uint8 value"),
        (np.array([[2**24 + 1, 1]]), TensorProto.FLOAT, "no exact float32 value"),
        (np.array([[1e39, 1]]), TensorProto.FLOAT, "too large for float32"),
        (np.array([[1j, 1]]), TensorProto.FLOAT, "complex128 values"),
        (np.array([["a", "b"]]), TensorProto.FLOAT, "do not go into"),
        (np.array([[0.5, 1.0]]), TensorProto.STRING, "do not go into"),
        (np.array([[None, 1]]), TensorProto.FLOAT, "Python objects"),
        (np.array([[0.5, 1.0]]), TensorProto.INT4, "do not go into"),
    ],
)
def test_casts_that_would_change_a_value_are_refused(
    model_of: ModelOf, x: NDArray[np.generic], wanted: int, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        list(open_feeds({"x": x}, model_of(x=(["N", 2], wanted))).batches())
    assert caught.value.exit_code == 2


def test_text_inputs_take_text(model_of: ModelOf) -> None:
    batch = open_feeds({"x": np.array([["a", "bc"]])}, model_of(x=(["N", 2], TensorProto.STRING))).first()
    assert batch["x"].tolist() == [["a", "bc"]]


@pytest.mark.parametrize(("bad", "sample"), [(np.nan, 40), (np.inf, 2), (-np.inf, 69)])
def test_non_finite_values_name_array_and_sample(model_of: ModelOf, bad: float, sample: int) -> None:
    x = images(70)
    x[sample, 1, 2, 3] = bad
    feeds = open_feeds({"x": x}, model_of(x=["N", 3, 8, 8]))
    with pytest.raises(DataError, match=rf"'x'.*sample {sample}, element \[1, 2, 3\]\) is NaN or infinite"):
        list(feeds.batches())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X1": (2, 3, 8, 8), "y": (1,)}, r"no array for input 'x'; it has: X1, y"),
        ({"x1": (2, 3, 8, 8)}, r"did you mean 'x1'\?"),
        ({}, "it has: nothing"),
        ({"x": (3, 8, 8)}, r"has shape \[3,8,8\]; input 'x' is float32\[N,3,8,8\], so it needs 4 axes"),
        ({"x": (2, 1, 1, 3, 8, 8)}, "so it needs 4 axes"),
        ({"x": (2, 8, 8, 3)}, r"has shape \[2,8,8,3\]; input 'x' needs \[n,3,8,8\]"),
        ({"x": (2, 1, 3, 8, 9)}, r"needs \[n,N,3,8,8\]"),
        ({"x": (0, 3, 8, 8)}, r"is empty \(shape \[0,3,8,8\]\)"),
        ({"x": (2, 0, 3, 8, 8)}, "is empty"),
        ({"x": ()}, "so it needs 4 axes"),
    ],
)
def test_arrays_that_do_not_fit(model_of: ModelOf, arrays: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_feeds({k: np.zeros(v, np.float32) for k, v in arrays.items()}, model_of(x=["N", 3, 8, 8]))
    assert caught.value.exit_code == 2


def test_too_few_samples_for_the_fixed_batch(model_of: ModelOf) -> None:
    with pytest.raises(DataError, match="3 samples are fewer than the model's fixed batch of 4"):
        open_feeds({"x": images(3)}, model_of(x=[4, 3, 8, 8]))


@pytest.mark.parametrize(
    ("shapes", "a", "b"),
    [
        ((["N", 4], ["N", 4]), (5, 4), (6, 4)),
        (([2, 4], [2, 4]), (100, 4), (101, 4)),
        (([1, 4], ["N", 4]), (5, 4), (6, 4)),
        (([1, 4], [10, 4]), (3, 4), (20, 4)),
    ],
)
def test_different_numbers_of_samples(
    model_of: ModelOf, shapes: tuple[list[int | str], list[int | str]], a: tuple[int, int], b: tuple[int, int]
) -> None:
    model = model_of(a=shapes[0], b=shapes[1])
    with pytest.raises(DataError, match=rf"different numbers of samples: a \[{a[0]},4\], b \[{b[0]},4\]"):
        open_feeds({"a": np.zeros(a), "b": np.zeros(b)}, model)


def test_a_symbol_shared_by_inputs_has_one_extent(model_of: ModelOf) -> None:
    model = model_of(a=["N", "T"], b=["N", "T"])
    assert len(open_feeds({"a": np.zeros((2, 7)), "b": np.zeros((2, 7))}, model)) == 2
    with pytest.raises(DataError, match="axis 'T' is 6, but 7 in the data of input 'a'"):
        open_feeds({"a": np.zeros((2, 7)), "b": np.zeros((2, 6))}, model)


def test_unknown_rank_takes_the_array_as_it_is(model_of: ModelOf) -> None:
    assert open_feeds({"x": np.zeros((40, 2))}, model_of(x=None)).first(3)["x"].shape == (3, 2)
    with pytest.raises(DataError, match="single scalar"):
        open_feeds({"x": np.zeros(())}, model_of(x=None))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(4), "4 labels for 3 samples"),
        (np.arange(3.0), r"array of integers \(class indices\), not float64"),
        (np.array(["a", "b", "c"]), "integers"),
        (np.array(1), "integers"),
        (np.array([0, -1, 2]), "label -1 of sample 1 is negative"),
    ],
)
def test_wrong_labels_are_refused_when_read_and_ignored_otherwise(
    model_of: ModelOf, labels: NDArray[np.generic], message: str
) -> None:
    model, arrays = model_of(x=["N", 3, 8, 8]), {"x": images(3), "labels": labels}
    feeds = open_feeds(arrays, model)
    assert len(list(feeds.batches())) == 1
    with pytest.raises(DataError, match=message):
        _ = feeds.labels
    with pytest.raises(DataError, match=message):
        open_feeds(arrays, model, need_labels=True)


def test_missing_labels(model_of: ModelOf) -> None:
    with pytest.raises(DataError, match="has no labels; add an integer array 'labels'"):
        open_feeds({"x": images(3)}, model_of(x=["N", 3, 8, 8]), need_labels=True)


def test_an_input_called_labels_is_an_input(model_of: ModelOf) -> None:
    feeds = open_feeds({"labels": np.zeros((3, 2))}, model_of(labels=["N", 2]))
    assert feeds.labels is None and feeds.first()["labels"].shape == (1, 2)


def test_describe_names_count_source_and_shape(model_of: ModelOf, tmp_path: Path) -> None:
    path = tmp_path / "calibration.npz"
    np.savez(path, x=images(3))
    text = open_feeds(path, model_of(x=["N", 3, 8, 8])).describe()
    assert text == f"3 samples from {path} (x float32[N,3,8,8])"
