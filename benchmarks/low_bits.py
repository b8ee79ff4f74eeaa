"""What weights of fewer bits cost: int8(weight_bits=...) on five models, and the weight-only passes on resnet20.

    python benchmarks/low_bits.py [--work DIR] [--models NAME ...] [--pipelines P ...] [--seconds S]

Every pipeline is compiled as a user would, on the same training images (512 of CIFAR-10, 256 of ImageNet), and its file
is judged on the evaluation images: bytes, top-1 drop with its paired 95 % interval, SQNR of the worst output against
the original. Latency is at batch 1 on one thread, all files of a model interleaved: over plain int8 for files with
integer arithmetic, over the fp32 original for the others. Files are kept in DIR and used again. Prints Markdown. Models
and images come from ../shared beside the repository.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import Array, outputs, session, speedups, sqnr, top1
from real import images, model_file

import onnxcomp

INT8 = "int8"
NARROW = (INT8, "int8(weight_bits=4)", "int8(weight_bits=3)", "int8(weight_bits=2)")
WEIGHT_ONLY = ("fp16", "int4", "int4(block=32)", "int3", "pow2", "ternary", "binary")
COUNTS = {
    "resnet20_cifar10": 512,
    "resnet32_cifar10": 512,
    "vgg16_cifar10": 512,
    "mobilenet_v2_100_224_imagenet": 256,
    "mobilenet_v1_050_160_imagenet": 256,
}


def compiled(source: Path, pipeline: str, data: dict[str, Array], work: Path) -> Path:
    """The file of a pipeline, compiled unless it is there."""
    word = "".join(c if c.isalnum() else "-" for c in pipeline)
    out = work / f"{source.stem}.{word}.onnx"
    if not out.exists():
        onnxcomp.optimize(source, pipeline, data=data).save(out)
    return out


def compare(model: str, pipelines: list[str], work: Path, budget: float) -> None:
    """Print the rows of a model."""
    source = model_file(model, work)
    name, calibration, _ = images(model, "train", COUNTS[model])
    _, pictures, labels = images(model, "eval", 10**6)
    files = [source, *(compiled(source, p, {name: calibration}, work) for p in pipelines)]
    sessions = [session(path) for path in files]
    to_float = speedups(sessions, name, pictures[:1], budget)
    base = outputs(sessions[0], name, pictures)
    size = source.stat().st_size
    print(f"| {model} | original | {size:,} | 1 | {top1(base, base, labels)[0]} | | | | |", flush=True)
    # The rows of int8 are a comparison of their own, so that 3 % can be told.
    integer = [i for i, p in enumerate(pipelines, 1) if p.startswith(INT8)]
    plain = next((k for k, i in enumerate(integer) if pipelines[i - 1] == INT8), None)
    to_int8: dict[int, str] = {}
    if plain is not None and len(integer) > 1:
        ratios = speedups([sessions[i] for i in integer], name, pictures[:1], budget, base=plain)
        to_int8 = dict(zip(integer, ratios, strict=True))
    for i, pipeline in enumerate(pipelines, 1):
        own = outputs(sessions[i], name, pictures)
        accuracy, drop = top1(base, own, labels)
        bytes_ = files[i].stat().st_size
        print(
            f"| {model} | `{pipeline}` | {bytes_:,} | 1/{size / bytes_:.2f} | {accuracy} | {drop} "
            f"| {sqnr(base, own):.2f} | {to_int8.get(i, '')} | {to_float[i]} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for the compressed files; default: a temporary one")
    parser.add_argument("--models", nargs="+", choices=list(COUNTS), default=list(COUNTS))
    parser.add_argument("--pipelines", nargs="+", help="in place of the usual ones")
    parser.add_argument("--seconds", type=float, default=20, help="of each timing")
    arguments = parser.parse_args()
    print("| model | pipeline | bytes | of fp32 | top-1 % | drop (95 %) | SQNR dB | speed over int8 (95 %) ", end="")
    print("| speed over fp32 (95 %) |\n|---|---|--:|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        for model in arguments.models:
            usual = [*NARROW, *(WEIGHT_ONLY if model == "resnet20_cifar10" else ())]
            compare(model, arguments.pipelines or usual, work, arguments.seconds)


if __name__ == "__main__":
    main()
