from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from PIL import Image

from onnxcomp.data import Preprocess, open_feeds
from onnxcomp.errors import DataError

ModelOf = Callable[..., ir.Model]
RAW = Preprocess(scale=1.0)


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path, pixels: NDArray[np.uint8]) -> Path:
    for k, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{k}.png")
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(f"{k}.png,{9 - k}\n" for k in range(5)))
    return tmp_path


def test_pixels_arrive_normalised_in_order(model_of: ModelOf, folder: Path, pixels: NDArray[np.uint8]) -> None:
    preprocess = Preprocess.parse("scale=1/255,mean=0.1,0.2,0.3,std=0.5,0.6,0.7")
    feeds = open_feeds(folder, model_of(x=["N", 3, 8, 8]), preprocess=preprocess)
    x = np.concatenate([b["x"] for b in feeds.batches()])
    wanted = ((pixels / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]).transpose(0, 3, 1, 2)
    assert x.dtype == np.float32 and len(feeds) == 5
    np.testing.assert_allclose(x.astype(np.float64), wanted, atol=1e-6)
    assert feeds.labels is not None and feeds.labels.tolist() == [9, 8, 7, 6, 5]


def test_bgr_nhwc_and_label_offset(model_of: ModelOf, folder: Path, pixels: NDArray[np.uint8]) -> None:
    preprocess = Preprocess(scale=1.0, order="bgr", layout="nhwc", label_offset=1)
    feeds = open_feeds(folder, model_of(x=["N", 8, 8, 3]), preprocess=preprocess, need_labels=True)
    np.testing.assert_array_equal(feeds.first(5)["x"], pixels[..., ::-1].astype(np.float32))
    assert feeds.labels is not None and feeds.labels[0] == 10


def test_layout_is_told_from_the_model(model_of: ModelOf, folder: Path, pixels: NDArray[np.uint8]) -> None:
    x = open_feeds(folder, model_of(x=["N", 8, 8, 3]), preprocess=RAW).first(5)["x"]
    np.testing.assert_array_equal(x, pixels.astype(np.float32))


def test_uint8_models_eat_raw_pixels_without_being_told(
    model_of: ModelOf, folder: Path, pixels: NDArray[np.uint8]
) -> None:
    x = open_feeds(folder, model_of(x=(["N", 8, 8, 3], TensorProto.UINT8))).first(5)["x"]
    assert x.dtype == np.uint8
    np.testing.assert_array_equal(x, pixels)


def test_one_channel_models_get_grey(model_of: ModelOf, folder: Path) -> None:
    x = open_feeds(folder, model_of(x=["N", 1, 8, 8]), preprocess=RAW).first(1)["x"]
    with Image.open(folder / "0.png") as image:
        np.testing.assert_array_equal(x[0, 0], np.asarray(image.convert("L")).astype(np.float32))


def test_central_crop_and_size(model_of: ModelOf, tmp_path: Path) -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    image[10:30, 30:50] = 200
    Image.fromarray(image).save(tmp_path / "a.png")
    preprocess = Preprocess(size=(10, 10), crop=0.5, scale=1.0)
    x = open_feeds(tmp_path, model_of(x=["N", 3, "H", "W"]), preprocess=preprocess).first()["x"]
    assert x.shape == (1, 3, 10, 10)
    assert (x == 200).all()


def test_fixed_batch_drops_the_rest(model_of: ModelOf, folder: Path) -> None:
    feeds = open_feeds(folder, model_of(x=[2, 3, 8, 8]), preprocess=RAW, need_labels=True)
    assert len(feeds) == 4 and [b["x"].shape[0] for b in feeds.batches()] == [2, 2]
    assert feeds.labels is not None and len(feeds.labels) == 4
    assert "1 of 5 samples dropped" in feeds.describe()
    with pytest.raises(DataError, match="5 images are fewer than the model's fixed batch of 6"):
        open_feeds(folder, model_of(x=[6, 3, 8, 8]), preprocess=RAW)


def test_subfolders_count_and_hidden_files_do_not(model_of: ModelOf, folder: Path) -> None:
    (folder / "b").mkdir()
    (folder / ".cache").mkdir()
    for target in ("b/9.PNG", ".cache/1.png", "._0.png"):
        (folder / target).write_bytes((folder / "0.png").read_bytes())
    assert len(open_feeds(folder, model_of(x=["N", 3, 8, 8]), preprocess=RAW)) == 6


def test_unreadable_images_are_named(model_of: ModelOf, folder: Path) -> None:
    content = (folder / "3.png").read_bytes()
    for broken in (b"not an image", content[: len(content) // 2]):
        (folder / "3.png").write_bytes(broken)
        feeds = open_feeds(folder, model_of(x=["N", 3, 8, 8]), preprocess=RAW)
        with pytest.raises(DataError, match=r"3\.png: cannot be read as an image"):
            list(feeds.batches())


def test_sixteen_bit_images_are_refused(model_of: ModelOf, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="more than 8 bits a channel"):
        open_feeds(tmp_path, model_of(x=["N", 3, 8, 8]), preprocess=RAW).first()


@pytest.mark.parametrize(
    ("shape", "preprocess", "message"),
    [
        (["N", 3, 8, 8], None, "images need --preprocess .* for example 'size=224"),
        (["N", 3, "H", "W"], RAW, "its image size is free; give size in --preprocess or --shapes"),
        (["N", 3, 8, 8], Preprocess(size=(9, 9)), "size 9x9 contradicts input 'x'"),
        (["N", 7, 8, 8], RAW, "7 channels in layout nchw; images have 1 or 3"),
        (["N", 3], RAW, "not a batch of images"),
        (["N", 3, 8, 8], Preprocess(mean=(1, 2)), "mean has 2 values"),
    ],
)
def test_models_that_do_not_eat_images(
    model_of: ModelOf, folder: Path, shape: list[int | str], preprocess: Preprocess | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_feeds(folder, model_of(x=shape), preprocess=preprocess)


def test_models_of_two_inputs_need_arrays(model_of: ModelOf, folder: Path) -> None:
    with pytest.raises(DataError, match=r"the model has 2 inputs \(x, y\); images feed only one"):
        open_feeds(folder, model_of(x=["N", 3, 8, 8], y=["N"]), preprocess=RAW)


def test_a_folder_without_images(model_of: ModelOf, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see")
    for preprocess in (RAW, None):
        with pytest.raises(DataError, match=r"has no images; looked for \.bmp"):
            open_feeds(tmp_path, model_of(x=["N", 3, 8, 8]), preprocess=preprocess)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,label\n0.png,1\n", r"4 of 5 images have no label, such as '1\.png'"),
        ("file,label\n0.png,cat\n", "label 'cat' of '0.png' is not an integer"),
        ("0.png,1,2\n", "'0.png,1,2' is not 'file,label'"),
        ("".join(f"{k}.png,{k - 1}\n" for k in range(5)), "label of '0.png' is negative"),
    ],
)
def test_wrong_label_tables(model_of: ModelOf, folder: Path, table: str, message: str) -> None:
    (folder / "labels.csv").write_text(table)
    model = model_of(x=["N", 3, 8, 8])
    assert len(open_feeds(folder, model, preprocess=RAW)) == 5
    with pytest.raises(DataError, match=message):
        open_feeds(folder, model, preprocess=RAW, need_labels=True)


def test_no_label_table(model_of: ModelOf, folder: Path) -> None:
    (folder / "labels.csv").unlink()
    with pytest.raises(DataError, match=r"has no labels; .*labels\.csv \(file,label\)"):
        open_feeds(folder, model_of(x=["N", 3, 8, 8]), preprocess=RAW, need_labels=True)
