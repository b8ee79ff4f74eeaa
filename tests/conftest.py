"""Small models from text, run in ONNX Runtime, and the context of a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx.shape_inference
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

from onnxcomp.contract import Context
from onnxcomp.runtime.session import open_session, output_names, run
from onnxcomp.targets.target import load_target

# A busy machine is no failure; where nobody watches, the examples are the same every time.
settings.register_profile(
    "onnxcomp", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("onnxcomp")

Arrays = Mapping[str, NDArray[Any]]
Parsed = Callable[..., ir.Model]
OutputsOf = Callable[[ir.Model, Arrays], dict[str, NDArray[Any]]]
InContext = Callable[..., Context]
Planted = Callable[..., NDArray[np.float32]]


@pytest.fixture(scope="session")
def parsed() -> Parsed:
    """A valid model from the text of its graph, with shapes inferred; keyword arguments become initializers."""

    def make(graph: str, *, opset: int = 17, **arrays: NDArray[Any]) -> ir.Model:
        proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]>\n{graph}')
        proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in arrays.items())
        onnx.checker.check_model(proto, full_check=True)
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto))

    return make


@pytest.fixture(scope="session")
def outputs_of() -> OutputsOf:
    """Check a model and run it on one feed, without the runtime's own rewrites."""

    def go(model: ir.Model, feed: Arrays) -> dict[str, NDArray[Any]]:
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        session = open_session(model, optimize="off")
        return dict(zip(output_names(session), run(session, feed), strict=True))

    return go


@pytest.fixture
def in_context(tmp_path: Path) -> InContext:
    """A context for ONNX Runtime on this kind of machine that decides by bytes, so that nothing is timed."""

    def make(**fields: Any) -> Context:
        given: dict[str, Any] = {"target": load_target("ort-x86"), "workdir": tmp_path, "objective": "size"}
        return Context(**(given | fields))

    return make


@pytest.fixture(scope="session")
def planted() -> Planted:
    """A float32 weight (groups * Co, Ci, *kernel) whose groups have exactly these Tucker ranks; full where None."""

    def make(
        shape: tuple[int, ...], rank_in: int | None, rank_out: int | None, *, groups: int = 1, seed: int = 0
    ) -> NDArray[np.float32]:
        rng = np.random.default_rng(seed)
        weights: list[NDArray[np.float64]] = []
        for _ in range(groups):
            first = rng.standard_normal((rank_in, shape[1])) if rank_in else np.eye(shape[1])
            last = rng.standard_normal((shape[0], rank_out)) if rank_out else np.eye(shape[0])
            core = rng.standard_normal((last.shape[1], first.shape[0], *shape[2:]))
            weights.append(np.einsum("oa,ab...,bi->oi...", last, core, first))
        joined = np.concatenate(weights)
        return np.asarray(joined / (joined.std() * np.sqrt(np.prod(shape[1:]))), np.float32)

    return make
