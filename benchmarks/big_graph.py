"""Time a 30,000-node graph through load, fold and save.

    python benchmarks/big_graph.py [NODES]

The graph is a chain of blocks as exporters write them: Conv, BatchNormalization, Relu, the size arithmetic of a Reshape
from Constant nodes, an Identity and a residual Add. Prints one line a stage; ends with 1 above 20 seconds.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxcomp import modelio
from onnxcomp.graph.fold import fold

__all__ = ["build", "main"]

LIMIT_S = 20.0
_CHANNELS = 4


def build(nodes: int, seed: int = 0) -> onnx.ModelProto:
    """A model with about `nodes` nodes, float32, input (N, 4, 8, 8)."""
    rng = np.random.default_rng(seed)
    graph = helper.make_graph(
        [], "big", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", _CHANNELS, 8, 8])], []
    )
    last = "x"
    for k in range(nodes // 12):
        last = _block(graph, rng, k, last)
    graph.output.append(helper.make_tensor_value_info(last, TensorProto.FLOAT, ["N", _CHANNELS, 8, 8]))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _block(graph: onnx.GraphProto, rng: np.random.Generator, k: int, source: str) -> str:
    def add(op: str, inputs: list[str], **attributes: object) -> str:
        name = f"b{k}.{op}{len(graph.node)}"
        graph.node.append(helper.make_node(op, inputs, [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def weight(role: str, array: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), f"b{k}.{role}"))
        return f"b{k}.{role}"

    size = (_CHANNELS,)
    conv = add("Conv", [source, weight("w", rng.standard_normal((*size, *size, 3, 3)) / 6)], pads=[1, 1, 1, 1])
    moments = [weight(role, 1 + rng.random(size)) for role in ("gamma", "beta", "mean", "var")]
    relu = add("Relu", [add("BatchNormalization", [conv, *moments])])
    shape = add("Shape", [relu])
    axis = add("Constant", [], value_int=1)
    channels = add("Unsqueeze", [add("Gather", [shape, axis]), add("Constant", [], value_ints=[0])])
    dims = add(
        "Concat", [add("Constant", [], value_ints=[-1]), channels, add("Constant", [], value_ints=[8, 8])], axis=0
    )
    return add("Add", [add("Reshape", [relu, dims]), source])


def main() -> int:
    """Build, write, and time the three stages."""
    nodes = int(sys.argv[1]) if len(sys.argv) > 1 else 30_000
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "big.onnx"), Path(folder, "out.onnx")
        onnx.save(build(nodes), source)
        marks = [time.perf_counter()]
        busy = time.process_time()
        model = modelio.load(source)
        marks.append(time.perf_counter())
        before = len(model.graph)
        lines = fold(model)
        marks.append(time.perf_counter())
        modelio.save(model, target)
        busy = time.process_time() - busy
        marks.append(time.perf_counter())
    for stage, start, end in zip(("load", "fold", "save"), marks, marks[1:], strict=False):
        print(f"{stage:5} {end - start:6.2f} s")
    total = marks[-1] - marks[0]
    print(f"total {total:6.2f} s, limit {LIMIT_S:.0f} s; processor {busy:.2f} s")
    print(f"{before} -> {len(model.graph)} nodes, {len(lines)} changes")
    return int(total > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
