"""``onnxcomp calibrate``: statistics of a model's tensors, once, for many runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from onnxcomp.cli import talk
from onnxcomp.errors import DataError

if TYPE_CHECKING:
    from onnxcomp.calibration.statsfile import Statistics

__all__ = ["calibrate"]


@click.command(short_help="Collect a model's statistics once, for many runs.")
@click.argument("model", metavar="IN")
@click.option("-o", "--output", metavar="STATS", required=True, help="Where to write the statistics (an .npz file).")
@click.option("--data", metavar="D", help="Calibration data: .npz, .npy, a folder of images, or module:function.")
@click.option("--samples", type=click.IntRange(1), metavar="N", help="Use at most N samples.  [default: all]")
@talk.data_options
@talk.common
def calibrate(
    model: str,
    output: str,
    data: str | None,
    samples: int | None,
    preprocess: str | None,
    shapes: tuple[str, ...],
    threads: int | None,
    seed: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run data through the model IN and keep what int8 for any target reads of it, in the file STATS.

    \b
    onnxcomp calibrate in.onnx --data images.npz -o in.stats.npz
    onnxcomp optimize in.onnx -p int8 --stats in.stats.npz -o out.onnx
    """
    import onnxcomp
    from onnxcomp.calibration.statsfile import save_statistics
    from onnxcomp.data import Preprocess

    del seed  # nothing here is drawn at random
    talk.check_model(model)
    talk.check_folder(output, "-o")
    if data is None:
        raise DataError("calibrate needs real data: give --data")
    with talk.progress_bar(1, quiet) as progress:
        progress("calibrate")
        statistics = onnxcomp.calibrate(
            model,
            data,
            preprocess=None if preprocess is None else Preprocess.parse(preprocess),
            shapes=talk.parse_shapes(shapes),
            samples=samples,
            threads=threads or 1,
        )
        save_statistics(statistics, output)
    if as_json:
        talk.print_json(_document(statistics, output))
    else:
        print(
            f"statistics of {len(statistics.tensors):,} tensors over {statistics.samples:,} samples"
            f" in {talk.printable(output)}"
        )


def _document(statistics: Statistics, output: str) -> dict[str, object]:
    tensors = [
        {"tensor": statistics.names[key], "min": entry.histogram.low, "max": entry.histogram.high}
        for key, entry in statistics.tensors.items()
    ]
    return {
        "schema": "onnxcomp.calibration/1",
        "output": output,
        "model": statistics.model,
        "samples": statistics.samples,
        "data": statistics.data,
        "tensors": tensors,
    }
