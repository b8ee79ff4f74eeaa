"""A run of decompose that the tests of its parts share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import onnxcomp
from onnxcomp.api import Result

Arrays = Mapping[str, NDArray[Any]]


@pytest.fixture
def decomposed(stack: ir.Model, samples: Arrays) -> Callable[..., Result]:
    """Run a pipeline on the stack with its samples; by MACs, so that nothing is timed."""

    def run(passes: str = "decompose", **options: Any) -> Result:
        given: dict[str, Any] = {"objective": "macs", "data": samples}
        return onnxcomp.optimize(stack, passes, **(given | options))

    return run
