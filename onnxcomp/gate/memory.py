"""Peak memory: by how much loading a model and running it raises the peak of a process that has the runtime loaded."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.errors import ModelError
from onnxcomp.gate import peak
from onnxcomp.gate.limits import in_words
from onnxcomp.gate.line import Line, skipped
from onnxcomp.report.text import size

__all__ = ["memory_line", "peak_growth"]


def memory_line(measure: Callable[[], int], limit: float, base: Callable[[], int] | None) -> Line:
    """Judge the growth of peak memory; what is too much is measured once more, and the lesser value counts.

    Args:
        measure: Bytes by which the model raises the peak; raises ModelError where that cannot be told.
        limit: Most bytes.
        base: The same of the base, told where the limit is not kept.
    """
    asked = in_words("max_memory", limit)
    try:
        own = measure()
        if own > limit:
            own = min(own, measure())
        over = own > limit
        why = f"the base takes {size(base())}" if over and base is not None else ""
    except ModelError as error:
        return skipped("max_memory", asked, str(error))
    return Line(
        "max_memory", asked, size(own), "fail" if over else "pass", why, (), {"limit": limit, "value": float(own)}
    )


def peak_growth(path: Path, feed: Mapping[str, NDArray[Any]], *, threads: int = 1) -> int:
    """Return by how many bytes a model raises the peak of resident memory.

    A process of its own imports ONNX Runtime, reads the feed, opens a session with default options and runs it twice.
    The growth holds the weights, what the runtime makes of them at load, and the activations of one run.

    Args:
        path: The model's file.
        feed: Input name to array.
        threads: Intra-op threads.

    Raises:
        ModelError: The runtime cannot load or run it, or the process died, as one out of memory does.
    """
    with tempfile.TemporaryDirectory(prefix="onnxcomp-") as folder:
        file = Path(folder) / "feed.npz"
        np.savez(file, **{name: np.asarray(array) for name, array in feed.items()})  # type: ignore[arg-type]
        call = [sys.executable, "-P", str(peak.__file__), str(path), str(file), str(threads)]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"exit code {done.returncode}"
        raise ModelError(f"the process that was to measure memory ended early: {reason}") from None
    if "error" in found:
        raise ModelError(f"peak memory was not measured: {found['error']}")
    return max(0, int(found["after"]) - int(found["before"]))
