"""``onnxcomp check``: does a model hold what its deployment asks of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxcomp.cli import talk
from onnxcomp.errors import GateFailure, InputError

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxcomp.legality.finding import Finding

__all__ = ["check"]

Check = Callable[["ir.Model"], "tuple[Finding, ...]"]


@click.command(short_help="Check a model against the rules of a target.")
@click.argument("model")
@click.option("--target", metavar="T", default="ort-x86", show_default=True, help="Runtime the model is for.")
@click.option("--shapes", metavar="NAME:1x3x224x224", multiple=True, help="Fix the shape of an input; may be repeated.")
@click.option("-o", "--output", metavar="OUT", help="Write the checked model: OUT.onnx, or OUT.ort with its .config.")
@click.option("--ort-style", metavar="STYLE", help="How an .ort is optimised: runtime or fixed.  [default: by target]")
@talk.common
def check(
    model: str,
    target: str,
    shapes: tuple[str, ...],
    output: str | None,
    ort_style: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Check MODEL against the rules of the runtime it is for.

    Exit code 0: it is legal there, warnings or not; 1: it breaks a rule, and nothing is written.

    \b
    onnxcomp check model.onnx --target tensorrt
    onnxcomp check model.onnx --target ort-mobile --shapes x:1x3x224x224 -o model.ort
    """
    from onnxcomp import modelio
    from onnxcomp.graph.fixing import fix_shapes
    from onnxcomp.runtime.ortformat import check_destination, save_as
    from onnxcomp.targets.target import load_target

    talk.check_model(model)
    aim = load_target(target)
    if output is None and ort_style is not None:
        raise InputError("--ort-style says how an .ort file is written; give one with -o OUT.ort")
    if output is not None:
        talk.check_folder(output, "-o")
        check_destination(output, aim, ort_style)
    with talk.progress_bar(2, quiet) as progress:
        subject = modelio.load(model)
        if shapes:
            fix_shapes(subject, talk.parse_shapes(shapes))
        progress("check")
        findings = tuple(finding for one in _checks(target) for finding in one(subject))
        broken = [finding for finding in findings if finding.severity == "error"]
        written: tuple[Path, ...] = ()
        if output is not None and not broken:
            progress("write")
            written = save_as(subject, output, aim, ort_style)
    _print(model, target, findings, written, as_json)
    if broken:
        fate = "" if output is None else f"\n{output!r} was not written"
        raise GateFailure(f"{model!r} breaks the rules of {target}: {_count(len(broken), 'error')}{fate}")


def _checks(target: str) -> list[Check]:
    """What the model has to pass, in the order of the report."""
    from onnxcomp.legality.checker import check_model

    return [lambda model: check_model(model, target)]


def _print(model: str, target: str, findings: tuple[Finding, ...], written: tuple[Path, ...], as_json: bool) -> None:
    from onnxcomp.report.schema import plain
    from onnxcomp.report.terminal import print_table
    from onnxcomp.report.view import Table

    errors = sum(finding.severity == "error" for finding in findings)
    if as_json:
        facts = {"schema": "onnxcomp.check/1", "model": model, "target": target, "legal": errors == 0}
        files = [str(path) for path in written]
        talk.print_json({**facts, "findings": plain(findings), "written": files})
        return
    counts = f"{_count(errors, 'error')}, {_count(len(findings) - errors, 'warning')}"
    print(f"{talk.printable(model)} is {'not ' if errors else ''}legal for {target}: {counts}")
    if findings:
        rows = tuple((f.severity, f.node or "(the model)", f.rule, f.message, f.remedy) for f in findings)
        print()
        print_table(Table("Findings", ("", "node", "rule", "what", "remedy"), rows, frozenset()))
    for path in written:
        print(f"wrote {talk.printable(str(path))}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
