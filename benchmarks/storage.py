"""What storing the weights of real models in codes, or with zeros among them, saves and costs, without training.

usage: storage.py TABLE [--work DIR] [--only TEXT] [--images N]

TABLE is one of
  cluster   templates for kernels: settings for convolution weights 4, 7 and 12 times smaller, and the plain form
  palettize tables of shared values, of single weights and of vectors, also with int8 behind
  sparsity  2:4 and single weights at zero, fitted to the data and by magnitude
  size      pack, and decompose before it, as small as a limit on the accuracy that is lost allows

Every file is compiled as a user would, under the objective `size` (with int8 behind: `latency`), on unlabelled training
images (2,048 for VGG16, 512 for the other CIFAR-10 models, 256 of ImageNet; a limit on the accuracy is judged on 4,096
labelled training images that come after them), and judged on other images (4,948 of CIFAR-10, 650 of ImageNet). Bytes
are those of the written file: of the fp32 weights of all convolutions over every constant that a weight is decoded
from, of the files, and of the files deflated. Times are interleaved with those of the fp32 original on one thread:
opening a session on the file's bytes, and running it at batch 1. Prints Markdown. Models and images come from ../shared
beside the repository; files are kept in DIR and used again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from judging import Bench, Job, Judged, told
from real import model_file
from weights import ConvWeights, conv_weights

from onnxcomp.contract import Objective
from onnxcomp.runtime.session import open_session
from onnxcomp.runtime.timing import interleaved

VGG, RESNETS = "vgg16_cifar10", ("resnet20_cifar10", "resnet32_cifar10")
RESNET8, MOBILENET = "resnet8_cifar10", "mobilenet_v2_100_224_imagenet"
SIZE: Objective = "size"

CLUSTERS = (
    *(f"cluster(bits={bits})" for bits in (12, 11, 10)),
    "cluster",
    *(f"cluster(bits={bits},coefficients=int4)" for bits in (10, 9)),
    "cluster(coefficients=fp32,assignment=correlation)",
    "cluster(coefficients=fp32,fit=weights)",
)
SPARSE = (
    "sparsity(pattern=2:4)",
    "sparsity(pattern=2:4,method=magnitude)",
    "sparsity(amount=0.5)",
    "sparsity(amount=0.5,method=magnitude)",
)
TABLES = {
    "cluster": [Job(model, pipeline, SIZE) for model in (*RESNETS, VGG) for pipeline in CLUSTERS],
    "palettize": [
        *(Job(model, "palettize(bits=4)", SIZE) for model in (*RESNETS, RESNET8, MOBILENET)),
        Job(RESNETS[0], "palettize(bits=4),int8"),
        Job(VGG, "palettize(bits=8,vector=4)", SIZE),
    ],
    "sparsity": [
        *(Job(model, pipeline, SIZE) for model in (*RESNETS, VGG) for pipeline in SPARSE),
        *(Job(VGG, f"sparsity(amount=0.8{method})", SIZE) for method in ("", ",method=magnitude")),
    ],
    "size": [
        Job(VGG, "pack", SIZE, max_drop=0.5),
        Job(VGG, "pack", SIZE, images=512, max_drop=0.5),
        Job(VGG, "decompose,pack", SIZE, max_drop=1.0),
    ],
}
COLUMNS = (
    "images, conv weights smaller by, file smaller by, zipped smaller by, points lost (95 %), SQNR dB, "
    "load ms (over the original's), speed-up (95 %), s, CPU s, peak MB"
)
_LOADS, _LOAD_SECONDS = 21, 20.0


def table(name: str, bench: Bench) -> Iterator[str]:
    """The rows of a table, then what the reports note."""
    sparse = name == "sparsity"
    texts = "model, pipeline, limit" if name == "size" else "model, pipeline"
    numbers = f"zeros, 2:4 Convs, {COLUMNS}" if sparse else COLUMNS
    columns = [*texts.split(", "), *numbers.split(", ")]
    yield f"| {' | '.join(columns)} |\n"
    yield f"|{'|'.join(['---'] * len(texts.split(', ')) + ['--:'] * len(numbers.split(', ')))}|\n"
    notes: list[str] = []
    for job in TABLES[name]:
        if not bench.wanted(job.model, job.pipeline):
            continue
        own, path = bench.judge(job), bench.compiled(job)
        weights = conv_weights(path)
        limit = [] if job.max_drop is None else [f"{job.max_drop} points"]
        counts = [f"{100 * weights.zeros:.1f} %", weights.two_of_four] if sparse else []
        cells = [job.model, f"`{job.pipeline}`", *limit, *counts, *_figures(bench, job, own, weights)]
        yield f"| {' | '.join(cells)} |\n"
        notes += told(job, own)
    yield "\n" + "".join(notes)


def _figures(bench: Bench, job: Job, own: Judged, weights: ConvWeights) -> list[str]:
    """What every table tells of a job."""
    source, path = model_file(job.model, bench.work), bench.compiled(job)
    return [
        f"{bench.count(job):,}",
        f"{_original(source) / weights.bytes:.2f}",
        f"{1 / own.bytes:.2f}",
        f"{_deflated(source) / _deflated(path):.2f}",
        own.drop,
        f"{own.decibels:.1f}",
        _loading(source, path),
        own.faster,
        f"{own.seconds:.0f}",
        f"{own.cpu:.0f}",
        f"{own.megabytes:,.0f}",
    ]


@cache
def _original(source: Path) -> int:
    """Bytes of the convolutions' weights in fp32."""
    return conv_weights(source).bytes


@cache
def _deflated(path: Path) -> int:
    return len(zlib.compress(path.read_bytes(), 6))


def _loading(source: Path, path: Path) -> str:
    """The median time to open a session on a file's bytes, and the median of its ratios to the original's."""
    kept = path.with_suffix(".load.json")
    if not kept.exists() or kept.stat().st_mtime < path.stat().st_mtime:
        contents = [file.read_bytes() for file in (source, path)]
        calls = [lambda content=content: _open(content) for content in contents]
        times = interleaved(calls, _LOADS, _LOAD_SECONDS, lambda done: False)
        kept.write_text(json.dumps([1e3 * float(np.median(times[1])), float(np.median(times[1] / times[0]))]))
    milliseconds, ratio = json.loads(kept.read_text())
    return f"{milliseconds:.1f} ({ratio:.2f})"


def _open(content: bytes) -> None:
    open_session(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("--work", type=Path, help="keep files, outputs and timings here")
    parser.add_argument("--only", default="", help="only rows whose model or pipeline has this text")
    parser.add_argument("--images", type=int, help="calibration images in place of the usual number, for a quick look")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        for text in table(arguments.table, Bench(work, arguments.images, arguments.only)):
            print(text, end="", flush=True)


if __name__ == "__main__":
    main()
