"""``onnxcomp inspect``: what a model consists of and what the passes could do with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxcomp.cli import talk
from onnxcomp.errors import DataError, InputError

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxcomp.contract import Pass
    from onnxcomp.data import Feeds
    from onnxcomp.report.inspectionview import Order

__all__ = ["inspect"]

# What --passes means without a value; no pipeline can be written like that.
_ALL = "*"
_TOP = 40
# Letters of a line that cannot hold all that there is to say of a layer.
_NARROW = 120


@click.command(short_help="Show layers, shapes, cost, and what passes would make of them.")
@click.argument("model", required=False)
@click.option(
    "-p",
    "--passes",
    metavar="[PASSES]",
    is_flag=False,
    flag_value=_ALL,
    help="What each pass would make of each layer: of all passes, or of those in 'spatial(rank=64),int4'.",
)
@click.option("--data", metavar="D", help="With --passes: predict errors of outputs on these data, not of weights.")
@click.option(
    "--target", metavar="T", default="ort-x86", show_default=True, help="Runtime that the passes are asked for."
)
@click.option("--preprocess", metavar="K=V,...", help="How images become inputs, or a YAML file that says it.")
@click.option("--shapes", metavar="NAME:1x3x224x224", multiple=True, help="Shape of an input with symbolic sizes.")
@click.option(
    "--sort",
    "order",
    type=click.Choice(["macs", "bytes", "name", "order"]),
    default="macs",
    show_default=True,
    help="How layers are listed: by cost, by name, or in the order of the model.",
)
@click.option(
    "--top", type=click.IntRange(0), default=_TOP, show_default=True, help="Layers listed in the terminal; 0: all."
)
@click.option("--html", metavar="FILE", help="Write a page for large models: figures, and tables to sort and search.")
@click.option(
    "--report", "reports", metavar="FILE", multiple=True, help="Write it all: .json, .md or .html; may be repeated."
)
@talk.common
def inspect(
    model: str | None,
    passes: str | None,
    data: str | None,
    target: str,
    preprocess: str | None,
    shapes: tuple[str, ...],
    order: Order,
    top: int,
    html: str | None,
    reports: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Show the layers of MODEL, their shapes and cost, and which passes may be tried on each of them.

    With --passes every pass that rewrites single layers says what it would make of each one: the chain, its cost and
    the error that it predicts. Nothing is written and nothing is timed, so that a run may still decline a proposal.

    \b
    onnxcomp inspect in.onnx --passes
    onnxcomp inspect in.onnx -p "spatial(rank=64),depthwise(rank=1)" --data images.npz
    onnxcomp inspect large.onnx --html large.html
    """
    from onnxcomp import modelio
    from onnxcomp.inspection import inspect_model
    from onnxcomp.intake import checked_model
    from onnxcomp.report.inspectionview import inspection_document, inspection_view
    from onnxcomp.report.terminal import make_console, print_view
    from onnxcomp.report.writing import write_view

    path, wanted = _sorted_out(model, passes)
    talk.check_model(path)
    files = _checked(path, html, reports)
    if data is not None and wanted is None:
        raise DataError("inspect reads --data only to predict what passes lose: give --passes as well")
    asked = _everything(quiet) if wanted in (None, _ALL) else _named(wanted or "")
    with talk.progress_bar(2, quiet) as stage:
        loaded = modelio.load(path) if data is None else checked_model(path)
        feeds = _prepared(loaded, data, preprocess, shapes)
        stage("inspect")
        inspection = inspect_model(loaded, asked, target, propose=wanted is not None, data=feeds)
        if wanted not in (None, _ALL) and asked.keys() == inspection.refusals.keys():
            raise InputError("; ".join(inspection.refusals.values()))
        document = inspection_document(inspection, path, modelio.file_bytes(path))
        if files:
            stage("write")
        for file in files:
            write_view(document, inspection_view(document, full=True, order=order), file)
    if as_json:
        talk.print_json(document)
    else:
        console = make_console()
        narrow = console.width < _NARROW
        print_view(inspection_view(document, full=False, order=order, top=top or None, narrow=narrow), console)


def _checked(model: str, html: str | None, reports: tuple[str, ...]) -> tuple[str, ...]:
    """The files to write; refused before anything slow begins."""
    from onnxcomp.report.writing import check_report_path

    if html is not None and Path(html).suffix.lower() != ".html":
        raise InputError(f"--html {html!r}: the name must end in .html")
    files = reports if html is None else (*reports, html)
    for file in files:
        check_report_path(file, (model,))
    return files


def _sorted_out(model: str | None, passes: str | None) -> tuple[str, str | None]:
    """The model and the passes; ``--passes MODEL`` asks all passes about MODEL."""
    if model is None and passes is not None and Path(passes).is_file():
        return passes, _ALL
    if model is None:
        taken = "" if passes in (None, _ALL) else f" ({passes!r} was read as the value of --passes, and is no file)"
        raise click.UsageError(f"Missing argument 'MODEL'.{taken}", click.get_current_context())
    return model, passes


def _everything(quiet: bool) -> dict[str, Pass]:
    """Every pass that can be made with nothing said; one that cannot is named."""
    from onnxcomp.errors import OnnxcompError
    from onnxcomp.registry import available, build_pass
    from onnxcomp.spec import PassSpec

    passes: dict[str, Pass] = {}
    for name in available():
        try:
            passes[name] = build_pass(PassSpec(name))
        except OnnxcompError as error:
            talk.warn(f"warning: {name} is not asked: {error}", quiet)
    return passes


def _named(text: str) -> dict[str, Pass]:
    """The passes of a pipeline by spec; one may be there several times, with different options."""
    from onnxcomp.registry import build_pass
    from onnxcomp.spec import parse_pipeline

    return {str(spec): build_pass(spec) for spec in parse_pipeline(text)}


def _prepared(model: ir.Model, data: str | None, preprocess: str | None, shapes: tuple[str, ...]) -> Feeds | None:
    """Give the model the shapes that the user said, and open the data."""
    from onnxcomp.data import Preprocess, open_feeds
    from onnxcomp.graph.fixing import fix_shapes

    if shapes:
        fix_shapes(model, talk.parse_shapes(shapes))
    if data is None:
        return None
    how = None if preprocess is None else Preprocess.parse(preprocess)
    return open_feeds(data, model, preprocess=how).unlabelled()
