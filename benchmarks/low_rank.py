"""What Tucker-2 chains do to VGG16 (CIFAR-10) without training: weights-only against data-aware.

usage: low_rank.py [--work DIR] [--images N] [--only TEXT]

Every pipeline is compiled as a user would, on N unlabelled training images (default 2,048), and the written file is
judged on 4,948 test images and by interleaved timing against the fp32 original at batch 1 on one thread. Prints a
Markdown table. Models and images come from ../shared beside the repository; files are kept in DIR and reused.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
from real import images, model_file

import onnxcomp
from onnxcomp.data import open_feeds
from onnxcomp.evaluate import evaluate
from onnxcomp.graph.sites import is_default_domain
from onnxcomp.runtime.timing import paired

MODEL = "vgg16_cifar10"
PIPELINES = (
    "int8",
    "tucker2(keep=0.33, fit=weights)",
    "tucker2(keep=0.33)",
    "tucker2(keep=0.33),int8",
    "tucker2(rank=vbmf, fit=weights)",
    "tucker2(rank=vbmf)",
    "tucker2(rank=vbmf),int8",
    "tucker2,int8",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="keep the compressed files here")
    parser.add_argument("--images", type=int, default=2048, help="unlabelled training images")
    parser.add_argument("--only", default="", help="only pipelines that contain this text")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        report(work, arguments.images, [p for p in PIPELINES if arguments.only in p])


def report(work: Path, count: int, pipelines: list[str]) -> None:
    path = model_file(MODEL, work)
    original = onnxcomp.load(path)
    name, x, y = images(MODEL, "eval", 10**9)
    scored = open_feeds({name: x, "labels": y}, original)
    data = images(MODEL, "train", count)[1]
    top1 = evaluate(original, scored).top1 or 0.0
    kilobytes = path.stat().st_size / 1024
    print(f"{MODEL}: top-1 {100 * top1:.2f} %, {kilobytes:,.0f} KB, {conv_weights(original):,} convolution weights\n")
    print("| pipeline | top-1 drop (95 % lower bound) | convolution weights | file KB | of original ", end="")
    print("| speed-up (95 %) | compiled in |\n|---|--:|--:|--:|--:|--:|--:|")
    for pipeline in pipelines:
        out = work / f"{MODEL}.{count}.{''.join(c if c.isalnum() else '-' for c in pipeline)}.onnx"
        seconds = compiled(path, pipeline, {name: data}, out)
        model = onnxcomp.load(out)
        quality = evaluate(model, scored, original)
        speed = paired(path, out, {name: x[:1]}, rounds=400, budget_s=20)
        print(
            f"| `{pipeline}` | {quality.drop_points:.2f} ({quality.drop_low:.2f}) "
            f"| 1/{conv_weights(original) / conv_weights(model):.1f} | {out.stat().st_size / 1024:,.0f} "
            f"| 1/{path.stat().st_size / out.stat().st_size:.1f} "
            f"| {speed.ratio:.2f} ({speed.low:.2f} to {speed.high:.2f}) "
            f"| {'-' if seconds is None else f'{seconds:.0f} s'} |",
            flush=True,
        )


def compiled(path: Path, pipeline: str, data: dict[str, np.ndarray], out: Path) -> float | None:
    """Compile unless the file is there already; return the seconds it took."""
    if out.exists():
        return None
    start = time.perf_counter()
    onnxcomp.optimize(path, pipeline, data=data).save(out)
    return time.perf_counter() - start


def conv_weights(model: ir.Model) -> int:
    """Number of weights of all convolutions, seen through DequantizeLinear."""
    total = 0
    for node in model.graph:
        if is_default_domain(node, "Conv"):
            value = node.inputs[1]
            while value is not None and value.const_value is None and value.producer() is not None:
                value = value.producer().inputs[0]
            total += 0 if value is None or value.const_value is None else value.const_value.size
    return total


if __name__ == "__main__":
    main()
