"""What removing channels does to real models without training, by criterion and side by side with onnxsim.

usage: pruning.py TABLE [--work DIR] [--onnxsim PYTHON] [--only TEXT] [--images N]

TABLE is one of
  targets   what was asked of pruning, alone and with low-rank and int8 behind, and what is reached
  criteria  the ways to choose channels, each at the same share of every group, with what is left fitted or not
  onnxsim   onnxsim's channel pruning, and prune at the MACs that are left in onnxsim's file

Every file is compiled as a user would, on unlabelled training images (2,048 for VGG16 and 512 for the others, except
that `onnxsim` gives both tools the same 512, 256 of ImageNet or the photographs of scenes.py), and judged on other
images (4,948 of CIFAR-10, 650 of ImageNet; 32 photographs by SQNR alone) and, for `targets`, by interleaved timing
against the fp32 original at batch 1 on one thread. MACs are of Conv, ConvTranspose, Gemm and MatMul with constant
weights, counted in the written file. PYTHON is an interpreter that has onnxsim (see onnxsim_channels.py), which runs in
a process of its own. Prints Markdown. Models and images come from ../shared beside the repository; files are kept in
DIR and used again.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx
import onnx_ir as ir
from judging import Bench, Job, Judged, points, told
from onnxsim_channels import METHODS
from onnxsim_peer import peer_of
from real import model_file

from onnxcomp.cost import model_cost

RESNET20, RESNET32, VGG = "resnet20_cifar10", "resnet32_cifar10", "vgg16_cifar10"
SQUEEZENET, MOBILENET = "squeezenet1_1_imagenet", "mobilenet_v2_100_224_imagenet"
SCENES = ("unet_sed", "deeplabv3_mnv2_dm05_pascal", "fastestdet_coco", "yolox_nano_coco", "ultraface_rfb320")


@dataclass(frozen=True)
class Target:
    """What is asked of a job: a factor of one kind, at most so many points of top-1 lost; "" asks nothing."""

    job: Job
    kind: str = ""
    factor: float = 1.0
    points: float = math.inf

    @property
    def asked(self) -> str:
        return f"{self.kind} {self.factor:g} at {self.points:g}" if self.kind else ""

    def reached(self, own: Judged) -> str:
        """Whether it is; within the interval where the points lost may be as few as asked."""
        if not self.kind:
            return ""
        speed = own.speed.ratio if own.speed else math.nan
        found = {"speed-up": speed, "MACs": 1 / own.macs, "speed-up and bytes": min(speed, 1 / own.bytes)}[self.kind]
        held = own.lost <= self.points or (own.lost - own.half <= self.points and "within the interval")
        # Shares are met by whole channels, so that a target may be missed by a thousandth.
        return (held if isinstance(held, str) else "yes") if held and found > self.factor - 0.005 else "no"


TARGETS = (
    Target(Job(VGG, "prune(speedup=2)"), "speed-up", 2, 0.3),
    Target(Job(VGG, "prune(speedup=2.3)"), "speed-up", 2, 0.3),
    Target(Job(VGG, "prune(macs=0.5)", "macs")),
    Target(Job(VGG, "int8")),
    *(
        Target(Job(VGG, f"{before},int8"), "speed-up and bytes", 14, 1.3)
        for before in ("prune(macs=0.25)", "decompose(macs=0.2)", "decompose(macs=0.125)", "compress(macs=0.125)")
    ),
    Target(Job(RESNET32, "prune(macs=0.714)", "macs"), "MACs", 1.4, 1.0),
    Target(Job(RESNET32, "compress(macs=0.714)", "macs"), "MACs", 1.4, 1.0),
    *(
        Target(Job(model, f"{name}(speedup={factor})", images=512), "speed-up", factor, points)
        for model, factor, points in ((SQUEEZENET, 1.3, 2.0), (MOBILENET, 1.15, 1.5))
        for name in ("prune", "compress")
    ),
)
# The first row is what the others are compared with.
CRITERIA = ("criterion=l1,fit=weights", *(f"criterion={c}" for c in ("l1", "l2", "taylor", "thinet", "he", "obs")))
# Shares of the channels of every group; about 0.7 leaves half of the MACs.
KEPT = ("0.7", "0.5")
SHARES = {
    RESNET20: ("0.1", "0.2", "0.3"),
    RESNET32: ("0.1", "0.2", "0.3"),
    VGG: ("0.1", "0.2", "0.3"),
    SQUEEZENET: ("0.1", "0.2"),
    MOBILENET: ("0.05", "0.1"),
    **dict.fromkeys(SCENES, ("0.1", "0.2")),
}
PEER_METHODS = ("l2", "wanda", "wanda-global")


def targets(bench: Bench, _: str | None) -> Iterator[str]:
    yield from _head(
        "model, pipeline, asked",
        "images, layers, MACs, bytes, points lost (95 %), SQNR dB, speed-up (95 %), reached, s, CPU s, peak MB",
    )
    notes: list[str] = []
    for target in TARGETS:
        job = target.job
        if bench.wanted(job.model, job.pipeline):
            own = bench.judge(job)
            figures = (f"{bench.count(job):,}", own.layers, own.work, f"1/{1 / own.bytes:.2f}", own.drop)
            timed = (f"{own.decibels:.1f}", own.faster, target.reached(own))
            yield _row(job.model, f"`{job.pipeline}`", target.asked, *figures, *timed, *_spent(own))
            notes += told(job, own)
    yield "\n" + "".join(notes)


def criteria(bench: Bench, _: str | None) -> Iterator[str]:
    yield from _head(
        "model, pipeline",
        "MACs, bytes, points lost (95 %), points over the first row, SQNR dB, s, CPU s, peak MB",
    )
    for model in (RESNET32, VGG):
        for keep in KEPT:
            base: Judged | None = None
            for criterion in CRITERIA:
                job = Job(model, f"prune(keep={keep},{criterion})", "macs")
                if bench.wanted(model, job.pipeline):
                    own = bench.judge(job, timed=False)
                    base = base or own
                    gained = f"{base.lost - own.lost:.2f}"
                    cells = (own.work, f"1/{1 / own.bytes:.2f}", own.drop, gained, f"{own.decibels:.1f}")
                    yield _row(model, f"`{job.pipeline}`", *cells, *_spent(own))


def onnxsim(bench: Bench, python: str | None) -> Iterator[str]:
    if python is None:
        sys.exit("the table onnxsim needs --onnxsim PYTHON, an interpreter that has it")
    yield from _head(
        "model, onnxsim, share, own",
        "MACs, own MACs, points lost (95 %), own points lost (95 %), SQNR dB, own SQNR dB",
    )
    for model, shares in SHARES.items():
        source = model_file(model, bench.work)
        count = min(512, Job(model, "").count)
        peer = peer_of(python, model, bench.work, count, "onnxsim_channels.py")
        for method in PEER_METHODS:
            assert method in METHODS
            for share in shares:
                if bench.wanted(model, f"{method} {share}"):
                    path, _ = peer.pruned(method, share, source, bench.work)
                    yield _beside(bench, model, method, share, path)


def _beside(bench: Bench, model: str, method: str, share: str, path: Path) -> str:
    """onnxsim's file and a run of prune that leaves no more MACs."""
    left = _macs(path) / _macs(model_file(model, bench.work))
    lost, half, decibels = bench.accuracy(model, path)
    if left == 1:
        return _row(model, method, share, "", "nothing is removed", *[""] * 5)
    job = Job(model, f"prune(macs={math.floor(1000 * left) / 1000:g})", "macs", images=min(512, Job(model, "").count))
    own = bench.judge(job, timed=False)
    lines = (f"1/{1 / left:.2f}", own.work, points(lost, half), own.drop, f"{decibels:.1f}", f"{own.decibels:.1f}")
    return _row(model, method, share, f"`{job.pipeline}`", *lines)


@cache
def _macs(path: Path) -> int:
    # onnxsim leaves out the shapes of what it changes.
    model = onnx.load(path)
    del model.graph.value_info[:]
    macs = model_cost(ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))).macs
    assert macs is not None, f"{path.name}: the MACs are not known"
    return macs


def _spent(own: Judged) -> tuple[str, str, str]:
    return f"{own.seconds:.0f}", f"{own.cpu:.0f}", f"{own.megabytes:,.0f}"


def _head(texts: str, numbers: str) -> Iterator[str]:
    """The two lines above a table; columns of numbers stand to the right."""
    words, figures = texts.split(", "), numbers.split(", ")
    yield _row(*words, *figures)
    yield f"|{'|'.join(['---'] * len(words) + ['--:'] * len(figures))}|\n"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


TABLES: dict[str, Callable[[Bench, str | None], Iterator[str]]] = {
    "targets": targets,
    "criteria": criteria,
    "onnxsim": onnxsim,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("--work", type=Path, help="keep files, outputs and timings here")
    parser.add_argument("--onnxsim", metavar="PYTHON", help="an interpreter that has onnxsim")
    parser.add_argument("--only", default="", help="only rows whose model or pipeline has this text")
    parser.add_argument("--images", type=int, help="calibration images in place of the usual number, for a quick look")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        for text in TABLES[arguments.table](Bench(work, arguments.images, arguments.only), arguments.onnxsim):
            print(text, end="", flush=True)


if __name__ == "__main__":
    main()
