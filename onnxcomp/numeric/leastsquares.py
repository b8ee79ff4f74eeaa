"""Symmetric positive definite solves: Cholesky with a safe jitter, reduced-rank regression, conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxcomp.numeric.tucker import leading_vectors

__all__ = ["cholesky", "conjugate_gradients", "reduced_rank", "solve"]

Float = NDArray[np.float64]

# Keeps the Cholesky factors of singular Grams (dead channels, fewer patches than dimensions) defined, far below any
# signal.
_JITTER = 1e-10


def reduced_rank(lower: Float, cross: Float, rank: int | None) -> tuple[Float, Float | None]:
    """Reduced-rank regression (Izenman 1975): the best last @ core of rank `rank` for a Gram and a cross moment.

    Args:
        lower: Cholesky factor of the Gram of the regressors, (n, n).
        cross: Cross moments of the targets and regressors, (Co, n).
        rank: 1..Co; None gives ordinary least squares.

    Returns:
        core (rank, n) and last (Co, rank) with orthonormal columns; (Co, n) and None for ordinary least squares.
    """
    if rank is None:
        return solve(lower, cross.T).T, None
    response = scipy.linalg.solve_triangular(lower, cross.T, lower=True)
    last = leading_vectors(response.T @ response, rank)
    core = scipy.linalg.solve_triangular(lower, response @ last, lower=True, trans=1).T
    return np.ascontiguousarray(core), last


def cholesky(gram: Float) -> Float:
    """Lower Cholesky factor of a positive semidefinite matrix, with a jitter far below its mean diagonal.

    Dead directions (zero rows) come out as if they had the jitter's variance, so that solves leave them at zero.
    """
    n = len(gram)
    mean = float(np.trace(gram)) / n
    if mean <= 0.0:
        return np.eye(n)
    for jitter in (_JITTER, 1e3 * _JITTER, 1e6 * _JITTER, 1e8 * _JITTER):
        damped = gram.copy()
        damped[np.diag_indices(n)] += jitter * mean
        try:
            lower: Float = scipy.linalg.cholesky(damped, lower=True, overwrite_a=True, check_finite=False)
        except scipy.linalg.LinAlgError:
            continue  # rounding left a negative eigenvalue larger than the jitter
        return lower
    raise ValueError("the Gram matrix is not positive semidefinite")


def conjugate_gradients(
    normal: Callable[[Float], Float],
    precondition: Callable[[Float], Float],
    wanted: Float,
    start: Float,
    steps: int,
) -> Float:
    """Preconditioned conjugate gradients on normal(p) = wanted; the quadratic error falls with every step."""
    p = start
    residual = wanted - normal(p)
    z = precondition(residual)
    direction, rho = z, float(np.vdot(residual, z))
    goal = 1e-16 * max(rho, float(np.vdot(wanted, precondition(wanted))))
    for _ in range(steps):
        if rho <= goal:
            break
        image = normal(direction)
        curvature = float(np.vdot(direction, image))
        if curvature <= 0.0:
            break
        p = p + (rho / curvature) * direction
        residual = residual - (rho / curvature) * image
        z = precondition(residual)
        rho, before = float(np.vdot(residual, z)), rho
        direction = z + (rho / before) * direction
    return p


def solve(lower: Float, right: Float) -> Float:
    """Solve (lower lower^T) x = right."""
    solution: Float = scipy.linalg.cho_solve((lower, True), right, check_finite=False)
    return solution
