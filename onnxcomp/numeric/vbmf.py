"""Rank by empirical variational Bayesian matrix factorisation (EVBMF), the global analytic solution.

Nakajima, Sugiyama, Babacan & Tomioka, "Global Analytic Solution of Fully-Observed Variational Bayesian Matrix
Factorization", JMLR 14 (2013), theorems 2 and 6 and corollary 1, with the exact root of their equation for tau-bar
instead of the 2.5129 sqrt(alpha) approximation (which is 3-10 % low at the aspect ratios of convolution weights).

The model is low rank plus independent noise. On slowly decaying spectra it keeps too little for use without training.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, log, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigvalsh
from scipy.optimize import minimize_scalar, root_scalar

__all__ = ["EvbmfResult", "evbmf_from_singular_values", "evbmf_rank"]

Float = NDArray[np.float64]

# Below this fraction of the largest, singular values from a Gram matrix are rounding: sqrt of the float64 epsilon.
_RESOLUTION = 1.5e-8
_GRID = 128


@dataclass(frozen=True, slots=True)
class EvbmfResult:
    """What EVBMF finds in a matrix.

    Attributes:
        rank: Number of components above the noise; may be 0.
        noise_variance: Estimated variance of one entry's noise.
        threshold: Singular values above it count.
    """

    rank: int
    noise_variance: float
    threshold: float


def evbmf_rank(matrix: NDArray[np.floating]) -> EvbmfResult:
    """EVBMF of a matrix (any orientation, any floating type), by the eigenvalues of its smaller Gram matrix.

    Raises:
        ValueError: Not a matrix, empty, or not finite.
    """
    y = np.asarray(matrix, np.float64)
    if y.ndim != 2 or y.size == 0:
        raise ValueError(f"an array of shape {y.shape} is not a matrix")
    if not np.isfinite(y).all():
        raise ValueError("the matrix holds NaN or Inf")
    gram = y @ y.T if y.shape[0] <= y.shape[1] else y.T @ y
    values = np.asarray(eigvalsh(gram), np.float64)
    return evbmf_from_singular_values(np.sqrt(np.maximum(values[::-1], 0.0)), *y.shape)


def evbmf_from_singular_values(s: NDArray[np.floating], rows: int, cols: int) -> EvbmfResult:
    """EVBMF of a rows x cols matrix of which the singular values are known.

    Args:
        s: All min(rows, cols) singular values, in any order; missing ones are taken as zero, surplus ones (padding)
            dropped.
        rows: Number of rows of the matrix.
        cols: Number of columns.

    Raises:
        ValueError: A dimension below 1, or values that are negative or not finite.
    """
    short, long = min(rows, cols), max(rows, cols)
    if short < 1:
        raise ValueError(f"{rows} x {cols} is not the shape of a matrix")
    gamma = np.zeros(short)
    given = np.sort(np.asarray(s, np.float64))[::-1][:short]
    if not np.isfinite(given).all() or (given < 0).any():
        raise ValueError("singular values must be finite and not negative")
    gamma[: len(given)] = given
    top = float(gamma[0])
    if top == 0.0:
        return EvbmfResult(0, 0.0, 0.0)
    # Everything scales with the matrix, so work at top = 1, where squares neither overflow nor vanish.
    squares = np.maximum(gamma / top, _RESOLUTION) ** 2
    alpha = short / long
    x_bar = _x_bar(alpha)
    variance = _noise_variance(squares, short, long, x_bar)
    threshold = sqrt(long * variance * x_bar)
    return EvbmfResult(int((np.sqrt(squares) > threshold).sum()), variance * top * top, threshold * top)


@lru_cache(maxsize=256)
def _x_bar(alpha: float) -> float:
    """Detection edge of gamma^2 / (M sigma^2): (1 + tau)(1 + alpha / tau) where Phi(tau) + Phi(tau / alpha) = 0."""

    def phi(z: float) -> float:
        return float(np.log1p(z)) / z - 0.5

    def equation(tau: float) -> float:
        return phi(tau) + phi(tau / alpha)

    # Phi falls from 1/2 through 0 at 2.5129, so the root lies between 2.5129 alpha and 2.5129.
    tau = float(root_scalar(equation, bracket=(2.5 * alpha, 2.52), method="brentq", xtol=1e-14).root)
    return (1 + tau) * (1 + alpha / tau)


def _noise_variance(squares: Float, short: int, long: int, x_bar: float) -> float:
    """Minimise the free energy over the noise variance, between the bounds of theorem 6."""
    alpha = short / long
    most = min(ceil(short / (1 + alpha)) - 1, short - 1)
    lower = max(float(squares[most]) / (long * x_bar), float(squares[most:].mean()) / long)
    upper = float(squares.mean()) / long
    if lower >= upper:
        return upper

    def energy(log_variance: float) -> float:
        return float(_free_energy(squares / (long * np.exp(log_variance)), alpha, x_bar))

    # The energy can have several minima where the spectrum has gaps: a grid finds the basin, Brent's method the bottom.
    grid = np.linspace(log(lower), log(upper), _GRID)
    best = int(np.argmin([energy(g) for g in grid]))
    low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, _GRID - 1)])
    refined = minimize_scalar(energy, bounds=(low, high), method="bounded", options={"xatol": 1e-9})
    return float(np.exp(refined.x))


def _free_energy(x: Float, alpha: float, x_bar: float) -> float:
    """Sum of psi(x): x - ln x, and for the components kept also ln(tau + 1) + alpha ln(tau / alpha + 1) - tau."""
    kept = x[x > x_bar]
    shifted = kept - (1 + alpha)
    tau = 0.5 * (shifted + np.sqrt(np.maximum(shifted * shifted - 4 * alpha, 0.0)))
    gain = np.log1p(tau) + alpha * np.log1p(tau / alpha) - tau
    return float(np.sum(x - np.log(x)) + np.sum(gain))
