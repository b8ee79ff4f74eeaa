"""Channels to remove, and models that do without them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxcomp.graph.groups import Groups


@pytest.fixture(scope="session")
def any_removed() -> Callable[[Groups, int], NDArray[np.bool_]]:
    """Classes to remove by seed: a third, more than half or most of all, but never all of a tensor."""

    def choose(groups: Groups, seed: int) -> NDArray[np.bool_]:
        rng = np.random.default_rng(seed)
        removed = rng.random(groups.count + 1) < (0.3, 0.6, 1.0)[seed % 3]
        removed[0] = False
        for _, labels in groups.tensors.values():
            if removed[labels].all():
                removed[rng.choice(labels)] = False
        return removed

    return choose


@pytest.fixture(scope="session")
def blind() -> Callable[[Groups, NDArray[np.bool_]], None]:
    """Zero what layers read classes with, in place: the outputs do not depend on these channels any more."""

    def go(groups: Groups, removed: NDArray[np.bool_]) -> None:
        for node, labels in groups.reads.items():
            weight = node.inputs[1]
            assert weight is not None and weight.const_value is not None
            array = weight.const_value.numpy().copy()
            by_rows = node.op_type in ("ConvTranspose", "MatMul") or (
                node.op_type == "Gemm" and not node.attributes.get_int("transB", 0)
            )
            axis = 0 if by_rows else 1
            np.moveaxis(array, axis, 0)[removed[labels[: array.shape[axis]]]] = 0
            weight.const_value = ir.tensor(array, name=weight.name)

    return go
