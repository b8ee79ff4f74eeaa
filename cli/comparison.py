"""``onnxcomp compare``: how far a model is from the one it was made of, and which layer is at fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from onnxcomp.cli import talk

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxcomp.compare import Comparison
    from onnxcomp.data import Feeds

__all__ = ["compare"]


@click.command(short_help="Compare two models, output by output and layer by layer.")
@click.argument("base")
@click.argument("other")
@click.option("--data", metavar="D", help="Data to run both on: .npz, .npy, a folder of images, or module:function.")
@talk.data_options
@talk.common
def compare(
    base: str,
    other: str,
    data: str | None,
    preprocess: str | None,
    shapes: tuple[str, ...],
    threads: int | None,
    seed: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare OTHER with BASE on data: SQNR and cosine of every output and shared tensor, and the layer at fault."""
    from onnxcomp import modelio
    from onnxcomp.compare import compare_models
    from onnxcomp.report.schema import plain

    for path in (base, other):
        talk.check_model(path)
    with talk.progress_bar(2, quiet) as progress:
        ours, theirs = modelio.load(base), modelio.load(other)
        feeds = _feeds(ours, data, preprocess, talk.parse_shapes(shapes), seed or 0)
        progress("compare")
        comparison = compare_models(ours, theirs, feeds, threads=threads or 1)
    if not comparison.related:
        shared = f"only {len(comparison.layers)} of {comparison.tensors} tensors of {base!r} are in {other!r}"
        talk.warn(f"warning: {shared}; they may not be one model, and the layer at fault means little", quiet)
    if as_json:
        facts = {"schema": "onnxcomp.comparison/1", "data": feeds.describe(), "synthetic": feeds.synthetic}
        talk.print_json({**facts, **plain(comparison)})
    else:
        _print(comparison, feeds)


def _feeds(
    model: ir.Model, data: str | None, preprocess: str | None, shapes: dict[str, tuple[int, ...]], seed: int
) -> Feeds:
    from onnxcomp.data import Preprocess, open_feeds, synthetic_feeds

    if data is None:
        return synthetic_feeds(model, seed, shapes=shapes)
    chosen = None if preprocess is None else Preprocess.parse(preprocess)
    return open_feeds(data, model, preprocess=chosen, shapes=shapes).unlabelled()


def _print(comparison: Comparison, feeds: Feeds) -> None:
    from onnxcomp.report.terminal import print_table
    from onnxcomp.report.text import decibels, percent
    from onnxcomp.report.view import Table

    quality = comparison.quality
    if feeds.synthetic:
        print("no real data was used (no --data): the figures are of synthetic inputs and say nothing about accuracy")
    else:
        print(f"compared on {talk.printable(feeds.describe())}")
    rows = [
        (name, decibels(value), f"{quality.cosine[name]:.6f}" if name in quality.cosine else "")
        for name, value in quality.sqnr.items()
    ]
    print()
    print_table(Table("Outputs", ("output", "SQNR", "cosine"), tuple(rows), frozenset({1, 2})))
    if quality.agreement is not None:
        print(f"same top-1 class: {percent(quality.agreement)} of {quality.samples:,} samples")
    layers = tuple((n.layer, n.op_type, n.tensor, decibels(n.sqnr), f"{n.cosine:.6f}") for n in comparison.layers)
    print()
    print_table(
        Table("Tensors of both models", ("layer", "operator", "tensor", "SQNR", "cosine"), layers, frozenset({3, 4}))
    )
    fault = comparison.fault
    print()
    if fault is None:
        print("no shared tensor differs")
    else:
        name = f"{fault.layer} ({fault.op_type}, tensor {fault.tensor})"
        merged = "" if fault.other == fault.layer else f", which {fault.other} computes in the other model,"
        print(talk.printable(f"at fault: {name}{merged} adds the most noise; SQNR {decibels(fault.sqnr)} after it"))
