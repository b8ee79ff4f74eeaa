"""int8 side by side with onnxruntime.quantization.quantize_static, in one run, on the models and images of ../shared.

    python benchmarks/int8_vs_ort.py [--work DIR] [--models NAME ...] [--count N]

Both calibrate on the same training images and are judged on the evaluation images: file size, SQNR of the outputs
against the original, top-1, and latency at batch 1 on one thread, all files interleaved. ORT runs QDQ, per-channel,
uint8 x int8, after quant_pre_process, each calibrator in a process of its own (it keeps all activations: GBs). Its
files are kept in DIR and used again. Prints a Markdown table. Linux only (peak memory).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

SHARED = Path(__file__).resolve().parents[2] / "shared"
COUNTS = {
    "resnet20_cifar10": 512,
    "resnet32_cifar10": 512,
    "mobilenet_v2_100_224_imagenet": 256,
    "squeezenet1_1_imagenet": 256,
}
CALIBRATORS = ("minmax", "percentile", "entropy")
Array = NDArray[Any]


def quantize_ort(source: Path, out: Path, calibration: Path, method: str, count: int) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    methods = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
    name, images, _ = read(calibration)
    batches = iter([{name: images[i : i + 32]} for i in range(0, min(count, len(images)), 32)])

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Array] | None:
            return next(batches, None)

    prepared = out.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared))
    quantize_static(
        str(prepared),
        str(out),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[methods[method]],
    )


def quantize_ours(source: Path, out: Path, calibration: Path, count: int) -> None:
    from onnxcomp import modelio
    from onnxcomp.contract import Context
    from onnxcomp.data import open_feeds
    from onnxcomp.graph.fold import fold
    from onnxcomp.passes.int8 import Int8
    from onnxcomp.targets.target import load_target

    model = modelio.load(source)
    fold(model)
    feeds = open_feeds(calibration, model)
    context = Context(target=load_target("ort-x86"), workdir=out.parent, data=feeds)
    Int8(samples=count).run(model, context)
    modelio.save(model, out)


def make(kind: str, source: Path, out: Path, calibration: Path, count: int) -> dict[str, Any]:
    """Quantize in a process of its own and return its seconds and peak memory; ORT's result is cached."""
    note = out.with_suffix(".json")
    if kind == "onnxcomp" or not (out.exists() and note.exists()):
        arguments = ["--one", kind, str(source), str(out), str(calibration), str(count)]
        done = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
        note.write_text(done.stdout.splitlines()[-1])
    result: dict[str, Any] = json.loads(note.read_text())
    return result


def one(kind: str, source: str, out: str, calibration: str, count: str) -> None:
    start = time.perf_counter()
    if kind == "onnxcomp":
        quantize_ours(Path(source), Path(out), Path(calibration), int(count))
    else:
        quantize_ort(Path(source), Path(out), Path(calibration), kind, int(count))
    # Not getrusage: after a fork its maximum starts at the parent's.
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(json.dumps({"seconds": time.perf_counter() - start, "peak_mb": peak}))


def feeds(model: str, split: str, folder: Path, count: int | None = None) -> Path:
    path = folder / f"{model}.{split}.{count or 'all'}.npz"
    if not path.exists():
        limit = ["--count", str(count)] if count else []
        loader = [sys.executable, str(SHARED / "data" / "feeds.py"), model, split, str(path), *limit]
        subprocess.run(loader, check=True, capture_output=True)
    return path


def read(path: Path) -> tuple[str, Array, Array]:
    with np.load(path) as data:
        name = next(key for key in data.files if key != "labels")
        return name, data[name], data["labels"]


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def latency_ratios(sessions: list[ort.InferenceSession], name: str, image: Array, rounds: int) -> list[float]:
    """Original's time / each file's time: the median over interleaved rounds."""
    repeats = 5 if image.shape[-1] < 64 else 1
    times = np.zeros((len(sessions), rounds))
    for r in range(-3, rounds):
        for k, current in enumerate(sessions):
            start = time.perf_counter()
            for _ in range(repeats):
                current.run(None, {name: image})
            if r >= 0:
                times[k, r] = time.perf_counter() - start
    return [float(np.median(times[0] / row)) for row in times]


def outputs(current: ort.InferenceSession, name: str, images: Array) -> Array:
    step = 250 if images.shape[-1] < 64 else 25
    parts = [current.run(None, {name: images[i : i + step]})[0] for i in range(0, len(images), step)]
    return np.concatenate([p.reshape(len(p), -1) for p in parts])


def compare(model: str, folder: Path, count: int, rounds: int) -> None:
    source = SHARED / "models" / f"{model}.onnx"
    calibration, test = feeds(model, "train", folder, count), feeds(model, "eval", folder)
    made = {}
    files = {"original": source}
    for kind in (*CALIBRATORS, "onnxcomp"):
        files[kind] = folder / f"{model}.{kind}.{count}.onnx"
        made[kind] = make(kind, source, files[kind], calibration, count)
    name, images, labels = read(test)
    sessions = {kind: session(path) for kind, path in files.items()}
    ratios = dict(zip(sessions, latency_ratios(list(sessions.values()), name, images[:1], rounds), strict=True))
    base = outputs(sessions["original"], name, images)
    top1 = float((base.argmax(1) == labels).mean())
    print(f"| {model} | original | {source.stat().st_size / 1024:.0f} | | {100 * top1:.2f} | | 1.00 | | |")
    for kind in made:
        result = outputs(sessions[kind], name, images)
        sqnr = 10 * np.log10(np.square(base).sum() / np.square(result - base).sum())
        accuracy = float((result.argmax(1) == labels).mean())
        print(
            f"| {model} | {kind if kind == 'onnxcomp' else 'ORT ' + kind} | {files[kind].stat().st_size / 1024:.1f} "
            f"| {sqnr:.2f} | {100 * accuracy:.2f} | {100 * (top1 - accuracy):.2f} | {ratios[kind]:.2f} "
            f"| {made[kind]['seconds']:.1f} | {made[kind]['peak_mb']:.0f} |",
            flush=True,
        )


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:7])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for feeds and quantized files; default: a temporary one")
    parser.add_argument("--models", nargs="+", choices=list(COUNTS), default=list(COUNTS))
    parser.add_argument("--count", type=int, help="calibration images; default: 512 (CIFAR-10), 256 (ImageNet)")
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    print("| model | quantizer | KB | SQNR dB | top-1 % | drop | speed-up | s | peak MB |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for model in arguments.models:
            compare(model, folder, arguments.count or COUNTS[model], arguments.rounds)


if __name__ == "__main__":
    main()
