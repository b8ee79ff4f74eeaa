"""Remove channels from a model with onnxsim, in a process of its own, so that it has its own versions of its libraries.

    PYTHON benchmarks/onnxsim_channels.py METHOD SHARE IN.onnx OUT.onnx CALIBRATION.npz

METHOD is one of METHODS; SHARE of the output channels of every layer that onnxsim prunes goes. PYTHON is the
interpreter that has onnxsim. Prints one line of JSON: seconds, version.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from typing import Any

import numpy as np

__all__ = ["METHODS"]

_BATCH = 16


# Whether it sees the images, and the options of onnxsim. The `global` ones rank the channels of all layers at once and
# leave residual streams and concatenations alone. onnxsim's own fit after pruning is of Gemm and MatMul only; in these
# networks it changes nothing that was measured.
METHODS: dict[str, tuple[bool, dict[str, Any]]] = {
    "l2": (False, {}),
    "l1": (False, {"importance_norm": "l1"}),
    "l2-global": (False, {"global_sparsity": True}),
    "wanda": (True, {}),
    "wanda-l1": (True, {"importance_norm": "l1"}),
    "wanda-global": (True, {"global_sparsity": True}),
}


def main() -> None:
    import onnx
    import onnxsim

    method, share, source, out, calibration = sys.argv[1:6]
    with np.load(calibration) as data:
        name = next(key for key in data.files if key != "labels")
        images = data[name]
    original, _ = onnxsim.simplify(onnx.load(source))
    # A model whose first dimension is fixed takes that many images at a time.
    fixed = next(value for value in original.graph.input if value.name == name).type.tensor_type.shape.dim[0].dim_value
    step = fixed or _BATCH
    batches = [{name: images[i : i + step]} for i in range(0, len(images), step)]
    sees, options = METHODS[method]
    start = time.perf_counter()
    if sees:
        pruned = onnxsim.apply_structured_wanda_pruning(original, batches, sparsity=float(share), **options)
    else:
        pruned = onnxsim.apply_structured_pruning(original, sparsity=float(share), **options)
    onnx.save(pruned, out)
    print(json.dumps({"seconds": time.perf_counter() - start, "version": importlib.metadata.version("onnxsim")}))


if __name__ == "__main__":
    main()
