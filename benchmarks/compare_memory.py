"""Peak memory of `compare` on few and on many images: it must not grow with them.

usage: compare_memory.py [--images 100 2000] [--model mobilenet_v2_100_224_imagenet]

The base is compared with its own int8 form, outputs and all layers on all images, every row in a process of its own.
The images are 64 of the calibration set, over and over; they are made a batch at a time, so that none of them counts.
Memory is the peak resident set. Prints a Markdown table. Models and images come from ../shared beside the repository.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from real import images, model_file

import onnxcomp
from onnxcomp.compare import compare_models

_BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[100, 2000])
    parser.add_argument("--model", default="mobilenet_v2_100_224_imagenet")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(row(arguments.model, arguments.child[0], int(arguments.child[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "int8.onnx"
        name, pictures, _ = images(arguments.model, "train", 64)
        base = model_file(arguments.model, Path(folder))
        onnxcomp.optimize(base, "int8", data={name: pictures}, objective="size").save(other)
        print("| model | images | layers | seconds | peak MB |\n|---|--:|--:|--:|--:|")
        for count in arguments.images:
            command = [sys.executable, __file__, "--model", arguments.model, "--child", str(other), str(count)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            seconds, peak = f"{found['seconds']:.0f}", f"{found['peak'] / 1024:.0f}"
            print(f"| {arguments.model} | {count} | {found['layers']} | {seconds} | {peak} |")


def row(model: str, other: str, count: int) -> dict[str, float]:
    """Compare on so many images, here."""
    name, pictures, _ = images(model, "train", 64)
    with tempfile.TemporaryDirectory() as folder:
        base = onnxcomp.load(model_file(model, Path(folder)))

    def feeds() -> Iterator[dict[str, Any]]:
        for start in range(0, count, _BATCH):
            rows = range(start, min(start + _BATCH, count))
            yield {name: pictures[[row % len(pictures) for row in rows]]}

    started = time.perf_counter()
    found = compare_models(base, onnxcomp.load(other), onnxcomp.open_feeds(feeds, base), samples=None)
    assert found.samples == count
    # What getrusage tells starts from the process that started this one.
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return {"seconds": time.perf_counter() - started, "peak": peak, "layers": len(found.layers)}


if __name__ == "__main__":
    main()
