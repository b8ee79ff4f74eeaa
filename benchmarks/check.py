"""What ``onnxcomp check`` takes on a real model, and how much of that is its own: all but the runs of the models.

    python benchmarks/check.py [--work FOLDER]

Every row is one call in a process of its own, with 200 evaluation images and, where the limit asks for it, latency
against a baseline. "Runs" is the time inside of ``InferenceSession.run`` and of the process that measures memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from real import images, model_file

MODEL = "mobilenet_v2_100_224_imagenet"
IMAGES = 200

# Stands before the command: adds up what runs take.
MEASURED = """
import json, sys, time
import onnxruntime
from onnxcomp.cli.main import main
spent, inner = [0.0], onnxruntime.InferenceSession.run
def run(self, *arguments, **others):
    start = time.perf_counter()
    try:
        return inner(self, *arguments, **others)
    finally:
        spent[0] += time.perf_counter() - start
onnxruntime.InferenceSession.run = run
code = main(sys.argv[2:])
open(sys.argv[1], "w").write(json.dumps({"runs": spent[0]}))
sys.exit(code)
"""


def measured(arguments: list[str], folder: Path) -> tuple[float, float, int]:
    """Seconds of the whole process, seconds of runs in it, and its exit code."""
    note = folder / "spent.json"
    start = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-c", MEASURED, str(note), *arguments]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
    taken = time.perf_counter() - start
    if done.returncode not in (0, 1):
        sys.exit(done.stderr)
    return taken, float(json.loads(note.read_text())["runs"]), done.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "onnxcomp-check")
    work: Path = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    name, x, labels = images(MODEL, "eval", IMAGES)
    data = work / "eval.npz"
    np.savez(data, **{name: x, "labels": labels})
    base = model_file(MODEL, work)
    small = work / "int8.onnx"
    if not small.exists():
        _, calibration, _ = images(MODEL, "train", 128)
        np.savez(work / "calibration.npz", **{name: calibration})
        call = ["optimize", str(base), "-p", "int8", "--data", str(work / "calibration.npz"), "-o", str(small)]
        subprocess.run([sys.executable, "-m", "onnxcomp.cli.main", *call, "--objective", "size", "--quiet"], check=True)
    accuracy = ["--eval", str(data), "--max-drop", "5"]
    rows = [
        ("itself, speed-up and drop", [str(base), "--against", str(base), *accuracy, "--min-speedup", "0.95"]),
        ("itself, at the limit", [str(base), "--against", str(base), *accuracy, "--min-speedup", "1"]),
        ("int8, speed-up and drop", [str(small), "--against", str(base), *accuracy, "--min-speedup", "1.2"]),
        ("int8, too slow", [str(small), "--against", str(base), *accuracy, "--min-speedup", "20"]),
        ("itself, layers", [str(base), "--against", str(base), *accuracy, "--max-layer-slowdown", "20"]),
    ]
    print(f"{'call':28} {'exit':>4} {'seconds':>8} {'runs':>8} {'own':>6} {'own/runs':>9}")
    for title, arguments in rows:
        taken, runs, code = measured(["check", *arguments, "--json"], work)
        print(
            f"{title:28} {code:4d} {taken:8.1f} {runs:8.1f} {taken - runs:6.1f} {(taken - runs) / runs:9.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
