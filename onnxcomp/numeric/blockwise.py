"""Write a weight matrix in codes, block by block, so that the layer's OUTPUT changes least.

As :mod:`onnxcomp.numeric.rounding` does for one scale a row, but for any scheme that codes some consecutive columns
together (a palette, the vectors of a product quantizer, a kernel as a multiple of a template): with m the wanted weight
and S the Gram of the inputs, the loss of a row is (q - m) S (q - m)^T. First the blocks are coded in the order of GPTQ
(Frantar et al. 2023, algorithm 1, with blocks in place of columns), each error passed on to the columns that follow;
then each block in turn is coded again with all others fixed, which never raises the loss.

All arrays have the groups of a convolution in front, [G, R, d]: they are coded alike, each with a Gram of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

__all__ = ["Coder", "damped", "descend", "loss", "plain", "sequential"]

Float = NDArray[np.float64]
Array = NDArray[np.generic]

# Columns that are worked on before the rest of the matrix hears of it.
_STRIPE = 128


class Coder(ABC):
    """A scheme that represents some consecutive columns of a row by a few numbers, and remembers them.

    Args:
        shape: (G, R, d) of the weight.
        width: Columns of a block, a divisor of d.
    """

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        if shape[2] % width:
            raise ValueError(f"{shape[2]} columns do not fall into blocks of {width}")
        self.width = width
        self.blocks = shape[2] // width

    @property
    @abstractmethod
    def numbers(self) -> tuple[Array, ...]:
        """What is remembered of each block, arrays of shape (G, R, blocks); written to by :meth:`code`."""

    @abstractmethod
    def nearest(self, block: int, wanted: Float, factor: Float) -> tuple[Float, tuple[Array, ...]]:
        """The representable values next to what is wanted, and their numbers, (G, R) each.

        Args:
            block: Number of the block.
            wanted: (G, R, width).
            factor: F, (G, width, width): the distance of a row is that of ``row @ F``.
        """

    @abstractmethod
    def values(self) -> Float:
        """The weight that the numbers stand for, (G, R, d)."""

    def code(self, block: int, wanted: Float, factor: Float, current: Float | None = None) -> Float:
        """Code a block, remember its numbers, and return its values; what is no nearer than `current` is not taken."""
        values, found = self.nearest(block, wanted, factor)
        if current is None:
            for kept, new in zip(self.numbers, found, strict=True):
                kept[:, :, block] = new
            return values
        better = _distance(values - wanted, factor) < _distance(current - wanted, factor)
        for kept, new in zip(self.numbers, found, strict=True):
            kept[:, :, block] = np.where(better, new, kept[:, :, block])
        return np.where(better[..., None], values, current)


def damped(gram: Float, damping: float = 0.01) -> Float:
    """Grams (G, d, d) with a stronger diagonal; inputs that are always zero count as independent ones of mean power."""
    diagonal = np.diagonal(gram, axis1=1, axis2=2)
    mean = diagonal.mean(axis=1, keepdims=True)
    mean = np.where(mean > 0.0, mean, 1.0)
    result = gram.copy()
    step = np.where(diagonal <= 1e-12 * mean, mean, (damping + 1e-9) * mean)
    index = np.arange(gram.shape[1])
    result[:, index, index] += step
    return result


def loss(values: Float, target: Float, gram: Float | None) -> Float:
    """(q - m) S (q - m)^T of each row, (G, R); without a Gram the squared error of the weights."""
    rest = values - target
    image = rest if gram is None else rest @ gram
    found: Float = np.einsum("grd,grd->gr", image, rest)
    return found


def plain(target: Float, coder: Coder) -> Float:
    """Code every block by itself, for the least squared error of the weights; returns the values, (G, R, d)."""
    factor = np.broadcast_to(np.eye(coder.width), (len(target), coder.width, coder.width))
    for block in range(coder.blocks):
        coder.code(block, target[:, :, block * coder.width : (block + 1) * coder.width], factor)
    return coder.values()


def sequential(target: Float, gram: Float, coder: Coder) -> Float:
    """Code block after block, those of the largest input power first, each error passed on to the blocks that follow.

    Args:
        target: m, (G, R, d).
        gram: S, (G, d, d), positive definite (damped).
        coder: The scheme; it remembers what it has coded.

    Returns:
        The values, (G, R, d).
    """
    width = coder.width
    power = np.diagonal(gram, axis1=1, axis2=2).sum(axis=0).reshape(-1, width).sum(axis=1)
    order = np.argsort(-power, kind="stable")
    columns = (order[:, None] * width + np.arange(width)).reshape(-1)
    upper = _upper(gram[:, columns[:, None], columns[None]])
    left = target[:, :, columns]
    stripe = max(_STRIPE // width, 1) * width
    values = np.empty_like(left)
    for start in range(0, len(columns), stripe):
        stop = min(start + stripe, len(columns))
        errors = np.empty((*left.shape[:2], stop - start))
        for j in range(start, stop, width):
            own = slice(j, j + width)
            factor = np.asarray(np.linalg.inv(upper[:, own, own]), np.float64)
            values[:, :, own] = coder.code(int(order[j // width]), left[:, :, own], factor)
            error = (left[:, :, own] - values[:, :, own]) @ factor
            errors[:, :, j - start : j - start + width] = error
            left[:, :, j + width : stop] -= error @ upper[:, own, j + width : stop]
        left[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
    result = np.empty_like(values)
    result[:, :, columns] = values
    return result


def descend(values: Float, target: Float, gram: Float, coder: Coder, *, sweeps: int = 2) -> Float:
    """Code each block in turn again with all others fixed, until nothing moves or `sweeps` are over.

    Args:
        values: What the coder remembers, (G, R, d).
        target: As in :func:`sequential`.
        gram: As in :func:`sequential`.
        coder: The scheme.
        sweeps: How often every block has its turn.

    Returns:
        The values; the loss of no row rises.
    """
    width, d = coder.width, target.shape[2]
    values = values.copy()
    slope = (values - target) @ gram
    blocks = [slice(j, j + width) for j in range(0, d, width)]
    factors = [np.asarray(np.linalg.cholesky(gram[:, own, own]), np.float64) for own in blocks]
    inverses = [np.linalg.inv(gram[:, own, own]) for own in blocks]
    stripe = max(_STRIPE // width, 1)
    for _ in range(sweeps):
        moved = False
        for first in range(0, len(blocks), stripe):
            some = range(first, min(first + stripe, len(blocks)))
            part = slice(blocks[some[0]].start, blocks[some[-1]].stop)
            local, before = slope[:, :, part].copy(), values[:, :, part].copy()
            for b in some:
                own = slice(blocks[b].start - part.start, blocks[b].stop - part.start)
                current = values[:, :, blocks[b]]
                found = coder.code(b, current - local[:, :, own] @ inverses[b], factors[b], current)
                move = found - current
                if move.any():
                    values[:, :, blocks[b]] = found
                    local += move @ gram[:, blocks[b], part]
            moves = values[:, :, part] - before
            if moves.any():
                moved = True
                slope += moves @ gram[:, part]
        if not moved:
            break
    return values


def _upper(gram: Float) -> Float:
    """Upper U with S^-1 = U^T U: the inverse of the Cholesky factor of S read from its last column to its first."""
    turned = gram[:, ::-1, ::-1]
    inverses = [_inverse_factor(own) for own in turned]
    return np.stack(inverses)[:, ::-1, ::-1]


def _inverse_factor(gram: Float) -> Float:
    lower = scipy.linalg.cholesky(gram, lower=True, check_finite=False)
    inverse, failed = scipy.linalg.lapack.dtrtri(lower, lower=1)
    if failed:
        raise np.linalg.LinAlgError("the Gram is singular")
    found: Float = inverse
    return found


def _distance(rest: Float, factor: Float) -> Float:
    image = rest @ factor
    found: Float = np.einsum("grv,grv->gr", image, image)
    return found
