"""Peak memory and time of calibration: streaming histograms against the entropy calibrator of onnxruntime.quantization.

usage: calibration_memory.py [--quick]

Every row runs in a process of its own, from a .npy file of preprocessed images, on the tensors that ORT's calibrator
watches; its memory is the peak resident set less that of a process which imports the libraries, loads the model and
runs one sample. CPU seconds are the fairer ones where the machine is shared. Prints a Markdown table. Models and images
come from ../shared beside the repository; --quick runs 64 images of resnet32 alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

# (model, images, tool, method); the two rows of a comparison watch the same tensors.
ROWS: tuple[tuple[str, int, str, str], ...] = (
    ("resnet32_cifar10", 512, "onnxcomp", "entropy"),
    ("resnet32_cifar10", 512, "onnxcomp", "mse"),
    ("resnet32_cifar10", 512, "onnxruntime", "entropy"),
    ("mobilenet_v2_100_224_imagenet", 256, "onnxcomp", "entropy"),
    ("mobilenet_v2_100_224_imagenet", 256, "onnxcomp", "mse"),
    ("mobilenet_v2_100_224_imagenet", 256, "onnxruntime", "entropy"),
)
LONG_ROWS: tuple[tuple[str, int, str, str], ...] = (
    ("resnet20_cifar10", 4096, "onnxcomp", "entropy"),
    ("mobilenet_v2_100_224_imagenet", 1000, "onnxcomp", "entropy"),
)
# ORT keeps every activation of every sample: about this many bytes for one sample of each model.
ORT_NEEDS = {"resnet32_cifar10": 3e6, "mobilenet_v2_100_224_imagenet": 50e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="64 images of resnet32 alone")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    if not SHARED.is_dir():
        sys.exit(f"{SHARED} is missing: the models and images of this benchmark are not part of the repository")
    rows = (*ROWS, *LONG_ROWS)
    if arguments.quick:
        rows = tuple((name, 64, tool, method) for name, _, tool, method in ROWS[:3])
    print("| model | images | tool | tensors | seconds | CPU seconds | peak MB above baseline |")
    print("|---|--:|---|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for name, count, tool, method in rows:
            print(row(name, count, tool, method, Path(folder)), flush=True)


def row(name: str, count: int, tool: str, method: str, folder: Path) -> str:
    label = f"| {name} | {count} | {tool} {method} |"
    free = available_bytes()
    if tool == "onnxruntime" and free < 1.2 * ORT_NEEDS[name] * count:
        return f"{label} | - | - | - | needs {ORT_NEEDS[name] * count / 1e9:.0f} GB, {free / 1e9:.0f} are free |"
    data = folder / f"{name}-{count}.npy"
    if not data.exists():
        np.save(data, images(name, count))
    model = prepared(name, folder)
    base = measure(model, data, "none", method)
    result = measure(model, data, tool, method)
    peak = result["peak_mb"] - base["peak_mb"]
    return f"{label} {result['tensors']} | {result['seconds']:.1f} | {result['cpu_seconds']:.1f} | {peak:.0f} |"


def images(name: str, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return preprocessed calibration images, repeated where there are too few."""
    spec = importlib.util.spec_from_file_location("shared_feeds", SHARED / "data" / "feeds.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    _, array, _ = module.feeds(name, "train", count)
    return np.resize(array, (count, *array.shape[1:]))


def available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def prepared(name: str, folder: Path) -> Path:
    """Return the model with shapes inferred: ORT's calibrator watches only tensors whose type it finds in the file."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        onnx.shape_inference.infer_shapes_path(str(SHARED / "models" / path.name), str(path))
    return path


def measure(model: Path, data: Path, tool: str, method: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", str(model), str(data), tool, method]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{model.name} {tool}: {done.stderr.strip()}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def child(path: str, data: str, tool: str, method: str) -> None:
    import onnxruntime as ort
    import onnxruntime.quantization.calibrate as calibrate

    from onnxcomp import modelio
    from onnxcomp.calibration.ranges import collect_ranges
    from onnxcomp.data import open_feeds
    from onnxcomp.numeric.ranges import Method

    ort.set_default_logger_severity(4)
    model = modelio.load(path)
    feeds = open_feeds(data, model)
    tensors = watched(path)
    first = feeds.first()
    start, cpu = time.perf_counter(), time.process_time()
    if tool == "none":
        from onnxcomp.runtime.session import open_session, run

        run(open_session(model), first)
    elif tool == "onnxcomp":
        collect_ranges(model, tensors, feeds, cast("Method", method))
    else:
        collect_with_ort(calibrate, path, data, feeds)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    result = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak_mb(), "tensors": len(tensors)}
    print(json.dumps(result))


def watched(path: str) -> list[str]:
    """Return the tensors that ORT's calibrator watches when it quantizes every operator it can."""
    from onnxruntime.quantization.calibrate import CalibraterBase
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    base = CalibraterBase(path, list({*QDQRegistry, *QLinearOpsRegistry}))
    names, _ = base.select_tensors_to_calibrate(onnx.load(path))
    return sorted(names)


def collect_with_ort(calibrate: Any, path: str, data: str, feeds: Any) -> None:
    class Reader:
        def __init__(self) -> None:
            # Its entropy calibrator refuses batches of different lengths.
            array = np.load(data, mmap_mode="r")
            self.batches = ({feeds.inputs[0].name: array[k : k + 32]} for k in range(0, len(array), 32))

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    with tempfile.TemporaryDirectory() as folder:
        calibrator = calibrate.create_calibrator(
            path,
            list({*QDQRegistry, *QLinearOpsRegistry}),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=calibrate.CalibrationMethod.Entropy,
        )
        calibrator.collect_data(Reader())
        calibrator.compute_data()


def peak_mb() -> float:
    """Return this process's own peak resident set; ru_maxrss would include the parent's at the time of the fork."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


if __name__ == "__main__":
    main()
