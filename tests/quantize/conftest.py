"""Small models in text, a way to quantize them, and how close the result is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxcomp.contract import Context, PassReport
from onnxcomp.data import open_feeds
from onnxcomp.passes.int8 import Int8
from onnxcomp.runtime.session import open_session, run
from onnxcomp.targets.target import load_target

# Ranges and plain rounding alone: weights and channels stay what they are, so that a test can tell what became of each.
_PLAIN: dict[str, Any] = {"rounding": "nearest", "inputs": "tensor", "equalize": "off"}

Builder = Callable[..., ir.Model]
Quantizer = Callable[..., tuple[ir.Model, PassReport]]


@pytest.fixture
def build() -> Builder:
    """A model from the text of a graph; `weights` become random float32 initializers of these shapes."""

    def make(graph: str, weights: dict[str, tuple[int, ...]], *, opset: int = 17, seed: int = 0) -> ir.Model:
        header = f'<ir_version: 9, opset_import: ["": {opset}, "com.microsoft": 1]>'
        proto = onnx.parser.parse_model(f"{header}\n{graph}")
        rng = np.random.default_rng(seed)
        for name, shape in weights.items():
            value = rng.standard_normal(shape).astype(np.float32) * np.float32(0.2)
            proto.graph.initializer.append(numpy_helper.from_array(value, name))
        onnx.checker.check_model(proto)
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto))

    return make


@pytest.fixture
def quantize(tmp_path: Path) -> Quantizer:
    """Run the int8 pass on a clone, by default in its plain form with random data; the result is checked by onnx."""

    def go(
        model: ir.Model, *, target: str = "ort-x86", context: dict[str, Any] | None = None, **options: Any
    ) -> tuple[ir.Model, PassReport]:
        copy = model.clone()
        feeds = open_feeds(_samples(model, 32, 1), model)
        given: dict[str, Any] = {"target": load_target(target), "workdir": tmp_path, "data": feeds}
        ready = Context(**given | (context or {}))
        report = Int8(**_PLAIN | options).run(copy, ready)
        onnx.checker.check_model(ir.to_proto(copy), full_check=True)
        return copy, report

    return go


@pytest.fixture
def sqnr() -> Callable[[ir.Model, ir.Model], float]:
    """Worst SQNR in dB of a model against another one, over outputs and fresh samples, in the optimised runtime."""

    def measure(base: ir.Model, other: ir.Model) -> float:
        sessions = open_session(base), open_session(other)
        worst = np.inf
        for seed in range(100, 108):
            feed = _samples(base, 1, seed)
            for a, b in zip(run(sessions[0], feed), run(sessions[1], feed), strict=True):
                noise = max(float(np.square(a - b).sum()), 1e-20)
                worst = min(worst, 10 * np.log10(float(np.square(a).sum()) / noise))
        return float(worst)

    return measure


@pytest.fixture
def pairs_of() -> Callable[[ir.Model], dict[str, tuple[float, int, str]]]:
    """Scale, zero point and storage type of every pair, by the name of the tensor that is quantized."""

    def read(model: ir.Model) -> dict[str, tuple[float, int, str]]:
        found: dict[str, tuple[float, int, str]] = {}
        for node in model.graph:
            if node.op_type != "QuantizeLinear" or node.inputs[0] is None:
                continue
            readers = [user for user, _ in node.outputs[0].uses() if user.op_type == "DequantizeLinear"]
            assert {_parameters(node)} == {_parameters(reader) for reader in (node, *readers)}
            found[node.inputs[0].name or ""] = _parameters(node)
        return found

    return read


@pytest.fixture
def reads_pair() -> Callable[[ir.Model, str], list[bool]]:
    """For each input of the node of that name, whether it is a dequantized one."""

    def read(model: ir.Model, name: str) -> list[bool]:
        node = next(n for n in model.graph if n.name == name)
        producers = [v.producer() if v is not None else None for v in node.inputs]
        return [p is not None and p.op_type == "DequantizeLinear" for p in producers]

    return read


def _parameters(node: ir.Node) -> tuple[float, int, str]:
    scale, zero = (v.const_value.numpy() for v in node.inputs[1:3] if v is not None and v.const_value is not None)
    assert scale.shape == () and scale > 0
    return float(scale), int(zero), str(zero.dtype)


def _samples(model: ir.Model, count: int, seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    shapes = {v.name: [d if isinstance(d, int) else 1 for d in v.shape or ()] for v in model.graph.inputs}
    return {n: rng.standard_normal((count, *s[1:])).astype(np.float32) for n, s in shapes.items() if n}
