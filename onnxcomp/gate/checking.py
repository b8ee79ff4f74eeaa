"""Hold a model to its limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxcomp.data import Preprocess
from onnxcomp.gate import legality
from onnxcomp.gate.budgetfile import load_budget
from onnxcomp.gate.examination import Examination, Given
from onnxcomp.gate.families import FAMILIES, warnings
from onnxcomp.gate.limits import Limits, from_words, merged, require
from onnxcomp.gate.line import VERDICTS, Line, listed
from onnxcomp.legality.checker import check_model
from onnxcomp.legality.finding import Finding
from onnxcomp.targets.target import load_target

__all__ = ["GateReport", "check", "resolved"]

Tell = Callable[[str], None]
_DEFAULT_TARGET = "ort-x86"


@dataclass(frozen=True)
class GateReport:
    """The verdict on a model.

    Attributes:
        model: Its file, as it was given; empty for a model from memory.
        against: That of the base; None without one.
        target: The runtime whose rules counted.
        lines: One for each limit, what failed first.
        findings: Where the model breaks a rule of the target; errors first.
        data: What it was run on, in words; empty where it was not run on data of the user.
        threads: Intra-op threads of everything that was run.
        warnings: What the user should know.
        subject: The model that was checked, its shapes fixed where they were given.
    """

    model: str
    against: str | None
    target: str
    lines: tuple[Line, ...]
    findings: tuple[Finding, ...]
    data: str
    threads: int
    warnings: tuple[str, ...]
    subject: ir.Model

    @property
    def passed(self) -> bool:
        """Whether every limit is kept."""
        return all(line.passed for line in self.lines)

    @property
    def headline(self) -> str:
        """``passed: 9 of 9``, or which limits are not kept."""
        kept = sum(line.passed for line in self.lines)
        if self.passed:
            return f"passed: {kept} of {len(self.lines)}"
        missed = [line.name for line in self.lines if not line.passed]
        return f"failed: {len(missed)} of {len(self.lines)}: {listed(missed, few=8)}"


def check(
    model: str | Path | ir.Model,
    *,
    against: str | Path | ir.Model | None = None,
    budget: str | Path | Limits | None = None,
    eval: Any = None,  # noqa: A002 - the name of the contract
    data: Any = None,
    target: str | None = None,
    allow_float: Sequence[str] = (),
    require_fused: bool = False,
    preprocess: Preprocess | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    threads: int = 1,
    seed: int = 0,
    progress: Tell | None = None,
    **limits: str | float,
) -> GateReport:
    """Hold a model to its limits, as ``onnxcomp check`` does.

    Args:
        model: A path or an onnx-ir model; never modified.
        against: The base that it is compared with, likewise.
        budget: A budget file, or its limits; what the other arguments say goes over it.
        eval: Labelled data, as for :func:`onnxcomp.optimize`.
        data: Data without labels, for limits that need none.
        target: The runtime the model is for; ``ort-x86`` where neither this nor the budget says.
        allow_float: Globs of layers that may run in float; all others have to be fused.
        require_fused: Whether every weighted layer has to run on integers.
        preprocess: How a folder of images becomes the model's input.
        shapes: Concrete shapes for inputs with free sizes.
        threads: Intra-op threads of everything that is run.
        seed: Seed of made-up inputs and of the bootstrap.
        progress: Called with a line whenever a stage starts.
        limits: Any of ``max_size``, ``max_params``, ``max_macs``, ``max_memory``, ``max_latency``, ``max_latency_p99``,
            ``min_speedup``, ``max_layer_slowdown``, ``min_accuracy``, ``max_drop``, ``min_agreement`` and ``min_sqnr``;
            numbers, or texts with a unit such as ``"4MB"``.

    Raises:
        InputError: The call, a model or the data are wrong, or a limit needs something that was not given.
    """
    asked = resolved(
        budget,
        target=target,
        allow_float=allow_float,
        require_fused=require_fused,
        limits=limits,
        against=against,
        eval=eval,
        data=data,
    )
    given = Given(eval, data, preprocess, dict(shapes or {}), threads, seed)
    return _examined(model, against, asked, given, progress or (lambda line: None))


def resolved(
    budget: str | Path | Limits | None,
    *,
    target: str | None,
    allow_float: Sequence[str],
    require_fused: bool,
    limits: Mapping[str, str | float],
    against: object,
    eval: object,  # noqa: A002 - the name of the contract
    data: object,
) -> Limits:
    """Return all limits of a call, those of the arguments over those of the budget (arguments as for :func:`check`).

    Raises:
        InputError: The budget or a limit does not read, there is no such target, or a limit needs what was not given.
    """
    asked = budget if isinstance(budget, Limits) else Limits() if budget is None else load_budget(budget)
    over = dataclasses.replace(
        from_words(limits), target=target, allow_float=tuple(allow_float), require_fused=require_fused
    )
    asked = merged(asked, over)
    load_target(asked.target or _DEFAULT_TARGET)
    require(asked, against=against is not None, labelled=eval is not None, data=data is not None)
    return asked


def _examined(
    model: str | Path | ir.Model, against: str | Path | ir.Model | None, limits: Limits, given: Given, tell: Tell
) -> GateReport:
    aim = load_target(limits.target or _DEFAULT_TARGET)
    tell("load")
    exam = Examination(model, against, aim, given)
    tell("rules")
    findings = check_model(exam.own.model, aim, fates=exam.fates)
    lines = [legality.legality_line(aim.name, findings)]
    for family in FAMILIES:
        if family.concerns(exam, limits):
            tell(family.stage)
            lines += family.judge(exam, limits)
    return GateReport(
        "" if exam.own.path is None else str(exam.own.path),
        None if against is None else "" if exam.base is None or exam.base.path is None else str(exam.base.path),
        aim.name,
        tuple(sorted(lines, key=lambda line: VERDICTS.index(line.verdict))),
        findings,
        exam.data,
        given.threads,
        warnings(exam, limits),
        exam.own.model,
    )
