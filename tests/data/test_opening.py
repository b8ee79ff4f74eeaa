from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto

from onnxcomp.data import Preprocess, open_feeds, overlap, synthetic_feeds
from onnxcomp.errors import DataError

ModelOf = Callable[..., ir.Model]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.npz", r"missing\.npz: no such file or folder"),
        ("calibation.npz", r"no such file or folder; did you mean 'calibration\.npz'\?"),
        ("", "no such file or folder"),
        ("notes.txt", r"not data that can be read; give a \.npz"),
        ("no_such_module_xyz:feeds", "cannot import 'no_such_module_xyz'"),
        ("math:floor_plan", "module 'math' has no 'floor_plan'"),
        ("math:pi", "holds no callable 'pi'"),
    ],
)
def test_sources_that_cannot_be_opened(
    model_of: ModelOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "calibration.npz").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=message) as caught:
        open_feeds(source, model_of(x=["N", 2]))
    assert caught.value.exit_code == 2


def test_arrays_and_feeds_pass_through(model_of: ModelOf) -> None:
    model, x = model_of(x=["N", 2]), np.arange(6, dtype=np.float32).reshape(3, 2)
    feeds = open_feeds(x, model)
    np.testing.assert_array_equal(feeds.first(3)["x"], x)
    assert open_feeds(feeds, model) is feeds
    with pytest.raises(DataError, match=r"feeds are for a model with inputs x; this one needs 'y'"):
        open_feeds(feeds, model_of(y=["N", 2]))
    with pytest.raises(DataError, match="this model needs int64"):
        open_feeds(feeds, model_of(x=(["N", 2], TensorProto.INT64)))


def test_raw_pixels_in_a_npz_with_preprocess_are_refused(model_of: ModelOf, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 3, 4, 4), np.uint8))
    model = model_of(x=["N", 3, 4, 4])
    assert len(open_feeds(tmp_path / "d.npz", model)) == 2
    with pytest.raises(DataError, match="holds uint8, and --preprocess applies to image files only"):
        open_feeds(tmp_path / "d.npz", model, preprocess=Preprocess())


def test_module_function_of_the_working_directory(
    model_of: ModelOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_feeds_for_test.py").write_text(
        "import numpy as np\n"
        "def feeds():\n"
        "    for k in range(3):\n"
        "        yield {'x': np.full((2, 2), k), 'labels': [k, k]}\n"
    )
    feeds = open_feeds("my_feeds_for_test:feeds", model_of(x=["N", 2]), need_labels=True)
    assert len(feeds) == 6 and feeds.labels is not None and feeds.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for _ in range(2):
        assert [float(b["x"][0, 0]) for b in feeds.batches()] == [0, 1, 2]
    with pytest.raises(DataError, match=r"did you mean 'feeds'\?"):
        open_feeds("my_feeds_for_test:fedes", model_of(x=["N", 2]))


def test_functions_may_yield_bare_arrays(model_of: ModelOf) -> None:
    def feeds() -> Iterator[object]:
        yield np.zeros((3, 2))

    assert len(open_feeds(feeds, model_of(x=["N", 2]))) == 3


def test_first_of_images_of_changing_size(model_of: ModelOf) -> None:
    feeds = open_feeds(lambda: [{"x": np.zeros((1, k))} for k in (2, 2, 5)], model_of(x=["N", "W"]))
    assert len(feeds) == 3
    assert feeds.first(1)["x"].shape == (1, 2) and feeds.first(3)["x"].shape == (3, 2)


class Once:
    """Yields its feeds to the first caller only."""

    def __init__(self) -> None:
        self.feeds = iter([{"x": np.zeros((1, 2))}] * 2)

    def __call__(self) -> object:
        return self.feeds


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([], "yields no feeds"),
        (3, "returns int; it has to yield feeds"),
        ({"x": np.zeros((1, 2))}, "returns dict"),
        ([3], "feed 0 is int"),
        ([{"X": np.zeros((1, 2))}], r"feed 0 has no 'x'; it has: X"),
        ([{"x": np.zeros((1, 2))}, {"x": np.zeros((1, 3))}], r"feed 1, array 'x': has shape \[1,3\]"),
        ([{"x": np.zeros(2)}], "has shape"),
        ([{"x": np.zeros((0, 2))}], "is empty"),
        ([{"x": np.full((1, 2), np.nan)}], "NaN"),
        ([{"x": np.array([[None, 1]])}], "Python objects"),
        ([{"x": np.zeros((1, 2)), "labels": [0.5]}], "class indices"),
        ([{"x": np.zeros((1, 2)), "labels": [1, 2]}], "2 labels for 1 samples"),
        ([{"x": np.zeros((1, 2)), "labels": [1]}, {"x": np.zeros((1, 2))}], "only 1 of 2 feeds have labels"),
    ],
)
def test_functions_that_yield_the_wrong_thing(model_of: ModelOf, made: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_feeds(lambda: made, model_of(x=["N", 2]))


def test_functions_must_start_anew(model_of: ModelOf) -> None:
    feeds = open_feeds(Once(), model_of(x=["N", 2]))
    with pytest.raises(DataError, match="yielded 2 feeds when first called and 0 now"):
        list(feeds.batches())


def test_functions_must_end(model_of: ModelOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.data.functions._MOST_FEEDS", 5)

    def forever() -> Iterator[object]:
        while True:
            yield {"x": np.zeros((1, 2))}

    with pytest.raises(DataError, match="yields more than 5 feeds"):
        open_feeds(forever, model_of(x=["N", 2]))


def test_overlap_counts_shared_samples(model_of: ModelOf) -> None:
    model = model_of(x=["N", 2], y=["N"])
    x, y = np.random.default_rng(0).random((50, 2)), np.zeros(50)
    one = open_feeds({"x": x[:30], "y": y[:30]}, model)
    other = open_feeds({"x": x[25:], "y": y[25:]}, model)
    assert overlap(one, other) == 5
    assert overlap(one, open_feeds({"x": x[25:], "y": y[25:] + 1}, model)) == 0
    assert overlap(one, synthetic_feeds(model, 0)) == 0


def test_overlap_finds_samples_in_other_places_of_fixed_batches(model_of: ModelOf) -> None:
    model = model_of(x=[2, 2])
    x = np.arange(16.0).reshape(8, 2)
    assert overlap(open_feeds({"x": x[:4]}, model), open_feeds({"x": x[3:7]}, model)) == 1


def test_overlap_of_feeds_that_cannot_be_taken_apart(model_of: ModelOf) -> None:
    model, x, t = model_of(x=[2, 2], t=[]), np.arange(16.0).reshape(8, 2), np.arange(4.0)
    one = open_feeds({"x": x, "t": t}, model)
    assert overlap(one, open_feeds({"x": x[2:], "t": t[1:]}, model)) == 3
    assert overlap(one, open_feeds({"x": x[2:], "t": t[:3]}, model)) == 0


def test_unlabelled_feeds_leave_the_original_alone(model_of: ModelOf) -> None:
    feeds = open_feeds({"x": np.zeros((3, 2)), "labels": np.array([0.5, 1, 2])}, model_of(x=["N", 2]))
    bare = feeds.unlabelled()
    assert bare.labels is None and len(bare) == 3
    with pytest.raises(DataError, match="integers"):
        _ = feeds.labels
