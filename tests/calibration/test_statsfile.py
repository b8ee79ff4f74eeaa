"""The statistics file: what goes in comes out, and nothing else is taken for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcomp.calibration.statsfile import (
    Statistics,
    TensorStatistics,
    load_statistics,
    save_statistics,
)
from onnxcomp.errors import InputError
from onnxcomp.numeric.histogram import Histogram


def histogram(*values: float) -> Histogram:
    made = Histogram()
    made.add(np.array(values, np.float32))
    return made


@pytest.fixture
def statistics() -> Statistics:
    """Three tensors: one with means, one of zeros alone, one of both signs."""
    keys = [bytes([k]) * 32 for k in range(3)]
    tensors = {
        keys[0]: TensorStatistics(histogram(0.5, 3.0, 0.0, 7.25), b"a" * 32, np.array([0.25, -1.0])),
        keys[1]: TensorStatistics(histogram(0.0, 0.0), b"b" * 32),
        keys[2]: TensorStatistics(histogram(-1e-30, 1e20, -5.0), b"c" * 32),
    }
    names = dict(zip(keys, ("x", "Größe", "/layer/Add_output_0"), strict=True))
    return Statistics("ab" * 32, 12, "12 samples of something", names, tensors)


@pytest.fixture
def path(statistics: Statistics, tmp_path: Path) -> Path:
    """The statistics in a file."""
    file = tmp_path / "stats.npz"
    save_statistics(statistics, file)
    return file


def test_what_is_written_is_read(statistics: Statistics, path: Path) -> None:
    read = load_statistics(path)
    assert (read.model, read.samples, read.data, read.tool) == (
        statistics.model,
        statistics.samples,
        statistics.data,
        statistics.tool,
    )
    assert read.names == statistics.names
    assert list(read.tensors) == list(statistics.tensors)
    for key, entry in statistics.tensors.items():
        ours, theirs = entry.histogram, read.tensors[key].histogram
        for name in ("exponent", "low", "high", "zeros", "total"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert np.array_equal(ours.counts, theirs.counts)
        assert read.tensors[key].structure == entry.structure
        means = read.tensors[key].means
        assert (None if means is None else means.tolist()) == (None if entry.means is None else entry.means.tolist())


def test_equal_statistics_are_equal_bytes(statistics: Statistics, path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.npz"
    save_statistics(load_statistics(path), other)
    assert other.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_file_that_was_cut_off(path: Path, share: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match="no statistics file, or a damaged one"):
        load_statistics(path)


def test_a_byte_that_was_changed(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(InputError, match="damaged"):
        load_statistics(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the statistics .*: No such file"):
        load_statistics(tmp_path / "none.npz")


def rewritten(path: Path, **changes: Any) -> None:
    """Write the file again with other arrays, or another header."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    header = json.loads(bytes(arrays["header"]))
    header |= changes.pop("header", {})
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(path, **{**arrays, **changes})


def test_another_version(path: Path) -> None:
    rewritten(path, header={"version": 2, "tool": "9.0"})
    with pytest.raises(InputError, match=r"format 2, written by onnxcomp 9.0; this version reads format 1"):
        load_statistics(path)


def test_an_npz_of_something_else(tmp_path: Path) -> None:
    file = tmp_path / "data.npz"
    np.savez(file, x=np.zeros(3))
    with pytest.raises(InputError, match="is no statistics file; onnxcomp calibrate writes one"):
        load_statistics(file)


def test_a_header_of_something_else(path: Path) -> None:
    rewritten(path, header={"format": "recipes"})
    with pytest.raises(InputError, match="is no statistics file"):
        load_statistics(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("counts", np.zeros(1)),
        ("low", np.full(3, np.nan)),
        ("first", np.array([-1, 0, 0], np.int32)),
        ("bins", np.array([9999, 0, 0], np.int32)),
        ("exponents", np.zeros(3)),
        ("fingerprints", np.zeros((3, 31), np.uint8)),
        ("total", np.zeros(2)),
    ],
)
def test_arrays_that_do_not_fit(path: Path, name: str, value: Any) -> None:
    rewritten(path, **{name: value})
    with pytest.raises(InputError, match="damaged"):
        load_statistics(path)


def test_pickles_are_not_read(path: Path) -> None:
    rewritten(path, counts=np.array([{"a": 1}], object))
    with pytest.raises(InputError, match="damaged"):
        load_statistics(path)


def test_a_folder_that_is_not_there(statistics: Statistics, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        save_statistics(statistics, tmp_path / "none" / "stats.npz")
