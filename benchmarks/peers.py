"""Quantize one model with one tool, in a process of its own, so that time and peak memory are that tool's.

    PYTHON benchmarks/peers.py KIND IN.onnx OUT.onnx CALIBRATION.npz COUNT

KIND is one of KINDS, or a pipeline of onnxcomp. PYTHON is the interpreter that has the tool: onnxruntime, nncf and
nvidia-modelopt want different versions of onnx and onnxruntime, so this file imports each of them only where it is
used. Prints one line of JSON: seconds, peak_mb, version. Linux only (peak memory).
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["DEFAULT", "KINDS", "tool_of"]

_BATCH = 32


def ort(source: Path, out: Path, name: str, images: Any, *, method: str) -> None:
    """quantize_static after quant_pre_process: QDQ, per channel, uint8 x int8."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    batches = iter(_batches(source, name, images))

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            return next(batches, None)

    prepared = out.with_suffix(".prepared.onnx")
    try:
        quant_pre_process(str(source), str(prepared))
    except Exception as error:  # that very class is raised
        if "symbolic shape" not in str(error):
            raise
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)  # as its own message advises
    quantize_static(
        str(prepared),
        str(out),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[method],
    )
    prepared.unlink()


def nncf(source: Path, out: Path, name: str, images: Any, *, mixed: bool, fast: bool, full: bool) -> None:
    """nncf.quantize; `full` keeps 8 bits for all weights, as a processor with VNNI allows."""
    import nncf
    import onnx
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    batches = _batches(source, name, images)
    advanced = AdvancedQuantizationParameters(overflow_fix=OverflowFix.DISABLE) if full else None
    quantized = nncf.quantize(
        onnx.load(source),
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset.MIXED if mixed else None,
        subset_size=len(batches),
        fast_bias_correction=fast,
        advanced_parameters=advanced,
    )
    onnx.save(quantized, out)


def modelopt(source: Path, out: Path, name: str, images: Any, *, method: str) -> None:
    """modelopt.onnx.quantization: symmetric int8 for TensorRT, weights stored as integers."""
    from modelopt.onnx.quantization import quantize

    quantize(
        str(source),
        quantize_mode="int8",
        calibration_data={name: images},
        calibration_method=method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        dq_only=True,
        log_level="ERROR",
        output_path=str(out),
    )


def onnxcomp(source: Path, out: Path, calibration: Path, pipeline: str, count: int) -> None:
    """The passes of a pipeline, one after the other, without measuring in between."""
    from onnxcomp import modelio
    from onnxcomp.contract import Context
    from onnxcomp.data import open_feeds
    from onnxcomp.graph.fold import fold
    from onnxcomp.options import replace_options
    from onnxcomp.registry import build_pipeline
    from onnxcomp.targets.target import load_target

    model = modelio.load(source)
    fold(model)
    with tempfile.TemporaryDirectory() as folder:
        context = Context(load_target("ort-x86"), Path(folder), data=open_feeds(calibration, model))
        for step in build_pipeline(pipeline):
            chosen = replace_options(step, {"samples": count}) if hasattr(step, "samples") else step
            chosen.requires(model, context)
            chosen.run(model, context)
    modelio.save(model, out)


def _batches(source: Path, name: str, images: Any) -> list[dict[str, Any]]:
    """The images in batches that the model takes."""
    import onnx

    graph = onnx.load(source, load_external_data=False).graph
    first = next(value for value in graph.input if value.name == name).type.tensor_type.shape.dim[0]
    step = first.dim_value or min(_BATCH, len(images))
    # Batches of one size: ORT's entropy calibrator takes no other.
    return [{name: images[i : i + step]} for i in range(0, len(images) - step + 1, step)]


KINDS: dict[str, Callable[[Path, Path, str, Any], None]] = {
    "ort-minmax": partial(ort, method="MinMax"),
    "ort-percentile": partial(ort, method="Percentile"),
    "ort-entropy": partial(ort, method="Entropy"),
    "nncf": partial(nncf, mixed=False, fast=True, full=False),
    "nncf-mixed": partial(nncf, mixed=True, fast=True, full=False),
    "nncf-mixed-full": partial(nncf, mixed=True, fast=True, full=True),
    "nncf-mixed-full-bc": partial(nncf, mixed=True, fast=False, full=True),
    "modelopt-max": partial(modelopt, method="max"),
    "modelopt-entropy": partial(modelopt, method="entropy"),
}
DEFAULT = tuple(KINDS)
_DISTRIBUTIONS = {"ort": "onnxruntime", "nncf": "nncf", "modelopt": "nvidia-modelopt", "onnxcomp": "onnxcomp"}


def tool_of(kind: str) -> str:
    """ort, nncf or modelopt for a kind of KINDS; onnxcomp for a pipeline."""
    return kind.split("-")[0] if kind in KINDS else "onnxcomp"


def main() -> None:
    kind, source, out, calibration, count = sys.argv[1:6]
    start = time.perf_counter()
    if kind in KINDS:
        with np.load(calibration) as data:
            name = next(key for key in data.files if key != "labels")
            images = data[name][: int(count)]
        KINDS[kind](Path(source), Path(out), name, images)
    else:
        onnxcomp(Path(source), Path(out), Path(calibration), kind, int(count))
    seconds = time.perf_counter() - start
    # Not getrusage: after a fork its maximum starts at the parent's.
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    version = importlib.metadata.version(_DISTRIBUTIONS[tool_of(kind)])
    print(json.dumps({"seconds": seconds, "peak_mb": peak, "version": version}))


if __name__ == "__main__":
    main()
