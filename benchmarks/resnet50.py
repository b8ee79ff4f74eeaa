"""Seconds and peak memory of data-free `tucker2` on a network of ResNet-50's size.

    python benchmarks/resnet50.py [--passes tucker2] [--timing-cache FILE]

The network (He et al. 2016, table 1; 1 x 3 x 224 x 224, 25.5 M weights, BatchNorm folded) has random weights whose
spectra fall. It is made in the temporary directory and removed afterwards. The run is in a fresh process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

BLOCKS, WIDTHS = (3, 4, 6, 3), (64, 128, 256, 512)
EXPANSION = 4


class Network:
    """Nodes and weights, added one after the other."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(0)

    def node(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def array(self, name: str, values: NDArray[np.float32]) -> str:
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def conv(self, x: str, name: str, sizes: tuple[int, int, int], stride: int = 1, gain: float = 1.0) -> str:
        """A convolution of He's variance (output channels, input channels, side), times `gain`."""
        out, channels, side = sizes
        weight = self._rng.normal(0, 1, (out, channels, side, side)) * falling(out)[:, None, None, None]
        if channels > 3:
            weight *= falling(channels)[:, None, None]
        weight *= gain * (2 / (channels * side**2)) ** 0.5 / weight.std()
        names = [
            x,
            self.array(f"{name}.w", weight.astype(np.float32)),
            self.array(f"{name}.b", np.zeros(out, np.float32)),
        ]
        return self.node("Conv", names, name, kernel_shape=[side] * 2, strides=[stride] * 2, pads=[side // 2] * 4)

    def bottleneck(self, x: str, name: str, channels: int, width: int, stride: int) -> str:
        """1x1, 3x3 and 1x1 beside the identity or a 1x1; the last one is small, so that nothing grows with depth."""
        out = EXPANSION * width
        y = self.node("Relu", [self.conv(x, f"{name}.conv1", (width, channels, 1))], f"{name}.relu1")
        y = self.node("Relu", [self.conv(y, f"{name}.conv2", (width, width, 3), stride)], f"{name}.relu2")
        y = self.conv(y, f"{name}.conv3", (out, width, 1), gain=0.2)
        short = x if channels == out else self.conv(x, f"{name}.down", (out, channels, 1), stride)
        return self.node("Relu", [self.node("Add", [y, short], f"{name}.add")], f"{name}.out")


def falling(channels: int) -> NDArray[np.float64]:
    """Standard deviations of channels: a quarter of them hold most of the energy, as in trained networks."""
    return 1 / (1 + (8 * np.arange(channels) / channels) ** 2)


def make(path: Path) -> None:
    """Write the network."""
    net = Network()
    y = net.node("Relu", [net.conv("x", "stem", (64, 3, 7), 2)], "stem.relu")
    y = net.node("MaxPool", [y], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, (count, width) in enumerate(zip(BLOCKS, WIDTHS, strict=True), 1):
        for block in range(count):
            stride = 2 if stage > 1 and block == 0 else 1
            y = net.bottleneck(y, f"layer{stage}.{block}", channels, width, stride)
            channels = EXPANSION * width
    y = net.node("Flatten", [net.node("GlobalAveragePool", [y], "mean")], "flat")
    head = np.random.default_rng(1).normal(0, channels**-0.5, (1000, channels)).astype(np.float32)
    net.node("Gemm", [y, net.array("head.w", head), net.array("head.b", np.zeros(1000, np.float32))], "y", transB=1)
    ends = ([("x", [1, 3, 224, 224])], [("y", [1, 1000])])
    inputs, outputs = ([helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in end] for end in ends)
    graph = helper.make_graph(net.nodes, "resnet50", inputs, outputs, net.weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def measure(path: Path, passes: str, cache: str | None) -> dict[str, object]:
    """Optimize without data; figures of the run."""
    start = time.perf_counter()
    import onnxcomp

    result = onnxcomp.optimize(path, passes, timing_cache=cache)
    seconds = time.perf_counter() - start
    steps = result.report.steps
    speedup = result.report.speedup
    return {
        "seconds": round(seconds, 1),
        "of_passes": [round(step.seconds, 1) for step in steps],
        "cpu_seconds": round(time.process_time(), 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "changed": [len(step.report.changes) if step.kept else step.why for step in steps],
        "speedup": None if speedup is None else round(speedup.ratio, 2),
        "parameters": [result.report.before.cost.parameters, result.report.after.cost.parameters],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", default="tucker2")
    parser.add_argument("--timing-cache")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.passes, options.timing_cache)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "resnet50.onnx")
        make(path)
        own = [sys.executable, __file__, "--measure", str(path), "--passes", options.passes]
        own += ["--timing-cache", options.timing_cache] if options.timing_cache else []
        figures = json.loads(subprocess.run(own, check=True, capture_output=True, text=True).stdout)
        print(", ".join(f"{key} {value}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
