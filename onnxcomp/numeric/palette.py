"""Palettes: weights, or short vectors of them, that share the few values of a table.

A row of the weight is a scale times entries of a table: single values (weight sharing; Han, Mao and Dally, Deep
Compression, 2016, section 3) or vectors of some consecutive weights (product quantization; Stock et al., And the Bit
Goes Down, 2020, section 3). The table starts as the k-means of the weights, its entries are then fitted to the layer's
output in closed form, the assignment by :mod:`onnxcomp.numeric.blockwise`, in turns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numeric.blockwise import Coder, damped, descend, plain, sequential
from onnxcomp.numeric.kmeans import kmeans
from onnxcomp.numeric.leastsquares import conjugate_gradients

__all__ = ["Effort", "Palette", "fit_palette"]

Float = NDArray[np.float64]
Index = NDArray[np.intp]

# Entries are whole numbers of this many steps, so that rows lie on a grid that int8 arithmetic takes as it is.
_TOP = 127.0
# Steps of conjugate gradients.
_STEPS = 24
# Weights that tell what the entries of a table should be, at least, and for each number in it.
_ENTRIES, _EACH = 1 << 18, 96
_ALL = slice(None)


@dataclass(frozen=True, slots=True)
class Effort:
    """How thoroughly a table and its assignment are fitted.

    Attributes:
        rounds: How often table and assignment are fitted in turns.
        sweeps: Passes over all blocks in each.
    """

    rounds: int = 2
    sweeps: int = 2


class Palette(Coder):
    """Rows as a scale times entries of a table.

    Args:
        shape: (G, R, d) of the weight.
        tables: (T, K, width): the values.
        scales: (G, R).
        table_of: The table of each row, (G, R); None: the first one, of all.
        keep: (G, R, d), False where the weight stays zero; None: nowhere.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        tables: Float,
        scales: Float,
        table_of: Index | None = None,
        keep: NDArray[np.bool_] | None = None,
    ) -> None:
        super().__init__(shape, tables.shape[2])
        self.tables, self.scales = tables, scales
        self.table_of: Index = np.zeros(shape[:2], np.intp) if table_of is None else table_of
        self.keep = keep
        self.index: Index = np.zeros((*shape[:2], self.blocks), np.intp)

    @property
    def numbers(self) -> tuple[Index]:
        """The entry of each block."""
        return (self.index,)

    def nearest(self, block: int, wanted: Float, factor: Float) -> tuple[Float, tuple[Index]]:
        """The nearest entries of the rows' tables."""
        x = (wanted / self.scales[..., None]) @ factor
        if len(self.tables) == 1:
            index = _next_to(x, self.tables @ factor)
        else:
            y = self.tables[self.table_of] @ factor[:, None]  # (G, R, K, width)
            index = np.square(y - x[:, :, None]).sum(axis=3).argmin(axis=2)
        values = self.scales[..., None] * self.tables[self.table_of, index]
        if self.keep is not None:
            values = np.where(self.keep[:, :, block * self.width : (block + 1) * self.width], values, 0.0)
        return values, (index,)

    def values(self) -> Float:
        """Scale times entry."""
        return self._spread(self.tables) * self.scales[..., None]

    def refit_tables(self, target: Float, gram: Float | None) -> None:
        """Set the entries to those of least loss for the given assignment and scales (conjugate gradients).

        Of a large weight some of the rows tell.
        """
        rows = slice(None, None, self._stride(target.shape))
        scales = self.scales[:, rows, None]
        power: Float = np.ones(target.shape[2])
        if gram is not None:
            power = np.diagonal(gram, axis1=1, axis2=2)[:, None]
        diagonal = self._gathered(np.broadcast_to(np.square(scales) * power, target[:, rows].shape), rows)
        diagonal = np.where(diagonal > 0.0, diagonal, 1.0)

        def image(values: Float) -> Float:
            return (values if gram is None else values @ gram) * scales

        def normal(tables: Float) -> Float:
            return self._gathered(image(self._spread(tables, rows) * scales), rows)

        wanted = self._gathered(image(target[:, rows]), rows)
        self.tables = conjugate_gradients(normal, lambda rest: rest / diagonal, wanted, self.tables, _STEPS)

    def refit_scales(self, target: Float, gram: Float | None) -> None:
        """Set the scale of each row to that of least loss for its codes; rows of zeros keep theirs."""
        codes = self._spread(self.tables)
        response = codes if gram is None else codes @ gram
        power = np.einsum("grd,grd->gr", response, codes)
        wanted = np.einsum("grd,grd->gr", response, target)
        fits = (power > 0.0) & (wanted > 0.0)
        self.scales = np.where(fits, wanted / np.where(power > 0.0, power, 1.0), self.scales)

    def round_tables(self) -> None:
        """Make the entries whole numbers up to 127 in magnitude; scales take up the rest."""
        units = np.abs(self.tables).max(axis=(1, 2)) / _TOP
        units = np.where(units > 0.0, units, 1.0)
        self.tables = np.rint(self.tables / units[:, None, None])
        self.scales = self.scales * units[self.table_of]

    def _stride(self, shape: tuple[int, ...]) -> int:
        """Every how many rows one is looked at to fit the entries, where all share a table."""
        if len(self.tables) > 1:
            return 1
        wanted = max(_ENTRIES, _EACH * self.tables.size)
        return max(1, shape[0] * shape[1] * shape[2] // wanted)

    def _spread(self, tables: Float, rows: slice = _ALL) -> Float:
        """The entry at each place of the weight, (G, R, d)."""
        index = self.index[:, rows]
        codes: Float = tables[self.table_of[:, rows, None], index].reshape(*index.shape[:2], -1)
        spread: Float = codes if self.keep is None else np.where(self.keep[:, rows], codes, 0.0)
        return spread

    def _gathered(self, values: Float, rows: slice) -> Float:
        """Sum of what lies at the places of each entry: the transpose of :meth:`_spread`."""
        own: Float = values if self.keep is None else np.where(self.keep[:, rows], values, 0.0)
        places = (self.table_of[:, rows, None] * self.tables.shape[1] + self.index[:, rows]).reshape(-1)
        parts = own.reshape(-1, self.width)
        count = self.tables.shape[0] * self.tables.shape[1]
        sums = [np.bincount(places, parts[:, v], count) for v in range(self.width)]
        return np.asarray(np.stack(sums, axis=1).reshape(self.tables.shape), np.float64)


def _next_to(x: Float, y: Float) -> Index:
    """The row of y, (G, K, width), next to each row of x, (G, R, width): |y|^2 - 2 x y as one product."""
    # Single precision: of two entries as far from x as makes no difference either will do.
    points = np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=2, dtype=np.float32)
    entries = np.concatenate([-2.0 * y, np.square(y).sum(axis=2, keepdims=True)], axis=2, dtype=np.float32)
    parts = [(a @ b.T).argmin(axis=1) for a, b in zip(points, entries, strict=True)]
    return np.stack(parts)


def fit_palette(
    target: Float,
    gram: Float | None,
    entries: int,
    width: int,
    *,
    tables: int = 1,
    keep: NDArray[np.bool_] | None = None,
    effort: Effort | None = None,
    seed: int = 0,
) -> Palette:
    """Fit tables, scales and the assignment of a weight.

    Args:
        target: m, (G, R, d): the weight, or what would reach the layer's outputs best.
        gram: S, (G, d, d); None: the weights' own error counts.
        entries: K, entries of a table.
        width: Weights of an entry, a divisor of d.
        tables: T, which divides G R: so many tables, each for rows in a row.
        keep: (G, R, d), False where the weight stays zero; takes a width of 1.
        effort: How thoroughly.
        seed: Of the start of k-means.

    Returns:
        The coder, its entries whole numbers from -127 to 127.
    """
    effort = effort or Effort()
    power = None if gram is None else np.diagonal(gram, axis1=1, axis2=2)
    scales = _spreads(target, power, keep)
    rows = target.shape[0] * target.shape[1]
    table_of = (np.arange(rows) // (rows // tables)).reshape(target.shape[:2])
    start = _first_tables(target / scales[..., None], power, entries, width, tables, keep, seed)
    coder = Palette(target.shape, start, scales, table_of, keep)
    strong = None if gram is None else damped(gram)
    fitted = None if gram is None else damped(gram, 0.0)

    def settle(sweeps: int) -> None:
        if fitted is None:
            plain(target, coder)
        else:
            descend(coder.values(), target, fitted, coder, sweeps=sweeps)

    if strong is None:
        plain(target, coder)
    else:
        sequential(target, strong, coder)
    for _ in range(effort.rounds):
        coder.refit_tables(target, fitted)
        coder.refit_scales(target, fitted)
        settle(effort.sweeps)
    coder.round_tables()
    coder.refit_scales(target, fitted)
    if effort.sweeps:
        settle(1)
    return coder


def _spreads(target: Float, power: Float | None, keep: NDArray[np.bool_] | None) -> Float:
    """Root mean square of each row, (G, R), columns weighed by their input power; 1 for rows of zeros."""
    weights = np.ones_like(target) if power is None else np.broadcast_to(power[:, None], target.shape)
    weights = weights if keep is None else np.where(keep, weights, 0.0)
    total = weights.sum(axis=2)
    mean = (np.square(target) * weights).sum(axis=2) / np.where(total > 0.0, total, 1.0)
    return np.where(mean > 0.0, np.sqrt(mean), 1.0)


def _first_tables(
    rows: Float,
    power: Float | None,
    entries: int,
    width: int,
    tables: int,
    keep: NDArray[np.bool_] | None,
    seed: int,
) -> Float:
    """The k-means of the normalised rows, (T, K, width), each vector weighed by the power of its inputs."""
    weights = np.ones_like(rows) if power is None else np.broadcast_to(power[:, None], rows.shape)
    weights = weights if keep is None else np.where(keep, weights, 0.0)
    points = rows.reshape(tables, -1, width)
    mass = weights.reshape(tables, -1, width).mean(axis=2)
    return np.stack([kmeans(own, m, entries, seed=seed) for own, m in zip(points, mass, strict=True)])
