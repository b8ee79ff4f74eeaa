"""What decompositions do to real models without training: one allocator against each form alone, data against weights.

usage: decompose.py TABLE [--work DIR] [--plot FILE.svg]

TABLE is one of
  targets   decompose at several targets, with int8 behind, on VGG16 and ResNets
  forms     every form alone with a uniform ratio against the allocator, at equal MACs; --plot draws the points
  data      the same forms and ranks fitted to data and to weights
  ratios    Tucker-2 and decompose at the parameter ratios at which VBMF ranks without data collapse plain networks

Every file is compiled as a user would, on unlabelled training images (2,048 for VGG16, 512 for the others; 256 for
ImageNet models), and judged on other images (4,948 of CIFAR-10, 650 of ImageNet) and by interleaved timing against the
fp32 original at batch 1 on one thread. Prints Markdown. Models and images come from ../shared beside the repository;
files are kept in DIR and reused.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from real import images, model_file

import onnxcomp
from onnxcomp.cost import model_cost
from onnxcomp.data import open_feeds
from onnxcomp.evaluate import Quality, evaluate
from onnxcomp.runtime.timing import Speedup, paired

VGG, RESNETS = "vgg16_cifar10", ("resnet20_cifar10", "resnet32_cifar10")
MOBILE = ("mobilenet_v2_100_224_imagenet", "squeezenet1_1_imagenet")
TARGETS = [
    *((VGG, p) for p in ("decompose(macs=0.333)", "decompose(macs=0.2)", "decompose(macs=0.125)")),
    (VGG, "decompose(macs=0.125),int8"),
    (VGG, "decompose(speedup=4)"),
    *((m, p) for m in RESNETS for p in ("decompose(macs=0.714)", "decompose(macs=0.714),int8", "decompose")),
    *((m, "decompose") for m in MOBILE),
]
FORMS = ("tucker2", "spatial", "channel", "depthwise", "cp", "structured")
SHARES = {VGG: (0.45, 0.25, 0.125), RESNETS[1]: (0.8, 0.7, 0.6)}
RATIOS = (1.04, 1.11, 1.18, 1.81)


@dataclass(frozen=True)
class Judged:
    """A written file against the original."""

    macs: float
    bytes: float
    quality: Quality
    speed: Speedup
    seconds: str
    megabytes: str

    def cells(self) -> str:
        speed = f"{self.speed.ratio:.2f} ({self.speed.low:.2f} to {self.speed.high:.2f})"
        drop = f"{self.quality.drop_points:.2f} ({self.quality.drop_low:.2f})"
        decibels = min(self.quality.sqnr.values())
        return f"1/{self.macs:.2f} | 1/{self.bytes:.2f} | {drop} | {decibels:.1f} | {speed} | {self.seconds} | {self.megabytes}"


HEAD = "MACs | bytes | top-1 drop (95 % lower bound) | SQNR dB | speed-up (95 %) | s | peak MB"


class Bench:
    """Compiles in a process of its own, so that seconds and memory are those of the run, and judges."""

    def __init__(self, work: Path) -> None:
        self._work = work

    def judge(self, model: str, pipeline: str, objective: str = "latency", recipe: str = "") -> Judged:
        path = model_file(model, self._work)
        name = re.sub(r"\W+", "-", f"{model}.{pipeline}.{objective}.{recipe}")[:120]
        out, log = self._work / f"{name}.onnx", self._work / f"{name}.log"
        if not out.exists():
            code = f"import decompose; decompose.compile_one({model!r}, {pipeline!r}, {objective!r}, {str(out)!r}, {recipe!r})"
            done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            log.write_text(done.stdout)
        original, result = onnxcomp.load(path), onnxcomp.load(out)
        inputs, x, y = images(model, "eval", 10**9)
        quality = evaluate(result, open_feeds({inputs: x, "labels": y}, original), original)
        speed = paired(path, out, {inputs: x[:1]}, rounds=300, budget_s=12)
        before, after = model_cost(original), model_cost(result)
        seconds, megabytes = log.read_text().split()[-2:]
        macs = (before.macs or 0) / (after.macs or 1)
        return Judged(macs, path.stat().st_size / out.stat().st_size, quality, speed, seconds, megabytes)


def compile_one(model: str, pipeline: str, objective: str, out: str, recipe: str) -> None:
    """Compile and print seconds and peak megabytes."""
    path = model_file(model, Path(out).parent)
    count = 2048 if model == VGG else 256 if "imagenet" in model else 512
    name, x, _ = images(model, "train", count)
    start = time.perf_counter()
    overrides = [onnxcomp.load_layers(recipe)] if recipe else ()
    onnxcomp.optimize(path, pipeline, data={name: x}, objective=objective, overrides=overrides).save(out)
    print(f"{time.perf_counter() - start:.0f} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}")


def targets(bench: Bench) -> Iterator[str]:
    yield f"| model | pipeline | {HEAD} |\n|---|---|--:|--:|--:|--:|--:|--:|--:|"
    for model, pipeline in TARGETS:
        yield f"| {model} | `{pipeline}` | {bench.judge(model, pipeline).cells()} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["targets", "forms", "data", "ratios"])
    parser.add_argument("--work", type=Path, help="keep the compressed files here")
    parser.add_argument("--plot", type=Path, help="SVG of the table `forms`")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        for line in {"targets": targets}[arguments.table](Bench(work)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
