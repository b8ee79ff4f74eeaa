"""Streaming statistics of the patches that a convolution reads: one Gram matrix serves every data-aware method.

Patches are buffered, multiplied in float32 blocks and summed in float64; memory is that of the Gram and one block,
whatever the number of samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxcomp.errors import DataError
from onnxcomp.graph.geometry import Geometry, same_pads
from onnxcomp.graph.sites import Site
from onnxcomp.numeric.moments import Moments
from onnxcomp.numeric.patches import output_shape, patches_at, sample_positions

__all__ = ["PatchGram", "Samples", "site_gram"]

Array = NDArray[np.floating]
Single = NDArray[np.float32]
Float = NDArray[np.float64]

_BLOCK_BYTES = 32 << 20
# Flops that one site's Gram may cost; more patches than 10 a dimension (methods, 0.4) gain little.
_GRAM_FLOPS = 5e10
# A variance below this share of the energy is not told apart from the rounding of single-precision products.
_RESOLVED = 1e-6


@dataclass(frozen=True, eq=False, slots=True)
class Samples:
    """Some of the patches themselves, for methods that moments cannot serve (the ReLU-aware fit).

    Attributes:
        x: Patches, (n, d), float32.
        y: Targets at the same positions, (n, Co), float32; None where no targets were given.
    """

    x: Single
    y: Single | None


class PatchGram:
    """Accumulates the moments of a convolution's patches and, if given, of its target outputs.

    For ConvTranspose the patches are single input positions (a channel Gram) and targets are refused: its outputs have
    no patch of their own.

    Args:
        geometry: Geometry of the convolution; SAME padding that could not be resolved is, from the batches' size.
        channels_in: Input channels, all groups together.
        channels_out: Output channels, all groups together.
        max_positions_per_image: Positions drawn at random from each image; None takes all.
        max_total: Stop after that many patches; None never stops.
        samples: Number of images that will come; with `max_total`, spreads that many patches evenly over them.
        keep: Number of patches kept as they are, a uniform (reservoir) sample.
        seed: Of the random positions; the same batches and seed give the same bits.
    """

    def __init__(
        self,
        geometry: Geometry,
        channels_in: int,
        channels_out: int,
        *,
        max_positions_per_image: int | None = None,
        max_total: int | None = None,
        samples: int = 0,
        keep: int = 0,
        seed: int = 0,
    ) -> None:
        self._geometry = geometry.pointlike() if geometry.transposed else geometry
        self._transposed = geometry.transposed
        self._channels = (channels_in, channels_out)
        self._per_image, self._max_total = max_positions_per_image, max_total
        if samples > 0 and max_total is not None:
            even = max(-(-max_total // samples), 1)
            self._per_image = even if self._per_image is None else min(even, self._per_image)
        self._rng = np.random.default_rng(seed)
        self._groups = [
            _Accumulator(channels_in // geometry.group * prod(self._geometry.kernel), channels_out // geometry.group)
            for _ in range(geometry.group)
        ]
        self._kept = _Reservoir(keep, np.random.default_rng([seed, 1]))
        self._count = 0
        self._targets: bool | None = None

    @property
    def count(self) -> int:
        """Number of patches taken so far."""
        return self._count

    @property
    def full(self) -> bool:
        """Whether `max_total` patches were taken, so that further batches change nothing."""
        return self._max_total is not None and self._count >= self._max_total

    def update(self, x: Array, y: Array | None = None) -> None:
        """Add a batch.

        Args:
            x: Input of the convolution, (N, Ci, *spatial).
            y: Target output, (N, Co, *output) with bias, before any activation; in every batch or in none.

        Raises:
            ValueError: Shapes that do not fit the geometry, or targets in some batches only.
        """
        self._check(x, y)
        if self.full or x.shape[0] == 0:
            return
        kernel, strides, dilations = self._geometry.kernel, self._geometry.strides, self._geometry.dilations
        pads = _explicit_pads(self._geometry, x.shape[2:])
        out = output_shape(x.shape[2:], kernel, strides, dilations, pads)
        if y is not None and y.shape[2:] != out:
            raise ValueError(f"the targets have shape {y.shape}, the convolution gives {(x.shape[0], -1, *out)}")
        count = prod(out) if self._per_image is None else min(prod(out), self._per_image)
        row_bytes = 4 * self._channels[0] * prod(kernel)
        images = max(_BLOCK_BYTES // (row_bytes * count), 1)
        for start in range(0, x.shape[0], images):
            part = x[start : start + images]
            chosen = sample_positions(self._rng, len(part), prod(out), count)
            # One image alone can exceed a block: cut its positions as well.
            step = max(_BLOCK_BYTES // (row_bytes * len(part)), 1)
            for low in range(0, count, step):
                at = chosen[:, low : low + step]
                rows = patches_at(part, kernel, strides, dilations, pads, at)
                self._add(rows, None if y is None else _targets_at(y[start : start + images], at))

    def moments(self) -> tuple[Moments, ...]:
        """The moments so far, one for each group, in the groups' order.

        Raises:
            DataError: No patches, or values that are not finite.
        """
        if self._count == 0:
            raise DataError("no calibration sample reached the layer")
        return tuple(group.moments(bool(self._targets)) for group in self._groups)

    def varies(self) -> bool:
        """Whether the patches of every group are more than one and the same: else there is nothing to fit to."""
        return self._count == 0 or all(group.varies() for group in self._groups)

    def kept(self) -> tuple[Samples, ...]:
        """The kept patches, one record for each group; up to `keep` rows."""
        x, y = self._kept.rows()
        groups = len(self._groups)
        xs = np.split(x, groups, axis=1)
        ys = [None] * groups if y is None else np.split(y, groups, axis=1)
        return tuple(Samples(a, b) for a, b in zip(xs, ys, strict=True))

    def _check(self, x: Array, y: Array | None) -> None:
        channels_in, channels_out = self._channels
        if x.ndim != 2 + self._geometry.rank or x.shape[1] != channels_in:
            raise ValueError(f"an input of shape {x.shape} does not fit {channels_in} channels")
        if y is not None and self._transposed:
            raise ValueError("targets have no meaning for the channel Gram of a ConvTranspose")
        if y is not None and y.shape[:2] != (x.shape[0], channels_out):
            raise ValueError(f"targets of shape {y.shape} do not fit {channels_out} channels")
        if self._targets is None:
            self._targets = y is not None
        elif self._targets != (y is not None):
            raise ValueError("targets must come with every batch or with none")

    def _add(self, rows: Array, targets: Array | None) -> None:
        if self._max_total is not None:
            room = self._max_total - self._count
            rows, targets = rows[:room], None if targets is None else targets[:room]
        x = np.ascontiguousarray(rows, np.float32)
        y = None if targets is None else np.ascontiguousarray(targets, np.float32)
        self._count += len(x)
        self._kept.add(x, y)
        groups = len(self._groups)
        xs = np.split(x, groups, axis=1)
        ys = [None] * groups if y is None else np.split(y, groups, axis=1)
        for group, a, b in zip(self._groups, xs, ys, strict=True):
            group.add(a, b)


def site_gram(
    site: Site, samples: int, seed: int, keep: int = 0, a_dimension: int = 10, part: float = 1.0
) -> PatchGram:
    """An empty Gram for a site, which takes as many patches of that many samples as are worth their time.

    That is `a_dimension` patches a dimension, and more where the Gram is small; a part of it for one that holds a part
    of the samples.
    """
    dimension = site.weight[0].size
    return PatchGram(
        site.geometry,
        site.channels_in,
        site.channels_out,
        max_total=int(part * max(int(_GRAM_FLOPS / dimension**2), a_dimension * dimension)),
        samples=samples,
        keep=keep,
        seed=seed,
    )


class _Accumulator:
    """Sums of one group; small batches are gathered, since adding up a Gram costs as much as d rows of it."""

    def __init__(self, dimension: int, outputs: int) -> None:
        self._xx: Float = np.zeros((dimension, dimension))
        self._x: Float = np.zeros(dimension)
        self._yx: Float = np.zeros((outputs, dimension))
        self._y: Float = np.zeros(outputs)
        self._yy: Float = np.zeros(outputs)
        self._count = 0
        self._waiting: list[tuple[Single, Single | None]] = []
        self._waiting_rows = 0
        self._block_rows = max(dimension, 1024)

    def add(self, x: Single, y: Single | None) -> None:
        self._waiting.append((x, y))
        self._waiting_rows += len(x)
        if self._waiting_rows >= self._block_rows:
            self._flush()

    def moments(self, targets: bool) -> Moments:
        self._flush()
        n = self._count
        if not np.isfinite(self._xx).all() or not np.isfinite(self._yx).all():
            raise DataError("the activations of a calibration sample hold NaN or Inf")
        if not targets:
            return Moments(self._xx / n, self._x / n, n)
        return Moments(self._xx / n, self._x / n, n, self._yx / n, self._y / n, self._yy / n)

    def varies(self) -> bool:
        self._flush()
        energy, count = float(np.trace(self._xx)), max(self._count, 1)
        return not energy - float(self._x @ self._x) / count <= _RESOLVED * energy  # NaN is for moments() to report

    def _flush(self) -> None:
        if not self._waiting:
            return
        x = np.concatenate([a for a, _ in self._waiting])
        ys = [b for _, b in self._waiting if b is not None]
        # An Inf makes NaN products here; moments() reports it.
        with np.errstate(invalid="ignore", over="ignore"):
            self._xx += x.T @ x
            self._x += x.sum(axis=0, dtype=np.float64)
            if ys:
                y = np.concatenate(ys)
                self._yx += y.T @ x
                self._y += y.sum(axis=0, dtype=np.float64)
                self._yy += np.square(y, dtype=np.float64).sum(axis=0)
        self._count += len(x)
        self._waiting, self._waiting_rows = [], 0


class _Reservoir:
    """A uniform sample of fixed size of a stream of rows (Vitter 1985, algorithm R)."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self._size, self._rng, self._seen = size, rng, 0
        self._x: Single = np.zeros((0, 0), np.float32)
        self._y: Single | None = None

    def add(self, x: Single, y: Single | None) -> None:
        if self._size == 0:
            return
        if self._seen == 0:
            self._x = np.zeros((self._size, x.shape[1]), np.float32)
            self._y = None if y is None else np.zeros((self._size, y.shape[1]), np.float32)
        index = np.arange(self._seen, self._seen + len(x))
        slots = np.where(index < self._size, index, self._rng.integers(0, index + 1))
        taken = slots < self._size
        self._x[slots[taken]] = x[taken]
        if self._y is not None and y is not None:
            self._y[slots[taken]] = y[taken]
        self._seen += len(x)

    def rows(self) -> tuple[Single, Single | None]:
        filled = min(self._seen, self._size)
        return self._x[:filled], None if self._y is None else self._y[:filled]


def _targets_at(y: Array, positions: NDArray[np.intp]) -> Array:
    flat = y.reshape(y.shape[0], y.shape[1], -1)
    image = np.repeat(np.arange(y.shape[0]), positions.shape[1])
    return flat[image, :, positions.ravel()]


def _explicit_pads(geometry: Geometry, spatial: tuple[int, ...]) -> tuple[int, ...]:
    """Pads of this input size."""
    if geometry.auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        return geometry.pads
    upper = geometry.auto_pad == "SAME_UPPER"
    return same_pads(spatial, geometry.kernel, geometry.strides, geometry.dilations, upper=upper)
