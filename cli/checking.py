"""``onnxcomp check``: does a model hold what its deployment asks of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxcomp.cli import talk
from onnxcomp.errors import GateFailure, InputError

if TYPE_CHECKING:
    from onnxcomp.gate.checking import GateReport

__all__ = ["check"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_LIMITS = (
    ("--max-size", "4MB|100KB", "Most bytes of the file and its external data; KB = 1024 bytes."),
    ("--max-params", "N", "Most parameters, such as 1.5M."),
    ("--max-macs", "N", "Most multiply-accumulates at batch 1, such as 300M."),
    ("--max-memory", "MB", "Most that loading and a run may add to the peak of resident memory."),
    ("--max-latency", "MS", "Longest median run, judged on its interval."),
    ("--max-latency-p99", "MS", "What 99 % of the runs keep to."),
    ("--min-speedup", "X", "Least speed-up over BASE, judged on its interval."),
    ("--max-layer-slowdown", "PERCENT", "Most that a layer may become slower than in BASE."),
    ("--min-accuracy", "PERCENT", "Least top-1 accuracy on the labelled data of --eval."),
    ("--max-drop", "X", "Most percentage points of top-1 accuracy lost against BASE."),
    ("--min-agreement", "PERCENT", "Least share of samples with the class that BASE gives."),
    ("--min-sqnr", "DB", "Least signal-to-noise ratio of the worst output against BASE."),
)
_REPORTS = ("--junit", "--markdown", "--sarif")


def _limit_options(command: _Command) -> _Command:
    for flag, metavar, words in reversed(_LIMITS):
        command = click.option(flag, metavar=metavar, help=words)(command)
    return command


@click.command(short_help="Hold a model to a budget, a baseline and the rules of a target.")
@click.argument("model")
@click.option("--against", metavar="BASE", help="The model that it is to replace.")
@click.option("--budget", metavar="B.yaml", help="A file with limits; flags go over it.")
@click.option("--target", metavar="T", help="Runtime the model is for.  [default: ort-x86]")
@_limit_options
@click.option("--eval", "eval_", metavar="E", help="Labelled data: .npz, .npy, a folder, or module:function.")
@click.option("--data", metavar="D", help="Data without labels, for limits that need none.")
@click.option("--require-fused", is_flag=True, help="Every weighted layer has to run on integers.")
@click.option("--allow-float", metavar="GLOB", multiple=True, help="All but these; may be repeated.")
@talk.data_options
@click.option("-o", "--output", metavar="OUT", help="Write the checked model: OUT.onnx, or OUT.ort with its .config.")
@click.option("--ort-style", metavar="STYLE", help="How an .ort is optimised: runtime or fixed.  [default: by target]")
@click.option("--report", metavar="FILE", multiple=True, help="Write the verdict: .json, .md or .html; repeatable.")
@click.option("--junit", metavar="FILE", help="Write JUnit XML, a test case a limit.")
@click.option("--markdown", metavar="FILE", help="Write Markdown, such as for the summary of a CI step.")
@click.option("--sarif", metavar="FILE", help="Write breaches of the target's rules as SARIF, for code scanning.")
@talk.common
def check(
    model: str,
    against: str | None,
    budget: str | None,
    target: str | None,
    eval_: str | None,
    data: str | None,
    require_fused: bool,
    allow_float: tuple[str, ...],
    preprocess: str | None,
    shapes: tuple[str, ...],
    threads: int | None,
    seed: int | None,
    output: str | None,
    ort_style: str | None,
    report: tuple[str, ...],
    junit: str | None,
    markdown: str | None,
    sarif: str | None,
    as_json: bool,
    quiet: bool,
    **limits: str | None,
) -> None:
    """Hold MODEL to limits: of a budget file, of flags, and the rules of the runtime it is for.

    Exit code 0: it keeps all of them; 1: it does not, and nothing is written but reports; 2: the call is wrong.

    \b
    onnxcomp check model.onnx --target tensorrt
    onnxcomp check small.onnx --against big.onnx --min-speedup 1.2 --max-size 4MB --eval eval.npz --max-drop 0.5
    onnxcomp check small.onnx --against big.onnx --budget budget.yaml --eval eval.npz --junit check.xml
    onnxcomp check model.onnx --target ort-mobile --shapes x:1x3x224x224 -o model.ort
    """
    from onnxcomp.data import Preprocess
    from onnxcomp.gate.checking import check as hold
    from onnxcomp.gate.checking import resolved

    files = {"--junit": junit, "--markdown": markdown, "--sarif": sarif}
    wanted = {flag: path for flag, path in {"-o": output, **files}.items() if path is not None}
    models = (model, *filter(None, (against,)))
    for path in models:
        talk.check_model(path)
    _check_files(wanted, report, models, tuple(filter(None, (budget, eval_, data, preprocess))))
    asked = resolved(
        budget,
        target=target,
        allow_float=allow_float,
        require_fused=require_fused,
        limits={name: text for name, text in limits.items() if text is not None},
        against=against,
        eval=eval_,
        data=data,
    )
    _check_output(output, ort_style, asked.target)
    with talk.progress_bar(4, quiet) as progress:
        found = hold(
            model,
            against=against,
            budget=asked,
            eval=eval_,
            data=data,
            preprocess=None if preprocess is None else Preprocess.parse(preprocess),
            shapes=talk.parse_shapes(shapes),
            threads=threads or 1,
            seed=seed or 0,
            progress=progress,
        )
        written = _write_model(found, output, ort_style, progress)
    for line in found.warnings:
        talk.warn(f"warning: {line}", quiet)
    _show(found, written, report, files, as_json)
    if not found.passed:
        fate = "" if output is None else f"\n{output!r} was not written"
        raise GateFailure(f"{model!r} {found.headline}{fate}")


def _check_files(
    files: dict[str, str], reports: tuple[str, ...], models: tuple[str, ...], sources: tuple[str, ...]
) -> None:
    """Refuse what could not be written, or would overwrite what is read, before anything slow begins."""
    from onnxcomp.report.writing import check_report_path

    for path in reports:
        check_report_path(path)
    taken = {Path(path).resolve(): "is read by this call" for path in (*models, *sources)}
    for flag, path in (*files.items(), *(("--report", path) for path in reports)):
        talk.check_folder(path, flag)
        where = Path(path).resolve()
        if where.exists() and not where.is_file():
            raise InputError(f"{flag} {path!r} is not a regular file")
        if where.exists() and where in _weights(models):
            raise InputError(f"{flag} {path!r}: weights of a model that is read lie there; give another name")
        if where in taken and (flag != "-o" or where != Path(models[0]).resolve()):  # over itself a model may go
            raise InputError(f"{flag} {path!r}: that file {taken[where]}; give another name")
        if not os.access(where if where.exists() else where.parent, os.W_OK):
            raise InputError(f"{flag} {path!r} cannot be written: no permission")
        taken[where] = f"is written by {flag} as well"


def _weights(models: tuple[str, ...]) -> set[Path]:
    """The files that the external data of the models lie in."""
    from onnxcomp.modelio import data_files

    return {file.resolve() for path in models for file in data_files(path)}


def _check_output(output: str | None, ort_style: str | None, target: str | None) -> None:
    from onnxcomp.runtime.ortformat import check_destination
    from onnxcomp.targets.target import load_target

    aim = load_target(target or "ort-x86")
    if output is None:
        if ort_style is not None:
            raise InputError("--ort-style says how an .ort file is written; give one with -o OUT.ort")
        return
    talk.check_folder(output, "-o")
    check_destination(output, aim, ort_style)


def _write_model(
    found: GateReport, output: str | None, ort_style: str | None, progress: Callable[[str], None]
) -> tuple[Path, ...]:
    from onnxcomp.runtime.ortformat import save_as
    from onnxcomp.targets.target import load_target

    if output is None or not found.passed:
        return ()
    progress("write")
    return save_as(found.subject, output, load_target(found.target), ort_style)


def _show(
    found: GateReport, written: tuple[Path, ...], reports: tuple[str, ...], files: dict[str, str | None], as_json: bool
) -> None:
    from onnxcomp.atomic import staging
    from onnxcomp.report.checkview import check_document, check_view
    from onnxcomp.report.junit import to_junit
    from onnxcomp.report.markdown import to_markdown
    from onnxcomp.report.sarif import to_sarif
    from onnxcomp.report.terminal import print_view
    from onnxcomp.report.writing import write_view

    document = check_document(found, written)
    shown = check_view(document)
    for path in reports:
        write_view(document, shown, path)
    renderers: dict[str, Callable[[], str]] = {
        "--junit": lambda: to_junit(document),
        "--markdown": lambda: to_markdown(shown, document["version"]),
        "--sarif": lambda: to_sarif(document),
    }
    with staging() as staged:
        for flag, file in files.items():
            if file is not None:
                staged.open(Path(file)).write(renderers[flag]().encode())
    if as_json:
        talk.print_json(document)
    else:
        print_view(shown)
