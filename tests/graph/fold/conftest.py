from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from onnxcomp.graph.fold import Log, canonicalise

Arrays = Mapping[str, NDArray[np.generic]]
Build = Callable[..., ir.Model]
Check = Callable[..., Log]

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


def _session(model: ir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _signature(model: ir.Model, session: ort.InferenceSession) -> list[tuple[str, str, str]]:
    """Names and types as the runtime sees them, shapes as the file declares them."""
    declared = {v.name: str(v.shape) for v in (*model.graph.inputs, *model.graph.outputs)}
    ports = (*session.get_inputs(), *session.get_outputs(), *session.get_overridable_initializers())
    return [(p.name, p.type, declared[p.name]) for p in ports]


def _feeds(session: ort.InferenceSession, free: int) -> dict[str, NDArray[np.generic]]:
    rng = np.random.default_rng(free)
    feeds: dict[str, NDArray[np.generic]] = {}
    for port in session.get_inputs():
        shape = [d if isinstance(d, int) else free for d in port.shape]
        dtype = _TYPES[port.type]
        drawn = rng.random(shape) < 0.5 if dtype is np.bool_ else 3 * rng.standard_normal(shape)
        feeds[port.name] = np.asarray(drawn).astype(dtype)
    return feeds


def _assert_close(wanted: Sequence[Any], got: Sequence[Any], tolerance: float) -> None:
    for a, b in zip(map(np.asarray, wanted), map(np.asarray, got), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        x, y = a.astype(np.float64), b.astype(np.float64)
        assert np.linalg.norm(x - y) <= tolerance * np.linalg.norm(x)


@pytest.fixture
def build() -> Build:
    """Parse ONNX text; keyword arguments become initializers."""

    def make(text: str, **arrays: NDArray[np.generic]) -> ir.Model:
        proto = onnx.parser.parse_model(text if text.lstrip().startswith("<") else _HEADER + text)
        for name, array in arrays.items():
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return ir.from_proto(proto)

    return make


_HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'


@pytest.fixture
def check() -> Check:
    """Fold, then hold the result to everything that every fold promises; return what was logged."""

    def run(model: ir.Model, *, tolerance: float = 1e-5, free: tuple[int, ...] = (2, 3)) -> Log:
        original, twin = _session(model), model.clone()
        signature = _signature(model, original)
        log = canonicalise(model)
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        result = _session(model)
        assert _signature(model, result) == signature
        for size in free:
            feeds = _feeds(original, size)
            _assert_close(original.run(None, feeds), result.run(None, feeds), tolerance)
        canonicalise(twin)
        first = ir.to_proto(model).SerializeToString(deterministic=True)
        assert ir.to_proto(twin).SerializeToString(deterministic=True) == first
        assert canonicalise(model).lines == ()
        assert ir.to_proto(model).SerializeToString(deterministic=True) == first
        return log

    return run
