"""How an image file becomes the tensor a model eats: crop, resize, channel order, (x * scale - mean) / std, layout."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Literal

import yaml

from onnxcomp.data.inputs import did_you_mean
from onnxcomp.errors import DataError

__all__ = ["Preprocess"]

_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Preprocessing of image files.

    An image is decoded to RGB (or grey, for one channel), cut to its central region of the model's aspect ratio,
    resized bilinearly, and every pixel value x in 0..255 becomes ``(x * scale - mean) / std``, channel by channel.

    Attributes:
        size: (height, width) in pixels; None: what the model's input says.
        crop: Fraction of the largest central region of the model's aspect ratio that is kept, in (0, 1].
        scale: Factor on the pixel values.
        mean: Subtracted after scaling; one value for all channels or one a channel, in the order of `order`.
        std: Divided by, likewise.
        order: Channel order that the model expects.
        layout: Axis order that the model expects; None: told from the position of the axis of 1, 3 or 4 channels.
        label_offset: Added to the labels of ``labels.csv`` (1 for models with a background class).
    """

    size: tuple[int, int] | None = None
    crop: float = 1.0
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    order: Literal["rgb", "bgr"] = "rgb"
    layout: Literal["nchw", "nhwc"] | None = None
    label_offset: int = 0

    def __post_init__(self) -> None:
        if self.size is not None and min(self.size) < 1:
            raise DataError(f"preprocess: size={self.size[0]}x{self.size[1]} must be positive")
        if not 0 < self.crop <= 1:
            raise DataError(f"preprocess: crop={self.crop} must be above 0 and at most 1 (a fraction of the image)")
        numbers = (self.scale, *self.mean, *self.std)
        if not all(map(math.isfinite, numbers)) or self.scale == 0:
            raise DataError("preprocess: scale, mean and std must be finite, and scale not 0")
        if not self.mean or not self.std or any(s <= 0 for s in self.std):
            raise DataError("preprocess: mean and std need at least one value, and std must be above 0")

    def __str__(self) -> str:
        """Every value that is set, in the form that :meth:`parse` reads back to an equal object."""

        def written(value: object) -> str:
            return ":".join(map(repr, value)) if isinstance(value, tuple) else str(value)

        values = {f.name: getattr(self, f.name) for f in fields(self)}
        size = {} if self.size is None else {"size": f"{self.size[0]}x{self.size[1]}"}
        return ",".join(f"{k}={written(v)}" for k, v in {**values, **size}.items() if v is not None)

    @classmethod
    def parse(cls, text: str) -> Preprocess:
        """Read ``size=224,crop=0.875,scale=1/255,mean=0.485,0.456,0.406,std=0.229,0.224,0.225``, or a YAML file's path.

        The values of a list are separated by commas, spaces or colons, brackets are optional; numbers may be fractions.

        Raises:
            DataError: An unknown key, a value that does not parse or is out of range, an unreadable file.
        """
        if text.lower().endswith(_SUFFIXES):
            return cls._from_yaml(Path(text))
        parts: list[tuple[str, str]] = []
        for piece in text.split(","):
            key, equals, value = piece.partition("=")
            if equals:
                parts.append((key.strip(), value.strip()))
            elif parts and piece.strip():
                parts[-1] = (parts[-1][0], f"{parts[-1][1]} {piece.strip()}")
            else:
                raise DataError(
                    f"preprocess: {piece.strip()!r} is not key=value; write for example size=224,scale=1/255"
                )
        repeated = {k for k, _ in parts if sum(k == other for other, _ in parts) > 1}
        if repeated:
            raise DataError(f"preprocess: {min(repeated)} is given twice")
        return cls.from_mapping(dict(parts))

    @classmethod
    def _from_yaml(cls, path: Path) -> Preprocess:
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise DataError(f"preprocess: cannot read {path}: {' '.join(str(error).split())}") from error
        if not isinstance(loaded, dict):
            raise DataError(f"preprocess: {path} must hold keys and values, such as 'size: 224'")
        return cls.from_mapping({str(k): v for k, v in loaded.items()})

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> Preprocess:
        """Read keys and values as a recipe or a YAML file gives them; numbers may be text.

        Raises:
            DataError: An unknown key, or a value that does not parse or is out of range.
        """
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise DataError(f"preprocess: unknown key {key!r}; known: {', '.join(known)}{did_you_mean(key, known)}")
        default = cls()
        given = {k: _flat(v) for k, v in values.items()}
        return cls(
            size=_size(given["size"]) if "size" in given else None,
            crop=_one("crop", given.get("crop"), default.crop),
            scale=_one("scale", given.get("scale"), default.scale),
            mean=_numbers("mean", given["mean"]) if "mean" in given else default.mean,
            std=_numbers("std", given["std"]) if "std" in given else default.std,
            order="bgr" if _choice("order", given.get("order"), ("rgb", "bgr")) == "bgr" else "rgb",
            layout=_layout(given.get("layout")),
            label_offset=_integer("label_offset", given.get("label_offset")),
        )

    def values(self, name: Literal["mean", "std"], channels: int) -> tuple[float, ...]:
        """Return `mean` or `std` with one value a channel.

        Raises:
            DataError: Their number is neither 1 nor `channels`.
        """
        found = self.mean if name == "mean" else self.std
        if len(found) not in (1, channels):
            raise DataError(
                f"preprocess: {name} has {len(found)} values, but the model's images have {channels} channels"
            )
        return found * channels if len(found) == 1 else found


def _flat(value: object) -> list[str]:
    """Split a value into its parts: ``"[1, 2]"``, ``"1 2"``, ``"1:2"`` and ``[1, 2]`` are the same."""
    if isinstance(value, list | tuple):
        return [str(v) for v in value]
    return [p for p in re.split(r"[\s,:\[\]()]+", str(value)) if p]


def _numbers(key: str, parts: list[str]) -> tuple[float, ...]:
    try:
        return tuple(_number(p) for p in parts)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise DataError(f"preprocess: {key}={' '.join(parts)} is not a number or a list of numbers") from None


def _number(text: str) -> float:
    """Read a decimal number or a fraction of two (``1/127.5``)."""
    numerator, slash, denominator = text.partition("/")
    return float(Fraction(numerator) / Fraction(denominator)) if slash else float(Fraction(numerator))


def _one(key: str, parts: list[str] | None, default: float) -> float:
    if parts is None:
        return default
    numbers = _numbers(key, parts)
    if len(numbers) != 1:
        raise DataError(f"preprocess: {key} takes one number, not {len(numbers)}")
    return numbers[0]


def _integer(key: str, parts: list[str] | None) -> int:
    number = _one(key, parts, 0.0)
    if number != int(number):
        raise DataError(f"preprocess: {key}={number} must be a whole number")
    return int(number)


def _size(parts: list[str]) -> tuple[int, int]:
    sides = "x".join(parts).lower().split("x")
    if len(sides) not in (1, 2) or not all(s.isdecimal() for s in sides):
        raise DataError(
            f"preprocess: size={'x'.join(parts)} must be a side (224) or height x width (192x256), in pixels"
        )
    return int(sides[0]), int(sides[-1])


def _choice(key: str, parts: list[str] | None, allowed: tuple[str, ...]) -> str | None:
    if parts is None:
        return None
    value = " ".join(parts).lower()
    if value not in allowed:
        raise DataError(f"preprocess: {key}={value} must be one of {', '.join(allowed)}{did_you_mean(value, allowed)}")
    return value


def _layout(parts: list[str] | None) -> Literal["nchw", "nhwc"] | None:
    value = _choice("layout", parts, ("nchw", "nhwc"))
    if value is None:
        return None
    return "nhwc" if value == "nhwc" else "nchw"
