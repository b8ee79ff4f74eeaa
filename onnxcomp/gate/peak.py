"""Load a model, run it, and print how far that raised the peak of resident memory: a script for a process of its own.

It imports ONNX Runtime and NumPy and nothing else, so that what it measures is what a small service would take::

    python -P peak.py MODEL FEED.npz THREADS

It prints one JSON object: ``before`` and ``after``, bytes, or ``error``.
"""

from __future__ import annotations

import json
import sys
from typing import Any

__all__ = ["main", "peak"]

_KB = 1024


def main(model: str, feed: str, threads: str) -> dict[str, Any]:
    """Measure; return what is printed."""
    import numpy as np
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = int(threads)
    options.inter_op_num_threads = 1
    with np.load(feed, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    before = peak()
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=False)
        wanted = {value.name for value in session.get_inputs()}
        for _ in range(2):
            session.run(None, {name: array for name, array in arrays.items() if name in wanted})
    except Exception as error:  # ORT's exceptions share no other base
        return {"error": " ".join(str(error).split())[:300]}
    return {"before": before, "after": peak()}


def peak() -> int:
    """The largest resident memory of this process so far, bytes."""
    try:
        # getrusage would count what the parent held before this process became another program.
        with open("/proc/self/status", encoding="ascii") as file:
            line = next(line for line in file if line.startswith("VmHWM"))
        return int(line.split()[1]) * _KB
    except (OSError, StopIteration):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else used * _KB


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
