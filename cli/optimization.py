"""``onnxcomp optimize``: compress a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from onnxcomp.cli import talk
from onnxcomp.errors import GateFailure, InputError

if TYPE_CHECKING:
    from onnxcomp.api import Result
    from onnxcomp.recipe import Recipe

__all__ = ["optimize"]

_NO_PASSES = "no passes given: name some with -p, or in a recipe under 'passes:'; 'onnxcomp passes' lists them"


@click.command(short_help="Compress a model.")
@click.argument("model", metavar="IN")
@click.option("-p", "--passes", metavar="PASSES", help="Passes to run, such as 'tucker2(rank=vbmf),int8'.")
@click.option("-o", "--output", metavar="OUT", help="Where to write the model; may be IN.")
@click.option(
    "--recipe",
    "recipe_path",
    metavar="FILE",
    help="YAML file that says the same and more; a JSON report or a written model replays.",
)
@click.option("--target", metavar="T", help="Runtime the model is for.  [default: ort-x86]")
@click.option("--data", metavar="D", help="Calibration data: .npz, .npy, a folder of images, or module:function.")
@click.option("--eval", metavar="E", help="Data to measure on, likewise; with labels, accuracy.")
@click.option("--stats", metavar="STATS", help="Statistics of IN from 'onnxcomp calibrate', in place of data.")
@click.option("--objective", metavar="O", help="What has to improve: latency, size or macs.  [default: latency]")
@click.option("--max-drop", type=float, metavar="X", help="Most that accuracy may drop, in percentage points.")
@click.option("--min-sqnr", type=float, metavar="DB", help="Least signal-to-noise ratio of the worst output, in dB.")
@click.option("--exclude", metavar="GLOB", multiple=True, help="Nodes to leave alone; may be repeated.")
@click.option(
    "--report", "reports", metavar="FILE", multiple=True, help="Write the report: .json, .md or .html; may be repeated."
)
@click.option("--require-data", is_flag=True, default=None, help="Stop where no calibration data are given.")
@click.option("--keep-failed", is_flag=True, help="Write the model even where a budget fails or the target refuses it.")
@click.option("--ort-style", metavar="STYLE", help="How OUT.ort is optimised: runtime or fixed.  [default: by target]")
@click.option("--timing-cache", metavar="FILE", help="JSON file that keeps the times of candidates between runs.")
@click.option("--dry-run", is_flag=True, help="Print the resolved recipe and stop.")
@talk.data_options
@talk.common
def optimize(
    model: str,
    output: str | None,
    recipe_path: str | None,
    reports: tuple[str, ...],
    keep_failed: bool,
    ort_style: str | None,
    timing_cache: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **flags: Any,
) -> None:
    """Compress the model IN with PASSES and write the result to OUT.

    \b
    onnxcomp optimize in.onnx -p tucker2,int8 -o out.onnx
    onnxcomp optimize in.onnx -p int8 --data images.npz --eval test.npz --max-drop 0.5 -o out.onnx
    """
    from onnxcomp.report.writing import check_report_path, write_report
    from onnxcomp.runtime.ortformat import check_destination
    from onnxcomp.targets.target import load_target

    talk.check_model(model)
    recipe = _resolve(recipe_path, flags)
    for path in reports:
        check_report_path(path, (model,))
    if dry_run:
        _print_recipe(recipe, as_json)
        return
    if output is None:
        raise click.UsageError("no output: give -o OUT", click.get_current_context())
    talk.check_folder(output, "-o")
    check_destination(output, load_target(recipe.target), ort_style)
    result = _run(model, recipe, timing_cache, quiet, layers=bool(reports) or as_json)
    for warning in result.report.warnings:
        talk.warn(f"warning: {warning}", quiet)
    failures = result.report.failures
    if keep_failed or not failures:
        result.save(output, ort_style=ort_style)
    for path in reports:
        write_report(result.report, path)
    _print_report(result, as_json)
    if failures:
        fate = (
            f"{output!r} was written as asked"
            if keep_failed
            else f"{output!r} was not written (--keep-failed writes it)"
        )
        raise GateFailure(f"{'; '.join(failures)}\n{fate}")


def _resolve(recipe_path: str | None, flags: dict[str, Any]) -> Recipe:
    """Read the recipe and put the flags over it; a flag that was not given changes nothing."""
    from onnxcomp.recipe import Recipe, RecipePass, with_values
    from onnxcomp.recipe_yaml import load_recipe
    from onnxcomp.spec import parse_pipeline
    from onnxcomp.targets.target import load_target

    recipe = Recipe() if recipe_path is None else load_recipe(recipe_path)
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    if "passes" in given:
        if not given["passes"].strip():
            raise InputError(_NO_PASSES)
        given["passes"] = tuple(RecipePass(spec) for spec in parse_pipeline(given["passes"]))
    if "shapes" in given:
        given["shapes"] = talk.parse_shapes(given["shapes"])
    recipe = with_values(recipe, given)
    if not recipe.passes:
        raise InputError(_NO_PASSES)
    load_target(recipe.target)
    return recipe.resolved()


def _print_recipe(recipe: Recipe, as_json: bool) -> None:
    from onnxcomp.recipe_yaml import recipe_document, to_yaml

    if as_json:
        talk.print_json(recipe_document(recipe))
    else:
        print(to_yaml(recipe), end="")


def _run(model: str, recipe: Recipe, timing_cache: str | None, quiet: bool, *, layers: bool) -> Result:
    import onnxcomp
    from onnxcomp.data import Preprocess

    with talk.progress_bar(len(recipe.passes) + 3, quiet) as progress:
        return onnxcomp.optimize(
            model,
            recipe.build(),
            data=recipe.data,
            eval=recipe.eval,
            stats=recipe.stats,
            target=recipe.target,
            objective=recipe.objective,
            exclude=recipe.exclude,
            overrides=[entry.layers for entry in recipe.passes],
            seed=recipe.seed,
            threads=recipe.threads,
            max_drop=recipe.max_drop,
            min_sqnr=recipe.min_sqnr,
            preprocess=None if recipe.preprocess is None else Preprocess.parse(recipe.preprocess),
            shapes=dict(recipe.shapes),
            require_data=recipe.require_data,
            replay=recipe.replay,
            timing_cache=timing_cache,
            layers=layers,
            progress=progress,
        )


def _print_report(result: Result, as_json: bool) -> None:
    from onnxcomp.report.schema import report_document
    from onnxcomp.report.terminal import print_report

    document = report_document(result.report)
    if as_json:
        talk.print_json(document)
    else:
        print_report(document)
