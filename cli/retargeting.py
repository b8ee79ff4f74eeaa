"""``onnxcomp retarget``: one calibrated int8 model for another target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from onnxcomp.cli import talk

if TYPE_CHECKING:
    from onnxcomp.quantize.retarget import Retargeted

__all__ = ["retarget"]


@click.command(short_help="Write an int8 model for another target.")
@click.argument("model", metavar="IN")
@click.option("--target", metavar="T", required=True, help="Runtime that the result is for.")
@click.option("-o", "--output", metavar="OUT", required=True, help="Where to write the model; may be IN.")
@click.option("--stats", metavar="STATS", help="Statistics of the float model, where IN does not carry its ranges.")
@talk.common
def retarget(model: str, target: str, output: str, stats: str | None, as_json: bool, quiet: bool) -> None:
    """Write the int8 model IN, calibrated once, for the target T; no data are needed.

    \b
    onnxcomp retarget int8.onnx --target ort-arm -o arm.onnx
    onnxcomp retarget int8.onnx --target tensorrt -o trt.onnx
    """
    from onnxcomp.quantize.retarget import retarget as rewrite

    talk.check_model(model)
    talk.check_folder(output, "-o")
    result = rewrite(model, target, stats=stats)
    result.save(output)
    for note in result.notes:
        talk.warn(f"note: {note}", quiet)
    if as_json:
        talk.print_json(_document(result, output))
    else:
        fidelity = "; the same numbers, bit for bit, before the runtime optimises" if result.exact else ""
        print(talk.printable(f"{result.source} -> {result.target}: {result.summary}{fidelity}"))


def _document(result: Retargeted, output: str) -> dict[str, object]:
    return {
        "schema": "onnxcomp.retarget/1",
        "output": output,
        "source": result.source,
        "target": result.target,
        "summary": result.summary,
        "exact": result.exact,
        "notes": list(result.notes),
    }
