"""int8 side by side with onnxruntime.quantization, nncf and nvidia-modelopt, in one run, on the models of ../shared.

    python benchmarks/int8_vs_peers.py --nncf PYTHON --modelopt PYTHON [--work DIR] [--models NAME ...] [--kinds K ...]

All calibrate on the same training images and are judged on the evaluation images: file size, SQNR of the worst output
against the original, top-1 drop with its paired 95 % interval, latency at batch 1 on one thread with all files
interleaved, and how many Convs onnxruntime fuses. PYTHON is an interpreter with that peer installed (see peers.py);
a peer without one is named as missing. Each tool runs in a process of its own; its files are kept in DIR and used
again. A kind whose activations would not fit --memory calibrates on fewer images, which is said. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from common import Array, outputs, session, speedups, sqnr, top1
from peers import DEFAULT, KINDS, tool_of
from real import images, model_file
from scenes import SCENES, scenes

from onnxcomp.errors import ModelError
from onnxcomp.runtime.session import open_session

CIFAR = ("resnet20_cifar10", "resnet32_cifar10", "vgg16_cifar10", "resnet8_cifar10", "vit_pgd_2_3_16_cifar10")
IMAGENET = ("squeezenet1_1_imagenet", "mobilenet_v2_100_224_imagenet", "mobilenet_v1_050_160_imagenet")
COUNTS = {**dict.fromkeys(CIFAR, 512), **dict.fromkeys(IMAGENET, 256), **{m: s[-1] for m, s in SCENES.items()}}
HELD_OUT = 64  # images of a model without labels
_PER_CHANNEL = 13
# Histogram calibrators of ORT hold every activation of every image, and a copy.
_HOARDERS = ("ort-percentile", "ort-entropy")


@dataclass(frozen=True)
class Made:
    """One quantized file: where it is, on how many images it was calibrated, and what that cost."""

    path: Path
    count: int
    seconds: float
    peak_mb: float
    version: str


def make(kind: str, python: str, source: Path, folder: Path, calibration: Path, count: int) -> Made | str:
    """Quantize in a process of its own, or take a peer's file of an earlier run; the last error line if that failed."""
    word = "".join(c if c.isalnum() or c in "-_=." else "_" for c in kind)
    out = folder / f"{source.stem}.{word}.{count}.onnx"
    note = out.with_suffix(".json")
    if kind not in KINDS or not (out.exists() and note.exists()):
        worker = str(Path(__file__).with_name("peers.py"))
        call = [python, worker, kind, str(source), str(out), str(calibration), str(count)]
        done = subprocess.run(call, capture_output=True, text=True)
        if done.returncode:
            return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:160]
        note.write_text(done.stdout.splitlines()[-1])
    facts = json.loads(note.read_text())
    return Made(out, count, facts["seconds"], facts["peak_mb"], facts.get("version", ""))


def feeds(model: str, split: str, folder: Path, count: int) -> tuple[Path, str, Array, Array | None]:
    """The inputs of a model, also as a file: path, input name, images, labels."""
    labels = None
    if model in SCENES:
        name, pictures = scenes(model, split, count)
    else:
        name, pictures, labels = images(model, split, count)
    path = folder / f"{model}.{split}.{count}.npz"
    if not path.exists():
        np.savez(path, **({name: pictures} if labels is None else {name: pictures, "labels": labels}))
    return path, name, pictures, labels


def fused(path: Path) -> str:
    """Convs and products with an integer kernel, of all."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder) / "optimized.onnx"
        session(path, dump)
        nodes = [node.op_type for node in onnx.load(dump).graph.node]
    integer = sum(op in ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat") for op in nodes)
    return f"{integer}/{integer + sum(op in ('Conv', 'FusedConv', 'Gemm', 'MatMul', 'FusedMatMul') for op in nodes)}"


def activations_mb(path: Path, name: str, image: Array) -> float:
    """Megabytes of all float tensors that one sample makes."""
    import onnx

    model = onnx.load(path)
    del model.graph.output[1:]
    seen = {value.name for value in model.graph.output}
    names = [n for node in model.graph.node for n in node.output if n and n not in seen]
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    current = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return float(sum(v.nbytes for v in current.run(None, {name: image}) if v.dtype == np.float32)) / 2**20


def affordable(kind: str, source: Path, name: str, image: Array, count: int, memory: float) -> int:
    if kind not in _HOARDERS:
        return count
    fits = int(memory / (2 * activations_mb(source, name, image)))
    return count if fits >= count else max(16, fits // 32 * 32)


def for_peers(source: Path, folder: Path) -> Path:
    """The model with opset 17 where its own is older than per-channel scales, as the peers' manuals ask for."""
    import onnx
    from onnx import version_converter

    model = onnx.load(source)
    if next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")) >= _PER_CHANNEL:
        return source
    raised = folder / f"{source.stem}.opset17.onnx"
    if not raised.exists():
        constants = {value.name for value in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in constants]
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        model.ir_version = max(model.ir_version, 8)
        onnx.save(version_converter.convert_version(model, 17), raised)
    return raised


def loads(path: Path) -> str | None:
    """Why onnxruntime does not load a file; None where it does."""
    try:
        open_session(path)
    except ModelError as error:
        return str(error).splitlines()[0][:160]
    return None


def compare(model: str, folder: Path, kinds: dict[str, str], arguments: argparse.Namespace) -> None:
    source = model_file(model, folder)
    count = arguments.count or COUNTS[model]
    calibration, _, _, _ = feeds(model, "train", folder, count)
    _, name, pictures, labels = feeds(model, "eval", folder, HELD_OUT if model in SCENES else 10**6)
    made: dict[str, Made] = {}
    for kind, python in kinds.items():
        own = affordable(kind, source, name, pictures[:1], count, arguments.memory)
        given = for_peers(source, folder) if kind in KINDS else source
        result = make(kind, python, given, folder, calibration, own)
        if isinstance(result, Made) and (problem := loads(result.path)) is not None:
            result = f"onnxruntime does not load its file: {problem}"
        if isinstance(result, str):
            print(f"| {model} | {kind} | failed: {result} | | | | | | | | |", flush=True)
        else:
            made[kind] = result
    sessions = [session(source), *(session(m.path) for m in made.values())]
    timed = speedups(sessions, name, pictures[:1], arguments.seconds)
    base = outputs(sessions[0], name, pictures)
    accuracy, _ = top1(base, base, labels)
    print(f"| {model} | original | | {source.stat().st_size / 1024:.1f} | | {accuracy} | | 1.00 | | | |")
    for (kind, m), current, ratio in zip(made.items(), sessions[1:], timed[1:], strict=True):
        own = outputs(current, name, pictures)
        accuracy, drop = top1(base, own, labels)
        print(
            f"| {model} | {kind} | {m.count} | {m.path.stat().st_size / 1024:.1f} | {sqnr(base, own):.2f} "
            f"| {accuracy} | {drop} | {ratio} | {fused(m.path)} | {m.seconds:.1f} | {m.peak_mb:.0f} |",
            flush=True,
        )


def available(arguments: argparse.Namespace) -> dict[str, str]:
    """Kind to interpreter; peers without one are named."""
    pythons = {"ort": sys.executable, "nncf": arguments.nncf, "modelopt": arguments.modelopt}
    asked = {tool_of(kind) for kind in arguments.kinds}
    missing = [tool for tool, python in pythons.items() if python is None and tool in asked]
    for tool in missing:
        print(f"{tool} is missing: give --{tool} PYTHON (an interpreter that has it) to compare with it\n")
    peers = {kind: pythons[tool_of(kind)] for kind in arguments.kinds if tool_of(kind) not in missing}
    return peers | dict.fromkeys(arguments.ours, sys.executable)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nncf", help="interpreter with nncf, onnx and onnxruntime")
    parser.add_argument("--modelopt", help='interpreter with "nvidia-modelopt[onnx]"')
    parser.add_argument("--work", type=Path, help="folder for feeds and quantized files; default: a temporary one")
    parser.add_argument("--models", nargs="+", choices=list(COUNTS), default=list(COUNTS))
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(DEFAULT))
    parser.add_argument("--ours", nargs="*", default=["int8"], help="pipelines of onnxcomp")
    parser.add_argument("--count", type=int, help="calibration images; default: by model")
    parser.add_argument("--memory", type=float, default=16384, help="MB that ORT's histogram calibrators may take")
    parser.add_argument("--seconds", type=float, default=30, help="of timing, a model")
    arguments = parser.parse_args()
    kinds = available(arguments)
    print(
        "| model | quantizer | images | KB | SQNR dB | top-1 % | drop (95 %) | speed-up (95 %) | fused | s | peak MB |"
    )
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.work or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for model in arguments.models:
            compare(model, folder, kinds, arguments)


if __name__ == "__main__":
    main()
