"""Feeds from a folder of image files, decoded a batch at a time."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxcomp.data.casting import cast
from onnxcomp.data.feeds import Feeds, rows_per_batch
from onnxcomp.data.inputs import Batch, ModelInput
from onnxcomp.data.preprocess import Preprocess
from onnxcomp.errors import DataError

__all__ = ["ImageFeeds", "image_files", "image_layout"]

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_DEEP_MODES = frozenset({"F", "I", "I;16", "I;16B", "I;16L", "I;16N"})
_CHANNELS = (1, 3, 4)


class ImageFeeds(Feeds):
    """Images of a folder and its subfolders, in the order of their paths; labels from ``labels.csv`` (file,label).

    Raises:
        DataError: The folder has no images, the model eats none, or sizes are unknown or contradict each other.
    """

    def __init__(self, inputs: tuple[ModelInput, ...], folder: Path, preprocess: Preprocess) -> None:
        super().__init__(inputs, str(folder))
        self._folder = folder
        self._preprocess = preprocess
        files = image_files(folder)
        if len(inputs) != 1:
            names = ", ".join(i.name for i in inputs)
            raise DataError(f"{folder}: the model has {len(inputs)} inputs ({names}); images feed only one, use a .npz")
        self._wanted = inputs[0]
        self._layout = preprocess.layout or image_layout(self._wanted)
        self._channels, self._size = _geometry(self._wanted, self._layout, preprocess)
        self._mean = np.asarray(preprocess.values("mean", self._channels), np.float32)
        self._std = np.asarray(preprocess.values("std", self._channels), np.float32)
        fixed = self._wanted.fixed_batch
        self._rows = fixed or rows_per_batch([(self._channels, *self._size)], [self._wanted.dtype.itemsize])
        if fixed and len(files) < fixed:
            raise DataError(f"{folder}: {len(files)} images are fewer than the model's fixed batch of {fixed}")
        dropped = len(files) % fixed if fixed else 0
        self._files = files[: len(files) - dropped]
        if dropped:
            self.notes = (f"{dropped} of {len(files):,} samples dropped: the model's batch is fixed at {fixed}",)

    def __len__(self) -> int:
        return len(self._files)

    def _stream(self) -> Iterator[Batch]:
        for start in range(0, len(self._files), self._rows):
            images = [self._tensor(f) for f in self._files[start : start + self._rows]]
            yield {self._wanted.name: np.stack(images)}

    def _tensor(self, file: str) -> NDArray[np.generic]:
        pixels = self._decode(self._folder / file)
        if self._preprocess.order == "bgr":
            pixels = pixels[:, :, ::-1]
        values = (pixels.astype(np.float32) * np.float32(self._preprocess.scale) - self._mean) / self._std
        if self._layout == "nchw":
            values = values.transpose(2, 0, 1)
        if self._wanted.dtype.kind in "iu":
            values = np.rint(values).astype(np.int64)
        tensor: NDArray[np.generic] = cast(values[None], self._wanted, f"{self._folder / file}", 0)[0]
        return tensor

    def _decode(self, path: Path) -> NDArray[np.uint8]:
        """Return the image as uint8 (height, width, channels)."""
        try:
            with Image.open(path) as image:
                if image.mode in _DEEP_MODES:
                    raise DataError(f"{path}: holds {image.mode} pixels, more than 8 bits a channel; convert it first")
                picture = image.convert("RGB" if self._channels == 3 else "L")
        except (
            OSError,
            SyntaxError,
            ValueError,
            Image.DecompressionBombError,
            Image.DecompressionBombWarning,
        ) as error:
            raise DataError(f"{path}: cannot be read as an image: {error}") from error
        height, width = self._size
        box = _central_box(picture.size, width / height, self._preprocess.crop)
        resized = picture.crop(box).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(resized, np.uint8).reshape(height, width, self._channels)

    def _read_labels(self) -> NDArray[np.int64] | None:
        path = self._folder / "labels.csv"
        if not path.is_file():
            return None
        table = _label_table(path)
        missing = [f for f in self._files if f not in table]
        if missing:
            raise DataError(
                f"{path}: {len(missing)} of {len(self._files):,} images have no label, such as {missing[0]!r}"
            )
        labels = np.array([table[f] for f in self._files], np.int64) + self._preprocess.label_offset
        if int(labels.min()) < 0:
            raise DataError(
                f"{path}: label of {self._files[int(labels.argmin())]!r} is negative (label_offset included)"
            )
        return labels


def image_layout(wanted: ModelInput) -> Literal["nchw", "nhwc"]:
    """Tell the layout from the position of the axis that can be channels (1, 3 or 4); nchw where both or none can."""
    shape = wanted.shape or ()
    last_only = len(shape) == 4 and shape[3] in _CHANNELS and shape[1] not in _CHANNELS
    return "nhwc" if last_only else "nchw"


def image_files(folder: Path) -> list[str]:
    """Return the images in a folder and its subfolders, hidden ones apart, as sorted relative paths.

    Raises:
        DataError: There are none.
    """
    found: list[str] = []
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if path.suffix.lower() in _SUFFIXES and path.is_file() and not any(p.startswith(".") for p in relative.parts):
            found.append(relative.as_posix())
    if not found:
        raise DataError(f"{folder}: has no images; looked for {', '.join(sorted(_SUFFIXES))}")
    return sorted(found)


def _geometry(wanted: ModelInput, layout: str, preprocess: Preprocess) -> tuple[int, tuple[int, int]]:
    """Return the channels and (height, width) that the model eats."""
    shape = wanted.shape
    if shape is None or len(shape) != 4:
        raise DataError(f"input {wanted.name!r} is {wanted}, not a batch of images (four axes); use a .npz")
    channels, *sides = (shape[1], shape[2], shape[3]) if layout == "nchw" else (shape[3], shape[1], shape[2])
    if not isinstance(channels, int):
        channels = len(preprocess.mean) if len(preprocess.mean) > 1 else 3
    if channels not in (1, 3):
        raise DataError(
            f"input {wanted.name!r} is {wanted}: {channels} channels in layout {layout}; images have 1 or 3"
        )
    wished = preprocess.size or (None, None)
    size: list[int] = []
    for axis, wish in zip(sides, wished, strict=True):
        if not isinstance(axis, int) and wish is None:
            raise DataError(
                f"input {wanted.name!r} is {wanted}: its image size is free; give size in --preprocess or --shapes"
            )
        if isinstance(axis, int) and wish not in (None, axis):
            raise DataError(
                f"preprocess: size {wished[0]}x{wished[1]} contradicts input {wanted.name!r}, which is {wanted}"
            )
        size.append(axis if isinstance(axis, int) else int(wish or 0))
    return channels, (size[0], size[1])


def _central_box(size: tuple[int, int], aspect: float, crop: float) -> tuple[int, int, int, int]:
    """Return the central box (left, top, right, bottom) of aspect ratio width / height, scaled by `crop`."""
    width, height = size
    box_width = max(1, round(min(width, height * aspect) * crop))
    box_height = max(1, round(min(height, width / aspect) * crop))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def _label_table(path: Path) -> dict[str, int]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = [row for row in csv.reader(stream) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if rows and [cell.strip().lower() for cell in rows[0]] == ["file", "label"]:
        rows = rows[1:]
    table: dict[str, int] = {}
    for row in rows:
        if len(row) != 2:
            raise DataError(f"{path}: {','.join(row)!r} is not 'file,label'")
        try:
            table[row[0].strip()] = int(row[1])
        except ValueError:
            raise DataError(f"{path}: label {row[1].strip()!r} of {row[0]!r} is not an integer") from None
    return table
