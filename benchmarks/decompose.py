"""What decompositions do to real models without training: one allocator against each form alone, data against weights.

usage: decompose.py TABLE [--work DIR] [--plot FILE.svg] [--only TEXT] [--images N]

TABLE is one of
  targets   decompose at several targets, with int8 behind, on VGG16, ResNets and mobile models
  forms     every form alone with a uniform ratio against the allocator, at equal MACs and at equal latency; --plot
            draws it
  data      the same forms and ranks fitted to data and to weights
  ratios    Tucker-2 and decompose at the parameter ratios at which VBMF ranks without data collapse plain networks

Every file is compiled as a user would, on unlabelled training images (2,048 for VGG16, 512 for the others; 256 for
ImageNet models), and judged on other images (4,948 of CIFAR-10, 650 of ImageNet) and by interleaved timing against the
fp32 original at batch 1 on one thread. Prints Markdown. Models and images come from ../shared beside the repository;
files are kept in DIR and reused by all tables, as are the times of candidates: the first run over a model takes them.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from curves import Axis, Curve, Point
from formsplot import Panel, draw
from judging import Bench, Job, Judged
from ratios import ratios

from onnxcomp.contract import Objective
from onnxcomp.options import replace_options, spec_of
from onnxcomp.registry import available, build_pipeline

VGG, RESNETS = "vgg16_cifar10", ("resnet20_cifar10", "resnet32_cifar10")
MOBILE = ("mobilenet_v2_100_224_imagenet", "squeezenet1_1_imagenet")
RESNET8, VIT = "resnet8_cifar10", "vit_pgd_2_3_16_cifar10"

TARGETS = [
    *(Job(VGG, f"decompose(macs={macs})") for macs in ("0.333", "0.2", "0.125")),
    Job(VGG, "decompose(macs=0.125),int8"),
    Job(VGG, "decompose(speedup=4)"),
    *(Job(model, p, "macs") for model in RESNETS for p in ("decompose(macs=0.714)", "decompose(macs=0.714),int8")),
    *(Job(model, "decompose(macs=0.714)") for model in RESNETS),
    *(Job(model, "decompose") for model in (*RESNETS, *MOBILE)),
]
DATA = [
    Job(VGG, "decompose(macs=0.2)"),
    *(Job(model, "decompose(macs=0.714)", "macs") for model in RESNETS),
    *(Job(model, "decompose(macs=0.8)", "macs") for model in (RESNET8, *MOBILE)),
    Job(VIT, "decompose(size=0.6)", "size"),
]


@dataclass(frozen=True)
class Contest:
    """Forms alone, each with the same share of every layer's MACs, against allocations under the same objective."""

    model: str
    objective: Objective
    axes: tuple[Axis, ...]
    pipelines: tuple[str, ...]
    shares: tuple[str, ...]


CONTESTS = (
    Contest(
        VGG,
        "latency",
        ("macs", "time"),
        tuple(job.pipeline for job in TARGETS if job.model == VGG and "int8" not in job.pipeline),
        ("0.25",),
    ),
    Contest(
        RESNETS[1],
        "macs",
        ("macs",),
        tuple(f"decompose(macs={macs})" for macs in ("0.8", "0.714", "0.6", "0.45", "0.3")),
        ("0.8", "0.7", "0.6"),
    ),
    Contest(RESNETS[1], "latency", ("time",), ("decompose", "decompose(loss=0.03)"), ("0.6",)),
)
# Forms whose steps are too coarse for a share have settings of their own.
COARSE = {"structured": ("structured(n=2)",)}
FORMS = ("tucker2", "spatial", "channel", "depthwise", "cp", "structured")

Rows = Iterator[str]


def targets(bench: Bench) -> Rows:
    """decompose at several targets."""
    yield _head(
        "model, pipeline, objective",
        "layers, MACs, bytes, top-1 drop (95 %), SQNR dB, int8 against fp32 dB, speed-up (95 %), s, CPU s, peak MB",
    )
    declined: list[str] = []
    for job in TARGETS:
        if not bench.wanted(job.model, job.pipeline):
            continue
        own = bench.judge(job)
        behind = f"{_behind(bench, job, own):.1f}" if job.pipeline.endswith(",int8") else ""
        yield (
            f"| {job.model} | `{job.pipeline}` | {job.objective} | {own.layers} | {own.work} "
            f"| 1/{1 / own.bytes:.2f} | {own.drop} | {own.decibels:.1f} | {behind} | {own.faster} "
            f"| {own.seconds:.0f} | {own.cpu:.0f} | {own.megabytes:,.0f} |\n"
        )
        declined += _declined(job, own)
    yield "\n" + "".join(declined)


def _head(texts: str, numbers: str) -> str:
    columns = [*texts.split(", "), *numbers.split(", ")]
    rules = ["---"] * len(texts.split(", ")) + ["--:"] * len(numbers.split(", "))
    return f"| {' | '.join(columns)} |\n|{'|'.join(rules)}|\n"


def _behind(bench: Bench, job: Job, own: Judged) -> float:
    """SQNR of a chain's int8 form against the same forms and ranks in fp32."""
    chains = job.pipeline.removesuffix(",int8")
    alone = bench.compiled(Job(job.model, chains, job.objective, (_choices(own),)))
    return bench.decibels(job.model, alone, bench.compiled(job))


def _choices(own: Judged) -> dict[str, dict[str, object]]:
    """What the first pass chose for each layer."""
    return {change["site"]: dict(change["choice"]) for change in own.report["steps"][0]["changes"]}


def _declined(job: Job, own: Judged) -> list[str]:
    """Why layers were left alone, the reasons counted; and what the report notes."""
    step = own.report["steps"][0]
    reasons = Counter(_reason(skip["reason"]) for skip in step["skips"])
    told = [f"{count} layers: {reason}" for reason, count in reasons.most_common()]
    told += [f"rolled back: {s['why']}" for s in own.report["steps"] if not s["kept"] and s["why"]]
    told += step["notes"]
    return [f"- {job.model} `{job.pipeline}` leaves alone {'; '.join(told)}\n"] if told else []


def _reason(text: str) -> str:
    """The first words of why a layer was left alone; where every form has a reason of its own, that none fits."""
    first = re.split("[:;]", text)[0]
    return "no form fits" if first in available() else first


def forms(bench: Bench, plot: Path | None) -> Rows:
    """Forms alone against the allocator."""
    yield _head(
        "model, pipeline, objective",
        "layers, MACs, top-1 drop (95 %), SQNR dB, speed-up (95 %), `decompose` at equal MACs: drop / dB, "
        "at equal speed: drop / dB",
    )
    panels: list[Panel] = []
    for contest in CONTESTS:
        jobs = [Job(contest.model, pipeline, contest.objective) for pipeline in contest.pipelines]
        if not bench.wanted(contest.model, f"forms {contest.objective}"):
            continue
        own = [_point("decompose", bench.judge(job)) for job in jobs]
        for job, point in zip(jobs, own, strict=True):
            yield _row(job, bench.judge(job), point, {})
        curves = {axis: Curve(own, axis) for axis in contest.axes}
        for form, job in _alone(contest):
            judged = bench.judge(job)
            point = _point(form, judged)
            yield _row(job, judged, point, {axis: curve.told(point) for axis, curve in curves.items()})
            own += [point] if judged.changed else []
        panels += [Panel(contest.model, axis, tuple(own)) for axis in contest.axes]
    if plot is not None:
        draw(panels, plot)


def _alone(contest: Contest) -> Iterator[tuple[str, Job]]:
    for form in FORMS:
        for pipeline in COARSE.get(form, [f"{form}(keep={share})" for share in contest.shares]):
            yield form, Job(contest.model, pipeline, contest.objective)


def _point(form: str, own: Judged) -> Point:
    assert own.speed is not None
    return Point(form, own.macs, 1 / own.speed.ratio, own.lost, own.decibels)


def _row(job: Job, own: Judged, point: Point, allocated: Mapping[Axis, str]) -> str:
    return (
        f"| {job.model} | `{job.pipeline}` | {job.objective} | {own.layers} | {point.macs:.3f} | {own.drop} "
        f"| {own.decibels:.1f} | {own.faster} | {allocated.get('macs', '')} | {allocated.get('time', '')} |\n"
    )


def data(bench: Bench) -> Rows:
    """Chains fitted to data against the same chains fitted to weights."""
    yield _head(
        "model, chains",
        "layers, MACs, bytes, drop with data (95 %), drop from weights (95 %), SQNR dB with data, SQNR dB from weights",
    )
    for job in DATA:
        if not bench.wanted(job.model, job.pipeline):
            continue
        own = bench.judge(job, timed=False)
        if not own.changed:
            yield f"| {job.model} | `{job.pipeline}` | {own.layers} | | | nothing is decomposed | | | |\n"
            continue
        blind = {site: {"use": _blind(str(choice["use"]))} for site, choice in _choices(own).items()}
        other = bench.judge(Job(job.model, "decompose(fit=weights)", job.objective, (blind,)), timed=False)
        yield (
            f"| {job.model} | `{job.pipeline}` | {own.layers} | {own.work} | 1/{1 / own.bytes:.2f} | {own.drop} "
            f"| {other.drop} | {own.decibels:.1f} | {other.decibels:.1f} |\n"
        )


def _blind(use: str) -> str:
    """The same form and ranks, fitted to the weight."""
    (form,) = build_pipeline(use)
    return spec_of(replace_options(form, {"fit": "weights"}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["targets", "forms", "data", "ratios"])
    parser.add_argument("--work", type=Path, help="keep files, outputs and timings here")
    parser.add_argument("--plot", type=Path, help="draw the table `forms` as SVG; needs matplotlib")
    parser.add_argument("--only", default="", help="only rows whose model or pipeline has this text")
    parser.add_argument("--images", type=int, help="calibration images in place of the usual number, for a quick look")
    arguments = parser.parse_args()
    tables: dict[str, Callable[[Bench], Rows]] = {
        "targets": targets,
        "forms": lambda bench: forms(bench, arguments.plot),
        "data": data,
        "ratios": ratios,
    }
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        for text in tables[arguments.table](Bench(work, arguments.images, arguments.only)):
            print(text, end="", flush=True)


if __name__ == "__main__":
    main()
