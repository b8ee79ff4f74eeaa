"""Whether profiles add up: the sum over all layers against the time of a run without the profiler.

    python benchmarks/profile.py [--threads 1] [--work FOLDER] [MODEL ...]

Every model is profiled on made-up inputs. *Unadjusted* takes out the profiler's cost as it is on chains of small nodes;
the profile itself fits that to the model, on one half of the runs, and is compared with the other half.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from real import SHARED, model_file

from onnxcomp.data import synthetic_feeds
from onnxcomp.errors import OnnxcompError
from onnxcomp.intake import checked_model
from onnxcomp.runtime.measuring import Effort
from onnxcomp.runtime.profiling import profile_model
from onnxcomp.runtime.settings import SessionSettings

# Inputs with more than a free batch.
SHAPES = {"silero_vad_16k": {"input": (1, 512), "state": (2, 1, 128)}}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", help="stems of ../shared/models, or files")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    names = given.models or sorted({path.name.split("_fp16")[0].removesuffix(".onnx") for path in models()})
    print("| model | kernels | run, ms | profile, ms | apart | unadjusted |")
    print("|---|--:|--:|--:|--:|--:|")
    worst = 0.0
    for name in names:
        path = Path(name) if Path(name).suffix == ".onnx" else model_file(name, given.work)
        try:
            line, apart = row(path, given.threads)
        except OnnxcompError as error:
            line, apart = f"| {path.stem} | {error} | | | | |", 0.0
        worst = max(worst, abs(apart))
        print(line, flush=True)
    print(f"\nworst: {100 * worst:.1f} %")


def models() -> list[Path]:
    return [*(SHARED / "models").glob("*.onnx"), *(SHARED / "models").glob("*_fp16.npz")]


def row(path: Path, threads: int) -> tuple[str, float]:
    model = checked_model(path)
    feed = next(iter(synthetic_feeds(model, 0, shapes=SHAPES.get(path.stem)).batches(1)))
    profile = profile_model(model, feed, settings=SessionSettings(threads=threads), effort=Effort(budget_s=3.0))
    found = profile.agreement
    times = f"{found.wall_ms:.3g} | {found.profile_ms:.3g}"
    shares = f"{100 * found.difference:+.1f} % | {100 * found.unadjusted:+.1f} %"
    return f"| {path.stem} | {len(profile.kernels)} | {times} | {shares} |", found.difference


if __name__ == "__main__":
    main()
