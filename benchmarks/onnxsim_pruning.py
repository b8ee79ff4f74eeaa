"""Prune one model with onnxsim, in a process of its own, so that it has its own versions of onnx and onnxruntime.

    PYTHON benchmarks/onnxsim_pruning.py METHOD AMOUNT IN.onnx OUT.onnx CALIBRATION.npz

METHOD is one of METHODS; AMOUNT is 2:4 or the share of weights that become zero. PYTHON is the interpreter that has
onnxsim. Prints one line of JSON: seconds, version.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
import time
from typing import Any

import numpy as np

__all__ = ["METHODS"]

_BATCH = 64


# Function of onnxsim, whether it sees the images, and its options. SparseGPT's damping is 0.01 by default; of 0.001,
# 0.01 and 0.1 the least one loses least on resnet20.
METHODS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "magnitude": ("apply_magnitude_pruning", False, {}),
    "magnitude-global": ("apply_magnitude_pruning", False, {"global_sparsity": True}),
    "wanda": ("apply_wanda_pruning", True, {}),
    "sparsegpt": ("apply_sparsegpt_pruning", True, {}),
    "sparsegpt-0.001": ("apply_sparsegpt_pruning", True, {"percdamp": 0.001}),
}


def main() -> None:
    import onnx

    method, amount, source, out, calibration = sys.argv[1:6]
    with np.load(calibration) as data:
        name = next(key for key in data.files if key != "labels")
        images = data[name]
    batches = [{name: images[i : i + _BATCH]} for i in range(0, len(images), _BATCH)]
    asked = dict(zip("nm", map(int, amount.split(":")), strict=True)) if ":" in amount else {"sparsity": float(amount)}
    function, sees, options = METHODS[method]
    given = {"calibration_data": batches} if sees else {}
    prune = getattr(importlib.import_module("onnxsim"), function)
    start = time.perf_counter()
    onnx.save(prune(onnx.load(source), **given, **asked, **options), out)
    print(json.dumps({"seconds": time.perf_counter() - start, "version": importlib.metadata.version("onnxsim")}))


if __name__ == "__main__":
    main()
