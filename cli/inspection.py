"""``onnxcomp inspect``: what a model consists of and what the passes could do with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from onnxcomp.cli import talk

if TYPE_CHECKING:
    from onnxcomp.contract import Pass
    from onnxcomp.inspection import Inspection

__all__ = ["inspect"]


@click.command(short_help="Show layers, shapes, cost, and what passes propose.")
@click.argument("model")
@click.option(
    "--target", metavar="T", default="ort-x86", show_default=True, help="Runtime that the passes are asked for."
)
@talk.common
def inspect(model: str, target: str, as_json: bool, quiet: bool) -> None:
    """Show the layers of MODEL, their shapes and cost, and what the passes could do with it.

    A pass that rewrites single layers says for each one what it would propose from the weights alone, or why not;
    nothing is timed, so that a run may still decline a proposal. A pass on the whole model is only named.
    """
    from onnxcomp import modelio
    from onnxcomp.inspection import inspect_model
    from onnxcomp.report.schema import plain

    talk.check_model(model)
    passes = _askable(quiet)
    with talk.progress_bar(len(passes) + 1, quiet) as progress:
        loaded = modelio.load(model)
        inspection = inspect_model(loaded, passes, target, progress)
    file_bytes = modelio.file_bytes(model)
    if as_json:
        talk.print_json({"schema": "onnxcomp.inspection/1", "bytes": file_bytes, **plain(inspection)})
    else:
        _print(inspection, file_bytes)


def _askable(quiet: bool) -> dict[str, Pass]:
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


def _stored(inspection: Inspection) -> list[str]:
    """The passes that only store weights in less: what they say of each layer is much the same."""
    from onnxcomp.registry import load_pass

    asked = sorted({name for layer in inspection.layers for name in layer.passes})
    return [name for name in asked if load_pass(name).saves == "bytes"]


def _taken(inspection: Inspection, name: str) -> str:
    verdicts = [layer.passes[name] for layer in inspection.layers if name in layer.passes]
    taken = sum(not verdict.startswith("no: ") for verdict in verdicts)
    return f"takes {taken} of {len(verdicts)} layers; --json says which"


def _print(inspection: Inspection, file_bytes: int) -> None:
    from onnxcomp.report.terminal import print_table
    from onnxcomp.report.text import count, size
    from onnxcomp.report.view import Table

    cost = inspection.cost
    opsets = ", ".join(f"{domain} {version}" for domain, version in inspection.opsets.items())
    facts = [
        ("file size", size(file_bytes)),
        ("parameters", count(cost.parameters)),
        ("MACs", count(cost.macs)),
        ("nodes", f"{inspection.nodes} ({', '.join(f'{n} {op}' for op, n in inspection.operators.items())})"),
        ("opset", f"{opsets}; IR {inspection.ir_version}"),
        *((f"input {name}", text) for name, text in inspection.inputs.items()),
        *((f"output {name}", text) for name, text in inspection.outputs.items()),
        *((f"{name} cannot run", reason) for name, reason in inspection.refusals.items()),
        *((name, "works on the whole model; only a run tells what it does") for name in inspection.whole),
        *((name, _taken(inspection, name)) for name in _stored(inspection)),
    ]
    print_table(Table("Model", ("", ""), tuple(facts)))
    asked = sorted({name for layer in inspection.layers for name in layer.passes} - set(_stored(inspection)))
    rows = tuple(
        (
            layer.name,
            layer.op_type,
            layer.input_shape,
            layer.output_shape,
            layer.dtype,
            count(layer.parameters),
            count(layer.macs),
            *(layer.passes.get(name, "") for name in asked),
        )
        for layer in inspection.layers
    )
    columns = ("layer", "operator", "input", "output", "weights", "parameters", "MACs", *asked)
    print()
    if rows:
        print_table(Table("Layers", columns, rows, frozenset({5, 6})))
    else:
        print("The model has no layer with weights.")
