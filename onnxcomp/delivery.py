"""What it takes to deliver a model: bytes that travel once the file is zipped, and the time to load it."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxcomp import modelio
from onnxcomp.runtime.session import open_session

__all__ = ["Delivery", "deliveries"]

_CHUNK = 1 << 20
_LEVEL = 6
# Loads of each model; fewer once they have taken this long, in seconds.
_LOADS, _FEWEST_LOADS, _LONG = 5, 3, 4.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """What one model takes.

    Attributes:
        transfer: Bytes of its file and its external data, deflated (zlib, level 6).
        load_ms: Median time to open a session of ONNX Runtime on the file, milliseconds; None where not timed.
    """

    transfer: int
    load_ms: float | None


def deliveries(models: Sequence[ir.Model], folder: Path, *, threads: int, timed: bool) -> list[Delivery]:
    """Write models to files, deflate these piece by piece, and load them in turns.

    Args:
        models: The models; not modified.
        folder: Where the files are written; they stay there.
        threads: Intra-op threads of the sessions.
        timed: Whether loading is timed.

    Raises:
        ModelError: The runtime cannot load a model.
        OutputError: The files cannot be written.
    """
    paths = [folder / f"delivered{i}.onnx" for i in range(len(models))]
    for model, path in zip(models, paths, strict=True):
        modelio.save(model, path)
    transfers = [_deflated(path) + _deflated(modelio.sidecar(path)) for path in paths]
    loads = _loads(paths, threads) if timed else [None] * len(paths)
    return [Delivery(transfer, load) for transfer, load in zip(transfers, loads, strict=True)]


def _deflated(path: Path) -> int:
    """Bytes of a file once it is deflated; 0 where there is none."""
    if not path.exists():
        return 0
    deflater, total = zlib.compressobj(_LEVEL), 0
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            total += len(deflater.compress(piece))
    return total + len(deflater.flush())


def _loads(paths: Sequence[Path], threads: int) -> list[float]:
    """Median milliseconds of opening each file; the first round finds the files cold and does not count."""
    times: list[list[float]] = []
    started = time.perf_counter()
    while len(times) <= _FEWEST_LOADS or (len(times) <= _LOADS and time.perf_counter() - started < _LONG):
        times.append([_load(path, threads) for path in paths])
    return [float(value) for value in np.median(times[1:], axis=0)]


def _load(path: Path, threads: int) -> float:
    started = time.perf_counter()
    session = open_session(path, threads=threads)
    elapsed = time.perf_counter() - started
    del session  # not while the clock runs
    return 1e3 * elapsed
