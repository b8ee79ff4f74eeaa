"""Small files: what is left out where weights have few bits, and what stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxcomp
from onnxcomp import modelio
from onnxcomp.graph.decoding import is_decoded
from onnxcomp.graph.edit import PASS, origin_of
from onnxcomp.quantize.lean import lean
from onnxcomp.runtime.session import open_session, run

Parsed = Callable[..., ir.Model]

NET = """g (float[N,16,8,8] x) => (float[N,16,4,4] y) {
    [first] a = Conv(x, w, b) r = Relu(a) [second] y = Conv<group=2>(r, v) }"""


@pytest.fixture
def compressed(parsed: Parsed) -> Callable[[str], ir.Model]:
    rng = np.random.default_rng(0)
    shapes = {"w": (16, 16, 3, 3), "v": (16, 8, 3, 3), "b": (16,)}
    net = parsed(NET, **{n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()})
    for node in net.graph:
        node.name = f"/stage/{node.name}/Conv"
    data = {"x": rng.standard_normal((16, 16, 8, 8)).astype(np.float32)}
    return lambda passes: onnxcomp.optimize(net, passes, data=data, objective="macs").model


@pytest.mark.parametrize("passes", ["int4(rounding=nearest)", "pow2(rounding=nearest),int8"])
def test_operators_say_what_they_are_and_decoders_are_short(
    passes: str, compressed: Callable[[str], ir.Model], tmp_path: Path
) -> None:
    model = compressed(passes)
    modelio.save(model, tmp_path / "m.onnx")
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    again = modelio.load(tmp_path / "m.onnx")
    convolutions = [n for n in again.graph if n.op_type == "Conv"]
    assert [origin_of(n) for n in convolutions] == ["/stage/first/Conv", "/stage/second/Conv"]
    assert all(n.metadata_props[PASS] == passes.split("(", 1)[0] for n in convolutions)
    assert [set(n.attributes) for n in convolutions] == [{"kernel_shape"}, {"kernel_shape", "group"}]
    decoders = [n for n in again.graph if is_decoded(n.outputs[0])]
    assert decoders and not any(n.name or n.metadata_props for n in decoders)
    assert all(len(v.name or "") <= 3 for n in decoders for v in (*n.inputs, *n.outputs) if v is not None)
    assert {"x", "a", "r", "y"} <= {v.name for n in again.graph for v in (*n.inputs, *n.outputs) if v is not None}
    x = {"x": np.ones((2, 16, 8, 8), np.float32)}
    np.testing.assert_array_equal(run(open_session(again), x)[0], run(open_session(model), x)[0])


def test_eight_bits_stay_as_they_are(compressed: Callable[[str], ir.Model]) -> None:
    model = compressed("int8")
    before = modelio.to_bytes(model)
    lean(model)
    assert modelio.to_bytes(model) == before
