"""Peak memory and time of load, edit one layer, save, on a model of 3 GB.

    python benchmarks/large_model.py [--gigabytes 3]

The model is a chain of MatMuls with its weights in external data, made in the temporary directory and removed
afterwards. The measured part runs in a fresh process, once to another file and once over its own input. Two peaks are
printed: resident memory as the kernel counts it, mapped file pages included, and anonymous memory, which is what the
process really holds (sampled every 10 ms).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

SIDE = 4096


def make(path: Path, layers: int) -> None:
    """Write a model of `layers` weights of 64 MB each, one at a time."""
    info = helper.make_tensor_value_info
    nodes, weights = [], []
    rng = np.random.default_rng(0)
    with Path(f"{path}.data").open("wb") as out:
        for layer in range(layers):
            offset, block = out.tell(), rng.standard_normal((SIDE, SIDE), dtype=np.float32) / 64
            out.write(block.data)
            weight = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=block.shape)
            weight.data_location = TensorProto.EXTERNAL
            for key, value in (("location", f"{path.name}.data"), ("offset", offset), ("length", block.nbytes)):
                weight.external_data.add(key=key, value=str(value))
            weights.append(weight)
            nodes.append(
                helper.make_node("MatMul", [f"x{layer}", f"w{layer}"], [f"x{layer + 1}"], name=f"layer{layer}")
            )
    shape = ["N", SIDE]
    ends = ([info("x0", 1, shape)], [info(f"x{layers}", 1, shape)])
    model = helper.make_model(
        helper.make_graph(nodes, "chain", *ends, initializer=weights),
        ir_version=10,
        opset_imports=[helper.make_opsetid("", 21)],
    )
    path.write_bytes(model.SerializeToString())


def status() -> dict[str, int]:
    """The memory lines of /proc/self/status, in bytes."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if words and words[-1] == "kB"}


def edit(source: Path, target: Path) -> dict[str, float]:
    """Load, replace one weight, save; return times in seconds and peaks in MB."""
    import onnx_ir as ir

    from onnxcomp import modelio

    before, peak, done = status(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], status()["RssAnon"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    model = modelio.load(source)
    loaded = time.perf_counter()
    value = model.graph.initializers["w3"]
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(0.5), name="w3")
    modelio.save(model, target)
    saved = time.perf_counter()
    done.set()
    watcher.join()
    return {
        "load_s": loaded - start,
        "edit_and_save_s": saved - loaded,
        "baseline_rss_mb": before["VmRSS"] / 2**20,
        "peak_rss_mb": status()["VmHWM"] / 2**20,
        "peak_anonymous_mb": peak[0] / 2**20,
    }


def check(source: Path, target: Path) -> None:
    """Compare the files written with what was asked for, layer by layer, without loading more than one."""
    onnx.checker.check_model(str(target))
    a, b = (onnx.load(path, load_external_data=False).graph.initializer for path in (source, target))
    for one, two in zip(a, b, strict=True):
        rows = []
        for path, tensor in ((source, one), (target, two)):
            entries = {entry.key: entry.value for entry in tensor.external_data}
            file = path.parent / entries["location"]
            rows.append(np.fromfile(file, np.float32, SIDE * SIDE, offset=int(entries.get("offset", 0))))
        expected = rows[0] * np.float32(0.5) if one.name == "w3" else rows[0]
        if not np.array_equal(expected, rows[1]):
            raise SystemExit(f"{one.name} was not written as it should be")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--edit", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.edit:
        print(json.dumps(edit(*options.edit)))
        return
    layers = max(4, round(options.gigabytes * 2**30 / (4 * SIDE * SIDE)))
    needed, free = 2.2 * layers * 4 * SIDE * SIDE, shutil.disk_usage(tempfile.gettempdir()).free
    if free < needed:
        raise SystemExit(
            f"needs {needed / 2**30:.0f} GB in {tempfile.gettempdir()}, which has {free / 2**30:.0f} GB free"
        )
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.onnx"), Path(folder, "out.onnx")
        make(source, layers)
        for label, destination in (("another file", target), ("the same file", source)):
            command = [sys.executable, __file__, "--edit", str(source), str(destination)]
            figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"to {label}: " + ", ".join(f"{key} {value:.2f}" for key, value in figures.items()), flush=True)
            if destination == target:
                check(source, target)
                target.unlink()
                Path(f"{target}.data").unlink()


if __name__ == "__main__":
    main()
