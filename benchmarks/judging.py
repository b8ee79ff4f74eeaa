"""Compile a real model in a process of its own, and judge the file against the original on images no step has seen.

Files, reports, outputs and judgements are kept in a folder and used again.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import numpy as np
from common import Array, lost_points, outputs, session, sqnr
from real import images, model_file
from scenes import SCENES, scenes

import onnxcomp
from onnxcomp.contract import Objective
from onnxcomp.report.schema import report_document
from onnxcomp.runtime.timing import Speedup, paired

__all__ = ["Bench", "Job", "Judged", "compile_job", "pictures", "points", "told"]

COUNTS = {"vgg16_cifar10": 2048, "imagenet": 256, **{model: facts[-1] for model, facts in SCENES.items()}}
_HELD_OUT = 32  # images of a model without labels
_BUDGET_IMAGES = 4096
Choices = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Job:
    """A run of the compiler.

    `replay` holds the choices of each pass, made elsewhere; empty: the passes choose. `images` overrides the usual
    number of calibration images; 0 gives none. `max_drop` is a budget in points of top-1, judged on labelled images of
    the training split that come after those.
    """

    model: str
    pipeline: str
    objective: Objective = "latency"
    replay: tuple[Choices, ...] = ()
    images: int | None = None
    max_drop: float | None = None

    @property
    def count(self) -> int:
        usual = next((count for part, count in COUNTS.items() if part in self.model), 512)
        return usual if self.images is None else self.images

    def file(self, work: Path) -> Path:
        values = [*asdict(self).values()]
        # Without a budget, files have the names of before there were budgets.
        text = json.dumps(values[:-1] if self.max_drop is None else values, sort_keys=True)
        words = "".join(c if c.isalnum() else "-" for c in self.pipeline)[:60]
        return work / f"{self.model}.{words}.{self.objective}.{sha256(text.encode()).hexdigest()[:8]}.onnx"


@dataclass(frozen=True)
class Judged:
    """A written file against the original.

    `macs` (NaN where unknown), `bytes` and `parameters` are shares of the original's; `lost` and `half` are points of
    top-1 and half their paired 95 % interval; `speed` is None where nothing was timed.
    """

    macs: float
    bytes: float
    parameters: float
    lost: float
    half: float
    decibels: float
    seconds: float
    cpu: float
    megabytes: float
    speed: Speedup | None = None
    report: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)

    @property
    def work(self) -> str:
        return "" if math.isnan(self.macs) else f"1/{1 / self.macs:.2f}"

    @property
    def drop(self) -> str:
        return points(self.lost, self.half)

    @property
    def faster(self) -> str:
        speed = self.speed
        return "" if speed is None else f"{speed.ratio:.2f} ({speed.low:.2f} to {speed.high:.2f})"

    @property
    def layers(self) -> str:
        """How many layers the first pass rewrote, of those that it looked at."""
        step = self.report["steps"][0]
        changes = len(step["changes"])
        return f"{changes if step['kept'] else 0}/{changes + len(step['skips'])}"

    @property
    def changed(self) -> bool:
        return any(step["kept"] and step["changes"] for step in self.report["steps"])


class Bench:
    """Compiles and judges, each file once.

    Args:
        work: Where everything is kept.
        count: Calibration images in place of the usual number, for a quick look.
        only: A text; rows of models or pipelines without it are left out.
    """

    def __init__(self, work: Path, count: int | None = None, only: str = "") -> None:
        self.work = work.resolve()
        self._count = count
        self._only = only

    def wanted(self, model: str, pipeline: str = "") -> bool:
        return self._only in f"{model} {pipeline}"

    def count(self, job: Job) -> int:
        """How many images a job is calibrated on."""
        return self._overridden(job).count

    def compiled(self, job: Job) -> Path:
        """The file of a job, compiled unless it is there; the report lies beside it."""
        job = self._overridden(job)
        out = job.file(self.work)
        if not out.exists():
            started = time.perf_counter()
            code = f"import sys, judging; judging.compile_job(sys.argv[1], {str(out)!r})"
            arguments = [sys.executable, "-c", code, json.dumps(asdict(job))]
            done = subprocess.run(arguments, cwd=Path(__file__).parent, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{job}\n{done.stderr}")
            _tell(
                f"{job.model} {job.pipeline} [{job.objective}]: {time.perf_counter() - started:.0f} s,"
                f" {self.report(out)['cpu']:.0f} s of CPU time"
            )
        return out

    def _overridden(self, job: Job) -> Job:
        return job if self._count is None or job.images == 0 else replace(job, images=self._count)

    def report(self, path: Path) -> dict[str, Any]:
        """The report of a file, with `seconds`, `cpu` seconds and `megabytes` of its run."""
        document: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
        return document

    def judge(self, job: Job, timed: bool = True) -> Judged:
        """Accuracy, cost and, if asked for, speed of a job's file against the original."""
        path = self.compiled(job)
        source = model_file(job.model, self.work)
        report = self.report(path)
        before, after = report["before"], report["after"]
        lost, half, decibels = self.accuracy(job.model, path)
        return Judged(
            macs=after["macs"] / before["macs"] if before["macs"] else math.nan,
            bytes=path.stat().st_size / source.stat().st_size,
            parameters=after["parameters"] / before["parameters"],
            lost=lost,
            half=half,
            decibels=decibels,
            seconds=report["seconds"],
            cpu=report["cpu"],
            megabytes=report["megabytes"],
            speed=self._speed(job.model, source, path) if timed else None,
            report=report,
        )

    def accuracy(self, model: str, path: Path) -> tuple[float, float, float]:
        """Points of top-1 that any file of a model loses, half their 95 % interval, and the SQNR of its outputs.

        The points are NaN where the model has no labelled images.
        """
        source = model_file(model, self.work)
        labels = pictures(model, "eval", 10**9)[2]
        lost, half = math.nan, math.nan
        if labels is not None:
            lost, half = lost_points(self._outputs(model, source), self._outputs(model, path), labels)
        return lost, half, self.decibels(model, source, path)

    def decibels(self, model: str, base: Path, own: Path) -> float:
        """SQNR of a file's outputs against another one's."""
        return sqnr(self._outputs(model, base), self._outputs(model, own))

    def _outputs(self, model: str, path: Path) -> list[Array]:
        kept = self.work / f"{path.name}.outputs.npz"
        if not kept.exists() or kept.stat().st_mtime < path.stat().st_mtime:
            name, x, _ = pictures(model, "eval", 10**9)
            found = outputs(session(path, threads=os.cpu_count() or 1), name, x)
            np.savez(kept, *found)
        with np.load(kept) as stored:
            return [stored[key] for key in stored.files]

    def _speed(self, model: str, source: Path, path: Path) -> Speedup:
        kept = self.work / f"{path.name}.speed.json"
        if not kept.exists() or kept.stat().st_mtime < path.stat().st_mtime:
            name, x, _ = pictures(model, "eval", 1)
            kept.write_text(json.dumps(asdict(paired(source, path, {name: x}, rounds=300, budget_s=10))))
        return Speedup(**json.loads(kept.read_text()))


def pictures(model: str, split: str, count: int) -> tuple[str, Array, Array | None]:
    """Return (input name, images, labels) of a model; None for the labels, and few images, where there are none."""
    if model not in SCENES:
        return images(model, split, count)
    name, x = scenes(model, split, min(count, SCENES[model][-1] if split == "train" else _HELD_OUT))
    return name, x, None


def points(lost: float, half: float) -> str:
    """Points of top-1 with their interval; empty where there are no labels."""
    return "" if math.isnan(lost) else f"{lost:.2f} ({lost - half:.2f} to {lost + half:.2f})"


def told(job: Job, own: Judged) -> list[str]:
    """Limits that do not hold, what was rolled back, and why layers were left alone."""
    lines = [f"fails: {failure}" for failure in own.report["failures"]]
    for step in own.report["steps"]:
        reasons = Counter(skip["reason"] for skip in step["skips"])
        changes = len(step["changes"])
        left = [f"{count}: {reason}" for reason, count in reasons.most_common(4)]
        lines += [f"{step['spec']} changes {changes} layers and leaves alone {'; '.join(left)}"] if left else []
        lines += [] if step["kept"] or not step["why"] else [f"{step['spec']} is rolled back: {step['why']}"]
    return [f"- {job.model} `{job.pipeline}`: {line}\n" for line in lines]


def compile_job(text: str, out: str) -> None:
    """Compile as a user would; write the model and its report."""
    fields: dict[str, Any] = json.loads(text)
    fields["replay"] = tuple(fields["replay"])
    job = Job(**fields)
    assert job.objective in get_args(Objective)
    work = Path(out).parent
    source = model_file(job.model, work)
    name, x, _ = pictures(job.model, "train", job.count or 1)
    scored = None
    if job.max_drop is not None:
        _, more, labels = images(job.model, "train", _BUDGET_IMAGES, job.count)
        scored = {name: more, "labels": labels}
    start = time.perf_counter()
    result = onnxcomp.optimize(
        source,
        job.pipeline,
        data={name: x} if job.count else None,
        eval=scored,
        max_drop=job.max_drop,
        objective=job.objective,
        replay=job.replay or None,
        timing_cache=work / "timings.json",
    )
    used = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "seconds": time.perf_counter() - start,
        "cpu": used.ru_utime + used.ru_stime,
        # Not getrusage: its maximum starts at the parent's.
        "megabytes": int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024,
    }
    document = {**report_document(result.report), **figures}
    Path(out).with_suffix(".json").write_text(json.dumps(document))
    result.save(out)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
