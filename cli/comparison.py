"""``onnxcomp compare``: how far a model is from the one it was made of, and which layer is at fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from onnxcomp.cli import talk

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxcomp.data import Feeds, Preprocess

__all__ = ["compare"]


@click.command(short_help="Compare two models, output by output and layer by layer.")
@click.argument("base")
@click.argument("other")
@click.option("--data", metavar="D", help="Data to run both on: .npz, .npy, a folder of images, or module:function.")
@click.option("--eval", "evaluation", metavar="E", help="Data with labels: accuracy of both.")
@click.option("--samples", metavar="N", type=click.IntRange(1), help="Compare layers on N samples.  [default: 128]")
@click.option("--attribute", metavar="N", type=click.IntRange(0), help="Measure shares on N samples; 0: estimate.")
@click.option("--top", metavar="N", type=click.IntRange(1), default=15, show_default=True, help="List N layers.")
@click.option("--report", "reports", metavar="FILE", multiple=True, help="Write .json, .md or .html; may be repeated.")
@talk.data_options
@talk.common
def compare(
    base: str,
    other: str,
    data: str | None,
    evaluation: str | None,
    samples: int | None,
    attribute: int | None,
    top: int,
    reports: tuple[str, ...],
    preprocess: str | None,
    shapes: tuple[str, ...],
    threads: int | None,
    seed: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare OTHER with BASE, which it was made of: all outputs, and every layer that can be told in both.

    Outputs are compared on all samples. Layers are ranked by the share of the noise at the outputs that they add, with
    the passes that rewrote them.

    \b
    onnxcomp compare model.onnx small.onnx --data images.npz
    onnxcomp compare model.onnx small.onnx --data images.npz --eval labelled.npz --report compare.html
    """
    from importlib.metadata import version

    from onnxcomp import modelio
    from onnxcomp.compare import SAMPLES, compare_models
    from onnxcomp.comparison.reading import check_inputs
    from onnxcomp.evaluate import evaluate
    from onnxcomp.report.comparison import comparison_document
    from onnxcomp.report.comparisonview import comparison_view
    from onnxcomp.report.writing import check_report_path

    for path in (base, other):
        talk.check_model(path)
    for report in reports:
        check_report_path(report, (base, other))
    sizes = talk.parse_shapes(shapes)
    with talk.progress_bar(2, quiet) as progress:
        progress("load")
        ours, theirs = modelio.load(base), modelio.load(other)
        fed = check_inputs(ours, theirs)
        feeds = _feeds(fed, data, _preprocess(preprocess), sizes, seed or 0)
        labelled = None if evaluation is None else _labelled(evaluation, fed, _preprocess(preprocess), sizes)
        progress("compare")
        count = samples or SAMPLES
        found = compare_models(ours, theirs, feeds, samples=count, attribute=attribute, threads=threads or 1)
        quality = None if labelled is None else evaluate(theirs, labelled, ours, threads=threads or 1)
    document = comparison_document(
        found,
        base=base,
        other=other,
        data=feeds.describe(),
        synthetic=feeds.synthetic,
        quality=quality,
        version=version("onnxcomp"),
    )
    talk.show(document, lambda full: comparison_view(document, None if full else top), reports, as_json, quiet)


def _preprocess(text: str | None) -> Preprocess | None:
    from onnxcomp.data import Preprocess

    return None if text is None else Preprocess.parse(text)


def _feeds(
    model: ir.Model, data: str | None, preprocess: Preprocess | None, shapes: dict[str, tuple[int, ...]], seed: int
) -> Feeds:
    from onnxcomp.data import open_feeds, synthetic_feeds

    if data is None:
        return synthetic_feeds(model, seed, shapes=shapes)
    return open_feeds(data, model, preprocess=preprocess, shapes=shapes).unlabelled()


def _labelled(data: str, model: ir.Model, preprocess: Preprocess | None, shapes: dict[str, tuple[int, ...]]) -> Feeds:
    from onnxcomp.data import open_feeds

    return open_feeds(data, model, preprocess=preprocess, need_labels=True, shapes=shapes)
