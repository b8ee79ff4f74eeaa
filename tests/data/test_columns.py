from __future__ import annotations

import io
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.data import open_feeds
from onnxcomp.data.columns import npz_columns
from onnxcomp.errors import DataError

ModelOf = Callable[..., ir.Model]
SAVERS = {"stored": np.savez, "deflated": np.savez_compressed}


def read(path: Path, model: ir.Model) -> NDArray[np.generic]:
    return np.concatenate([b["x"] for b in open_feeds(path, model).batches()])


@pytest.mark.parametrize("save", SAVERS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_gives_what_was_saved(model_of: ModelOf, tmp_path: Path, save: str, order: str) -> None:
    x = np.random.default_rng(0).random((45, 3, 5, 7)).astype(np.float32)
    SAVERS[save](tmp_path / "d.npz", x=np.asarray(x, order="F" if order == "F" else "C"), labels=np.arange(45))
    feeds = open_feeds(tmp_path / "d.npz", model_of(x=["N", 3, 5, 7]), need_labels=True)
    np.testing.assert_array_equal(np.concatenate([b["x"] for b in feeds.batches()]), x)
    assert feeds.labels is not None and feeds.labels.tolist() == list(range(45))


def test_npy_feeds_a_model_of_one_input(model_of: ModelOf, tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((45, 3)).astype(np.float32)
    np.save(tmp_path / "d.npy", x)
    np.testing.assert_array_equal(read(tmp_path / "d.npy", model_of(x=["N", 3])), x)
    with pytest.raises(DataError, match=r"a single array, but the model has 2 inputs \(a, b\)"):
        open_feeds(tmp_path / "d.npy", model_of(a=["N", 3], b=["N", 3]))


def test_two_members_are_read_side_by_side(model_of: ModelOf, tmp_path: Path) -> None:
    a, b = np.arange(80.0).reshape(40, 2), -np.arange(40.0).reshape(40, 1)
    np.savez_compressed(tmp_path / "d.npz", a=a, b=b)
    feeds = open_feeds(tmp_path / "d.npz", model_of(a=["N", 2], b=["N", 1]))
    batches = list(feeds.batches())
    np.testing.assert_array_equal(np.concatenate([x["a"] for x in batches]), a)
    np.testing.assert_array_equal(np.concatenate([x["b"] for x in batches]), b)


@pytest.mark.parametrize("save", SAVERS)
def test_memory_does_not_grow_with_the_samples(model_of: ModelOf, tmp_path: Path, save: str) -> None:
    SAVERS[save](tmp_path / "d.npz", x=np.zeros((64, 3, 256, 256), np.float32))  # 48 MB
    model = model_of(x=["N", 3, 256, 256])
    tracemalloc.start()
    try:
        count = sum(len(b["x"]) for b in open_feeds(tmp_path / "d.npz", model).batches())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 64
    assert peak < 16 << 20


def test_objects_are_never_unpickled(model_of: ModelOf, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.array([{"a": 1}, None], dtype=object))
    np.save(tmp_path / "d.npy", np.array([{"a": 1}, None], dtype=object))
    for name in ("d.npz", "d.npy"):
        with pytest.raises(
            DataError, match="Python objects or records, not a plain array; such data are never unpickled"
        ):
            open_feeds(tmp_path / name, model_of(x=["N", 3]))


def test_records_are_refused(model_of: ModelOf, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros(3, np.dtype([("a", "f4"), ("b", "f4")])))
    with pytest.raises(DataError, match="records"):
        open_feeds(tmp_path / "d.npz", model_of(x=["N"]))


@pytest.mark.parametrize("content", [b"", b"not a zip at all", b"PK\x03\x04 but no more"])
def test_a_file_that_is_no_archive(model_of: ModelOf, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "d.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"d\.npz: cannot be read: .*damaged") as caught:
        open_feeds(path, model_of(x=["N", 3]))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x05\x00{'a':", b"\x93NUMPY\x09\x00\x05\x00{'a':"]
)
def test_a_npy_file_with_a_broken_header(model_of: ModelOf, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "d.npy"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"d\.npy: cannot be read"):
        open_feeds(path, model_of(x=["N", 3]))


def test_a_truncated_array(model_of: ModelOf, tmp_path: Path) -> None:
    path = tmp_path / "d.npy"
    np.save(path, np.zeros((10, 3), np.float32))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match="is damaged: 241 bytes where shape and dtype ask for 248"):
        open_feeds(path, model_of(x=["N", 3]))


@pytest.mark.parametrize("save", SAVERS)
def test_a_flipped_byte_is_found(model_of: ModelOf, tmp_path: Path, save: str) -> None:
    path = tmp_path / "d.npz"
    SAVERS[save](path, x=np.random.default_rng(0).integers(0, 250, (40, 100), np.uint8))
    damaged = bytearray(path.read_bytes())
    damaged[1500] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="array 'x': cannot be read"):
        list(open_feeds(path, model_of(x=["N", 100])).batches())


def test_an_unreadable_member_is_named(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", stream.getvalue())
        archive.writestr("readme.txt", "not an array")
    assert list(npz_columns(path)) == ["x"]
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag bits of the local and central headers
        content[content.index(signature) + offset] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="array 'x': is encrypted"):
        npz_columns(path)
