"""What the nodes of every form are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxcomp.allocation.problem import Factors

__all__ = ["constants", "pointwise", "roles"]


def constants(bias: NDArray[np.float32] | None) -> tuple[NDArray[np.float32], ...]:
    """A bias as the constants of a link."""
    return () if bias is None else (np.asarray(bias, np.float32),)


def pointwise(weight: NDArray[np.float32], rank: int) -> NDArray[np.float32]:
    """A matrix (Co, Ci) as the weight of a 1x1 convolution with that many spatial axes."""
    return weight.reshape(*weight.shape, *(1,) * rank)


def roles(groups: Sequence[Factors]) -> frozenset[str]:
    """The factors that the groups have."""
    return frozenset(groups[0])
