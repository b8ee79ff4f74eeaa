"""Peak memory and time of calibration, against the calibrators of onnxruntime.quantization, and of a whole run.

usage: calibration_memory.py [--quick]

Every row runs in a process of its own, from a .npy file of preprocessed images. The rows of entropy and mse watch the
tensors that ORT's calibrator watches; minmax is what int8(calibration=minmax) does, on all tensors that any target
quantizes and with channel means, beside what quantize_static does with CalibrationMethod.MinMax. Memory is the peak
resident set less that of a process which imports the libraries, loads the model and runs one sample. The second table
is of `onnxcomp optimize -p int8` as a user calls it, peak memory in all. CPU seconds are the fairer ones where the
machine is shared. Prints Markdown tables. Models and images come from ../shared beside the repository; --quick runs 64
images of resnet32 alone.
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
    ("mobilenet_v2_100_224_imagenet", 256, "onnxcomp", "minmax"),
    ("mobilenet_v2_100_224_imagenet", 256, "onnxruntime", "minmax"),
)
LONG_ROWS: tuple[tuple[str, int, str, str], ...] = (
    ("resnet20_cifar10", 4096, "onnxcomp", "entropy"),
    ("mobilenet_v2_100_224_imagenet", 1000, "onnxcomp", "entropy"),
)
# ORT keeps every activation of every sample: about this many bytes for one sample of each model.
ORT_NEEDS = {"resnet32_cifar10": 3e6, "mobilenet_v2_100_224_imagenet": 50e6}
# Its minmax calibrator keeps the extremes alone, but those of a batch of 32 come out with its activations.
ORT_BATCH = 32
WHOLE = ("resnet32_cifar10", 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="64 images of resnet32 alone")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--whole", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.whole:
        whole(arguments.whole)
        return
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
        print("\n| whole run | images | seconds | CPU seconds | peak MB |\n|---|--:|--:|--:|--:|")
        print(whole_run(WHOLE[0], 64 if arguments.quick else WHOLE[1], Path(folder)), flush=True)


def whole_run(name: str, count: int, folder: Path) -> str:
    """`onnxcomp optimize -p int8`, in a process of its own, which starts from the file of images."""
    data = folder / f"{name}-{count}.npy"
    if not data.exists():
        np.save(data, images(name, count))
    out = folder / f"{name}.int8.onnx"
    call = ["optimize", str(SHARED / "models" / f"{name}.onnx"), "-p", "int8", "--data", str(data), "-o", str(out)]
    result = started("--whole", *call)
    figures = f"{result['seconds']:.1f} | {result['cpu_seconds']:.1f} | {result['peak_mb']:.0f}"
    return f"| `onnxcomp optimize -p int8` of {name} | {count} | {figures} |"


def whole(call: list[str]) -> None:
    """Run the command line in this process, measured from before its imports."""
    start, cpu = time.perf_counter(), time.process_time()
    from onnxcomp.cli.main import main as onnxcomp

    try:
        onnxcomp(call)
    except SystemExit as stop:
        if stop.code:
            raise
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    print("\n" + json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak_mb()}))


def row(name: str, count: int, tool: str, method: str, folder: Path) -> str:
    label = f"| {name} | {count} | {tool} {method} |"
    free = available_bytes()
    needed = ORT_NEEDS.get(name, 0) * (2 * ORT_BATCH if method == "minmax" else count)
    if tool == "onnxruntime" and free < 1.2 * needed:
        return f"{label} | - | - | - | needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} are free |"
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
    return started("--child", str(model), str(data), tool, method)


def started(*arguments: str) -> dict[str, Any]:
    """Run this file in a process of its own; what its last line says."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}: {done.stderr.strip()}")
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
    ours = tool == "onnxcomp" and method == "minmax"
    plan = int8_plan(model) if ours else None
    tensors = watched(path)
    first = feeds.first()
    start, cpu = time.perf_counter(), time.process_time()
    if tool == "none":
        from onnxcomp.runtime.session import open_session, run

        run(open_session(model), first)
    elif plan is not None:
        from onnxcomp.contract import Context
        from onnxcomp.quantize.observe import observe
        from onnxcomp.targets.target import load_target

        context = Context(load_target("ort-x86"), Path(data).parent, data=feeds)
        tensors = list(observe(model, plan, context, extremes=True).histograms)
    elif tool == "onnxcomp":
        collect_ranges(model, tensors, feeds, cast("Method", method))
    else:
        collect_with_ort(calibrate, path, data, feeds, method)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    result = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak_mb(), "tensors": len(tensors)}
    print(json.dumps(result))


def int8_plan(model: Any) -> Any:
    """Where int8 quantizes the model for ort-x86."""
    from onnxcomp.graph.fold import fold
    from onnxcomp.quantize.fusing import Placement
    from onnxcomp.targets.target import load_target

    fold(model)
    scheme = load_target("ort-x86").scheme
    assert scheme is not None
    return Placement(model, scheme, lambda node: None).of(model)


def watched(path: str) -> list[str]:
    """Return the tensors that ORT's calibrator watches when it quantizes every operator it can."""
    from onnxruntime.quantization.calibrate import CalibraterBase
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    base = CalibraterBase(path, list({*QDQRegistry, *QLinearOpsRegistry}))
    names, _ = base.select_tensors_to_calibrate(onnx.load(path))
    return sorted(names)


def collect_with_ort(calibrate: Any, path: str, data: str, feeds: Any, method: str) -> None:
    class Reader(calibrate.CalibrationDataReader):  # type: ignore[misc]
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
            calibrate_method=calibrate.CalibrationMethod["MinMax" if method == "minmax" else "Entropy"],
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
