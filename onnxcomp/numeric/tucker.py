"""Tucker-2 and Tucker-1 decomposition of convolution weights (Kim et al. 2016), in float64 on Gram matrices.

K[o, i, k] ~ sum_ab last[o, a] core[a, b, k] first[b, i]: a 1x1 convolution, a small one of the original kernel, a 1x1
one. With one side left out this is the channel decomposition (kxk then 1x1) or its mirror image (1x1 then kxk).

Working on Gram matrices squares the condition number: directions whose singular value is below about 1e-8 of the
largest one are not told apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxcomp.numeric.moments import channel_average, project_gram

__all__ = [
    "Tucker2",
    "balance",
    "compose",
    "hooi",
    "hosvd",
    "leading_vectors",
    "mode_spectra",
    "relative_error",
    "unfold_in",
    "unfold_out",
]

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class Tucker2:
    """The factors of a weight (Co, Ci, *kernel), float64.

    Attributes:
        first: Input factor (r_in, Ci), the weight of the first 1x1; None in the form without it (then r_in = Ci).
        core: (r_out, r_in, *kernel).
        last: Output factor (Co, r_out), the weight of the last 1x1; None in the form without it (then r_out = Co).
        error: Relative squared Frobenius error |K - compose|^2 / |K|^2 of the weight.
    """

    first: Float | None
    core: Float
    last: Float | None
    error: float

    @property
    def ranks(self) -> tuple[int, int]:
        """(r_in, r_out)."""
        return self.core.shape[1], self.core.shape[0]

    @property
    def parameters(self) -> int:
        """Number of weights in all factors."""
        return sum(0 if f is None else f.size for f in (self.first, self.core, self.last))


def hosvd(weight: NDArray[np.floating], rank_in: int | None, rank_out: int | None) -> Tucker2:
    """Truncated higher-order SVD: each factor from its own unfolding (De Lathauwer et al. 2000).

    The squared error is at most the sum of both unfoldings' squared tails, hence at most twice the optimum.

    Args:
        weight: (Co, Ci, *kernel), any floating type.
        rank_in: 1..Ci, or None to leave the input side whole.
        rank_out: 1..Co, or None to leave the output side whole.

    Raises:
        ValueError: A rank out of range, or a weight that is not finite or has no spatial axes' worth of dimensions.
    """
    return hooi(weight, rank_in, rank_out, iterations=0)


def hooi(weight: NDArray[np.floating], rank_in: int | None, rank_out: int | None, iterations: int = 4) -> Tucker2:
    """Higher-order orthogonal iteration from the HOSVD (De Lathauwer et al. 2000); each iteration lowers the error.

    Rows of `first` and columns of `last` are orthonormal. With one side None the truncated SVD is optimal and returned
    at once.

    Args:
        weight: (Co, Ci, *kernel), any floating type.
        rank_in: 1..Ci, or None to leave the input side whole.
        rank_out: 1..Co, or None to leave the output side whole.
        iterations: Alternating updates of both factors; four suffice on convolution weights.

    Raises:
        ValueError: A rank out of range, or a weight that is not finite or has fewer than two dimensions.
    """
    k = _checked(weight, rank_in, rank_out)
    last = None if rank_out is None else leading_vectors(_gram(unfold_out(k)), rank_out)
    first = None if rank_in is None else leading_vectors(_gram(unfold_in(k)), rank_in).T
    if first is not None and last is not None and rank_in is not None and rank_out is not None:
        for _ in range(iterations):
            last = leading_vectors(_gram(unfold_out(_times_in(k, first))), rank_out)
            first = leading_vectors(_gram(unfold_in(_times_out(k, last.T))), rank_in).T
    core = k
    if first is not None:
        core = _times_in(core, first)
    if last is not None:
        core = _times_out(core, last.T)
    factors = Tucker2(first, np.ascontiguousarray(core), last, 0.0)
    return replace(factors, error=relative_error(k, compose(factors)))


def compose(factors: Tucker2) -> Float:
    """Multiply the factors out to the weight (Co, Ci, *kernel) that they stand for."""
    weight = factors.core
    if factors.last is not None:
        weight = _times_out(weight, factors.last)
    if factors.first is not None:
        weight = _times_in(weight, factors.first.T)
    return weight


def mode_spectra(weight: NDArray[np.floating]) -> tuple[Float, Float]:
    """Singular values of the input and of the output unfolding, descending.

    Returns:
        (input spectrum with Ci values, output spectrum with Co values); where the unfolding is tall, padded by zeros.
        Values below about 1e-8 of the largest are noise.
    """
    k = _checked(weight, None, None)
    return _spectrum(_gram(unfold_in(k))), _spectrum(_gram(unfold_out(k)))


def balance(factors: Tucker2, gram: NDArray[np.floating] | None = None) -> Tucker2:
    """Rescale inner channels so that one scale serves all of them in int8; the product stays what it was.

    Activations are quantized with one scale a tensor and weights with one scale an output channel. The rounding noise
    of an inner tensor is least when its channels all have the same range, so each inner channel is scaled to a root
    mean square of 1, the same in every group of a layer; the next factor takes the inverse, the last one the magnitude.

    Args:
        factors: Any Tucker form.
        gram: Uncentred Gram E[x x^T] of the input patches, (d, d), channel-major; None assumes white inputs.
    """
    first, core, last = factors.first, factors.core, factors.last
    axes = (1,) * (core.ndim - 2)
    taps = core[0, 0].size
    inner = None if gram is None else project_gram(np.asarray(gram, np.float64), first)
    if first is not None:
        energy = _energy(first, None) if inner is None else np.diagonal(channel_average(inner, taps))
        scale = _scale(energy)
        energy = _core_energy(first, core, inner)
        first, core = first / scale[:, None], core * scale.reshape(1, -1, *axes)
    else:
        energy = _core_energy(None, core, inner)
    if last is not None:
        scale = _scale(energy)
        core, last = core / scale.reshape(-1, 1, *axes), last * scale
    return Tucker2(first, core, last, factors.error)


def relative_error(weight: Float, approximation: Float) -> float:
    """Squared Frobenius distance relative to |weight|^2; 0 where both are zero, inf where only the weight is."""
    energy = float(np.vdot(weight, weight))
    distance = float(np.linalg.norm((weight - approximation).ravel()) ** 2)
    if energy == 0.0:
        return 0.0 if distance == 0.0 else float("inf")
    return distance / energy


def leading_vectors(gram: Float, rank: int) -> Float:
    """Orthonormal eigenvectors (n, rank) of a symmetric matrix (n, n), of its largest eigenvalues, descending."""
    n = len(gram)
    vectors: Float = scipy.linalg.eigh(gram, subset_by_index=[n - rank, n - 1])[1]
    return np.ascontiguousarray(vectors[:, ::-1])


def unfold_out(weight: Float) -> Float:
    """The output unfolding (Co, Ci * prod(kernel))."""
    return weight.reshape(weight.shape[0], -1)


def unfold_in(weight: Float) -> Float:
    """The input unfolding (Ci, Co * prod(kernel))."""
    return np.moveaxis(weight, 1, 0).reshape(weight.shape[1], -1)


def _times_in(weight: Float, matrix: Float) -> Float:
    """Multiply the input axis by a matrix (n, Ci): (Co, n, *kernel)."""
    return np.moveaxis(np.tensordot(matrix, weight, (1, 1)), 0, 1)


def _times_out(weight: Float, matrix: Float) -> Float:
    """Multiply the output axis by a matrix (n, Co): (n, Ci, *kernel)."""
    return np.tensordot(matrix, weight, (1, 0))


def _gram(matrix: Float) -> Float:
    return matrix @ matrix.T


def _spectrum(gram: Float) -> Float:
    values = np.asarray(scipy.linalg.eigvalsh(gram), np.float64)
    return np.sqrt(np.maximum(values[::-1], 0.0))


def _checked(weight: NDArray[np.floating], rank_in: int | None, rank_out: int | None) -> Float:
    k = np.asarray(weight, np.float64)
    if k.ndim < 2 or k.size == 0:
        raise ValueError(f"a weight of shape {k.shape} has no input and output channels")
    if not np.isfinite(k).all():
        raise ValueError("the weight holds NaN or Inf")
    for side, rank, full in (("input", rank_in, k.shape[1]), ("output", rank_out, k.shape[0])):
        if rank is not None and not 1 <= rank <= full:
            raise ValueError(f"{side} rank {rank} is not in 1..{full}")
    return k


def _energy(rows: Float, gram: Float | None) -> Float:
    """Mean square of each row's response to inputs of that Gram (None: white)."""
    energy: Float = np.einsum("rd,rd->r", rows, rows if gram is None else rows @ gram)
    return energy


def _core_energy(first: Float | None, core: Float, inner: Float | None) -> Float:
    """Mean square of each channel that the core puts out; `inner` is the Gram of what it reads (None: white inputs)."""
    flat = core.reshape(core.shape[0], core.shape[1], -1)
    if inner is not None or first is None:
        return _energy(flat.reshape(len(flat), -1), inner)
    return _energy(np.matmul(first.T, flat).reshape(len(flat), -1), None)


def _scale(energy: Float) -> Float:
    """Root of the energy; 1 for channels that never respond."""
    return np.sqrt(np.where(energy > 0.0, energy, 1.0))
