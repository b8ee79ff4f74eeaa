"""Seeded stand-in samples for models that come without data. What they yield says nothing about accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from zlib import crc32

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcomp.data.feeds import Feeds, rows_per_batch
from onnxcomp.data.images import image_layout
from onnxcomp.data.inputs import Batch, ModelInput, model_inputs
from onnxcomp.data.plausible import Span, index_bound, input_span
from onnxcomp.errors import DataError

__all__ = ["SyntheticFeeds", "noise_image", "synthetic_feeds"]

# One sample in eight is a flat field: saturated and empty regions reach the extremes that noise alone does not.
_FLAT_EVERY = 8
# Channels of photographs share most of their variance; this is the share that noise images give to the common part.
_COMMON = 0.9


class SyntheticFeeds(Feeds):
    """Made-up samples; sample k depends on the seed, the input's name and k alone."""

    synthetic = True

    def __init__(self, model: ir.Model, inputs: tuple[ModelInput, ...], seed: int, count: int) -> None:
        super().__init__(inputs, f"seed {seed}")
        self._seed = seed
        self._values = {v.name: v for v in model.graph.inputs}
        self._fixed = {i.name: _sample_shape(i) for i in inputs}
        sizes = {i.fixed_batch for i in inputs if i.shape}
        self._fixed_rows = max((s for s in sizes if s is not None), default=None)
        shapes, items = list(self._fixed.values()), [i.dtype.itemsize for i in inputs]
        self._rows = self._fixed_rows or rows_per_batch(shapes, items)
        self._length = -(-count // self._rows) * self._rows if self._fixed_rows else count

    def __len__(self) -> int:
        return self._length

    def _stream(self) -> Iterator[Batch]:
        for start in range(0, self._length, self._rows):
            rows = min(self._rows, self._length - start)
            yield {i.name: self._input(i, start, rows) for i in self.inputs}

    def _input(self, wanted: ModelInput, start: int, rows: int) -> NDArray[np.generic]:
        shape = self._fixed[wanted.name]
        count = rows if wanted.shape and wanted.fixed_batch is None else (wanted.fixed_batch or 1)
        value = self._values[wanted.name]
        samples = [_sample(wanted, value, shape, self._rng(wanted.name, start + k), start + k) for k in range(count)]
        return np.stack(samples) if wanted.shape else samples[0]

    def _rng(self, name: str, index: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, crc32(name.encode()), index])


def synthetic_feeds(
    model: ir.Model, seed: int, count: int = 64, *, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Feeds:
    """Return seeded samples for every input of a model.

    Image-like inputs (four axes) get 1/f noise with correlated channels, the spectrum of natural images (Field 1987,
    "Relations between the statistics of natural images and the response properties of cortical cells"), and one flat
    field in eight, in the input's plausible span (:func:`onnxcomp.data.plausible.input_span`). Integer inputs get
    uniform indices below the size of the table they index, 0 and 1 where there is none. Other floats get standard
    normal values.

    Args:
        model: The model.
        seed: Seed of every value, 0 or above.
        count: Number of samples; rounded up to whole batches where the model fixes its batch.
        shapes: Shapes by input name, for inputs with free axes besides the batch.

    Raises:
        DataError: An axis besides the batch is free and `shapes` does not give it; an input is text; bad count or seed.
    """
    if count < 1 or seed < 0:
        raise DataError(f"synthetic data: count={count} must be at least 1 and seed={seed} at least 0")
    return SyntheticFeeds(model, model_inputs(model, shapes), seed, count)


def noise_image(rng: np.random.Generator, channels: int, height: int, width: int) -> NDArray[np.float64]:
    """Return an image of 1/f amplitude spectrum, zero mean, unit variance, float64 (channels, height, width).

    The exponent of the amplitude spectrum is drawn from [0.8, 1.4], the spread seen among photographs.
    """
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1 / max(height, width)
    amplitude = frequency ** -rng.uniform(0.8, 1.4)
    planes = rng.standard_normal((channels + 1, height, width))
    planes = np.fft.irfft2(np.fft.rfft2(planes) * amplitude, s=(height, width))
    planes /= planes.std(axis=(1, 2), keepdims=True) + np.finfo(np.float64).tiny
    image: NDArray[np.float64] = np.sqrt(_COMMON) * planes[0] + np.sqrt(1 - _COMMON) * planes[1:]
    image -= image.mean()
    image /= image.std() + np.finfo(np.float64).tiny
    return image


def _sample_shape(wanted: ModelInput) -> tuple[int, ...]:
    """Return the shape of one sample: all axes but the first."""
    if wanted.shape is None:
        raise DataError(f"input {wanted.name!r} has no shape in the model; give --shapes or data")
    if wanted.dtype.kind in "OUST":
        raise DataError(f"input {wanted.name!r} is text; it cannot be made up, give data")
    rest = wanted.shape[1:]
    if wanted.free:
        raise DataError(f"input {wanted.name!r} is {wanted}: not only its batch is free; give {wanted.shapes_flag()}")
    fixed = tuple(d for d in rest if isinstance(d, int))
    if 0 in fixed or wanted.fixed_batch == 0:
        raise DataError(f"input {wanted.name!r} is {wanted}: it has an axis of 0 and cannot be fed")
    return fixed


def _sample(
    wanted: ModelInput, value: ir.Value, shape: tuple[int, ...], rng: np.random.Generator, index: int
) -> NDArray[np.generic]:
    if len(wanted.shape or ()) == 4:
        return _image(wanted, input_span(value), shape, rng, index)
    if wanted.dtype.kind in "biu":
        return rng.integers(0, index_bound(value) or 2, shape).astype(wanted.dtype)
    return rng.standard_normal(shape).astype(wanted.dtype)


def _image(
    wanted: ModelInput, span: Span, shape: tuple[int, ...], rng: np.random.Generator, index: int
) -> NDArray[np.generic]:
    last = image_layout(wanted) == "nhwc"
    channels, height, width = (shape[2], shape[0], shape[1]) if last else shape
    if index % _FLAT_EVERY == _FLAT_EVERY - 1:
        image = np.broadcast_to(rng.uniform(span.low, span.high, (channels, 1, 1)), (channels, height, width))
    else:
        contrast, brightness = rng.uniform(0.4, 1.2), rng.normal(0.0, 0.5)
        image = span.mean + span.std * (contrast * noise_image(rng, channels, height, width) + brightness)
    low, high = _limits(wanted.dtype, span)
    image = np.clip(image.transpose(1, 2, 0) if last else image, low, high)
    if wanted.dtype.kind in "iu":
        image = np.rint(image)
    elif wanted.dtype.kind == "b":
        image = np.where(image > span.mean, 1.0, 0.0)
    return np.ascontiguousarray(image).astype(wanted.dtype)


def _limits(dtype: np.dtype[np.generic], span: Span) -> tuple[float, float]:
    """Return the span's ends, no further out than an integer dtype holds."""
    if dtype.kind not in "iu":
        return span.low, span.high
    signed = dtype.kind == "i"
    bits = 8 * dtype.itemsize - signed
    return max(span.low, -float(2**bits) if signed else 0.0), min(span.high, float(2**bits - 1))
