"""Calibration and held-out inputs for the real models that have no labelled images: photographs, preprocessed as each
model's own notes say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from real import SHARED

__all__ = ["SCENES", "scenes"]

Picture = NDArray[np.float32]

# Width and height, colour order ("L": grey), factor and offset of x * factor + offset; how many images calibrate.
SCENES: dict[str, tuple[tuple[int, int], str, float, float, int]] = {
    "deeplabv3_mnv2_dm05_pascal": ((513, 513), "RGB", 1 / 127.5, -1.0, 64),
    "unet_sed": ((224, 224), "L", 1 / 255, 0.0, 64),
    "ultraface_rfb320": ((320, 240), "RGB", 1 / 128, -127 / 128, 128),
    "yolox_nano_coco": ((416, 416), "BGR", 1.0, 0.0, 64),
    "fastestdet_coco": ((352, 352), "BGR", 1 / 255, 0.0, 128),
    "vww_mobilenet_v1_025_96": ((96, 96), "RGB", 1 / 255, 0.0, 256),
    "mnist_8": ((28, 28), "L", 1.0, 0.0, 256),
}
_INPUTS = {"yolox_nano_coco": "images", "fastestdet_coco": "input.1", "mnist_8": "Input3"}


def scenes(model: str, split: str, count: int) -> tuple[str, Picture]:
    """Return (input name, float32 [count, channels, height, width]); `split` is "train" or "eval"."""
    folder = SHARED / "data" / {"train": "imagenet_calib", "eval": "imagenet_eval"}[split]
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    order = np.random.default_rng(0).permutation(len(files))[:count]
    return _INPUTS.get(model, "input"), np.stack(list(_read(model, [files[i] for i in order])))


def _read(model: str, files: list[Path]) -> Iterator[Picture]:
    from PIL import Image

    size, colours, factor, offset, _ = SCENES[model]
    for file in files:
        picture = Image.open(file).convert("L" if colours == "L" else "RGB").resize(size, Image.Resampling.BILINEAR)
        values = np.asarray(picture, np.float32)
        values = values[None] if colours == "L" else values.transpose(2, 0, 1)
        values = values[::-1] if colours == "BGR" else values
        yield np.ascontiguousarray(values * np.float32(factor) + np.float32(offset))
